"""Minimal pairs: does the model find the acceptable sentence more likely? BLiMP (Warstadt et al. 2020, arXiv:1912.00582).

Sentences are compared by the sum of the log-probabilities of their tokens, regardless of length. Scores are averaged over the
pairs of each paradigm, and then over paradigms (as the BabyLM challenge of 2024 and lm-evaluation-harness do), or over the
paradigms of each phenomenon and then over phenomena (as the challenge of 2023 does).
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.paths import user_path
from data.files.decompress import COMPRESSED
from evals.scoring import Request
from evals.statistics import groups_that_differ, score_of, standard_error
from evals.tasks.blimp import FIELD_OF, PHENOMENON_OF
from evals.tasks.rows import Row, item_files, read_each, rows_and_errors
from evals.tasks.task import MEAN, Answer, Generated, Item, TaskOptions, token_counts

CHANCE = 0.5
TIES = {"half": 0.5, "good": 1.0}  # the score of a pair of equally likely sentences, by task.ties
SHOWN_TIES = 100  # ids in the figures
ADVICE = "a folder of .jsonl files, a file, or a quoted glob, of pairs with sentence_good and sentence_bad"


@dataclass(frozen=True)
class MinimalPairs:
    """See `Task`. The content of an item: its `paradigm`, `phenomenon` and `field`; the last two may be None.

    Attributes:
        average: What scores are averaged over: task.average, or paradigm if the phenomenon of an item is not known.
        skipped: Invalid items that were left out.
    """

    name: str
    options: TaskOptions
    items: Sequence[Item]
    average: str
    skipped: int = 0
    kind: str = "minimal_pairs"
    statistic: str = MEAN
    chance: float = CHANCE

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """Return the prediction for an item.

        - answer: good, bad or tie: which sentence is more likely. Identical sentences are a tie.
        - logprobs: of the good and the bad sentence, nats
        - cut, unknown: tokens of both sentences, see `Score`
        - group: the paradigm; supergroup: the phenomenon, if scores are averaged over phenomena
        """
        assert not isinstance(answer, Generated)
        good, bad = (score.logprob for score in answer)
        tie = good == bad or item.requests[0] == item.requests[1]
        supergroup = {"supergroup": item.content["phenomenon"]} if self.average == "phenomenon" else {}
        return {
            "id": item.id,
            **supergroup,
            "group": item.content["paradigm"],
            "score": TIES[self.options.ties] if tie else float(good > bad),
            "gold": "good",
            "answer": "tie" if tie else "good" if good > bad else "bad",
            "logprobs": [good, bad],
            "cut": sum(score.cut for score in answer),
            "unknown": sum(score.unknown for score in answer),
        }

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The figures of minimal pairs.

        - average: what the score is averaged over; score_by_paradigm, score_by_phenomenon: both averages (None: not known)
        - margin: log-probability of the good sentence minus that of the bad one, nats, averaged as the score is, and its
          standard error.
        - paradigms: number; above_chance, below_chance: those that differ from guessing by a sign test at 5 % each
        - ties: number; tied: the ids of the first SHOWN_TIES
        - skipped: invalid items that were left out
        - cut, unknown: tokens; items_cut, items_unknown: number of items with such tokens; warnings: sentences
        - by_paradigm, by_phenomenon, by_field: {name: items, score, margin}; a phenomenon is averaged over its paradigms, and a
          field over its phenomena
        """
        margins = [{**mark, "score": _margin(mark)} for mark in marks]
        differ = groups_that_differ(marks, [{**mark, "score": CHANCE} for mark in marks])
        tied = [mark["id"] for mark in marks if mark["answer"] == "tie"]
        counts = token_counts(marks, "cut", "unknown")
        return {
            "average": self.average,
            "margin": score_of(margins, MEAN),
            "margin_standard_error": standard_error(margins, MEAN),
            "paradigms": differ["groups"],
            "above_chance": differ["better"],
            "below_chance": differ["worse"],
            "ties": len(tied),
            "tied": tied[:SHOWN_TIES],
            "skipped": self.skipped,
            **counts,
            "warnings": list(self._warnings(counts["items_unknown"])),
            **self._averages(marks),
        }

    def _averages(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The tables by paradigm, phenomenon and field, and the averages over paradigms and over phenomena."""
        places = {item.content["paradigm"]: item.content for item in self.items}
        phenomenon_of = {paradigm: content["phenomenon"] for paradigm, content in places.items()}
        field_of = {content["phenomenon"]: content["field"] for content in places.values()}
        by_paradigm = _by_paradigm(marks)
        by_phenomenon = _averaged(by_paradigm, phenomenon_of)
        return {
            "score_by_paradigm": _mean(by_paradigm),
            "score_by_phenomenon": _mean(by_phenomenon),
            "by_paradigm": by_paradigm,
            "by_phenomenon": by_phenomenon,
            "by_field": _averaged(by_phenomenon, field_of),
        }

    def _warnings(self, n_unknown: int) -> Iterator[str]:
        if n_unknown:
            yield f"the tokenizer does not know some of the text of {n_unknown:,} pairs, and reads it as one unknown token"
        with_phenomenon = sum(item.content["phenomenon"] is not None for item in self.items)
        if 0 < with_phenomenon < len(self.items):
            yield (
                f"no average over phenomena: only {with_phenomenon:,} of {len(self.items):,} pairs have a known phenomenon"
            )


def load_minimal_pairs(name: str, options: TaskOptions) -> list[Any]:
    """Load the pairs of task.path, a folder, a file or a glob of rows with `sentence_good` and `sentence_bad`.

    Other fields are optional: `UID`, the paradigm (by default the file's name); and `linguistics_term`, the phenomenon, and
    `field`, which BLiMP's own paradigms have from the paper. Ids are FILE:NUMBER, counted from 0 as BLiMP's pairID.

    Raises UserError in one line per problem.
    """
    if options.path is None:
        raise UserError(f"tasks={name} needs task.path=PATH, {ADVICE}")
    files = _files(options.path)
    rows = [(stem, number, row) for stem, file in files.items() for number, row in enumerate(rows_and_errors(file))]
    if not rows:
        raise UserError(f"{options.path} holds no pairs; task.path is {ADVICE}")
    items, skipped = read_each(rows, _item, options.bad_items)
    known = all(item.content["phenomenon"] for item in items)
    return [MinimalPairs(name, options, items, options.average if known else "paradigm", skipped)]


def _files(pattern: str) -> dict[str, Path]:
    """The files that task.path names, by their names without suffixes. Raises UserError if two have the same name."""
    path = user_path(pattern)
    matches = [] if path.exists() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
    files: dict[str, Path] = {}
    for file in [Path(match) for match in matches if Path(match).is_file()] or item_files(path):
        stem = (file.with_suffix("") if file.suffix.lower() in COMPRESSED else file).stem
        if stem in files:
            raise UserError(f"{files[stem]} and {file} are both named {stem!r}, but files name paradigms; rename one")
        files[stem] = file
    return files


def _item(numbered: tuple[str, int, Row | UserError]) -> Item:
    """Return the item of a row, given the name of its file and its number there. Raises UserError for an invalid row."""
    stem, number, row = numbered
    if isinstance(row, UserError):
        raise row
    requests = tuple(Request("", _sentence(row, key)) for key in ("sentence_good", "sentence_bad"))
    paradigm = _label(row, "UID") or stem
    phenomenon = PHENOMENON_OF.get(paradigm) or _label(row, "linguistics_term")
    field = FIELD_OF.get(phenomenon or "") or _label(row, "field")
    return Item(
        f"{stem}:{number}",
        requests,
        group=paradigm,
        content={"paradigm": paradigm, "phenomenon": phenomenon, "field": field},
    )


def _sentence(row: Row, key: str) -> str:
    text = row.text(key)
    if not text.strip():
        raise UserError(f"{row.place}: {key} is empty; correct it")
    return text


def _label(row: Row, key: str) -> str | None:
    """The text of an optional field; None if it is missing, null or empty."""
    return row.text(key) or None if row.values.get(key) is not None else None


def _by_paradigm(marks: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{paradigm: items, score, margin}"""
    values: dict[str, list[tuple[float, float]]] = {}
    for mark in marks:
        values.setdefault(mark["group"], []).append((mark["score"], _margin(mark)))
    return {name: {"items": len(of), **_means(of)} for name, of in values.items()}


def _averaged(parts: Mapping[str, dict[str, Any]], whole_of: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """{whole: items, score, margin}, averaged over the parts of each whole; empty if there is a part of no known whole."""
    values: dict[Any, list[dict[str, Any]]] = {}
    for name, part in parts.items():
        values.setdefault(whole_of[name], []).append(part)
    if None in values:
        return {}
    return {
        whole: {
            "items": sum(part["items"] for part in of),
            **_means([(part["score"], part["margin"]) for part in of]),
        }
        for whole, of in values.items()
    }


def _means(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    score, margin = np.mean(values, axis=0)
    return {"score": float(score), "margin": float(margin)}


def _margin(mark: dict[str, Any]) -> float:
    """The log-probability of the good sentence minus that of the bad one, nats."""
    good, bad = mark["logprobs"]
    return float(good - bad)


def _mean(parts: Mapping[str, dict[str, Any]]) -> float | None:
    return float(np.mean([part["score"] for part in parts.values()])) if parts else None
