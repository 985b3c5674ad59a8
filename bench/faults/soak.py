"""Test that nothing grows: a run of half an hour that saves every few seconds, a million lines of metrics, a 10 GB corpus.

    python -m bench.faults.soak                        # all three parts, about 90 minutes; 40 GB of disk
    python -m bench.faults.soak run --minutes 2        # one part, shorter
    python -m bench.faults.soak corpus --gigabytes 1

Writes bench/results/soak.json with a section for each part: the measurements, and whether they are within the limits below.
The run is observed from outside, once a second, through /proc, so this needs Linux.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, argument_parser, metrics_of, read_result, result_of, write_result

RESULT = RESULTS / "soak.json"
NAME = "soak"
CHECKPOINT_S = 3
FEWEST_STEPS = 10_000
# Left out: the beginning, in which libraries load and memory fills, and the end with the last evaluation and the report.
FIRST_SHARE, FIRST_S, LAST_SHARE, LAST_S = 0.2, 180.0, 0.1, 20.0
# Largest allowed change from the first to the last fifth of the rest.
FLAT = {"memory_mb": 0.02, "files": 0.0, "threads": 0.0, "disk_mb": 0.05, "tokens_per_second": 0.1}
KEPT_SAMPLES = 200  # samples of the run in the result
LINES, REPORT_S = 1_000_000, 10.0
CORPUS_GROWTH = 0.05  # of the peak memory, from a tenth of the corpus to the whole corpus
FILE_BYTES = 64 << 20
DOCUMENT_CHARACTERS = 3000
# The vocabulary is bytes. With 4096 tokens the logits of a batch take 16 MB, and the allocator moves a block of that size a
# few times in half an hour. Such a step of 4 % would hide slow growth.
TINY = (
    "data=stdlib", "data.tokenizer=bytes",
    "model.n_layer=1", "model.n_head=1", "model.n_embd=64", "model.block_size=64", "model.bigram_rows=4096",
    "optim.batch_tokens=1024", "probe=false", "plan.max_epochs=1e6", "device.name=cpu", "device.threads=1",
    f"checkpoint.every_s={CHECKPOINT_S}", "checkpoint.max_fraction=1", "eval.every=0.02", f"name={NAME}", "fresh=true",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- a long run


@dataclass(frozen=True)
class Sample:
    """Resources of a process and its folder, `second` seconds after its start."""

    second: float
    memory_mb: float
    files: int
    threads: int
    disk_mb: float


def sample(process: int, folder: Path, second: float) -> Sample:
    """Take a sample of a process and its folder. Raises OSError if the process has ended."""
    proc = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    memory_kb = float(status["VmRSS"].split()[0]) if "VmRSS" in status else math.nan
    opened = len(os.listdir(proc / "fd"))  # noqa: PTH208 (only counted)
    return Sample(second, memory_kb / 1024, opened, int(status["Threads"]), disk_bytes(folder) / 2**20)


def disk_bytes(folder: Path) -> int:
    """The size of all files below a folder. Files may appear and vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def watch(process: subprocess.Popen[bytes], folder: Callable[[], Path | None]) -> list[Sample]:
    """Take a sample per second until the process ends."""
    began, samples = time.monotonic(), []
    while process.poll() is None:
        try:
            if path := folder():
                samples.append(sample(process.pid, path, time.monotonic() - began))
        except (OSError, ValueError):  # the process has just ended
            break
        time.sleep(1.0)
    return samples


def steady_samples(samples: list[Sample]) -> list[Sample]:
    """The samples without the beginning and the end of the run."""
    length = samples[-1].second
    first = min(FIRST_S, FIRST_SHARE * length)
    last = length - min(LAST_S, LAST_SHARE * length)
    return [sample for sample in samples if first <= sample.second <= last]


