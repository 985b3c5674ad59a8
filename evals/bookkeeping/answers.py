"""The answers of models to items, kept on disk, so that nothing is computed twice.

An answers file is JSON lines, one per item, and is only appended to. The key of a line is a hash of the model and of all that the
answer depends on: the text of the requests, as the template makes it, and the options of scoring or generation. With another
template, only items whose text changed are computed.

Items are computed in batches. The last line of a batch has "end": true; lines behind the last such line are those of a batch that
was interrupted, and are cut off. Batches follow from the items that are still missing, sorted by length, so an evaluation that is
killed and repeated computes the same batches, and its file is that of an undisturbed one.

Whole lines that cannot be read (damage, or another version's) are left where they are and skipped; their numbers are kept for a
warning, and their items are computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from common.errors import MachineError, UserError
from common.safe_read import is_count, parse_json
from evals.scoring import Score
from evals.tasks.task import Answer, Generated

LONGEST_LINE = 16 << 20  # bytes; a line holds one item's answer


class AnswerFile:
    """Answers by key, in memory and on disk.

    Attributes:
        path: The file; None keeps answers in memory only.
        writes: Whether this process appends to the file. Of several processes, one does, and all read what was known before.
        known: The answers by key.
        unreadable: Numbers of the lines that were skipped, from 1.
    """

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """Read the file, if it exists. Raises UserError for one that cannot be read and appended to."""
        self.path, self.writes = path, writes
        self.known: dict[str, Answer] = {}
        self.unreadable: list[int] = []
        if path is None:
            return
        try:
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if writes else "rb") as file:
                self._read(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); answers are kept there: choose another folder with folder=FOLDER"
            ) from None

    def add(self, keys: Sequence[str], ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Append the answers of a batch. Raises MachineError if the disk refuses."""
        self.known.update(zip(keys, answers, strict=True))
        if self.path is None or not self.writes:
            return
        lines = [
            {"key": key, "id": item, **to_json(answer)} for key, item, answer in zip(keys, ids, answers, strict=True)
        ]
        lines[-1]["end"] = True
        try:
            # Half of a surrogate pair, which JSON may hold and UTF-8 may not, is written as its escape \udXXX.
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MachineError(
                f"{self.path} cannot be written ({error.strerror}); the answers before this batch are kept, and the same"
                " command goes on from them"
            ) from None

    def _read(self, file: IO[bytes]) -> None:
        """Read the complete batches, and cut off the lines of an interrupted one."""
        file.seek(0)
        kept, batch, damaged_tail = 0, {}, False
        for number, raw in enumerate(_lines(file), 1):
            try:
                line = parse_json(raw)
                batch[_key_of(line)] = from_json(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                if raw.endswith(b"\n"):
                    self.unreadable.append(number)
                    damaged_tail = True
                continue
            if line.get("end") and raw.endswith(b"\n"):
                self.known.update(batch)
                kept, batch, damaged_tail = file.tell(), {}, False
        if damaged_tail:  # not the work of a kill: nothing is cut off
            self.known.update(batch)
            kept = file.tell()
        if self.writes:
            file.truncate(kept)
            _end_line(file)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON values."""
    if isinstance(answer, Generated):
        return {"text": answer.text, "tokens": answer.tokens, "cut": answer.cut}
    return {"scores": [[s.logprob, s.tokens, s.bytes, s.greedy, s.cut, s.unknown] for s in answer]}


def from_json(line: dict[str, Any]) -> Answer:
    """The reverse of `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
    if "text" in line:
        if not isinstance(line["text"], str) or not is_count(line["tokens"]) or not is_count(line["cut"]):
            raise ValueError("not a generated answer")
        return Generated(line["text"], line["tokens"], line["cut"])
    scores = [Score(*values) for values in line["scores"]]
    if not all(map(_is_score, scores)):
        raise ValueError("not scores")
    return scores


def _is_score(score: Score) -> bool:
    counts = (score.tokens, score.bytes, score.cut, score.unknown)
    return isinstance(score.logprob, float) and isinstance(score.greedy, bool) and all(map(is_count, counts))


def _key_of(line: dict[str, Any]) -> str:
    if not isinstance(line["key"], str):
        raise ValueError("not a key")
    return line["key"]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file. One that is longer than LONGEST_LINE comes in parts, none of which can be read."""
    while raw := file.readline(LONGEST_LINE):
        yield raw


def _end_line(file: IO[bytes]) -> None:
    """Append an end of line if the last one has none."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
