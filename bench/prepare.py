"""How close data preparation comes to its limit, the bare encoder; and whether its memory grows with the corpus.

    TIKTOKEN_CACHE_DIR=../shared/tiktoken python -m bench.prepare ../shared/corpus/slimpajama

The limit: the same texts, already in memory, encoded by the same number of threads with nothing else to do; once with
one tiktoken encoder for all threads, as tiktoken's own batch calls work, and once with an encoder for each thread, as
this project encodes (the threads of the former wait for each other). Prepare also reads, decompresses, parses, hashes,
drops duplicates, writes and syncs. They take turns, so that whatever else the machine does falls on all of them; each
round gives a ratio, and medians are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.prepare import BATCH_BYTES, prepare
from data.shards import usable_cores
from data.sources import DataSpec, make_source
from data.tokenizer import Tokenizer

TOKENIZERS = ("gpt2", "bpe-4096")
GOAL = 0.8
SMALL_BYTES = 20_000_000
RESULT = Path(__file__).parent / "results" / "prepare.json"


def spec_of(path: str, tokenizer: str, cache: str, workers: int, max_bytes: int | None = None) -> DataSpec:
    return DataSpec(
        source="slimpajama", path=path, tokenizer=tokenizer, cache_dir=cache, workers=workers, max_bytes=max_bytes
    )


def batches_of(path: str) -> list[list[str]]:
    """All texts of the corpus, in batches like prepare's."""
    source = make_source(spec_of(path, "bytes", "unused", 1))
    batches: list[list[str]] = [[]]
    size = 0
    for part in source.parts():
        for document in source.documents(part):
            if document is not None:
                batches[-1].append(document.text)
                size += len(document.text)
            if size >= BATCH_BYTES:
                batches.append([])
                size = 0
    return batches


def timed(work: Callable[[], int]) -> float:
    """Tokens a second of `work`, which returns its tokens."""
    start = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - start)


def bare(batches: list[list[str]], tokenizer: Tokenizer, workers: int, shared: bool) -> int:
    """tiktoken alone, without this project's splitting of long texts and care for surrogates."""
    one_for_all = tokenizer._encoding

    def encode(batch: list[str]) -> int:
        encoding = one_for_all if shared else tokenizer._encoding  # the latter is each thread's own
        return sum(len(encoding.encode_to_numpy(text, disallowed_special=())) + 1 for text in batch)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(encode, batches))


def prepared(path: str, name: str, workers: int, trained: Path) -> int:
    """A whole preparation. The tokenizer was trained before: that is paid once per corpus, and not encoding."""
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "tokenizers").symlink_to(trained)
        info = prepare(spec_of(path, name, cache, workers), progress=False, log=lambda line: None)
    return sum(split["tokens"] for split in info.manifest["splits"].values())


def compare(path: str, name: str, workers: int, rounds: int, batches: list[list[str]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        info = prepare(spec_of(path, name, cache, workers), progress=False, log=lambda line: None)
        trained = Path(cache) / "tokenizers"
        trained.mkdir(exist_ok=True)
        rows = []
        for _ in range(rounds):
            shared = timed(lambda: bare(batches, info.tokenizer, workers, shared=True))
            own = timed(lambda: bare(batches, info.tokenizer, workers, shared=False))
            rows.append((timed(lambda: prepared(path, name, workers, trained)), shared, own))
    mine, shared, own = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rows)
    return {
        "tokenizer": name,
        "prepare_tokens_per_second": round(mine),
        "encoder_tokens_per_second": round(shared),
        "encoder_per_thread_tokens_per_second": round(own),
        "ratio": round(ratio, 3),
        "ratios": [round(row[0] / row[1], 3) for row in rows],
        "ratio_to_encoder_per_thread": round(statistics.median(row[0] / row[2] for row in rows), 3),
        "goal_met": ratio >= GOAL,
    }


def peak_megabytes(path: str, max_bytes: int | None) -> float:
    """Peak resident memory of a process that prepares up to `max_bytes` of the corpus."""
    command = [sys.executable, "-m", "bench.prepare", path, "--peak", str(max_bytes or 0)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def measure_peak(path: str, max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        spec = spec_of(path, "gpt2", cache, usable_cores(), max_bytes or None)
        prepare(spec, progress=False, log=lambda line: None)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder in SlimPajama's layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        measure_peak(options.path, options.peak)
        return
    workers = usable_cores()
    peaks = {"20_MB": peak_megabytes(options.path, SMALL_BYTES), "whole": peak_megabytes(options.path, None)}
    batches = batches_of(options.path)
    result = {
        "how": f"python -m bench.prepare {options.path} --rounds {options.rounds}",
        "corpus_bytes": sum(len(text.encode()) for batch in batches for text in batch),
        "threads": workers,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "goal_ratio": GOAL,
        "throughput": [compare(options.path, name, workers, options.rounds, batches) for name in TOKENIZERS],
        "peak_rss_mb": peaks,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
