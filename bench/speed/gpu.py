"""Benchmark one GPU: the speed of models with 124M and 166M parameters, and the time to nanoGPT's loss.

    python -m bench.speed.gpu                             # at most eight minutes; writes bench/results/gpu.json
    python -m bench.speed.gpu --peer ../nanoGPT           # also the time to a loss, on the text of Python's standard library

Stage `speed`: training steps on random tokens without torch.compile, with regional compilation, and with the whole model
compiled. It measures tokens/s, MFU, the ratio to a bare matrix product in the same process, memory, and the time to compile
with a cold cache. Stage `loss`: nanoGPT with its settings for a small GPU run and the horizon matched to the time, and stint
for the same seconds and for shares of them, start-up included. Both are scored on the same tokens in the peer's windows.

Each stage is a process that is ended after its time. Its measurements are written as they are made.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, ROOT, TRAIN_ONLY, argument_parser, read_result, result_of, run_script, write_result
from bench.peers.nanogpt import SHIPPED, NanoGPT
from bench.peers.peer import PeerRun, write_windows
from bench.peers.stint_run import score_run
from bench.speed.train_step import Step
from budget.flops import flops_per_token
from common.monotonic import now
from data.eval_windows import EvalRange
from data.prepare import prepare
from data.shards import open_corpus
from data.sources.base import DataSpec
from device.device import Device, open_device
from device.peak_flops import measure_peak
from model.config import PRESETS, Shape
from model.optim.settings import OptimSettings

RESULT = RESULTS / "gpu.json"
SECONDS = 460.0  # eight minutes less the time to start and stop
SPEED_SHARE = 0.4  # of the seconds, if there is a peer

GPT2 = Shape(12, 12, 768, 1024, 50304, **PRESETS["classic"])
LLAMA = Shape(18, 12, 768, 1024, 50304, **PRESETS["llama"])
# The most important first, in case the time does not suffice for all.
SHAPES = (GPT2, replace(LLAMA, block_size=512), replace(GPT2, block_size=512), LLAMA)
WAYS = ("off", "regional", "on")  # values of device.compile
STEP_TOKENS = 32768
WARM, STEADY_S, FEWEST = 3, 4.0, 5

TEXT = DataSpec(source="stdlib", tokenizer="bpe-4096", validation_fraction=0.03)
VALIDATION_TOKENS = 65536
# nanoGPT's config/train_shakespeare_char.py, which takes three minutes on an A100 according to its README.
PEER: dict[str, Any] = SHIPPED | {
    "device": "cuda", "compile": True, "block_size": 256, "batch_size": 64, "n_layer": 6, "n_head": 6, "n_embd": 384,
    "dropout": 0.2, "log_interval": 10, "dataset": "stint",
}  # fmt: skip
CALIBRATION = 100  # iterations
SHARES = (1.0, 1 / 4, 1 / 8, 1 / 12)  # of the peer's seconds, for runs of stint until one misses the peer's loss
MOST_S = 120.0  # for the run of the peer
JUDGING_S = 20.0  # for the evaluations after the runs


def steady_step_seconds(step: Step, seconds: float) -> float:
    """Seconds per step, over many steps. As in training, the host reads a loss after it has launched the next step."""
    for _ in range(WARM):
        step.run(apart=False)
    step.device.synchronize()
    began, count = now(), 0
    while now() - began < seconds or count < FEWEST:
        before = step.device.fetch_async(step.loss)
        step.run(apart=False)
        before()
        count += 1
    step.device.synchronize()
    return (now() - began) / count


def speed_of(shape: Shape, way: str, device: Device, tokens: int, seconds: float) -> dict[str, Any]:
    """Measure training steps of about `tokens` tokens, without gradient accumulation, for `seconds`."""
    gc.collect()
    device.release_memory()
    device.reset_peak_memory()
    sequences = device.micro_batch(shape, max(1, tokens // shape.block_size))
    step = Step(shape, sequences, OptimSettings("adamw"), device, way)
    began = now()
    step.run()
    first_s = now() - began
    step_s = steady_step_seconds(step, seconds)
    peak_memory = device.peak_memory()
    rate = sequences * shape.block_size / step_s
    matmul = measure_peak(device.torch_device, getattr(torch, device.precision), device.synchronize)
    return {
        "shape": f"{shape.n_layer} x {shape.n_embd}, {shape.activation}",
        "parameters": shape.parameters(),
        "block_size": shape.block_size,
        "compile": way,
        "tokens_a_step": sequences * shape.block_size,
        "tokens_per_second": rate,
        "mfu": rate * flops_per_token(shape) / device.peak_flops,
        "matmul_flops_per_second": matmul,
        "share_of_matmul": rate * flops_per_token(shape) / matmul,
        "compile_s": max(0.0, first_s - step_s) if way != "off" else None,
        "peak_memory": peak_memory,
    }


def speeds(device: Device, place: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows so far, with one more each time. The compiler's caches are in `place`."""
    from torch._inductor.utils import fresh_cache

    # The first compilation costs extra.
    torch.compile(torch.nn.functional.gelu)(torch.ones(64, device=device.torch_device))
    rows = []
    for shape in SHAPES:
        for way in WAYS:
            # With a shared cache, one way would reuse kernels of the way before.
            with fresh_cache(dir=str(place), delete=False):
                rows.append(speed_of(shape, way, device, STEP_TOKENS, STEADY_S))
            torch.compiler.reset()  # else the next shape would be compiled with dynamic sizes
            row = rows[-1]
            print(f"{row['parameters'] / 1e6:.0f}M, block {row['block_size']}, compile {way}:"
                  f" {row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.1%}", flush=True)  # fmt: skip
            yield rows


