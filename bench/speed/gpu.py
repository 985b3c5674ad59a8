"""What one GPU does with a model of 124M and one of 166M parameters, and the time to a loss against nanoGPT.

    python -m bench.speed.gpu                             # eight minutes at most; writes bench/results/gpu.json
    python -m bench.speed.gpu --peer ../nanoGPT           # and the time to a loss, on text that every Python has with it

speed: training steps on random tokens, without torch.compile, block by block and whole: tokens/s, the share of the peak (MFU)
and of what a bare matrix product reaches in the same process, memory, and the seconds of compiling with a cold cache. loss:
nanoGPT with the settings that it ships for a small GPU run, its horizon matched to the seconds, and stint in the same seconds
and in shares of them, start and all; both are judged on the same tokens in the peer's windows.

Each stage is a process with its seconds, after which it is ended; what it measured until then is written down already.
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
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import Ran, write_windows
from bench.peers.stint_run import scored
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
SECONDS = 460.0  # of eight minutes, with some left to start and to stop
SPEED_SHARE = 0.4  # of them, where a peer is given

GPT2 = Shape(12, 12, 768, 1024, 50304, **PRESETS["classic"])
LLAMA = Shape(18, 12, 768, 1024, 50304, **PRESETS["llama"])
# In the order of what is wanted most, should the time not suffice for all.
SHAPES = (GPT2, replace(LLAMA, block_size=512), replace(GPT2, block_size=512), LLAMA)
WAYS = ("off", "regional", "on")  # to compile, as in device.compile
STEP_TOKENS = 32768
WARM, STEADY_S, FEWEST = 3, 4.0, 5

TEXT = DataSpec(source="stdlib", tokenizer="bpe-4096", validation_fraction=0.03)
VALIDATION_TOKENS = 65536
# nanoGPT's config/train_shakespeare_char.py, three minutes on an A100 by its README.
PEER: dict[str, Any] = {
    "device": "cuda",
    "compile": True,
    "eval_iters": 1,
    "block_size": 256,
    "batch_size": 64,
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
    "dropout": 0.2,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "gradient_accumulation_steps": 1,
    "log_interval": 10,
    "dataset": "stint",
}
CALIBRATION = 100  # iterations
SHARES = (1.0, 1 / 4, 1 / 8, 1 / 12)  # of the peer's seconds, for stint; down to the first that misses its loss
MOST_S = 120.0  # for the peer
JUDGING_S = 20.0  # for evaluations, beside the seconds of the runs


def steady_s(step: Step, seconds: float) -> float:
    """Seconds a step, many in a row. As in training, the host reads a loss when the next step is launched."""
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
    """Training steps of about `tokens`, in sequences that fit the memory at once, for so many seconds."""
    gc.collect()
    device.release_memory()
    device.reset_peak_memory()
    sequences = device.micro_batch(shape, max(1, tokens // shape.block_size))
    step = Step(shape, sequences, OptimSettings("adamw"), device, way)
    began = now()
    step.run()
    first_s = now() - began
    each = steady_s(step, seconds)
    peak_memory = device.peak_memory()
    rate = sequences * shape.block_size / each
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
        "compile_s": max(0.0, first_s - each) if way != "off" else None,
        "peak_memory": peak_memory,
    }


def speeds(device: Device, place: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows so far, one more each time. The compiler's folders are in `place`."""
    from torch._inductor.utils import fresh_cache

    torch.compile(torch.nn.functional.gelu)(torch.ones(64, device=device.torch_device))  # what a process pays for once
    rows = []
    for shape in SHAPES:
        for way in WAYS:
            # Without a folder of its own, one way would find kernels of the one before.
            with fresh_cache(dir=str(place), delete=False):
                rows.append(speed_of(shape, way, device, STEP_TOKENS, STEADY_S))
            torch.compiler.reset()  # the next shape would count as one of changing sizes
            row = rows[-1]
            print(f"{row['parameters'] / 1e6:.0f}M, block {row['block_size']}, compile {way}:"
                  f" {row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.1%}", flush=True)  # fmt: skip
            yield rows


