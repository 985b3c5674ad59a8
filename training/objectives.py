"""Training objectives: each maps a model and a batch to a scalar loss. A new one is a function and a line in OBJECTIVES."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from data.batch import Batch
from model.gpt import GPT
from model.loss import cross_entropy

Objective = Callable[[GPT, Batch[Tensor]], Tensor]


def next_token(model: GPT, batch: Batch[Tensor]) -> Tensor:
    """Cross-entropy of the next token: the mean over the targets that are not -1, in nats, computed in float32 also
    under autocast. It is NaN if every target is -1."""
    hidden = model.hidden(batch.inputs, batch.starts)  # (B, T, D)
    return cross_entropy(hidden.flatten(0, 1), model.vocabulary(), batch.targets.flatten(), model.shape.softcap)


OBJECTIVES: dict[str, Objective] = {"next_token": next_token}
