"""Log-probabilities of tokens given their context, the basis of all evaluations.

A row is a context followed by the tokens to score. Targets of -1, context and padding, are not scored. Windows of a text, the
two sentences of a minimal pair and the answers to a multiple-choice question can all be rows.

Shape letters: B rows of T tokens, D = n_embd, V = vocab_size, R targets in a slice.
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

MAX_LOGITS = 2**26  # most elements of a slice of logits: 256 MiB in float32


@dataclass(frozen=True)
class TokenScores:
    """Scores of the targets of B rows.

    Attributes:
        nats: -log p(target | all tokens before it in the row), float64 (B, T); 0 if the target is -1.
        greedy: Whether the target has the highest logit, bool (B, T); False if the target is -1.
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
    """Score `targets` given `inputs`, int64 (B, T) each. Call it inside `model.modes.evaluating`.

    Logits are computed in slices of at most MAX_LOGITS elements, so that their memory does not grow with the batch.
    """
    flat = torch.from_numpy(targets).to(device).flatten()  # (B * T,)
    rows = max(1, MAX_LOGITS // model.shape.vocab_size)
    nats, greedy = [], []
    with autocast():
        hidden = model.hidden(torch.from_numpy(inputs).to(device)).flatten(0, 1)  # (B * T, D)
        for hidden_slice, target_slice in zip(hidden.split(rows), flat.split(rows), strict=True):
            logits = model.unembed(hidden_slice).float()  # (R, V)
            nats.append(F.cross_entropy(logits, target_slice, ignore_index=-1, reduction="none"))  # (R,)
            greedy.append(logits.argmax(dim=-1) == target_slice)
    return TokenScores(
        torch.cat(nats).view(targets.shape).cpu().numpy().astype(np.float64),
        torch.cat(greedy).view(targets.shape).cpu().numpy(),
    )
