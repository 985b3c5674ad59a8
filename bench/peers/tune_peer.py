"""Check how well the tuned form of a peer is tuned: its loss with one setting changed, for the same time.

    python -m bench.peers.tune_peer CORPUS --peer ../nanoGPT --minutes 5 --at-once     # 45 minutes on two cores
    python -m bench.peers.tune_peer CORPUS --peer ../llm-baselines --at-once           # its learning rate only
    python -m bench.peers.tune_peer CORPUS --peer cramming --at-once                   # its learning rate only

The rows are the tuned form of bench.peers.against and the peer's `rates` and `neighbours`. The speed of a shared machine varies
by more than they differ, so a run is not stopped by the clock. Each has the number of iterations that would fit into the time
at constant speed, which is found by timing iterations of all rows in turn. The schedule's horizon is that of the run, and each
run is scored on the validation tokens of bench.peers.against. Timings and finished rows are kept in
bench/results/tune_PEER.json. `--at-once` starts as many runs at the same time as there are cores, each on one core; the
results are the same except for rounding.
"""

from __future__ import annotations

import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from bench.common import RESULTS, ROOT, argument_parser, median_ratio, read_result, write_result
from bench.peers import KNOWN, find_peer
from bench.peers.checkout import CALIBRATION
from bench.peers.peer import Peer, write_windows
from bench.peers.stint_run import prepared_corpus
from data.eval_windows import EvalRange

ROUNDS = 3  # of timing all rows


def rows_of(peer: Peer) -> dict[str, dict[str, Any]]:
    """The changes of the tuned form in each row, by name."""
    return {"tuned": {}} | peer.rates | peer.neighbours


def settings_of(peer: Peer, name: str, iterations: int) -> dict[str, Any]:
    return peer.settings_for("tuned", iterations) | rows_of(peer)[name]


def fitting(peer: Peer, place: Path, seconds: float) -> dict[str, int]:
    """Iterations of each row for `seconds`, start-up included. Rows that change only the learning rate are not timed."""
    starts: list[float] = []
    each: dict[str, list[float]] = {name: [] for name in rows_of(peer) if name not in peer.rates}
    for _ in range(ROUNDS):
        for name, times in each.items():
            ran = peer.run(place, "calibration", 0, settings_of(peer, name, CALIBRATION))
            starts.append(ran.seconds - sum(ran.each))
            times.append(statistics.median(ran.each))
    tuned = each["tuned"]
    fits = (seconds - statistics.median(starts)) / statistics.median(tuned)
    speedup = {name: median_ratio(tuned, times) for name, times in each.items()}
    return {name: int(fits * speedup.get(name, 1.0)) for name in rows_of(peer)}


def measured(peer: Peer, place: Path, name: str, iterations: int) -> dict[str, Any]:
    """Run a row and return its settings and results."""
    settings, folder = settings_of(peer, name, iterations), f"out-{name.replace(' ', '-')}"
    ran = peer.run(place, folder, 0, settings)
    loss = peer.loss(place, folder, settings, place / "windows.npz")
    print(f"{name:<20} {loss:.4f}  {ran.iterations:,} iterations", flush=True)
    return {
        "name": name,
        "changes": rows_of(peer)[name],
        "loss": loss,
        "iterations": ran.iterations,
        "tokens": ran.tokens,
    }


def main() -> None:
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--peer", required=True, help=KNOWN)
    parser.add_argument("--minutes", type=float, default=5.0, help="time for which each run gets iterations")
    parser.add_argument("--tokens", type=int, default=524288, help="number of validation tokens")
    parser.add_argument("--at-once", action="store_true", help="a run on each core at the same time")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "tune_peer", help="folder of the runs")
    parser.add_argument("--output", type=Path, help="default: bench/results/tune_PEER.json")
    options = parser.parse_args()
    folder = str(Path(options.corpus).resolve())
    peer = find_peer(options.peer, folder)
    if peer is None:
        sys.exit(f"--peer {options.peer!r} is not {KNOWN}; skipped")
    output = options.output or RESULTS / f"tune_{peer.name}.json"
    place = (options.place / peer.name).resolve()
    place.mkdir(parents=True, exist_ok=True)
    corpus = prepared_corpus(folder)
    peer.write_data(corpus, place)
    write_windows(EvalRange(corpus.val, peer.window, options.tokens), place / "windows.npz")
    head = {
        "how": f"python -m bench.peers.tune_peer CORPUS --peer {peer.given} --minutes {options.minutes:g}"
        f" --tokens {options.tokens}",
        "minutes": options.minutes,
        "validation_tokens": options.tokens,
        "window": peer.window,
        "settings": settings_of(peer, "tuned", 0),
    }
    found = read_result(output)
    if {key: found.get(key) for key in head} != head or found["iterations"].keys() != rows_of(peer).keys():
        found = {**head, "iterations": fitting(peer, place, 60 * options.minutes), "rows": []}
        write_result(output, found)
    cores = SimpleQueue[set[int]]()
    for core in os.sched_getaffinity(0) if options.at_once else ():
        cores.put({core})
    # A process inherits the cores of the thread that starts it.
    pin = (lambda: os.sched_setaffinity(0, cores.get())) if options.at_once else None
    writing = Lock()

    def measure_and_write(name: str) -> None:
        row = measured(peer, place, name, found["iterations"][name])
        with writing:
            found["rows"].append(row)
            write_result(output, found)

    missing = [name for name in rows_of(peer) if name not in {row["name"] for row in found["rows"]}]
    with ThreadPoolExecutor(cores.qsize() or 1, initializer=pin) as pool:
        try:
            for done in as_completed([pool.submit(measure_and_write, name) for name in missing]):
                done.result()
        except BaseException:  # also Ctrl-C: running rows may finish, no more are started
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
