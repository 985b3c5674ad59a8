"""Training objectives: each maps a model and a batch to a scalar loss.

To add an objective, write a function and add it to OBJECTIVES.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from data.batch import Batch
from model.gpt import GPT
from model.loss import cross_entropy

Objective = Callable[[GPT, Batch[Tensor]], Tensor]


def next_token(model: GPT, batch: Batch[Tensor]) -> Tensor:
    """Cross-entropy of the next token in nats, the mean over all targets that are not -1; NaN if every target is -1.

    It is computed in float32, also under autocast.
    """
    hidden = model.hidden(batch.inputs, batch.starts)  # (B, T, D)
    return cross_entropy(hidden.flatten(0, 1), model.vocabulary(), batch.targets.flatten(), model.shape.softcap)


OBJECTIVES: dict[str, Objective] = {"next_token": next_token}
