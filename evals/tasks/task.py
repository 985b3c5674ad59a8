"""What a benchmark is made of: items, what the model is asked about each, how its answer is marked, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from evals.scoring import Request, Score

MEAN, MACRO_F1 = "mean", "macro_f1"


@dataclass(frozen=True)
class TaskOptions:
    """The options task.* of one task; see `TaskConfig` in config.py for their meaning."""

    kind: str
    path: str | None = None
    template: str | None = None
    score: str | None = None
    average: str = "phenomenon"
    ties: str = "half"
    labels: Any = None
    text_key: str | None = None
    label_key: str | None = None
    prefix: str = "empty"
    too_long: str = "refuse"
    bad_items: str = "refuse"
    max_new_tokens: int = 100
    length: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 1337

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TaskOptions:
        """The options of a task as cli/tasks.py resolves them: a mapping without those that are null."""
        return cls(**{**options, "stop": tuple(options.get("stop", ()))})


@dataclass(frozen=True)
class Item:
    """One unit of a task: a pair of sentences, a question, a text.

    Attributes:
        id: Unique within the task.
        requests: The continuations to be scored; empty for an item that is answered in free text.
        prompt: The text to be continued; None for an item whose answer is chosen by scores.
        group: The part of the task that it belongs to, e.g. its paradigm; None if the task has no parts.
        content: What the task needs to mark the answer. It is not part of the key of stored answers.
    """

    id: str
    requests: tuple[Request, ...] = ()
    prompt: str | None = None
    group: str | None = None
    content: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """A generated answer. `tokens`: how many were generated; `cut`: tokens of the prompt that the window had no room for."""

    text: str
    tokens: int
    cut: int = 0


Answer = Sequence[Score] | Generated


class Task(Protocol):
    """A benchmark, loaded.

    Attributes:
        name: Its name in the results; `kind`: its entry in `KINDS`.
        options: The options it was loaded with.
        items: In the order of its files.
        statistic: How the marks become the score of the task: MEAN (of `score`, over `group`s and `supergroup`s) or MACRO_F1
            (of `gold` and `answer`).
    """

    name: str
    kind: str
    options: TaskOptions
    items: Sequence[Item]
    statistic: str

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """Return the prediction for an item as JSON values.

        Keys of all kinds: `id`; `score`, 0 to 1, None for an item without a known right answer; `group`, the part of the task
        over which scores are averaged first (a paradigm), if it has parts; `supergroup`, the part over whose groups they are
        averaged next (a phenomenon); `gold` and `answer`. A kind may add its own.
        """
        ...

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the figures that only this kind has, of the marks of all items that were evaluated."""
        ...

    @property
    def chance(self) -> float | None:
        """The score of guessing, 0 to 1, or None if it is not defined."""
        ...


def with_items(task: Task, items: Sequence[Item]) -> Task:
    """Return the task with these items instead of its own."""
    return replace(task, items=items)  # type: ignore[type-var]


def token_counts(marks: Sequence[Mapping[str, Any]], *names: str) -> dict[str, int]:
    """Return the sum of each of these counts of tokens (cut, unknown), and in how many items it is not 0 (items_cut, ...)."""
    counts = {name: [mark.get(name, 0) for mark in marks] for name in names}
    totals = {name: sum(each) for name, each in counts.items()}
    return totals | {f"items_{name}": sum(count > 0 for count in each) for name, each in counts.items()}


def thin(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` of the items, evenly spaced within each group, in their order; all of them if there are no more.

    Each group gets at least one item where `count` allows it, and otherwise as many as its size asks for. The choice depends
    only on the groups and `count`.
    """
    if count >= len(items):
        return list(items)
    groups: dict[str | None, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group, []).append(index)
    members = list(groups.values())
    if count < len(members):
        members = _spaced(members, count)
    more, spare = count - len(members), sum(len(group) - 1 for group in members)
    chosen: list[int] = []
    taken = passed = 0  # of `more`, and of `spare`
    for group in members:
        passed += len(group) - 1
        share = more * passed // spare - taken if spare else 0
        taken += share
        chosen += _spaced(group, 1 + share)
    return [items[index] for index in sorted(chosen)]


def _spaced(values: Sequence[Any], count: int) -> list[Any]:
    """`count` of the values, evenly spaced."""
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]
