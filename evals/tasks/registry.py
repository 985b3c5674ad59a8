"""The kinds of tasks, and how a task is opened by its options."""

from __future__ import annotations

from collections.abc import Callable

from evals.tasks.classify import load_classify
from evals.tasks.competition import load_competition
from evals.tasks.generate import load_free_text
from evals.tasks.lm_eval import load_lm_eval
from evals.tasks.minimal_pairs import load_minimal_pairs
from evals.tasks.multiple_choice import load_multiple_choice
from evals.tasks.task import Task, TaskOptions

# Each function returns the tasks of one entry of tasks=; the competition's file holds several.
KINDS: dict[str, Callable[[str, TaskOptions], list[Task]]] = {
    "classify": load_classify,
    "competition": load_competition,
    "generate": load_free_text,
    "lm_eval": load_lm_eval,
    "minimal_pairs": load_minimal_pairs,
    "multiple_choice": load_multiple_choice,
    "summarise": load_free_text,
}


def open_tasks(name: str, options: TaskOptions) -> list[Task]:
    """Load the task `name`. Raises UserError in one line per problem of its files."""
    return KINDS[options.kind](name, options)
