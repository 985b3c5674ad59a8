"""Log-probabilities of tokens after a context: what every evaluation stands on.

A row is a context followed by what is scored. Targets that are -1 are context and padding: they are read and not
scored. So the windows of a text, the two sentences of a minimal pair and the choices of a question are all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.gpt import GPT

MAX_LOGITS = 2**26  # elements of one slice of logits: 256 MiB in float32


@dataclass(frozen=True)
class TokenScores:
    """Scores of B rows of T targets.

    Attributes:
        nats: -log p(target | all tokens before it in the row), float64 (B, T); 0 where the target is -1.
        greedy: Whether the target has the highest logit, bool (B, T); False where the target is -1.
    """

    nats: np.ndarray
    greedy: np.ndarray


def score_tokens(
    model: GPT,
    inputs: np.ndarray,
    targets: np.ndarray,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> TokenScores:
    """Score `targets` after `inputs`, int64 (B, T) each. Run it inside `model.modes.evaluating`.

    The logits are computed in slices of at most MAX_LOGITS elements, so that the memory needed does not grow with the
    batch.
    """
    flat = torch.from_numpy(targets).to(device).flatten()  # (B T,)
    rows = max(1, MAX_LOGITS // model.shape.vocab_size)
    nats, greedy = [], []
    with autocast():
        hidden = model.hidden(torch.from_numpy(inputs).to(device)).flatten(0, 1)  # (B T, D)
        for some_hidden, some_targets in zip(hidden.split(rows), flat.split(rows), strict=True):
            logits = model.unembed(some_hidden).float()  # (rows, V)
            nats.append(F.cross_entropy(logits, some_targets, ignore_index=-1, reduction="none"))
            greedy.append(logits.argmax(dim=-1) == some_targets)
    return TokenScores(
        torch.cat(nats).view(targets.shape).cpu().numpy().astype(np.float64),
        torch.cat(greedy).view(targets.shape).cpu().numpy(),
    )