def change(values: list[float], typical: Callable[[list[float]], float]) -> dict[str, float]:
    """The typical value of the first and the last fifth of a series, and their relative change."""
    fifth = max(1, len(values) // 5)
    first, last = typical(values[:fifth]), typical(values[-fifth:])
    return {
        "first": round(first, 3),
        "last": round(last, 3),
        "change": round(last / first - 1, 4) if first else math.nan,
    }


def verdicts(samples: list[Sample], points: list[dict[str, Any]]) -> dict[str, Any]:
    """Check each figure for growth; the speed for a decrease. `points`: the steps in metrics.jsonl."""
    middle = steady_samples(samples)
    length = samples[-1].second
    rates = [p["tokens_per_second"] for p in points if 0.2 < p["hours"] * 3600 / length < 0.95]
    series: dict[str, tuple[list[float], Callable[[list[float]], float]]] = {
        "memory_mb": ([each.memory_mb for each in middle], statistics.median),
        "files": ([float(each.files) for each in middle], max),
        "threads": ([float(each.threads) for each in middle], max),
        "disk_mb": ([each.disk_mb for each in middle], max),
        "tokens_per_second": (rates, statistics.median),
    }
    found: dict[str, Any] = {name: change(values, typical) for name, (values, typical) in series.items() if values}
    for name, figure in found.items():
        drift = -figure["change"] if name == "tokens_per_second" else figure["change"]
        figure |= {"limit": FLAT[name], "flat": drift <= FLAT[name]}
    return found


def long_run(minutes: float, work: Path) -> dict[str, Any]:
    """Train a tiny model for `minutes` and observe the process."""

    def folder() -> Path | None:
        return next(iter((work / "outputs").glob(f"{NAME}-*")), None)

    measure_preparing = f"data.cache_dir={ROOT / 'prepared'}"
    command = [sys.executable, str(ROOT / "train.py"), *TINY, measure_preparing, f"budget.hours={minutes / 60}"]
    saved: set[str] = set()
    with subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL) as process:

        def observed_folder() -> Path | None:
            found = folder()
            if found is not None:
                saved.update(path.name for path in (found / "checkpoint").glob("step-*"))
            return found

        samples = watch(process, observed_folder)
    found = folder()
    if process.returncode or found is None:
        sys.exit(f"the run ended with status {process.returncode}")
    result = result_of(found)
    judgement = verdicts(
        samples, [point for point in metrics_of(found) if "event" not in point and "tokens_per_second" in point]
    )
    steps = result["spent"]["steps"]
    stride = -(-len(samples) // KEPT_SAMPLES)
    return {
        "minutes": minutes,
        "steps": {"number": steps, "at_least": FEWEST_STEPS, "enough": steps >= FEWEST_STEPS},
        "checkpoints_seen": len(saved),
        "overshoot_s": result["spent"]["overshoot_s"],
        "verdicts": judgement,
        "flat": all(each["flat"] for each in judgement.values()),
        "samples": [{k: round(v, 2) for k, v in asdict(each).items()} for each in samples[::stride]],
    }


# ------------------------------------------------------------------------------------------------- a very long record


def points(lines: int) -> Iterator[str]:
    """The lines of a metrics.jsonl with `lines` steps, as train.py writes it, with an evaluation at every thousandth step."""
    for step in range(1, lines + 1):
        axes = {"step": step, "tokens": 1024 * step, "flops": 1e9 * step, "hours": step / 2e5, "progress": step / lines}
        if step % 1000:
            rest = {"learning_rate": 1e-3, "loss": 3 + 5 / step, "grad_norm": 1.0}
            rest |= {"tokens_per_second": 51234.5, "mfu": 0.31}
        else:
            rest = {"val_loss": 3 + 5 / step, "val_bits_per_byte": 1.5}
        yield json.dumps({**axes, **rest}) + "\n"


def long_record(lines: int, work: Path) -> dict[str, Any]:
    """Measure the report of a run with `lines` lines of metrics: seconds and peak memory."""
    folder = work / "record"
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(points(lines))
    code = "import sys; from run.report.run_report import main; main(sys.argv[1:])"
    seconds, peak_mb = measured(code, [str(folder)])
    return {
        "lines": lines,
        "megabytes": round(disk_bytes(folder) / 2**20),
        "report_bytes": (folder / "report.html").stat().st_size,
        "seconds": round(seconds, 2),
        "limit_s": REPORT_S,
        "peak_memory_mb": round(peak_mb),
        "in_time": seconds <= REPORT_S,
    }


def measured(code: str, arguments: list[str]) -> tuple[float, float]:
    """Run `code` in a new Python process. Returns its seconds and its peak memory in MiB."""
    peak = "; print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    began = time.monotonic()
    command = [sys.executable, "-c", code + peak, *arguments]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - began, int(ended.stdout.split()[-1]) / 1024


# -------------------------------------------------------------------------------------------------- a very large corpus


def write_corpus(folder: Path, total: int, file_bytes: int = FILE_BYTES) -> list[Path]:
    """Write about `total` bytes of JSON lines from pieces of Python's own sources, changed so that no document is a duplicate."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    whole = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sources)
    pieces = [whole[at : at + DOCUMENT_CHARACTERS] for at in range(0, len(whole), DOCUMENT_CHARACTERS)]
    draw, written, number, paths = random.Random(0), 0, 0, []
    while written < total:
        paths.append(folder / f"part-{len(paths):05}.jsonl")
        with paths[-1].open("w") as file:
            while file.tell() < min(file_bytes, total - written):
                piece, other = pieces[number % len(pieces)], pieces[draw.randrange(len(pieces))]
                cut = draw.randrange(len(piece))
                file.write(json.dumps({"text": f"{piece[:cut]} {number} {other[cut:]}"}) + "\n")
                number += 1
            written += file.tell()
    return paths


def measure_preparing(paths: list[Path], tokenizer: str, work: Path) -> dict[str, float]:
    """Measure the preparation of these files: seconds and peak memory."""
    corpus = work / f"of-{len(paths)}"
    corpus.mkdir()
    for path in paths:
        os.link(path, corpus / path.name)
    code = (
        "import sys; from data.prepare import prepare; from data.sources.base import DataSpec; "
        "prepare(DataSpec(source='text', path=sys.argv[1], tokenizer=sys.argv[2], cache_dir=sys.argv[3]), False, str)"
    )
    seconds, peak_mb = measured(code, [str(corpus), tokenizer, str(work / "prepared")])
    return {
        "megabytes": round(disk_bytes(corpus) / 2**20),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_mb, 1),
    }


def large_corpus(gigabytes: float, work: Path, tokenizer: str = "bpe-4096") -> dict[str, Any]:
    """Measure the peak memory of preparing a corpus, and of preparing a tenth of it."""
    raw = work / "raw"
    raw.mkdir()
    total = int(gigabytes * 1e9)
    paths = write_corpus(raw, total, min(FILE_BYTES, total // 20))
    small, whole = (measure_preparing(some, tokenizer, work) for some in (paths[: len(paths) // 10], paths))
    growth = whole["peak_memory_mb"] / small["peak_memory_mb"] - 1
    return {"tenth": small, "whole": whole, "growth": round(growth, 4), "limit": CORPUS_GROWTH} | {
        "constant": growth <= CORPUS_GROWTH
    }


def write_section(part: str, found: dict[str, Any]) -> None:
    """Write the section of a part to the result and keep the sections of the others."""
    content = {"how": "python -m bench.faults.soak"} | read_result(RESULT)
    content[part] = {"how": f"python -m bench.faults.soak {' '.join(sys.argv[1:])}".strip(), **found}
    write_result(RESULT, content)
    print(part, json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("part", nargs="?", choices=["run", "record", "corpus"], help="run only this part")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--work", default=None, help="folder for large files (default: a temporary one)")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "run": lambda work: long_run(options.minutes, work),
        "record": lambda work: long_record(options.lines, work),
        "corpus": lambda work: large_corpus(options.gigabytes, work),
    }
    for part in [options.part] if options.part else parts:
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            write_section(part, parts[part](Path(work)))


if __name__ == "__main__":
    main()
