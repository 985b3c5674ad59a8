"""bench.speed.gpu, as far as it can be tested on a CPU: arithmetic, time limits and result files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.docs.performance_page import text
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import PeerRun
from bench.peers.stint_run import score_run
from bench.speed import gpu
from budget.flops import flops_per_token
from common.monotonic import now
from data.prepare import prepare
from data.shards import Split, open_corpus
from device.device import Device
from model.config import PRESETS, Shape

TINY = Shape(1, 1, 64, 32, 128, **PRESETS["llama"])
CPU = Device(torch.device("cpu"), "a CPU", "float32", 1, 1e12, "given")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STEADY_S", 0.05)
    monkeypatch.setattr(gpu, "STEP_TOKENS", 256)
    monkeypatch.setattr(gpu, "SHAPES", (TINY,))
    monkeypatch.setattr(torch, "compile", lambda function: function)  # the real one needs a C++ compiler
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test


def test_the_models_have_their_nominal_sizes() -> None:
    assert [round(shape.parameters(positions=False) / 1e6) for shape in (gpu.GPT2, gpu.LLAMA)] == [124, 166]
    assert {(shape.n_layer, shape.block_size) for shape in gpu.SHAPES} == {(12, 1024), (12, 512), (18, 1024), (18, 512)}


def test_speed_and_mfu_are_consistent() -> None:
    began = time.monotonic()
    row = gpu.speed_of(TINY, "off", CPU, 256, 0.2)
    elapsed = time.monotonic() - began
    assert row["tokens_a_step"] == 256
    flops = row["tokens_per_second"] * flops_per_token(TINY)
    assert row["mfu"] == pytest.approx(flops / 1e12)
    assert row["share_of_matmul"] == pytest.approx(flops / row["matmul_flops_per_second"])
    assert row["compile_s"] is None
    assert row["peak_memory"] > 2**20
    assert 0 < gpu.FEWEST * 256 / row["tokens_per_second"] < elapsed


@pytest.mark.usefixtures("small")
def test_each_row_is_written_at_once_and_the_other_stage_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "gpu.json"
    seen: list[list[str]] = []
    plain = gpu.speed_of

    def row(shape: Shape, way: str, device: Device, tokens: int, seconds: float) -> dict[str, object]:
        seen.append([each["compile"] for each in json.loads(output.read_text())["speed"]] if output.exists() else [])
        return plain(shape, "off", device, tokens, seconds) | {"compile": way}

    monkeypatch.setattr(gpu, "speed_of", row)
    gpu.measure("speed", CPU, 60.0, None, tmp_path, output)
    assert seen == [[], ["off"], ["off", "regional"]]
    assert json.loads(output.read_text())["device"] == "a CPU"
    monkeypatch.setattr(gpu, "against_peer", lambda *arguments: iter([{"peer": {"loss": 3.0}}]))
    gpu.measure("loss", CPU, 60.0, tmp_path, tmp_path, output)
    found = json.loads(output.read_text())
    assert len(found["speed"]) == 3
    assert found["loss"] == {"peer": {"loss": 3.0}}
    assert "| regional |" in text({"gpu": found | {"loss": None}})
    other = Device(torch.device("cpu"), "another", "float32", 1, 1e12, "given")
    gpu.measure("loss", other, 60.0, tmp_path, tmp_path, output)
    assert "speed" not in json.loads(output.read_text())


def test_the_page_shows_the_time_to_the_peers_loss() -> None:
    about = {"how": "", "device": "", "torch": "2", "precision": "", "peak_flops": 312e12, "peak_source": ""}
    runs = [{"seconds": 100.0, "loss": 2.5}, {"seconds": 33.0, "loss": 3.1}]
    loss = {"peer": {"seconds": 100.0, "loss": 3.0}, "stint": runs, "time_to_loss": 2.75}
    page = text({"gpu": about | {"loss": loss}})
    assert "stint reached nanoGPT's loss 2.8 times as fast." in page
    assert "| stint | 33 | 3.100 |" in page
    assert "stint did not reach nanoGPT's loss." in text({"gpu": about | {"loss": loss | {"time_to_loss": None}}})


def test_a_stage_is_killed_with_its_children_at_its_time_limit(tmp_path: Path) -> None:
    late = tmp_path / "late"
    script = f"import subprocess; subprocess.run(['sh', '-c', 'sleep 2; touch {late}'])"
    began = time.monotonic()
    assert not gpu.run_bounded([sys.executable, "-c", script], 0.5)
    assert time.monotonic() - began < 1.5
    assert gpu.run_bounded([sys.executable, "-c", ""], 30.0)
    assert not gpu.run_bounded([sys.executable, "-c", "raise SystemExit(1)"], 30.0)
    time.sleep(max(0.0, 2.5 - (time.monotonic() - began)))
    assert not late.exists()


def test_the_peers_iterations_leave_time_for_its_start() -> None:
    # 10 s of start-up and compilation, which are part of the first iteration; 0.05 s per iteration.
    each = (8.05, *[0.05] * 99)
    ran = PeerRun(2.0 + sum(each), 100, 0, each)
    assert gpu.iterations_within(60.0, ran) == pytest.approx(1000, abs=1)
    assert gpu.iterations_within(5.0, ran) == 1


@pytest.mark.parametrize("refused", [None, 2])
def test_peer_and_stint_share_the_time_and_are_scored_on_the_same_tokens(
    refused: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, zero = np.arange(5000, dtype=np.uint16) % 100, np.zeros(1, dtype=np.int64)
    corpus = SimpleNamespace(val=Split("val", [tokens], [zero], [zero], ["made up"]))
    asked: list[dict[str, Any]] = []
    runs: list[float] = []

    def ran(self: NanoGPT, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        asked.append(settings)
        each = (0.1,) * settings["max_iters"]
        return PeerRun(5.0 + sum(each), len(each), 0, each)

    def stint(place: Path, seconds: float, device: Device) -> Path:
        runs.append(seconds)
        if len(runs) == refused:
            raise CalledProcessError(2, "train.py")  # the budget is too short for one step
        result = {"spent": {"hours": seconds / 3600, "tokens": 1}, "environment": {"compile_cache": "cold"}}
        (place / "result.json").write_text(json.dumps(result | {"model": {}, "prepare_s": 0.0}))
        return place

    def judged(folder: Path, corpus: Any, tokens: int, block: int, device: Device) -> dict[str, float]:
        assert (tokens, block) == (gpu.VALIDATION_TOKENS, gpu.PEER["block_size"])
        return {"loss": 4.2 - runs[-1] / 100}

    monkeypatch.setattr(gpu, "prepare", lambda spec: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(gpu, "open_corpus", lambda folder: corpus)
    monkeypatch.setattr(NanoGPT, "write_data", lambda self, corpus, place: None)
    monkeypatch.setattr(NanoGPT, "run", ran)
    monkeypatch.setattr(NanoGPT, "loss", lambda self, place, name, settings, windows: 4.0)
    monkeypatch.setattr(gpu, "run_stint", stint)
    monkeypatch.setattr(gpu, "score_run", judged)
    found = [json.loads(json.dumps(each)) for each in gpu.against_peer(tmp_path, tmp_path, CPU, now() + 90.0)]
    assert [len(each["stint"]) for each in found] == ([0, 1] if refused else [0, 1, 2])
    planned = asked[1]["max_iters"]
    assert 5.0 + 0.1 * planned == pytest.approx((90 - gpu.JUDGING_S) / (1 + sum(gpu.SHARES)), abs=0.3)
    assert [each["log_interval"] for each in asked] == [1, 10], "every iteration for timing, then the shipped interval"
    assert asked[1]["lr_decay_iters"] == asked[1]["eval_interval"] == planned
    assert runs == pytest.approx([found[0]["peer"]["seconds"], found[0]["peer"]["seconds"] / 4])
    if refused:
        assert found[-1]["time_to_loss"] == pytest.approx(1.0)  # a lower bound
    else:
        # Better in the same time, worse in a quarter of it: no shorter run follows.
        assert 1 < found[-1]["time_to_loss"] < 4
    with np.load(tmp_path / "windows.npz", allow_pickle=False) as windows:
        assert windows["x"].shape[1] == gpu.PEER["block_size"]
        assert int((windows["y"] != -1).sum()) == found[0]["validation_tokens"] == 5000


def test_stint_is_scored_only_on_its_own_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real train.py: it uses the corpus that was prepared for the peer."""
    spec = replace(gpu.TEXT, cache_dir=str(tmp_path / "prepared"), max_bytes=2_000_000)
    corpus = open_corpus(prepare(spec).folder)
    plain = subprocess.run

    def small(command: list[str], **options: Any) -> Any:
        here = [f"data.cache_dir={spec.cache_dir}", f"data.max_bytes={spec.max_bytes}"]
        size = ["budget.hours=null", "budget.steps=2", "model.n_layer=1", "model.n_embd=32", "model.bigram_rows=0"]
        return plain([*command, *here, *size, "probe=false"], **options)

    monkeypatch.setattr(subprocess, "run", small)
    folder = gpu.run_stint(tmp_path, 30.0, CPU)
    assert len(list(Path(spec.cache_dir).glob("stdlib-*/manifest.json"))) == 1, "both use one corpus"
    loss = score_run(folder, corpus, 4096, 64, CPU)["loss"]
    assert 0.5 < loss / math.log(4096) < 1.1
    other = open_corpus(prepare(replace(spec, validation_fraction=0.1)).folder)
    with pytest.raises(SystemExit, match="was not trained on"):
        score_run(folder, other, 4096, 64, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.speed.gpu"])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "CUDA" in error
