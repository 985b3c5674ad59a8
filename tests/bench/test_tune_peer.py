"""bench.peers.tune_peer: the rows, and that finished rows are kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.docs.performance_page import text
from bench.peers import tune_peer
from bench.peers.cramming import Cramming
from bench.peers.llm_baselines import LlmBaselines
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import Peer, PeerRun
from bench.peers.tune_peer import rows_of, settings_of
from data.shards import open_corpus
from tests.data.helpers import make, texts, write_jsonl


@pytest.mark.parametrize(
    "peer", [NanoGPT(Path("checkout")), LlmBaselines(Path("checkout")), Cramming("corpus")], ids=str
)
def test_neighbours_differ_from_the_tuned_form_in_one_choice(peer: Peer) -> None:
    tuned = settings_of(peer, "tuned", 900)
    assert {"learning rate x 0.5", "learning rate x 2"} <= set(peer.rates)
    for name, changes in rows_of(peer).items():
        settings = settings_of(peer, name, 900)
        changed = {key for key in settings if settings[key] != tuned[key]}
        assert changed == set(changes), f"{name}: every change is of an existing setting and has an effect"


def test_the_schedule_of_a_row_ends_with_its_iterations() -> None:
    nanogpt = settings_of(NanoGPT(Path("checkout")), "learning rate x 0.5", 900)
    assert nanogpt["lr_decay_iters"] == nanogpt["max_iters"] == 900
    assert nanogpt["min_lr"] == pytest.approx(nanogpt["learning_rate"] / 10)
    baselines = settings_of(LlmBaselines(Path("checkout")), "learning rate x 2", 900)
    assert baselines["iterations"] == baselines["latest_ckpt_interval"] == 900
    cramming = settings_of(Cramming("corpus"), "learning rate x 2", 900)
    assert cramming["budget.tokens"] == 900 * cramming["optim.batch_tokens"]
    assert "budget.hours" not in cramming


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The result file of `tune_peer.main`, which compares runs of nanoGPT on a small corpus."""
    monkeypatch.setattr(NanoGPT, "is_at", staticmethod(lambda path: True))
    write_jsonl(tmp_path / "text.jsonl", texts(300))
    prepared = make(tmp_path, tmp_path / "text.jsonl")
    monkeypatch.setattr(tune_peer, "prepared_corpus", lambda folder: open_corpus(prepared.folder))
    output = tmp_path / "found.json"
    options = ["--peer", str(tmp_path), "--place", str(tmp_path / "runs"), "--output", str(output), "--minutes", "0.5"]
    monkeypatch.setattr(sys, "argv", ["tune_peer", "corpus", *options, "--tokens", "1000", "--at-once"])
    return output


def test_finished_rows_are_not_run_again(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations are fitted at constant speed although the machine gets slower: twice the batch has half the iterations."""
    runs: list[str] = []
    cores: list[int] = []

    def run(self: NanoGPT, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        slower = 1 + len(runs) // (1 + len(NanoGPT.neighbours)) / 2  # slower in each round
        runs.append(name)
        cores.append(len(os.sched_getaffinity(0)))
        each = (slower * 1e-3 * settings["batch_size"],) * settings["max_iters"]
        return PeerRun(2.0 + sum(each), len(each), 0, each)

    monkeypatch.setattr(NanoGPT, "run", run)
    monkeypatch.setattr(NanoGPT, "loss", lambda self, place, name, settings, windows: 4.0 + settings["learning_rate"])
    tune_peer.main()
    found = json.loads(output.read_text())
    rows = rows_of(NanoGPT(tmp_path))
    assert {row["name"] for row in found["rows"]} == set(rows)
    assert set(cores[-len(rows) :]) == {1}, "each run has one core"
    fitted = {row["name"]: row["iterations"] for row in found["rows"]}
    assert fitted["tuned"] == fitted["learning rate x 2"] == found["iterations"]["tuned"]
    assert fitted["batch x 2"] == pytest.approx(fitted["tuned"] / 2, abs=1)
    assert len(set(runs)) == 1 + len(rows), "each has its own folder, because some run at the same time"
    before = len(runs)
    assert np.load(tmp_path / "runs" / "nanogpt" / "windows.npz", allow_pickle=False)["x"].shape[1] == found["window"]
    tune_peer.main()
    assert len(runs) == before
    assert "| learning rate x 0.5 | 4.002 | -0.002 |" in text({"tune_nanogpt": found})


def test_a_failed_row_stops_the_rest_and_finished_rows_are_kept(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def measured(peer: NanoGPT, place: Path, name: str, iterations: int) -> dict[str, Any]:
        started.append(name)
        if name == "learning rate x 2":
            sys.exit("the peer failed")
        return {"name": name, "loss": 4.0}

    monkeypatch.setattr(tune_peer, "measured", measured)
    monkeypatch.setattr(tune_peer, "fitting", lambda peer, place, seconds: dict.fromkeys(rows_of(peer), 9))
    monkeypatch.setattr(sys, "argv", sys.argv[:-1])  # one run at a time
    with pytest.raises(SystemExit, match="the peer failed"):
        tune_peer.main()
    finished = [name for name in started if name != "learning rate x 2"]
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == finished
    assert finished[:2] == ["tuned", "learning rate x 0.5"]
    assert len(started) < len(rows_of(NanoGPT(tmp_path)))
