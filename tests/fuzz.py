"""Invalid commands: strategies made from the options in config.py, and a script's command in this process."""

from __future__ import annotations

import io
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

from hypothesis import strategies as st

from cli.groups import group_choices
from config import CONF, SCRIPTS, Option, leaves
from model.config import LARGEST

OPTIONS: dict[str, Option] = {name: option for schema in SCRIPTS.values() for name, option, _ in leaves(schema)}
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
NUMBERS = (
    "nan", "inf", "-inf", "-0.0", "0", "-1", "1", "2", "1.5", ".5", "1e3", "1e400", "1e-400", "5e-324", "-5e-324",
    "1.7976931348623157e308", "4294967297", "9" * 30, "9" * 400, "9" * 5000, "1_000", "0x10", "٣", "1e", "+1", "'1'", "1.",
)  # fmt: skip
SHAPES = (
    "", "''", '""', " ", "null", "true", "false", "yes", "[]", "[1]", "[[1,2],3]", "{}", "{a:1}", "{a:{b:[c]}}", "1,2",
    "a,b", "range(1,3)", "choice(1,2)", "glob(*)", "interval(0,1)", "sort(3,1)", "shuffle(1,2)", "float(1)", "int('x')",
    "str(1)", "bool(2)", "tag(a,1)", "extend_list(1)", "${seed}", "${nothing}", "${name}", "${oc.env:NO_SUCH_VARIABLE}",
    "${", "${oc.decode:'[1'}", "a=b", "==", "'", '"', "[", "]", "{", "(", ")", "\\", "\\'", "???", "#", "a#b", "a b",
    "\n", "a\nb", "\t", "\x1b[2J", "\udcff", "é", "東京", "😀", "-", "--help", "." * 300, "x" * 5000,
)  # fmt: skip
FLAGS = (
    "--cfg", "--resolve", "-r", "--info=x", "--nonsense", "-x", "--config-name", "-cn=nothing", "-cd=nothing", "-cp=nothing",
    "--experimental-rerun=x.pickle", "--package=x", "-", "--",
)  # fmt: skip
BACKSLASH = "\\"
SIGNS = "'\"[]{}(),=:$\\~+@#%&*?!|;<> \t\n\x1b\x7f/.-_0aA\udcff"
OUTSIDE = re.compile(r"\.\.|\$|~|(^|[\s'\"=,\[(])/")


