"""Writing text with a model, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.errors import UserError
from model.gpt import GPT
from model.modes import evaluating

COLDEST = 1e-6  # temperature; what is colder takes the most likely token, as 0 does, before float32 overflows


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
    stop: Callable[[], bool] | None = None,
) -> list[int]:
    """Up to `max_new_tokens` token ids that continue `prompt_ids`, without the prompt.

    temperature: 0 takes the most likely token. top_k, top_p (Holtzman et al. 2020, arXiv:1904.09751): sample among
    the k most likely tokens, and among the fewest that have a share p of the probability together.
    repetition_penalty: see `apply_repetition_penalty`. eot: this token ends the text and is not returned. n_vocab: ids from here on
    are padding of the vocabulary and are never sampled. stop: asked before each token; true ends the text early.

    Only the last block_size tokens are seen by the model. The text depends on the arguments alone: the draws come from
    a CPU generator of their own, seeded with `seed`. The model is left in the mode it had. Raises UserError.
    """
    n_vocab = model.shape.vocab_size if n_vocab is None else n_vocab
    if found := _mistakes(model, prompt_ids, temperature, top_k, top_p, repetition_penalty, n_vocab):
        raise UserError(*found)
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    with evaluating(model):
        while len(ids) < len(prompt_ids) + max_new_tokens and not (stop is not None and stop()):
            # of a model that is lost they may be no numbers, which cannot be drawn from
            logits = apply_repetition_penalty(_next_logits(model, ids)[:n_vocab].nan_to_num(), ids, repetition_penalty)
            token = _draw(logits, temperature, top_k, top_p, generator)
            if token == eot:
                break
            ids.append(token)
    return ids[len(prompt_ids) :]


def _mistakes(
    model: GPT,
    prompt_ids: Sequence[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float,
    n_vocab: int,
) -> list[str]:
    found = []
    if not prompt_ids:
        found.append("the prompt is empty; it needs at least one token (end-of-text begins a new document)")
    if not 1 <= n_vocab <= model.shape.vocab_size:
        found.append(f"n_vocab={n_vocab} must be between 1 and vocab_size={model.shape.vocab_size}")
    elif outside := [token for token in prompt_ids if not 0 <= token < n_vocab]:
        found.append(f"token {outside[0]} of the prompt is outside the vocabulary of {n_vocab} tokens")
    if temperature < 0:
        found.append(f"temperature={temperature} must be at least 0 (0 takes the most likely token)")
    if top_k is not None and top_k < 1:
        found.append(f"top_k={top_k} must be at least 1, or null for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        found.append(f"top_p={top_p} must be greater than 0 and at most 1, or null for no limit")
    if repetition_penalty <= 0:
        found.append(f"repetition_penalty={repetition_penalty} must be greater than 0 (1 is no penalty)")
    return found


def _next_logits(model: GPT, ids: list[int]) -> Tensor:
    """Logits (V,) of the token after `ids`, float32, on the CPU."""
    window = torch.tensor([ids[-model.shape.block_size :]], device=model.wte.weight.device)
    return model.unembed(model.hidden(window)[0, -1]).float().cpu()


def apply_repetition_penalty(logits: Tensor, ids: list[int], penalty: float) -> Tensor:
    """Make each token that `ids` already holds less likely (Keskar et al. 2019, CTRL, arXiv:1909.05858).

    A positive logit is divided by `penalty`, a negative one multiplied; 1 changes nothing.
    """
    seen = torch.tensor(sorted(set(ids)))
    penalised = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits.index_copy(0, seen, penalised)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """One token id from `logits` (n_vocab,)."""
    if temperature < COLDEST:
        return int(logits.argmax())
    # Sorting is stable, so that of equal logits top_k=1 keeps the one that argmax returns.
    ordered, order = (logits / temperature).sort(descending=True, stable=True)
    probabilities = ordered[:top_k].softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # the most likely token has 0 before it: it always stays
        probabilities = probabilities.where(before < top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
