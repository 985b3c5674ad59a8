"""Is the tuned form of nanoGPT well tuned? Its loss with one of its settings changed, for the same time.

    python -m bench.tune_peer ../shared/corpus/slimpajama --peer ../nanoGPT --minutes 5 --at-once     # 40 minutes on two cores

What bench.against takes for the headline, and neighbours of it in learning rate, batch and size. A shared machine wanders by more
than they differ, so no clock stops these runs: each has as many iterations as would fit on a machine that stays as it is. For
that iterations of all of them are timed in turn. A schedule's horizon is the run's own, and each is scored on the validation
tokens of bench.against. What is timed and finished stays in bench/results/tune_nanogpt.json when it is started again.
`--at-once`: as many runs at the same time as there are cores, each on one; they come to the same, but for rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.own import ROOT, corpus_in
from bench.peers.checkout import CALIBRATION
from bench.peers.nanogpt import TUNED, NanoGPT
from bench.peers.peer import SIZES, TUNED_BATCH, TUNED_RATE, write_windows
from data.loader import EvalRange
from run.surroundings import usable_cores

RESULT = ROOT / "bench" / "results" / "tune_nanogpt.json"
FACTORS = (0.5, 2.0)
ROUNDS = 3  # of timing
RATES = {
    f"learning rate x {factor:g}": {"learning_rate": factor * TUNED_RATE, "min_lr": factor * TUNED_RATE / 10}
    for factor in FACTORS
}
ROWS: dict[str, dict[str, Any]] = {
    "tuned": {},
    **RATES,
    **{f"batch x {factor:g}": {"batch_size": round(factor * TUNED_BATCH)} for factor in FACTORS},
    "1 x 128": {"n_layer": 1},
    "2 x 128": {"n_layer": 2},
    "4 x 64": {"n_embd": 64},
    "1 x 64": {"n_layer": 1, "n_embd": 64},
}


def settings_of(peer: NanoGPT, name: str, iterations: int) -> dict[str, Any]:
    return peer.settings("tuned", iterations) | ROWS[name]


def fitting(peer: NanoGPT, place: Path, seconds: float) -> dict[str, int]:
    """Iterations of each row for `seconds`, start and all; a rate makes none slower."""
    starts: list[float] = []
    each: dict[str, list[float]] = {name: [] for name in ROWS if name not in RATES}
    for _ in range(ROUNDS):
        for name, times in each.items():
            ran = peer.run(place, "calibration", 0, settings_of(peer, name, CALIBRATION))
            starts.append(ran.seconds - sum(ran.each))
            times.append(statistics.median(ran.each))
    tuned = each["tuned"]
    fits = (seconds - statistics.median(starts)) / statistics.median(tuned)
    quicker = {
        name: statistics.median(one / other for one, other in zip(tuned, times, strict=True))
        for name, times in each.items()
    }
    return {name: int(fits * quicker.get(name, 1.0)) for name in ROWS}


def measured(peer: NanoGPT, place: Path, name: str, iterations: int) -> dict[str, Any]:
    """A row: its settings and what they came to."""
    settings, folder = settings_of(peer, name, iterations), f"out-{name.replace(' ', '-')}"
    ran = peer.run(place, folder, 0, settings)
    loss = peer.loss(place, folder, settings, place / "windows.npz")
    print(f"{name:<20} {loss:.4f}  {ran.iterations:,} iterations", flush=True)
    return {"name": name, "changes": ROWS[name], "loss": loss, "iterations": ran.iterations, "tokens": ran.tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
    parser.add_argument("--peer", required=True, type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--minutes", type=float, default=5.0, help="that each run is given as many iterations for")
    parser.add_argument("--tokens", type=int, default=524288, help="of the validation part")
    parser.add_argument("--at-once", action="store_true", help="a run on each core at the same time")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "tune_peer", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not NanoGPT.is_at(options.peer):
        sys.exit(f"--peer {options.peer} is no checkout of nanoGPT; skipped")
    peer = NanoGPT(options.peer.resolve())
    place = options.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    corpus = corpus_in(str(Path(options.corpus).resolve()))
    peer.write_data(corpus, place)
    write_windows(EvalRange(corpus.val, peer.window, options.tokens), place / "windows.npz")
    head = {
        "how": f"python -m bench.tune_peer CORPUS --peer CHECKOUT --minutes {options.minutes:g} --tokens {options.tokens}",
        "minutes": options.minutes,
        "validation_tokens": options.tokens,
        "window": peer.window,
        "settings": SIZES | TUNED,
    }
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    if {key: found.get(key) for key in head} != head:
        found = {**head, "iterations": fitting(peer, place, 60 * options.minutes), "rows": []}
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    workers = usable_cores() if options.at_once else 1
    if workers > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started from here on
    missing = [name for name in ROWS if name not in {row["name"] for row in found["rows"]}]
    with ThreadPoolExecutor(workers) as pool:
        for done in as_completed(
            pool.submit(measured, peer, place, name, found["iterations"][name]) for name in missing
        ):
            found["rows"].append(done.result())
            options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
