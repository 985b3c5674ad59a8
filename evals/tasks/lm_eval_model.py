"""A model for programs that call lm-evaluation-harness themselves:

    lm_eval.simple_evaluate(model=StintLM(scorer), tasks=["hellaswag"])

This module needs the package lm_eval. evaluate.py runs tasks of the harness without it (evals/tasks/lm_eval.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.model import LM

from evals.generation import continue_prompt
from evals.scoring import Score, Scorer
from evals.tasks.lm_eval import as_item, as_request, generation_options
from evals.tasks.task import TaskOptions


class StintLM(LM):
    """The harness's interface to the model of a `Scorer`. Contexts that are too long are cut from the left."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and whether greedy decoding gives it."""
        return [(score.logprob, score.greedy) for score in self._scores(requests, "cut")]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability of each text, computed in several windows if it is too long for one."""
        return [score.logprob for score in self._scores(requests, "roll")]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the continuation of each context."""
        options, scorer = TaskOptions("lm_eval"), replace(self.scorer, too_long="cut")
        return [
            continue_prompt(
                as_item(str(number), [instance]), scorer, generation_options(instance.args[1], options)
            ).text
            for number, instance in enumerate(requests)
        ]

    def _scores(self, requests: Sequence[Any], too_long: str) -> list[Score]:
        return replace(self.scorer, too_long=too_long).score([as_request(instance) for instance in requests])