def iterations_within(seconds: float, ran: Ran) -> int:
    """Iterations that a process like this one has time for, start and all."""
    typical = statistics.median(ran.each)
    return max(1, int((seconds - (ran.seconds - len(ran.each) * typical)) / typical))


def run_stint(place: Path, seconds: float, device: Device) -> Path:
    """The folder of a run of so many seconds."""
    name = f"stint-{seconds:.0f}s"
    options = [
        *("data=stdlib", f"data.tokenizer={TEXT.tokenizer}", f"data.validation_fraction={TEXT.validation_fraction}"),
        *(f"device={device.torch_device.type}", *TRAIN_ONLY, "eval.tokens=16384", f"budget.hours={seconds / 3600:.8g}"),
        *(f"output_dir={place}", f"name={name}"),
    ]
    run_script("train.py", options, capture=False).check_returncode()
    return next(place.glob(f"{name}-*"))


def run_peer(peer: NanoGPT, place: Path, name: str, iterations: int, **others: Any) -> Ran:
    """Its model is in place/name."""
    horizon = {"max_iters": iterations, "lr_decay_iters": iterations, "eval_interval": iterations}
    return peer.run(place, name, 0, PEER | horizon | others)


def against_peer(checkout: Path, place: Path, device: Device, deadline: float) -> Iterator[dict[str, Any]]:
    """What is known so far of the time to nanoGPT's loss, more each time."""
    from bench.peers.against import time_to_loss

    corpus = open_corpus(prepare(TEXT).folder)
    block = int(PEER["block_size"])
    chosen = EvalRange(corpus.val, block, VALIDATION_TOKENS)
    write_windows(chosen, place / "windows.npz")
    peer = NanoGPT(checkout)
    peer.write_data(corpus, place)
    # To be timed each, its iterations wait for the GPU here; in what is compared only those that it logs do.
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
            if error.returncode == 2 and found["stint"]:  # as it said: too short for a single step
                return
            raise
        result = result_of(folder)
        found["stint"].append(
            {
                "seconds": 3600 * result["spent"]["hours"] + result["prepare_s"],
                "loss": scored(folder, corpus, VALIDATION_TOKENS, block, device)["loss"],
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
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "compiled")  # cold, whatever ran before
    found: Iterator[Any]
    found = against_peer(peer, place, device, deadline) if stage == "loss" and peer else speeds(device, place)
    for part in found:
        write_result(output, earlier | about | {stage: part})


def bounded(command: list[str], seconds: float) -> bool:
    """Run a command; whether it ended by itself within so many seconds, and well. If not, it and all that it started are
    ended."""
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
    """Each stage by `start`, within its share of the seconds; those that did not come to their end."""
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
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--stage", choices=("speed", "loss"), help="only this one, in this process, in --place")
    parser.add_argument("--place", type=Path, help="an empty folder")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: bench.gpu measures a CUDA device, and there is none here; on a CPU: make bench", file=sys.stderr)
        sys.exit(2)
    peer = options.peer.resolve() if options.peer else None
    if peer is not None and not (peer / "train.py").exists():
        print(f"error: --peer {peer} is no checkout of nanoGPT: it has no train.py", file=sys.stderr)
        sys.exit(2)
    if options.stage:
        device = open_device("cuda", None, "auto", None)
        measure(options.stage, device, options.seconds, peer, options.place, options.output)
        return
    stages = ["speed", "loss"] if peer else ["speed"]
    command = [sys.executable, "-m", "bench.speed.gpu", "--output", str(options.output.resolve())]
    command += ["--peer", str(peer)] if peer else []
    with tempfile.TemporaryDirectory() as place:
        for stage in run_stages(stages, options.seconds, [*command, "--place", place], bounded):
            print(f"{stage}: not all of it was measured; what was is in {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
