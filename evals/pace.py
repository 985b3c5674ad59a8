"""How fast the items of an evaluation are answered, and when it will be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from common.monotonic import now
from evals.run_task import length_of
from evals.tasks.task import Task


@dataclass(frozen=True)
class Pace:
    """The state of an evaluation.

    Attributes:
        task: The name of the task that is being answered.
        items: Items of all tasks that are answered; all_items: how many there are.
        per_second: Items of this task per second; None before its first batch.
        eta_s: Seconds that the items of all tasks will still take; None before the first batch.
    """

    task: str
    items: int
    all_items: int
    per_second: float | None
    eta_s: float | None


class Pacer:
    """Follows an evaluation, task by task, and estimates the time left by the characters of the items.

    A task's items are answered longest first (`answer_prepared`), so the number of answered items says how many of the task's
    characters are done. Scored characters and generated ones take different times, and each is estimated by its own.
    """

    def __init__(self, tasks: Sequence[Task], clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._lengths = {
            task.name: [0, *accumulate(sorted(map(length_of, task.items), reverse=True))] for task in tasks
        }
        self._generated = {task.name: any(item.prompt is not None for item in task.items) for task in tasks}
        self._done = dict.fromkeys(self._lengths, 0)
        self._known: dict[str, int] = {}
        self._seconds = dict.fromkeys(self._lengths, 0.0)
        self._task, self._begun_at = "", 0.0

    def begin(self, task: str) -> None:
        """The items of a task are answered from now on. Its first `update` says how many were known before."""
        self._task, self._begun_at = task, self._clock()

    def update(self, items: int) -> Pace:
        """`items` items of the task are answered."""
        task = self._task
        self._known.setdefault(task, items)
        self._done[task] = items
        self._seconds[task] = self._clock() - self._begun_at
        computed, seconds = self.computed(task), self.seconds(task)
        per_second = computed / seconds if computed and seconds > 0 else None
        all_items = sum(len(lengths) - 1 for lengths in self._lengths.values())
        return Pace(task, sum(self._done.values()), all_items, per_second, self._eta())

    def computed(self, task: str) -> int:
        """Items of a task that were not known before."""
        return self._done[task] - self._known.get(task, 0)

    def seconds(self, task: str) -> float:
        """Seconds that the computed items of a task took."""
        return self._seconds[task]

    def _eta(self) -> float | None:
        spent = {each: self._seconds_per_character(each) for each in (False, True)}
        known = [each for each in spent.values() if each is not None]
        if not known:
            return None
        left = {name: lengths[-1] - lengths[self._done[name]] for name, lengths in self._lengths.items()}
        return sum(
            characters * (pace if (pace := spent[self._generated[name]]) is not None else known[0])
            for name, characters in left.items()
        )

    def _seconds_per_character(self, generated: bool) -> float | None:
        names = [name for name in self._known if self._generated[name] == generated]
        characters = sum(
            self._lengths[name][self._done[name]] - self._lengths[name][self._known[name]] for name in names
        )
        return sum(self._seconds[name] for name in names) / characters if characters else None