def iterations_within(seconds: float, ran: PeerRun) -> int:
    """The iterations for which a process like `ran` has time in `seconds`, start-up included."""
    typical = statistics.median(ran.each)
    return max(1, int((seconds - (ran.seconds - len(ran.each) * typical)) / typical))


def run_stint(place: Path, seconds: float, device: Device) -> Path:
    """Run stint for `seconds` and return the run's folder."""
    name = f"stint-{seconds:.0f}s"
    options = [
        *("data=stdlib", f"data.tokenizer={TEXT.tokenizer}", f"data.validation_fraction={TEXT.validation_fraction}"),
        *(f"device={device.torch_device.type}", *TRAIN_ONLY, "eval.tokens=16384", f"budget.hours={seconds / 3600:.8g}"),
        *(f"output_dir={place}", f"name={name}"),
    ]
    run_script("train.py", options, capture=False).check_returncode()
    return next(place.glob(f"{name}-*"))


def run_peer(peer: NanoGPT, place: Path, name: str, iterations: int, **others: Any) -> PeerRun:
    """Run nanoGPT for a number of iterations. Its model is written to place/name."""
    horizon = {"max_iters": iterations, "lr_decay_iters": iterations, "eval_interval": iterations}
    return peer.run(place, name, 0, PEER | horizon | others)


