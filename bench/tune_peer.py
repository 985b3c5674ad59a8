"""Is the tuned form of nanoGPT well tuned? Its loss with one of its settings changed, in the same seconds.

    python -m bench.tune_peer ../shared/corpus/slimpajama --peer ../nanoGPT --minutes 5      # an hour on two idle cores

What bench.against takes for the headline, and neighbours of it in learning rate, batch and size. How many iterations fit is
measured for each, its schedule's horizon is those, and each is scored on the validation tokens of bench.against. What is
finished stays in bench/results/tune_nanogpt.json when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.against import matmul_speed
from bench.own import ROOT, corpus_in
from bench.peers.nanogpt import TUNED, NanoGPT
from bench.peers.peer import SIZES, TUNED_BATCH, TUNED_RATE, write_windows
from data.loader import EvalRange

RESULT = ROOT / "bench" / "results" / "tune_nanogpt.json"
FACTORS = (0.5, 2.0)


def rate(factor: float) -> dict[str, Any]:
    return {"learning_rate": factor * TUNED_RATE, "min_lr": factor * TUNED_RATE / 10}


ROWS: dict[str, dict[str, Any]] = {
    "tuned": {},
    **{f"learning rate x {factor:g}": rate(factor) for factor in FACTORS},
    **{f"batch x {factor:g}": {"batch_size": round(factor * TUNED_BATCH)} for factor in FACTORS},
    "1 x 128": {"n_layer": 1},
    "2 x 128": {"n_layer": 2},
    "4 x 64": {"n_embd": 64},
    "1 x 64": {"n_layer": 1, "n_embd": 64},
}


def settings_of(peer: NanoGPT, changes: dict[str, Any], iterations: int) -> dict[str, Any]:
    return peer.settings("tuned", iterations) | changes


def measured(peer: NanoGPT, place: Path, name: str, seconds: float) -> dict[str, Any]:
    """A row: its settings, how many iterations fitted, and what they came to."""
    changes, speed = ROWS[name], matmul_speed()
    fitting = peer.fitting(place, lambda iterations: settings_of(peer, changes, iterations), seconds)
    settings = settings_of(peer, changes, fitting)
    ran = peer.run(place, "out-search", 0, settings)
    loss = peer.loss(place, "out-search", settings, place / "windows.npz")
    print(f"{name:<20} {loss:.4f}  {ran.iterations:,} iterations in {ran.seconds:.0f} s", flush=True)
    figures = {"iterations": ran.iterations, "tokens": ran.tokens, "seconds": ran.seconds}
    return {"name": name, "changes": changes, "loss": loss, **figures, "matmul_flops_per_second": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder in SlimPajama's layout")
    parser.add_argument("--peer", required=True, type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each run, start and all")
    parser.add_argument("--tokens", type=int, default=524288, help="of the validation part")
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
        "validation_tokens": options.tokens,
        "window": peer.window,
        "settings": SIZES | TUNED,
    }
    kept = json.loads(options.output.read_text()) if options.output.exists() else {}
    rows = kept["rows"] if {key: kept.get(key) for key in head} == head else []
    for name in ROWS:
        if name not in {row["name"] for row in rows}:
            rows.append(measured(peer, place, name, 60 * options.minutes))
            options.output.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
