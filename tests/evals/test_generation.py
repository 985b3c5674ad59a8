"""Tests of generated answers: where they end, what the model is shown, and what they depend on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from data.tokenizers.tokenizer import get_tokenizer
from evals.bookkeeping.answers import AnswerFile
from evals.generation import continue_prompt, shorten
from evals.run_task import Respondent, answer_items
from evals.scoring import Scorer
from evals.tasks.generate import FreeText
from evals.tasks.task import Generated, Item, TaskOptions
from model.config import PRESETS, Shape
from model.generate import generate
from model.gpt import GPT

TOKENIZER = get_tokenizer("bytes", None, Path(), "")


class Writer(nn.Module):
    """A stand-in for a model that writes `text`, then end-of-text, and notes the tokens that it is shown."""

    def __init__(self, text: str, block_size: int = 64) -> None:
        super().__init__()
        self.shape = Shape(n_layer=1, n_head=1, n_embd=4, block_size=block_size, vocab_size=TOKENIZER.n_vocab)
        self.wte = nn.Embedding(1, 4)
        self.ids, self.shown = [*map(int, TOKENIZER.encode(text)), TOKENIZER.eot], list[list[int]]()

    def hidden(self, tokens: Tensor) -> Tensor:
        self.shown.append(tokens[0].tolist())
        logits = nn.functional.one_hot(torch.tensor(self.ids[len(self.shown) - 1]), TOKENIZER.n_vocab).float()
        return logits.expand(1, tokens.size(1), -1)

    def unembed(self, hidden: Tensor) -> Tensor:
        return hidden


def scorer_of(model: Any, **changed: Any) -> Scorer:
    return Scorer(model, TOKENIZER, "cpu", contextlib.nullcontext, **changed)


def options_of(**changed: Any) -> TaskOptions:
    return TaskOptions("generate", **changed)


def write(text: str, prompt: str = "Q", **changed: Any) -> Generated:
    return continue_prompt(Item("1", prompt=prompt), scorer_of(Writer(text)), options_of(**changed))


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    built = GPT(Shape(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=TOKENIZER.n_vocab, **PRESETS["llama"]))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return built


@pytest.mark.parametrize(
    ("text", "stop", "answer"),
    [
        (" Paris\nQ: next", ("\n",), " Paris"),
        (" Paris###more", ("##",), " Paris"),  # a stop text of several tokens
        ("a END b STOP", ("STOP", "END"), "a "),  # the first in the text, not in the list
        ("東京。次の", ("。",), "東京"),  # a stop text of one character and three tokens
        ("a EN", ("END",), "a EN"),
    ],
)
def test_an_answer_ends_before_a_stop_text(text: str, stop: tuple[str, ...], answer: str) -> None:
    written = write(text, stop=stop)
    assert written.text == answer
    stopped = min((text.index(each) + len(each) for each in stop if each in text), default=len(text))
    assert written.tokens == len(text[:stopped].encode())  # nothing is generated behind it


@pytest.mark.parametrize(
    ("text", "length", "answer"),
    [
        ("One. Two two. Three.", 3, "One."),
        ("One. Two two. Three.", 4, "One."),
        ("One. Two two. Three.", 5, "One. Two two."),
        ("Pi is 3.14, I say! Yes.", 7, "Pi is 3.14, I say!"),
        ('He said "No." Then he left.', 5, 'He said "No."'),
        ("  \n One? Two.", 4, "  \n One?"),
        ("A title\nand text. More", 5, "A title"),
        ("今日は雨。明日は晴れ。", 4, "今日は雨。"),
        ("彼は「雨。」と言った。次。", 4, "彼は「雨。」"),
        ("no end at all", 3, "no end at all"),
    ],
)
def test_an_answer_ends_with_the_sentence_that_reaches_the_length(text: str, length: int, answer: str) -> None:
    assert write(text, length=length).text == answer


def test_a_sentence_that_the_token_limit_interrupts_is_left_out() -> None:
    text = "First one. A second sentence that is long"
    assert write(text, length=20, max_new_tokens=30).text == "First one."
    assert write(text, length=20, max_new_tokens=18).text == text[:18]  # shorter than the target
    assert write(text, length=20).text == text  # the model ended it
    assert write(text[11:], length=5, max_new_tokens=20).text == text[11:31]  # the only sentence
    assert write(text, max_new_tokens=30).text == text[:30]


def test_stop_texts_and_length_apply_together() -> None:
    assert write("One. Two\n\nThree.", length=3, stop=("\n\n",)).text == "One."
    assert write("One\n\nTwo. Three.", length=5, stop=("\n\n",)).text == "One"


def test_a_token_that_holds_several_ends_ends_at_the_first() -> None:
    assert shorten("a END b STOP", options_of(stop=("STOP", "END")), incomplete=False) == "a "
    assert shorten("One. Two. STOP", options_of(stop=("STOP",), length=2), incomplete=False) == "One."
    assert shorten("One STOP two.", options_of(stop=("STOP",), length=2), incomplete=False) == "One "


def test_an_answer_has_whole_characters() -> None:
    assert write("東京", max_new_tokens=5).text == "東"


@pytest.mark.parametrize(
    ("limit", "incomplete"), [(limit, incomplete) for limit in (0, 3, 9) for incomplete in (True, False)]
)
def test_an_empty_text_stays_empty(limit: int, incomplete: bool) -> None:
    assert shorten("", options_of(length=limit, stop=("x",)), incomplete) == ""


def test_end_of_text_comes_first_as_in_scoring() -> None:
    for prefix, prompt, first in [
        ("empty", "Q", ord("Q")),
        ("empty", "", TOKENIZER.eot),
        ("always", "Q", TOKENIZER.eot),
    ]:
        model = Writer("x")
        continue_prompt(Item("1", prompt=prompt), scorer_of(model, prefix=prefix), options_of())
        assert model.shown[0][0] == first


def test_a_prompt_longer_than_the_window_is_refused_or_cut() -> None:
    item = Item("q7", prompt="0123456789")
    with pytest.raises(UserError, match=r"the prompt's 10 tokens are more than the 8 .* task.too_long=cut"):
        continue_prompt(item, scorer_of(Writer("x", block_size=8)), options_of())
    model = Writer("x", block_size=8)
    assert continue_prompt(item, scorer_of(model, too_long="cut"), options_of()).cut == 2
    assert bytes(model.shown[0]) == b"23456789"


def test_prompts_that_are_too_long_are_named_before_anything_is_computed() -> None:
    model = Writer("x", block_size=8)
    items = [Item("q1", prompt="short"), Item("q2", prompt="0123456789"), Item("q3", prompt="x" * 99)]
    task = FreeText("mine", options_of(), items, "generate")
    with pytest.raises(UserError) as caught:
        answer_items(task, Respondent(scorer_of(model), "model"), AnswerFile(None))
    (message,) = caught.value.messages
    assert message.startswith(
        "mine: 2 of 3 items are too long, e.g. item q2: the prompt's 10 tokens are more than the 8"
    )
    assert model.shown == []


def test_the_beginning_of_a_prompt_that_the_answer_pushes_out_is_counted() -> None:
    model = Writer("abcd", block_size=8)
    answer = continue_prompt(Item("1", prompt="012345"), scorer_of(model), options_of(max_new_tokens=4))
    assert (bytes(model.shown[-1]), answer.cut) == (b"12345abc", 1)
    assert continue_prompt(Item("1", prompt="01"), scorer_of(Writer("a" * 30, 8)), options_of()).cut == 2
    assert continue_prompt(Item("1", prompt="01"), scorer_of(Writer("abc", 8)), options_of()).cut == 0


def test_answers_are_those_of_the_sampler(model: GPT) -> None:
    ids = list(b"Once")
    for changed in ({}, {"repetition_penalty": 1.3}, {"max_new_tokens": 7}):
        expected = generate(
            model,
            ids,
            temperature=0,
            eot=TOKENIZER.eot,
            **{"max_new_tokens": 100, **changed},  # type: ignore[arg-type]
        )
        answer = continue_prompt(Item("1", prompt="Once"), scorer_of(model), options_of(**changed))
        assert (answer.text, answer.tokens) == (TOKENIZER.decode(expected).rstrip("\ufffd"), len(expected))


def test_a_sampled_answer_depends_on_seed_and_item_alone(model: GPT) -> None:
    def answer(item: str, seed: int) -> str:
        options = options_of(temperature=1.0, max_new_tokens=12, seed=seed)
        return continue_prompt(Item(item, prompt="Once"), scorer_of(model), options).text

    first = answer("1", 5)
    assert len({first, answer("2", 5), answer("1", 6)}) == 3
    torch.manual_seed(99)
    assert answer("1", 5) == first


def test_a_signal_ends_an_answer_within_it(model: GPT) -> None:
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        continue_prompt(Item("1", prompt="Once"), scorer_of(model), options_of(), stop)
    assert len(asked) == 3
