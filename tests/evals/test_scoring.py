"""Tests of the scores of continuations against single forward passes, transformers and lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import MachineError, UserError
from data.tokenizers.tokenizer import Tokenizer, own_tokenizer
from evals.scoring import Request, Score, Scorer
from model.gpt import GPT
from tests.evals.small import VARIANTS, build, bytes_tokenizer, pair_of_llamas, scorer, trained_tokenizer

SENTENCES = (
    "The cat sleeps.",
    "The cat sleep.",
    "The cats sleep.",
    "Who is it that Ann saw?",
    "Das Mädchen lacht.",
    "東京",
)
QUESTIONS = ("Q: What is red?\nA:", "A long story about a cat that sat ", "The", "x\n\n")
ANSWERS = (" blood", " the sky", " b", "it", " 7é\n")
REQUESTS = [
    *(Request("", sentence) for sentence in SENTENCES),
    *(Request(context, answer) for context in QUESTIONS for answer in ANSWERS),
    Request("\n", "a line"),
]


def by_hand(model: GPT, tokenizer: Tokenizer, request: Request, prefix: bool) -> tuple[float, bool]:
    """The score of a request from a forward pass of its sequence alone, in float64."""
    context, continuation = request.context, request.continuation
    while context.strip() and context[-1].isspace():
        context, continuation = context[:-1], context[-1] + continuation
    start = [tokenizer.eot] if prefix else []
    before = start + tokenizer.encode(context).tolist()
    tokens = start + tokenizer.encode(context + continuation).tolist()
    logits = model(torch.tensor([tokens[:-1]]))[0, len(before) - 1 :].detach()
    scored = tokens[len(before) :]
    return float(logits.log_softmax(-1)[range(len(scored)), scored].sum()), logits.argmax(-1).tolist() == scored


def check_equal(scores: Sequence[Score], expected: Sequence[tuple[float, bool]], most: float) -> None:
    assert [score.greedy for score in scores] == [greedy for _, greedy in expected]
    assert max(abs(score.logprob - logprob) for score, (logprob, _) in zip(scores, expected, strict=True)) < most


def greedy_request(model: GPT, context: str) -> Request:
    """A request whose continuation is the most likely one, in ASCII."""
    text = context
    for _ in range(5):
        logits = model(torch.tensor([bytes_tokenizer().encode(text).tolist()]))[0, -1]
        text += chr(int(logits.argmax()))
    return Request(context, text[len(context) :])


@pytest.mark.parametrize("prefix", ["empty", "always"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_equal_those_of_one_sequence_at_a_time(variant: str, prefix: str) -> None:
    model = build(variant)
    scores = scorer(model, prefix=prefix).score(REQUESTS)
    model = model.double().eval()
    always = prefix == "always"
    expected = [by_hand(model, bytes_tokenizer(), each, always or not each.context) for each in REQUESTS]
    check_equal(scores, expected, 1e-4)
    assert [score.bytes for score in scores] == [len(each.continuation.encode()) for each in REQUESTS]


def test_what_greedy_decoding_gives_is_marked() -> None:
    model = build().eval()
    with torch.no_grad():  # ASCII only
        model.wte.weight[128:] = 0
        model.wte.weight[:32] = 0
    likely = greedy_request(model, "The cat")
    other = dataclasses.replace(likely, continuation=likely.continuation[:-1] + "~")
    assert [each.greedy for each in scorer(model).score([likely, other])] == [True, False]


def test_order_micro_batch_and_company_do_not_change_the_scores() -> None:
    model = build("documents")
    expected = [scorer(model).score([request])[0] for request in REQUESTS]
    shuffled = random.Random(0).sample(range(len(REQUESTS)), len(REQUESTS))
    for micro_batch in (1, 3, 64):
        scores = scorer(model, micro_batch=micro_batch).score([REQUESTS[i] for i in shuffled])
        for i, score in zip(shuffled, scores, strict=True):
            assert score.logprob == pytest.approx(expected[i].logprob, abs=1e-5)
            assert dataclasses.replace(score, logprob=0) == dataclasses.replace(expected[i], logprob=0)
    assert scorer(model).score([]) == []


def test_a_shared_context_is_computed_once() -> None:
    model = build()
    lengths = []
    hidden = model.hidden
    model.hidden = lambda tokens, **more: lengths.append(tokens.numel()) or hidden(tokens, **more)  # type: ignore
    context = "A long story about a cat that sat on a mat, and then some more of it"  # 68 of 96 tokens
    scorer(model).score([Request(context, f" {a}{b}{a}") for a, b in itertools.product("abcde", "fghij")])
    assert sum(lengths) < 68 + 25 * 4


def test_requests_that_cannot_be_scored_are_refused_with_the_remedy() -> None:
    long, empty, long_text = Request("a" * 97, "b"), Request("a", ""), Request("", "c" * 97)
    with pytest.raises(UserError, match=r"97 tokens are more than the model's window of 96: 'aaa.*task\.too_long=cut"):
        scorer(build()).score([long, Request("fits", " well")])
    with pytest.raises(UserError, match="the continuation '' has no token of its own after 'a'"):
        scorer(build()).score([long, empty])
    # Cutting contexts would not help the second request.
    refused = r"a continuation of 97 tokens is longer than the model's window of 96: 'ccc.*task\.too_long=roll"
    for too_long in ("refuse", "cut"):
        with pytest.raises(UserError, match=refused):
            scorer(build(), too_long=too_long).score([long, long_text])


def test_contexts_are_cut_from_the_left_and_counted_on_request() -> None:
    model = build()
    text = "".join(random.Random(1).choices("abcdefgh ", k=200))
    fits, cut = scorer(model, too_long="cut").score([Request(text[-90:] + "x", " yes"), Request(text + "x", " yes")])
    assert (fits.cut, cut.cut) == (0, 205 - 97)
    expected = scorer(model).score([Request(text[-92:] + "x", " yes")])[0]
    assert cut.logprob == pytest.approx(expected.logprob, abs=1e-5)


def test_a_request_that_just_fits_is_scored() -> None:
    assert scorer(build()).score([Request("a" * 90, "b" * 7), Request("", "c" * 96)])[0].tokens == 7


def test_unknown_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_pieces(unknown="<unk>")))
    tokenizer = own_tokenizer(str(tmp_path / "tokenizer.json"))
    scores = scorer(build(vocab_size=6), tokenizer).score(
        [Request("abba", " baé"), Request("ab€", "ab"), Request("a", "a")]
    )
    assert [score.unknown for score in scores] == [1, 1, 0]
    (tmp_path / "dropping.json").write_text(json.dumps(word_pieces(unknown=None)))
    tokenizer = own_tokenizer(str(tmp_path / "dropping.json"))
    scores = scorer(build(vocab_size=6), tokenizer).score(
        [Request("abba", " ba東é"), Request("ab€", "ab"), Request("a", "a")]
    )
    assert [score.unknown for score in scores] == [2, 1, 0]
    for context, continuation in (("a", "東京"), ("a", "b")):  # all of it is dropped; both are one token
        with pytest.raises(UserError, match=f"the continuation '{continuation}' has no token of its own after 'a'"):
            scorer(build(vocab_size=6), tokenizer).score([Request(context, continuation)])


def word_pieces(unknown: str | None) -> dict[str, Any]:
    """A tokenizer.json of BPE that knows the letters a and b, with or without a token for others."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {"<|endoftext|>": 0, "<unk>": 1, "a": 2, "b": 3, " ": 4, "ab": 5}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", **special}, {"id": 1, "content": "<unk>", **special}],
        "model": {"type": "BPE", "unk_token": unknown, "vocab": vocabulary, "merges": [["a", "b"]]},
    }


