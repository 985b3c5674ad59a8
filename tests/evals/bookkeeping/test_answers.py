"""Answers on disk: what a kill leaves is cut off, what damage leaves is kept, and nothing is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from evals.bookkeeping.answers import AnswerFile
from evals.scoring import Score
from evals.tasks.task import Answer, Generated

FIRST = ["a", "b", "c"]
LAST = ["d", "e"]


def answer(key: str) -> Answer:
    if key in "be":
        return Generated(f"text of {key} 日本\n", 7, 2)
    return [Score(-1.5, 3, 9, True, 0, 1), Score(-ord(key) / 7, 2, 5, False)]


def add(file: AnswerFile, keys: list[str]) -> None:
    file.add(keys, [f"item {key}" for key in keys], [answer(key) for key in keys])


def written(path: Path) -> bytes:
    file = AnswerFile(path)
    add(file, FIRST)
    add(file, LAST)
    return path.read_bytes()


def test_a_file_cut_at_any_byte_of_a_batch_is_completed_to_the_same_file(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl")
    begin = len(b"".join(whole.splitlines(keepends=True)[:3]))
    path = tmp_path / "cut.jsonl"
    for length in range(begin, len(whole)):
        path.write_bytes(whole[:length])
        file = AnswerFile(path)
        assert [*file.known] == FIRST
        assert file.unreadable == []
        add(file, LAST)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "x", "scores"\n',
        b'{"key": "x", "id": "\xff", "scores": []}\n',
        b'{"key": "x", "scores": [["1", 2, 3, true, 0, 0]], "end": true}\n',
        b'{"key": "x", "scores": [[-1.0, 2]], "end": true}\n',
        b'{"key": 3, "scores": [[-1.0, 2, 3, true, 0, 0]], "end": true}\n',
        b'{"key": "x", "answers_of_version_9": 1}\n',
        b"[]\n",
        b"\0\0\0\n",
        b"[" * 100_000 + b"\n",
    ],
)
@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_a_line_that_cannot_be_read_costs_only_itself(line: bytes, at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = written(path).splitlines(keepends=True)
    damaged = b"".join([*lines[:at], line, *lines[at:]])
    path.write_bytes(damaged)
    file = AnswerFile(path)
    assert {key: file.known[key] for key in [*FIRST, *LAST]} == {key: answer(key) for key in [*FIRST, *LAST]}
    assert file.unreadable == [at + 1]
    assert path.read_bytes() == damaged
    add(file, ["f"])
    assert AnswerFile(path).known["f"] == answer("f")


def test_a_last_line_that_was_damaged_does_not_take_its_batch_along(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b'"end"', b"'end'")]))
    file = AnswerFile(path)
    assert [*file.known] == ["a", "b", "c", "d"]
    assert file.unreadable == [5]


def test_only_one_of_several_processes_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = written(path)
    path.write_bytes(whole[:-3])
    file = AnswerFile(path, writes=False)
    assert [*file.known] == FIRST
    add(file, LAST)
    assert path.read_bytes() == whole[:-3]
    assert AnswerFile(tmp_path / "none" / "b.jsonl", writes=False).known == {}


def test_text_that_utf8_cannot_hold_is_kept(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a.jsonl")
    file.add(["k"], ["half \ud800"], [Generated("half \ud83d", 1)])
    assert AnswerFile(tmp_path / "a.jsonl").known["k"] == Generated("half \ud83d", 1)
    assert json.loads((tmp_path / "a.jsonl").read_text())["id"] == "half \ud800"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a.jsonl", tmp_path / "file" / "a.jsonl"):
        with pytest.raises(UserError, match="folder=") as caught:
            AnswerFile(path)
        assert str(path) in str(caught.value)
