"""Atomic writes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from common.checksum import verify_checksum
from common.json_io import is_number, read_json, write_bytes, write_json, write_text


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    for several_writers in (False, True):
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "a", "new", several_writers=several_writers)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_content_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave an empty file under the final name."""
    events: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: events.append("flush"))
    monkeypatch.setattr(Path, "replace", lambda self, target: events.append("rename"))
    write_bytes(tmp_path / "a", b"x")
    assert events == ["flush", "rename"]
    write_bytes(tmp_path / "a", b"x", durable=False)
    assert events[2:] == ["rename"]


def test_several_writers_use_separate_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    monkeypatch.setattr(Path, "replace", lambda self, target: used.add(self.name))
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        write_text(tmp_path / "page.html", "x", several_writers=True)
    assert len(used) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], {"a": (float("nan"),)}])
def test_non_finite_values_become_null(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "a.json", {"value": value})
    text = (tmp_path / "a.json").read_text()
    assert "null" in text
    assert json.loads(text, parse_constant=pytest.fail)


def test_the_checksum_covers_the_content_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a secret was taken out of the content, or a figure was not finite."""
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    content = {"origin": "https://hf_0123456789abcdef@hub", "loss": float("nan")}
    write_json(tmp_path / "a.json", content, checksummed=True)
    assert verify_checksum(read_json(tmp_path / "a.json")) == {"origin": "https://<HF_TOKEN>@hub", "loss": None}
    damaged = (tmp_path / "a.json").read_text().replace("@hub", "@hud")
    with pytest.raises(ValueError, match="checksum"):
        verify_checksum(json.loads(damaged))


def test_text_with_lone_surrogates_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "a \udce9 name")
    assert (tmp_path / "page.html").read_text() == "a ? name"


def test_numbers_are_finite_and_fit_into_a_float() -> None:
    assert all(map(is_number, (0, -1.5, 10**300)))
    assert not any(map(is_number, (True, "1", None, float("nan"), float("-inf"), 10**400)))


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "absent.json") is None
