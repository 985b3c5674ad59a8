"""Tests of the evaluation against a loop over tokens, and of its independence of batch size and processes."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from common.errors import UserError
from evals.language_model import evaluate
from model.config import PRESETS, Shape
from model.gpt import GPT

VOCAB, LENGTH, N_WINDOWS = 64, 16, 11
SOURCES = ["books", "code", "empty", "news"]
TOKEN_BYTES = np.arange(VOCAB) % 7  # token 0 is end-of-text, which has no bytes


class Text:
    """Random windows, of which the last is mostly padding and another one is only padding."""

    fingerprint = "abc123"

    def __init__(self, n_windows: int = N_WINDOWS) -> None:
        random = np.random.default_rng(0)
        self.x = random.integers(VOCAB, size=(n_windows, LENGTH))
        self.y = random.integers(VOCAB, size=(n_windows, LENGTH))
        self.source = random.choice([0, 1, 3], size=(n_windows, LENGTH))
        self.y[-1, 5:] = -1
        if n_windows > 4:
            self.y[4] = -1
        self.n_windows = n_windows
        self.n_tokens = int((self.y != -1).sum())

    def windows(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.x[i:j], self.y[i:j], self.source[i:j]


def build(dropout: float = 0.0) -> GPT:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": LENGTH, "vocab_size": VOCAB}
    model = GPT(Shape(**sizes, **PRESETS["llama"], dropout=dropout))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def score(model: GPT, text: Any, micro_batch: int = 3, **changed: Any) -> dict[str, Any]:
    return evaluate(model, text, TOKEN_BYTES, SOURCES, micro_batch, "cpu", contextlib.nullcontext, **changed)


def by_hand(model: GPT, text: Text) -> dict[str, list[tuple[float, bool, int, int]]]:
    """Return (nats, correct, bytes, window) of every predicted token by source, computed token by token in float64."""
    model = model.double().eval()
    tokens: dict[str, list[tuple[float, bool, int, int]]] = {}
    for window, t in np.argwhere(text.y != -1):
        logits = model(torch.from_numpy(text.x[window : window + 1, : t + 1]))[0, -1].detach()
        target = int(text.y[window, t])
        nats = float(logits.logsumexp(0) - logits[target])
        name = SOURCES[text.source[window, t]]
        tokens.setdefault(name, []).append((nats, bool(logits.argmax() == target), target % 7, int(window)))
    return tokens


def check_figures(result: dict[str, Any], tokens: list[tuple[float, bool, int, int]]) -> None:
    nats = math.fsum(token[0] for token in tokens)
    assert result["tokens"] == len(tokens)
    assert result["loss"] == pytest.approx(nats / len(tokens), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(nats / len(tokens)), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(token[2] for token in tokens), rel=1e-6)
    assert result["accuracy"] == sum(token[1] for token in tokens) / len(tokens)


def check_equal(result: Any, expected: Any) -> None:
    """Assert that nested results are equal within 1e-5."""
    if isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key in expected:
            check_equal(result[key], expected[key])
    else:
        assert result == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_it_equals_a_loop_over_tokens() -> None:
    text = Text()
    result = score(build(), text)
    tokens = by_hand(build(), text)
    everything = [token for each in tokens.values() for token in each]
    check_figures(result, everything)
    assert result["bytes"] == sum(token[2] for token in everything)
    assert result["tokens"] == text.n_tokens
    assert result["fingerprint"] == "abc123"
    assert result["by_source"].keys() == {"books", "code", "news"}
    for name, figures in result["by_source"].items():
        assert figures.keys() == {"tokens", "loss", "perplexity", "bits_per_byte", "accuracy"}
        check_figures(figures, tokens[name])
    assert 0 < result["accuracy"] < 1


def test_standard_error_is_that_of_the_window_means() -> None:
    text = Text()
    text.y[4] = text.y[-1] = text.y[0]  # windows of equal length, so that the ratio is a plain mean
    result = score(build(), text)
    windows: dict[int, list[float]] = {}
    for nats, _, _, window in (token for each in by_hand(build(), text).values() for token in each):
        windows.setdefault(window, []).append(nats)
    means = [math.fsum(each) / LENGTH for each in windows.values()]
    assert result["loss_se"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(N_WINDOWS), rel=1e-4)


def test_standard_error_with_padding_is_the_linearised_ratio() -> None:
    text = Text()
    result = score(build(), text)
    sums = np.zeros((N_WINDOWS, 2))
    for nats, _, _, window in (token for each in by_hand(build(), text).values() for token in each):
        sums[window] += nats, 1
    residuals = sums[:, 0] - result["loss"] * sums[:, 1]
    counted = N_WINDOWS - 1  # one window is all padding
    expected = math.sqrt((residuals**2).sum() * counted / (counted - 1)) / text.n_tokens
    assert result["loss_se"] == pytest.approx(expected, rel=1e-4)


def test_one_window_has_no_standard_error() -> None:
    assert score(build(), Text(1))["loss_se"] is None


def test_the_micro_batch_does_not_change_the_result() -> None:
    expected = score(build(), Text(), micro_batch=1)
    for micro_batch in (3, 8, 64):
        check_equal(score(build(), Text(), micro_batch), expected)


def scored_by_one_process(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    result = score(build(), Text())
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))


def test_the_number_of_processes_does_not_change_the_result(tmp_path: Path) -> None:
    mp.spawn(scored_by_one_process, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        check_equal(json.loads((tmp_path / f"{rank}.json").read_text()), score(build(), Text()))


def test_dropout_is_off_and_the_mode_is_restored() -> None:
    model = build(dropout=0.5)
    for training in (True, False):
        model.train(training)
        check_equal(score(model, Text()), score(build(), Text()))
        assert model.training is training


def test_stop_is_called_before_each_batch_and_may_raise() -> None:
    calls = []

    def stop() -> None:
        calls.append(model.training)
        if len(calls) == 3:
            raise TimeoutError("the budget is spent")

    model = build()
    with pytest.raises(TimeoutError, match="the budget is spent"):
        score(model, Text(), micro_batch=2, stop=stop)
    assert calls == [False] * 3
    assert model.training


def test_autocast_surrounds_each_forward_pass() -> None:
    exact = score(build(), Text())
    rounded = evaluate(
        build(), Text(), TOKEN_BYTES, SOURCES, 3, "cpu", lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    assert rounded["loss"] != exact["loss"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)


@pytest.mark.parametrize("weight", [1e20, math.nan], ids=["huge", "nan"])
def test_a_diverged_model_gives_valid_json(weight: float) -> None:
    model = build()
    with torch.no_grad():
        model.norm.weight.fill_(weight)
    result = score(model, Text())
    json.dumps(result, allow_nan=False)
    assert result["perplexity"] is None
    if math.isnan(weight):
        assert result["loss"] is result["loss_se"] is result["bits_per_byte"] is None


def test_a_text_of_only_end_of_text_has_no_bits_per_byte() -> None:
    text = Text()
    text.y[text.y != -1] = 0
    assert score(build(), text)["bits_per_byte"] is None


def test_nothing_to_predict_is_refused() -> None:
    text = Text()
    text.y[:] = -1
    with pytest.raises(UserError, match="no token to predict"):
        score(build(), text)
