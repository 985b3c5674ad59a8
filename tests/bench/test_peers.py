"""The peers of bench.peers.against: their settings and, if there are checkouts, their runs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.common import RESULTS
from bench.docs.performance_page import speedup_text, text
from bench.peers import PEERS, find_peer
from bench.peers.against import earlier_rounds, parsed
from bench.peers.checkout import CheckoutPeer
from bench.peers.cramming import Cramming
from bench.peers.llm_baselines import LlmBaselines
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import FORMS, Peer, PeerRun
from data.eval_windows import EvalRange
from data.shards import Corpus, open_corpus
from tests.conftest import ROOT
from tests.data.helpers import make, texts, write_jsonl

FOLDERS = {NanoGPT: "nanoGPT", LlmBaselines: "llm-baselines"}


def checkout_of(kind: type[CheckoutPeer]) -> CheckoutPeer:
    """The checkout in the folder PEERS, or next to this project. Skips the test without one."""
    path = Path(os.environ.get("PEERS", ROOT.parent)) / FOLDERS[kind]
    if not kind.is_at(path):
        pytest.skip(f"no checkout of {kind.title} at {path}; set PEERS to the folder of the checkouts")
    return kind(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "text.jsonl", texts(300))
    return open_corpus(make(folder, folder / "text.jsonl").folder)


@pytest.fixture
def fake(tmp_path: Path) -> dict[type[CheckoutPeer], Path]:
    """Folders that look like checkouts."""
    files: dict[Any, tuple[str, ...]] = {
        NanoGPT: ("train.py", "configurator.py"),
        LlmBaselines: ("src/main.py", "src/config/base.py"),
    }
    for kind, names in files.items():
        for name in names:
            (tmp_path / kind.name / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind.name / name).touch()
    return {kind: tmp_path / kind.name for kind in files}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("against_*.json")), ids=lambda path: path.stem)
def test_the_command_of_a_result_continues_it(
    path: Path, fake: dict[type[CheckoutPeer], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is kept if the command differs only in seeds or forms. Another time or other settings start again."""
    kept = json.loads(path.read_text())
    paths = {kind.given: str(folder) for kind, folder in fake.items()} | {"CORPUS": "corpus"}
    monkeypatch.setattr(sys, "argv", [paths.get(word, word) for word in kept["how"].split()[2:]])
    asked, output = parsed()
    assert output == path
    assert earlier_rounds(path, asked) == kept["rounds"] != []
    assert asked.content(kept["rounds"]).keys() == kept.keys()
    assert earlier_rounds(path, replace(asked, seeds=asked.seeds + 1, forms=FORMS)) == kept["rounds"]
    assert earlier_rounds(path, replace(asked, seeds=1)) == kept["rounds"], "measured rounds are not discarded"
    assert earlier_rounds(path, replace(asked, minutes=asked.minutes + 1)) == []
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(kept | {"settings": {}}))
    assert earlier_rounds(changed, asked) == []


def test_a_peer_is_recognised_by_its_files(fake: dict[type[CheckoutPeer], Path]) -> None:
    for kind, path in fake.items():
        assert type(find_peer(str(path), "")) is kind
    assert find_peer("cramming", "corpus") == Cramming("corpus")
    assert find_peer(str(ROOT), "") is None, "stint has a train.py of its own"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--peer", "nowhere"), ("nowhere", "nanoGPT", "llm-baselines", "cramming")),
        (("--peer", "cramming", "--forms", "shipped"), ("shipped", "matched, tuned")),
    ],
)
def test_unknown_peers_and_forms_are_refused_in_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["against.py", "corpus", *arguments])
    with pytest.raises(SystemExit) as caught:
        parsed()
    (line,) = str(caught.value).splitlines()
    assert all(part in line for part in parts)


