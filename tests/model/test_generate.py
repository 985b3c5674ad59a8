"""Tests of sampling and its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from model.config import PRESETS, Shape
from model.generate import apply_repetition_penalty, generate
from model.gpt import GPT

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    built = GPT(Shape(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64, **PRESETS["llama"]))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return built


class Scripted(nn.Module):
    """A stand-in for a model, whose logits are a given function of its input tokens."""

    def __init__(self, logits: Callable[[list[int]], Tensor], vocab_size: int, block_size: int = 8) -> None:
        super().__init__()
        self.shape = Shape(n_layer=1, n_head=1, n_embd=4, block_size=block_size, vocab_size=vocab_size)
        self.wte = nn.Embedding(vocab_size, 4)
        self.logits, self.shown = logits, list[list[int]]()

    def hidden(self, tokens: Tensor) -> Tensor:
        self.shown.append(tokens[0].tolist())
        return self.logits(self.shown[-1]).expand(1, tokens.size(1), -1)

    def unembed(self, hidden: Tensor) -> Tensor:
        return hidden


def scripted(logits: list[float], block_size: int = 8) -> Any:
    return Scripted(lambda ids: torch.tensor(logits), len(logits), block_size)


def greedy_by_hand(model: GPT, count: int) -> list[int]:
    ids = list(PROMPT)
    model.eval()
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids[-16:]]))[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_temperature_zero_takes_the_most_likely_token(model: GPT) -> None:
    expected = greedy_by_hand(model, 30)
    assert generate(model, PROMPT, 30, temperature=0) == expected
    assert generate(model, PROMPT, 30, top_k=1, seed=7) == expected
    assert generate(model, PROMPT, 30, top_p=1e-6, seed=7) == expected
    assert generate(model, PROMPT, 30, seed=7) != expected


def test_the_text_depends_on_the_seed_alone(model: GPT) -> None:
    torch.manual_seed(1)
    first = generate(model, PROMPT, 30, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert generate(model, PROMPT, 30, seed=5) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(model, PROMPT, 30, seed=6) != first


def test_frequencies_follow_the_temperature() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    drawn = generate(scripted(logits), [0], 4000, temperature=0.5)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    torch.testing.assert_close(shares, (torch.tensor(logits) / 0.5).softmax(0), atol=0.03, rtol=0)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    assert set(generate(scripted(logits), [0], 300, top_k=2)) == {1, 3}
    assert set(generate(scripted(logits), [0], 300, top_k=99)) == {0, 1, 2, 3}
    assert set(generate(scripted(logits), [0], 300, top_p=0.35)) == {1}
    assert set(generate(scripted(logits), [0], 300, top_p=0.65)) == {1, 3}
    assert set(generate(scripted(logits), [0], 300, top_p=0.75)) == {1, 2, 3}
    assert set(generate(scripted(logits), [0], 300, top_p=1.0)) == {0, 1, 2, 3}


def test_end_of_text_ends_the_text_and_is_not_returned() -> None:
    counting = Scripted(lambda ids: 50.0 * nn.functional.one_hot(torch.tensor(ids[-1] + 1), 10).float(), 10)
    assert generate(counting, [2], 99, eot=7) == [3, 4, 5, 6]  # type: ignore[arg-type]
    assert generate(counting, [2], 3, eot=7) == [3, 4, 5]  # type: ignore[arg-type]


def test_padding_of_the_vocabulary_is_never_sampled() -> None:
    favoured = [0.0, 0.0, 0.0, 9.0, 9.0]
    assert set(generate(scripted(favoured), [0], 200, n_vocab=3)) == {0, 1, 2}
    assert generate(scripted(favoured), [0], 5, temperature=0, n_vocab=3) == [0] * 5
    assert set(generate(scripted(favoured), [0], 200, top_k=3, n_vocab=3)) == {0, 1, 2}


def test_only_the_last_block_is_shown_to_the_model() -> None:
    model = scripted([0.0] * 20, block_size=4)
    text = [1, 2, 3, 4, 5, 6, *generate(model, [1, 2, 3, 4, 5, 6], 5)]
    assert model.shown == [text[i - 4 : i] for i in range(6, 11)]


def test_repetition_penalty_lowers_logits_of_seen_tokens() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, -1.0])
    assert apply_repetition_penalty(logits, [0, 1, 0], 4.0).tolist() == [0.5, -8.0, 1.0, -1.0]
    assert torch.equal(apply_repetition_penalty(logits, [0, 1], 1.0), logits)
    assert logits.tolist() == [2.0, -2.0, 1.0, -1.0]
    assert generate(scripted([1.0, 0.9, 0.8, 0.7]), [0], 3, temperature=0, repetition_penalty=2.0) == [1, 2, 3]


def test_end_of_text_before_the_prompt_is_not_penalised() -> None:
    model = scripted([1.0, 0.9, 0.8, 0.7])
    assert generate(model, [0], 3, temperature=0, repetition_penalty=2.0, eot=0) == []


def test_stop_is_asked_before_each_token(model: GPT) -> None:
    shown: list[list[int]] = []

    def enough(written: Sequence[int]) -> bool:
        shown.append(list(written))
        return len(written) == 3

    written = generate(model, PROMPT, 30, stop=enough)
    assert shown == [written[:0], written[:1], written[:2], written]
    assert generate(model, PROMPT, 30, stop=lambda written: True) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(model: GPT, training: bool) -> None:
    def fail(written: Sequence[int]) -> bool:
        raise RuntimeError("enough")

    model.train(training)
    generate(model, PROMPT, 2)
    assert model.training is training
    with pytest.raises(RuntimeError, match="enough"):
        generate(model, PROMPT, 2, stop=fail)
    assert model.training is training


def test_dropout_is_off(model: GPT) -> None:
    expected = generate(model, PROMPT, 10, temperature=0)
    model.dropout.p = 0.9
    assert generate(model.train(), PROMPT, 10, temperature=0) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_ids": []}, "the prompt is empty"),
        ({"prompt_ids": [64]}, "token 64 of the prompt is outside the vocabulary of 64"),
        ({"prompt_ids": [60], "n_vocab": 50}, "token 60 of the prompt"),
        ({"n_vocab": 65}, "n_vocab=65 must be between 1 and vocab_size=64"),
    ],
)
def test_invalid_settings_are_refused(model: GPT, changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt_ids": PROMPT, "max_new_tokens": 1} | changed
    with pytest.raises(UserError, match=message):
        generate(model, **arguments)
