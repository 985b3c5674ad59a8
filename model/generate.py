"""Sampling from a model, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.errors import UserError
from model.gpt import GPT
from model.modes import evaluating

MIN_TEMPERATURE = 1e-6  # below it sampling is greedy, as at 0: dividing logits by it would overflow float32


def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    eot: int | None = None,
    n_vocab: int | None = None,
    stop: Callable[[Sequence[int]], bool] | None = None,
) -> list[int]:
    """Return up to `max_new_tokens` token ids that continue `prompt_ids`, without the prompt.

    The model sees the last block_size tokens only. The result depends on the arguments alone: draws use a separate CPU
    generator seeded with `seed`. The model's train or eval mode is restored. Raises UserError for an empty prompt and for
    tokens outside the vocabulary; the ranges of the sampling options are checked where they are declared (config.py).

    Args:
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Sample among the k most likely tokens; None for all.
        top_p: Sample among the fewest tokens with a total probability of at least p (Holtzman et al. 2020,
            arXiv:1904.09751); None for all.
        repetition_penalty: For the tokens of the prompt and of the text so far, but not end-of-text, see
            `apply_repetition_penalty`; 1 is no penalty.
        eot: Id of end-of-text, which ends the generation and is not returned.
        n_vocab: Number of ids in the vocabulary; larger ids are padding and are not sampled.
        stop: Called before each token with those generated so far; returning true ends the generation.
    """
    n_vocab = model.shape.vocab_size if n_vocab is None else n_vocab
    if not prompt_ids:
        raise UserError("the prompt is empty; it needs at least one token (end-of-text begins a new document)")
    if not 1 <= n_vocab <= model.shape.vocab_size:
        raise UserError(f"n_vocab={n_vocab} must be between 1 and vocab_size={model.shape.vocab_size}")
    if outside := [token for token in prompt_ids if not 0 <= token < n_vocab]:
        raise UserError(f"token {outside[0]} of the prompt is outside the vocabulary of {n_vocab} tokens")
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    with evaluating(model):
        while len(ids) < len(prompt_ids) + max_new_tokens and not (stop is not None and stop(ids[len(prompt_ids) :])):
            # A diverged model may have NaN logits, which cannot be sampled from.
            logits = _next_logits(model, ids)[:n_vocab].nan_to_num()
            # End-of-text occurs only as the beginning of a document; a penalty on it would lengthen every answer.
            seen = [token for token in ids if token != eot]
            logits = apply_repetition_penalty(logits, seen, repetition_penalty)
            token = _draw(logits, temperature, top_k, top_p, generator)
            if token == eot:
                break
            ids.append(token)
    return ids[len(prompt_ids) :]


def _next_logits(model: GPT, ids: list[int]) -> Tensor:
    """Return the logits (V,) of the token after `ids`, float32 on the CPU."""
    window = torch.tensor([ids[-model.shape.block_size :]], device=model.wte.weight.device)  # (1, T)
    return model.unembed(model.hidden(window)[0, -1]).float().cpu()  # (1, T, D) -> (D,) -> (V,)


def apply_repetition_penalty(logits: Tensor, ids: list[int], penalty: float) -> Tensor:
    """Make each token in `ids` less likely in `logits` (V,) (Keskar et al. 2019, CTRL, arXiv:1909.05858).

    A positive logit is divided by `penalty`, a negative one multiplied; 1 changes nothing. transformers'
    RepetitionPenaltyLogitsProcessor is the same.
    """
    seen = torch.tensor(sorted(set(ids)), dtype=torch.int64)
    penalised = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits.index_copy(0, seen, penalised)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """Sample one token id from `logits` (n_vocab,)."""
    if temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    # With a stable sort top_k=1 picks the same token as argmax when logits are equal.
    ordered, order = (logits / temperature).sort(descending=True, stable=True)
    probabilities = ordered[:top_k].softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the most likely token: it is always kept
        probabilities = probabilities.where(before < top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