def against_peer(checkout: Path, place: Path, device: Device, deadline: float) -> Iterator[dict[str, Any]]:
    """Measure the time to nanoGPT's loss. Yields the result so far after each run."""
    from bench.peers.against import time_to_loss

    corpus = open_corpus(prepare(TEXT).folder)
    block = int(PEER["block_size"])
    chosen = EvalRange(corpus.val, block, VALIDATION_TOKENS)
    write_windows(chosen, place / "windows.npz")
    peer = NanoGPT(checkout)
    peer.write_data(corpus, place)
    # With log_interval=1 every iteration waits for the GPU, so that it can be timed. The compared run logs every tenth.
    calibrated = run_peer(peer, place, "calibration", CALIBRATION, log_interval=1)
    planned_s = min(MOST_S, (deadline - now() - JUDGING_S) / (1 + sum(SHARES)))
    ran = run_peer(peer, place, "out", iterations_within(planned_s, calibrated))
    goal = peer.loss(place, "out", PEER, place / "windows.npz")
    found: dict[str, Any] = {
        "settings": PEER,
        "validation_tokens": chosen.n_tokens,
        "peer": {"iterations": ran.iterations, "seconds": ran.seconds, "loss": goal},
        "stint": [],
    }
    yield found
    for share in SHARES:
        try:
            folder = run_stint(place, share * ran.seconds, device)
        except subprocess.CalledProcessError as error:
            if error.returncode == 2 and found["stint"]:  # the budget is too short for a single step
                return
            raise
        result = result_of(folder)
        found["stint"].append(
            {
                "seconds": 3600 * result["spent"]["hours"] + result["prepare_s"],
                "loss": score_run(folder, corpus, VALIDATION_TOKENS, block, device)["loss"],
                "tokens": result["spent"]["tokens"],
                "model": result["model"],
                "compile_cache": result["environment"]["compile_cache"],
            }
        )
        found["time_to_loss"] = time_to_loss(goal, ran.seconds, found["stint"])
        yield found
        if found["stint"][-1]["loss"] > goal:
            return


def measure(stage: str, device: Device, seconds: float, peer: Path | None, place: Path, output: Path) -> None:
    """One stage, here; the file is written after each thing that was measured, and keeps the other stage's of the same
    device and torch."""
    about = {
        "how": "make bench-gpu PEER=CHECKOUT",
        "device": device.name,
        "torch": device.torch_version,
        "precision": device.precision,
        "peak_flops": device.peak_flops,
        "peak_source": device.peak_source,
    }
    earlier = read_result(output)
    if any(earlier.get(key) != value for key, value in about.items()):
        earlier = {}
    deadline = now() + seconds
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "compiled")  # a cold cache
    found: Iterator[Any]
    found = against_peer(peer, place, device, deadline) if stage == "loss" and peer else speeds(device, place)
    for part in found:
        write_result(output, earlier | about | {stage: part})


def run_bounded(command: list[str], seconds: float) -> bool:
    """Run a command and kill it, with its child processes, after `seconds`. Returns whether it ended before with status 0."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_stages(
    stages: list[str], seconds: float, command: list[str], start: Callable[[list[str], float], bool]
) -> list[str]:
    """Run each stage by `start` within its share of the seconds. Returns the stages that did not finish."""
    deadline, cut = now() + seconds, []
    for number, stage in enumerate(stages):
        last = number == len(stages) - 1
        share = deadline - now() if last else SPEED_SHARE * seconds
        if not start([*command, "--stage", stage, "--seconds", f"{share:.0f}"], math.ceil(share)):
            cut.append(stage)
    return cut


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--peer", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for the whole benchmark")
    parser.add_argument(
        "--stage", choices=("speed", "loss"), help="run only this stage, in this process; needs --place"
    )
    parser.add_argument("--place", type=Path, help="an empty folder")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: bench.speed.gpu needs a CUDA device, but none was found; on a CPU use make bench", file=sys.stderr
        )
        sys.exit(2)
    peer = options.peer.resolve() if options.peer else None
    if peer is not None and not (peer / "train.py").exists():
        print(f"error: --peer {peer} is not a checkout of nanoGPT: it has no train.py", file=sys.stderr)
        sys.exit(2)
    if options.stage:
        device = open_device("cuda", None, "auto", None)
        measure(options.stage, device, options.seconds, peer, options.place, options.output)
        return
    stages = ["speed", "loss"] if peer else ["speed"]
    command = [sys.executable, "-m", "bench.speed.gpu", "--output", str(options.output.resolve())]
    command += ["--peer", str(peer)] if peer else []
    with tempfile.TemporaryDirectory() as place:
        for stage in run_stages(stages, options.seconds, [*command, "--place", place], run_bounded):
            print(f"{stage}: not everything was measured; the finished part is in {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
