"""Templates with fields, typed or from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import UserError
from evals.tasks.template import LARGEST_FILE, fields_of, load_template, render

OPTION = "task.template"


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_template(text, OPTION)
    return str(caught.value)


def test_fields_are_replaced_once_and_double_braces_are_braces() -> None:
    template = load_template("{{{text}}}: {label}{text} {{label}}", OPTION)
    assert fields_of(template) == {"text", "label"}
    # The same as str.format for templates that both allow; a brace in a field's text is only a brace.
    fields = {"text": "a {label} {{b}}", "label": "x"}
    assert render(template, fields) == template.format(**fields) == "{a {label} {{b}}}: xa {label} {{b}} {label}"


def test_escapes_are_read_where_a_template_is_typed_and_not_in_files(tmp_path: Path) -> None:
    assert load_template(r"{a}\n\t\\n\x", OPTION) == "{a}\n\t\\n\\x"
    file = tmp_path / "template.txt"
    file.write_bytes("\ufeff{a}\\n\nKlasse: {b}\n".encode())
    assert load_template(f"FILE:{file}", OPTION) == "{a}\\n\nKlasse: {b}"


def test_a_template_reaches_only_the_fields_it_is_given() -> None:
    assert render("{a.b} {a[0]}", {"a.b": "1", "a[0]": "2"}) == "1 2"
    for template in ("{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{0}", "{ a }"):
        with pytest.raises(UserError, match="is not a field"):
            render(load_template(template, OPTION), {"a": "x"})


def test_an_unknown_field_is_named_with_those_that_are_allowed() -> None:
    with pytest.raises(UserError) as caught:
        render("{txt} {label}", {"text": "a", "label": "b"})
    assert str(caught.value) == (
        "task.template: {txt} is not a field; allowed: {text}, {label}; did you mean text?; write {{ and }} for braces"
    )


@pytest.mark.parametrize("text", ["{", "a }", "{}", "{text", "text}", "{a{b}", "{{{", "{a}}"])
def test_a_brace_that_belongs_to_no_field_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, IndexError)):
        text.format()  # as str.format does
    assert "is not part of a {field}; write" in refused(text)


def test_a_file_that_is_no_template_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "No such file" in refused(f"FILE:{tmp_path}/none.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 {text}")
    assert "utf-8" in refused(f"FILE:{latin}")
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    assert "larger than 1 MiB" in refused(f"FILE:{large}")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(f"FILE:{tmp_path}/pipe")
    (tmp_path / "empty.txt").write_text("\n")
    assert "is empty" in refused(f"FILE:{tmp_path}/empty.txt")
    assert "is empty" in refused("")
    assert "\n" not in refused(f"FILE:{latin}")