def test_autocast_surrounds_the_forward_pass() -> None:
    model = build()
    exact = scorer(model).score(REQUESTS)
    rounded = Scorer(model, bytes_tokenizer(), "cpu", lambda: torch.autocast("cpu", dtype=torch.bfloat16)).score(
        REQUESTS
    )
    assert [score.logprob for score in rounded] != [score.logprob for score in exact]
    for one, other in zip(rounded, exact, strict=True):
        assert one.logprob == pytest.approx(other.logprob, rel=0.05)


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_a_diverged_model_gives_one_line_instead_of_scores(weight: float) -> None:
    model = build()
    with torch.no_grad():
        model.wte.weight[ord("c")] = weight
    with pytest.raises(MachineError, match="not finite: its weights have diverged"):
        scorer(model).score(REQUESTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json that is trained on the texts above."""
    return trained_tokenizer(tmp_path_factory.mktemp("tokenizer"), [*SENTENCES, *QUESTIONS, *ANSWERS] * 3)


def test_scores_equal_those_of_transformers(trained: Path) -> None:
    tokenizer = own_tokenizer(str(trained))
    ours, theirs = pair_of_llamas(tokenizer.n_vocab)
    requests = [each for each in REQUESTS if not each.context or each.context[-1] == ":"]
    expected = []
    for each in requests:
        before = tokenizer.encode(each.context).tolist() or [tokenizer.eot]
        scored = tokenizer.encode(each.continuation).tolist()
        with torch.no_grad():
            logits = theirs(torch.tensor([before + scored])).logits[0, len(before) - 1 : -1]
        logprobs = logits.log_softmax(-1)[torch.arange(len(scored)), scored]
        expected.append((float(logprobs.sum()), logits.argmax(-1).tolist() == scored))
    check_equal(scorer(ours, tokenizer).score(requests), expected, 1e-4)


def random_requests(count: int) -> list[Request]:
    """Requests of all sorts: empty contexts, spaces and line ends at both sides of the border, several scripts."""
    draw = random.Random(0)
    words = [
        "The",
        "cat",
        "sleeps",
        "Ünïcödé",
        "東京",
        "7,5",
        "don't",
        "🙂",
        "A:",
        "\n",
        "\n\n",
        "  ",
        "red",
        "é",
        "\t",
    ]

    def text(most: int) -> str:
        return "".join(draw.choice(words) + draw.choice(["", " ", " ", " "]) for _ in range(draw.randrange(1, most)))

    contexts = ["", "", *(text(30) for _ in range(count // 6))]
    contexts = [each for each in contexts if each.strip() or not each]  # their scorer fails at contexts of white space
    return [Request(draw.choice(contexts), draw.choice(["", " "]) + text(5)) for _ in range(count)]


def test_scores_equal_those_of_lm_eval(trained: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    tokenizer = own_tokenizer(str(trained))
    ours, theirs = pair_of_llamas(tokenizer.n_vocab)
    library = PreTrainedTokenizerFast(tokenizer_file=str(trained), eos_token="<|endoftext|>")
    harness = HFLM(pretrained=theirs, tokenizer=library, batch_size=16, max_length=64)
    requests = random_requests(200)
    asked = [Instance("loglikelihood", {}, (each.context, each.continuation), i) for i, each in enumerate(requests)]
    scores = scorer(ours, tokenizer, too_long="cut").score(requests)
    check_equal(scores, harness.loglikelihood(asked, disable_tqdm=True), 1e-4)
    assert sum(score.cut > 0 for score in scores) > 5
    texts = ["The cat sleeps. " * 40, "東京", *SENTENCES, "red\n" * 64]
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    rolled = scorer(ours, tokenizer, too_long="roll").score([Request("", text) for text in texts])
    for score, expected in zip(rolled, harness.loglikelihood_rolling(asked, disable_tqdm=True), strict=True):
        assert score.logprob == pytest.approx(expected, abs=1e-4 * max(1, score.tokens / 50))
    assert max(score.tokens for score in rolled) > 2 * 64
