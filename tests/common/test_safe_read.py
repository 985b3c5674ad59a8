"""Hostile files, names and texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import MachineError, UserError, reported
from common.safe_read import is_amount, is_count, load_json, member, parse_json, read_bytes, strip_escapes


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, "ü"]}')
    assert load_json(tmp_path / "a.json") == {"a": [1, "ü"]}
    assert read_bytes(tmp_path / "a.json", 100) == b'{"a": [1, "\xc3\xbc"]}'


def test_a_file_of_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        load_json(tmp_path / "large.json")


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_bytes(tmp_path / name, 100)


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 1_000_000, b"[" * 1_000_000])
def test_deeply_nested_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="too deep"):
        parse_json(text)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "..", ".", "", "b/a", "a\\b", "a\0b", None, 3, ["a"], "./a", "b/../a"]
)
def test_a_name_out_of_a_file_never_leaves_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="not the name of a file"):
        member(tmp_path, name)
    assert member(tmp_path, "a") == tmp_path / "a"


def test_a_link_never_leaves_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "a").write_text("x")
    (home / "inside").symlink_to("a")
    (home / "outside").symlink_to("/etc/hostname")
    (home / "pipe").symlink_to("a-pipe")
    os.mkfifo(home / "a-pipe")
    (tmp_path / "moved").symlink_to(home)  # a folder that was moved to another disk
    assert member(tmp_path / "moved", "inside").read_text() == "x"
    with pytest.raises(ValueError, match="leads out"):
        member(home, "outside")
    with pytest.raises(ValueError, match="not a regular file"):
        member(home, "pipe")


def test_is_count_and_is_amount() -> None:
    assert all(map(is_count, (0, 1, 2**40)))
    assert not any(map(is_count, (-1, 2**63, 1.0, True, "1", None, [1])))
    assert all(map(is_amount, (0, 0.5, 3)))
    assert not any(map(is_amount, (-0.1, float("nan"), float("inf"), True, "1", 10**400)))


ATTACK = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\x1b]52;c;ZXZpbA==\x1b\\e\rf"


def test_escape_sequences_are_removed() -> None:
    assert strip_escapes(ATTACK) == "abc31mdef"
    assert strip_escapes("tabs\tand\nlines, ü, 東京, 😀") == "tabs\tand\nlines, ü, 東京, 😀"


@pytest.mark.parametrize("kind", [UserError, MachineError])
def test_an_error_about_a_hostile_name_is_one_harmless_line(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), reported():
        raise kind(f"{ATTACK}\nand more")
    assert capsys.readouterr().err == "error: abc31mdef\\nand more\n"