class Known(NanoGPT):
    """Every run takes 2 s to start, 1 s for its first iteration and 40 ms for each other."""

    def run(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        each = (1.0, *[0.04] * (settings["max_iters"] - 1))
        return PeerRun(2.0 + sum(each), len(each), 0, each)


def test_the_fitted_iterations_leave_time_for_the_start(tmp_path: Path) -> None:
    assert Known(tmp_path).amount_within(tmp_path, "tuned", 62.0) == pytest.approx(60 / 0.04, abs=1)


@pytest.mark.parametrize("form", ["shipped", "matched", "tuned"])
def test_forms_differ_only_in_horizon_batch_and_rate(form: str) -> None:
    nano, baselines = NanoGPT(Path()).settings(form, 900), LlmBaselines(Path()).settings(form, 900)
    assert (nano["max_iters"], baselines["latest_ckpt_interval"]) == (900, 900), "the end of the run"
    horizons = (nano["lr_decay_iters"], baselines["iterations"])
    assert horizons == ((2000, 15000) if form == "shipped" else (900, 900))
    rates = (nano["learning_rate"], baselines["lr"])
    assert rates == ((4e-3, 4e-3) if form == "tuned" else (1e-3, 1e-3))
    assert (nano["batch_size"], baselines["batch_size"]) == ((24, 24) if form == "tuned" else (12, 50))
    assert baselines["warmup_steps"] == {"shipped": 3000, "matched": 180, "tuned": 45}[form]
    sizes = {(peer["n_layer"], peer["n_head"], peer["n_embd"]) for peer in (nano, baselines)}
    assert sizes == {(4, 4, 128)}


def test_seconds_are_read_from_the_logs() -> None:
    log = "step 0: train loss 8.3211, val loss 8.3191\niter 0: loss 8.3216, time 1150.64ms, mfu -100.00%\n"
    assert NanoGPT.iteration_seconds(log + "iter 1: loss 8.1, time 61.00ms, mfu 0.1%\n") == pytest.approx(
        (1.15064, 0.061)
    )
    log = ">Eval: Iter=0 (0.000 epochs) val_loss=8.319 val_pp=4101.1 val_acc=0.000\n"
    line = "Train: Iter={} (0.001 epochs) train_loss=8.310 iter_dt={}s lr=4.00e-05\n"
    log += line.format(1, "1.03e+00") + line.format(2, "9.80e-02")
    assert LlmBaselines.iteration_seconds(log) == pytest.approx((1.03, 0.098))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_page_has_a_section_for_each_peer(peer: type[Peer]) -> None:
    page = text({f"against_{peer.name}": json.loads((RESULTS / "against_nanogpt.json").read_text())})
    assert f"## Against {peer.title}\n" in page
    assert peer.note in page
    assert f"stint reached the loss of {peer.title} (tuned) " in page
    assert f"{peer.title}'s loss" in page


def test_a_ratio_is_a_bound_if_the_shortest_run_was_better() -> None:
    runs = [{"loss": 4.0}, {"loss": 4.3}]
    assert speedup_text(3.04, 4.5, runs) == "at least 3.0"
    assert speedup_text(3.04, 4.2, runs) == "3.0"


@pytest.mark.parametrize("kind", [NanoGPT, LlmBaselines], ids=lambda kind: kind.name)
def test_a_checkout_trains_on_our_tokens_and_is_scored(
    kind: type[CheckoutPeer], corpus: Corpus, tmp_path: Path
) -> None:
    peer, n_vocab, steps = checkout_of(kind), corpus.tokenizer.n_vocab, 12
    peer.write_data(corpus, tmp_path)
    (train,) = tmp_path.rglob("train.bin")
    assert np.array_equal(np.fromfile(train, dtype="<u2"), np.concatenate(corpus.train.shards))
    windows = EvalRange(corpus.val, peer.window, 2000)
    x, y, _ = windows.windows(0, windows.n_windows)
    assert (y == -1).any(), "the last window is partial"
    np.savez(tmp_path / "windows.npz", x=x, y=y)

    settings = peer.settings("tuned", steps)
    ran = peer.run(tmp_path, "out", 1, settings)
    assert ran.iterations == steps
    assert ran.tokens == steps * 24 * 64
    assert len(ran.each) == steps + (kind is NanoGPT)  # nanoGPT runs one more iteration after saving
    assert 0 < sum(ran.each) < ran.seconds
    loss = peer.loss(tmp_path, "out", settings, tmp_path / "windows.npz")
    if kind is NanoGPT:  # the names in the checkpoint of a compiled model
        (path,) = tmp_path.rglob("ckpt.pt")
        saved = torch.load(path, weights_only=True)
        saved["model"] = {f"_orig_mod.{name}": value for name, value in saved["model"].items()}
        torch.save(saved, path)
        assert peer.loss(tmp_path, "out", settings, tmp_path / "windows.npz") == loss
    assert 1.0 < loss < math.log(n_vocab) - 0.3, "better than guessing"


def test_stint_can_plan_the_settings_of_cramming() -> None:
    settings = Cramming("").settings("matched", 300.0)
    arguments = [f"{key}={value}" for key, value in settings.items()] + ["mfu=0.3", "device=a100", "output=json"]
    answer = subprocess.run(
        [sys.executable, str(ROOT / "plan.py"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    plan = json.loads(answer.stdout)
    assert (plan["n_layer"], plan["n_embd"], plan["block_size"]) == (4, 128, 64)
    assert (plan["batch_tokens"], plan["learning_rate"], plan["weight_decay"]) == (24 * 64, 1e-3, 0.01)
    # Blocks of queries, keys, values and output, and of a gated feed-forward part of 4 widths in and 2 out; positions, norms.
    assert plan["parameters"] == 4 * (4 + 4 + 2) * 128**2 + (plan["vocab_size"] + 64 + 9) * 128
