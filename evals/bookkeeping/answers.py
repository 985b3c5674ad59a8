"""The answers of models to items, kept on disk, so that nothing is computed twice.

An answers file is JSON lines, one per item, and is only appended to. The key of a line is a hash of the model and of all that the
answer depends on: the text of the requests, as the template makes it, and the options of scoring or generation. With another
template, only items whose text changed are computed.

Items are computed in batches. The last line of a batch has "end": true; lines behind the last such line are those of a batch that
was interrupted, and are dropped. Batches follow from the items that are still missing, sorted by length, so an evaluation that is
killed and repeated computes the same batches, and its file is that of an undisturbed one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import MachineError
from common.safe_read import parse_json
from evals.scoring import Score
from evals.tasks.task import Answer, Generated


class AnswerFile:
    """Answers by key, in memory and on disk. `path=None` keeps them in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        if path is not None:
            self._read(path)

    def add(self, keys: Sequence[str], ids: Sequence[str], answers: Sequence[Answer]) -> None:
        """Append the answers of a batch. Raises MachineError if the disk refuses."""
        self.known.update(zip(keys, answers, strict=True))
        if self.path is None:
            return
        lines = [
            {"key": key, "id": item, **to_json(answer)} for key, item, answer in zip(keys, ids, answers, strict=True)
        ]
        lines[-1]["end"] = True
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MachineError(
                f"{self.path} cannot be written ({error.strerror}); its answers so far are kept"
            ) from None

    def _read(self, path: Path) -> None:
        """Read the complete batches, and cut off what is behind them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        kept, batch = 0, {}
        with path.open("rb") as file:
            for raw in file:
                try:
                    line = parse_json(raw)
                    batch[line["key"]] = from_json(line)
                except (ValueError, KeyError, TypeError):
                    break
                if not raw.endswith(b"\n"):
                    break
                if line.get("end"):
                    kept = file.tell()
                    self.known.update(batch)
                    batch = {}
        if kept != path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(kept)


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON values."""
    if isinstance(answer, Generated):
        return {"text": answer.text, "tokens": answer.tokens, "cut": answer.cut}
    return {"scores": [[s.logprob, s.tokens, s.bytes, s.greedy, s.cut, s.unknown] for s in answer]}


def from_json(line: dict[str, Any]) -> Answer:
    """The reverse of `to_json`."""
    if "text" in line:
        return Generated(line["text"], line["tokens"], line["cut"])
    return [Score(*values) for values in line["scores"]]