def kinds(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every option."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from kinds(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", kind


def tunable(schema: type) -> list[str]:
    """The options that are a number, a switch or one of a few words."""
    return [name for name, kind in kinds(schema) if OPTIONS[name].choices or re.search("int|float|bool", str(kind))]


def edges(name: str) -> list[str]:
    """The ends of an option's range, what is just inside and just outside of them, and something between."""
    option = OPTIONS.get(name)
    if option is None or not option.range:
        return ["0", "1", "0.5"]
    low, high = option.ends
    near = [math.nextafter(end, to) for end in (low, high) for to in (-math.inf, math.inf)]
    whole = [str(int(end) + step) for end in (low, high) for step in (-1, 0, 1)]
    return [*map(repr, (low, high, (low + high) / 2, math.sqrt(abs(low * high)) or 0.5, *near)), *whole]


def texts() -> st.SearchStrategy[str]:
    """Any string without NUL; half of the characters are special to a shell, Hydra or YAML."""
    anything = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(st.one_of(st.sampled_from(SIGNS), anything), max_size=20)


def quoted(text: str) -> str:
    """A value that Hydra reads as this very text."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)
    return f"'{escaped}{escaped[len(escaped.rstrip(BACKSLASH)) :]}'"


def values(name: str, kind: Any) -> st.SearchStrategy[str]:
    """Values of one option as they would be typed, most of them wrong."""
    allowed = OPTIONS[name].choices if name in OPTIONS else ()
    choices = [*allowed, *(word[:-1] for word in allowed)]
    own = (
        edges(name) if re.search("int|float", str(kind)) else [*choices, "bytes", "bpe-300", "bpe-x", "gtp2", "cuda:9"]
    )
    return st.one_of(
        st.sampled_from(own),
        st.sampled_from(NUMBERS),
        st.sampled_from(SHAPES),
        texts(),
        texts().map(quoted),
    )


def sane_values(name: str, kind: Any) -> st.SearchStrategy[str]:
    """Values that the options allow: extreme ones, on purpose."""
    shown, option = str(kind), OPTIONS[name]
    if option.choices:
        return st.sampled_from(option.choices)
    if "bool" in shown:
        return st.sampled_from(["true", "false"])
    bounded = bool(option.range)
    low, high = option.ends if bounded else (0.0, 1.0)
    if "int" in shown:
        least, most = max(1, int(low)), int(high) if bounded else LARGEST.get(name.partition(".")[2], 1 << 14)
        usual = st.integers(0, 10).map(lambda power: min(most, max(least, 1 << power)))
        return st.one_of(usual, usual, st.integers(least, most), st.sampled_from([least, most])).map(str)
    low, high = low or 1e-300, high if option.range.endswith("]") else math.nextafter(high, 0)
    powers = st.floats(-300, 300).map(lambda power: 10**power)
    usual = st.floats(-4, 4).map(lambda power: 10**power)
    return st.one_of(usual, usual, powers, st.floats(low, high)).map(lambda x: min(high, max(low, x))).map(repr)


@st.composite
def keys(draw: st.DrawFn, names: list[str]) -> str:
    """An option, or a misspelling of one."""
    name = draw(st.sampled_from(names))
    if draw(st.integers(0, 9)):
        return name
    place = draw(st.integers(0, len(name) - 1))
    slips = (
        name[:place] + name[place + 1 :],
        name[:place] + draw(st.sampled_from(SIGNS)) + name[place:],
        name.rpartition(".")[2],
        f"model.{name}",
        name.upper(),
        f"{name}.x",
        f"{name}[0]",
        f"{name}@x",
        name.partition(".")[0],
    )
    return draw(st.sampled_from(slips))


@st.composite
def arguments(draw: st.DrawFn, schema: type) -> str:
    """One word of a command line."""
    known = dict(kinds(schema))
    what = draw(st.integers(0, 19))
    if what == 0:
        return draw(texts())
    if what == 1:
        return draw(st.sampled_from(FLAGS))
    if what == 2:
        group = draw(st.sampled_from(GROUPS))
        choices = st.sampled_from(group_choices(group))
        return f"{group}={draw(st.one_of(choices, choices.map(lambda name: name[1:]), st.sampled_from(SHAPES)))}"
    key = draw(keys(list(known)))
    prefix = draw(st.sampled_from(["", "+", "++", "~"])) if what == 3 else ""
    return f"{prefix}{key}={draw(values(key if key in known else 'seed', known.get(key, int)))}"


def leads_outside(word: str) -> bool:
    """Whether a path leaves the test's folder: absolute, `..`, `~`, or with a variable."""
    key, _, value = word.lstrip("+~").partition("=")
    paths = [name for name, option in OPTIONS.items() if option.path]
    return key.startswith((*paths, "hydra")) and OUTSIDE.search(value) is not None


def commands(schema: type, most: int = 4) -> st.SearchStrategy[list[str]]:
    """A few words of a command line that lead nowhere outside the folder of the test."""
    return st.lists(
        arguments(schema).filter(lambda word: not leads_outside(word)), min_size=1, max_size=most, unique=True
    )


@st.composite
def sane_commands(draw: st.DrawFn, schema: type, names: list[str], most: int = 5) -> list[str]:
    """Some options at values that are allowed."""
    known = dict(kinds(schema))
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=most, unique=True))
    return [f"{name}={draw(sane_values(name, known[name]))}" for name in chosen]


# ------------------------------------------------------------------------------------------------ running a command


class Started(BaseException):
    """Where the first thing would be spent. Not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan


@dataclass
class Answer:
    """The outcome of a command. `plan`: of the run that would have begun; `files`: what it left in its folder."""

    status: int
    out: str
    err: str
    plan: Any
    files: list[str]

    def refused(self) -> list[str]:
        """The error lines of a refusal that is as it should be."""
        lines = [line for line in self.err.splitlines() if not line.startswith("measuring this device")]
        assert self.status == 2, (self.status, self.out, self.err)
        assert lines, self.out
        assert all(line.startswith("error: ") and len(line) > 20 and line.isprintable() for line in lines), self.err
        assert len(set(lines)) == len(lines), self.err
        assert not [file for file in self.files if not file.endswith("log.txt")], self.files
        return [line.removeprefix("error: ") for line in lines]


def answer(main: Callable[[], None], program: str, words: list[str]) -> Answer:
    """Run `main` as `program` with these words, in a folder of its own, with streams as strict as a terminal's."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    status, plan = 0, None
    with tempfile.TemporaryDirectory() as folder:
        with (
            chdir(folder),
            mock.patch.object(sys, "argv", [program, *words]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Started as begun:
                plan = begun.plan
        files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))  # type: ignore[attr-defined]
    return Answer(status, texts[0], texts[1], plan, files)


def finite(content: Any, where: str = "") -> None:
    """Assert that no number in a plan or a configuration is NaN or infinite."""
    if isinstance(content, float):
        assert math.isfinite(content), where
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list | tuple)
        else ()
    )
    for key, value in items:
        finite(value, f"{where}.{key}")
