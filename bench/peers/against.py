"""stint against a peer: the same seconds on the same machine, the same training tokens, the same validation tokens.

    python -m bench.peers.against ../shared/corpus/slimpajama --peer ../nanoGPT --minutes 5      # two hours on two idle cores
    python -m bench.peers.against ../shared/corpus/slimpajama --peer ../llm-baselines
    python -m bench.peers.against ../shared/corpus/slimpajama --peer cramming                    # its recipe; needs no checkout

The peer's own training script runs from the user's checkout, on data files that are written from stint's prepared corpus, in
three forms: as it is shipped, in sizes for a CPU; with its schedule's horizon matched to the seconds; and with its batch and
learning rate tuned as well, which is the headline. How many iterations fit is measured first. stint then runs for the
seconds that the peer really took, and again for a third, a quarter, ... of them, until it no longer reaches the peer's loss:
the time-to-loss ratio. All seconds count, of both, from process start to exit; what a peer evaluates is cut to a batch.
Both are judged on the same tokens of the validation part in windows of the peer's length, and stint's at its own length
as well. Whatever comes out is written to bench/results/against_PEER.json; started again, also with more seeds or forms,
it goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, ROOT, argument_parser, result_of, write_result
from bench.peers import KNOWN, find_peer
from bench.peers.peer import FORMS, Peer, write_windows
from bench.peers.stint_run import prepared_corpus, run_stint, score_run
from data.eval_windows import EvalRange
from data.shards import Corpus
from device.device import open_device
from device.peak_flops import measure_peak
from run.environment import git_commit

SHARES = (1.0, 1 / 3, 1 / 4, 1 / 6, 1 / 8, 1 / 12)  # of the peer's seconds


@dataclass(frozen=True)
class Comparison:
    """One peer and stint on a corpus.

    Attributes:
        folder: Of the corpus, in SlimPajama's layout.
        place: Working folder of all runs.
        minutes: The peer's, start and all.
        tokens: Of the validation part.
        arguments: Of stint's train.py.
    """

    peer: Peer
    folder: str
    place: Path
    minutes: float
    seeds: int
    tokens: int
    forms: tuple[str, ...]
    arguments: tuple[str, ...]

    def how(self) -> str:
        """The command, without the paths of this machine."""
        command = " ".join(["python -m bench.peers.against CORPUS", *self.arguments])
        options = f"--peer {self.peer.given} --minutes {self.minutes:g} --seeds {self.seeds} --tokens {self.tokens}"
        return f"{command} {options} --forms {' '.join(self.forms)}"

    def content(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """Of the result's file."""
        return {
            "how": self.how(),
            "torch": torch.__version__,
            "validation_tokens": self.tokens,
            "window": self.peer.window,
            "settings": {form: self.peer.settings(form, 0) for form in self.peer.forms},
            "rounds": found,
        }

    def rounds(self, corpus: Corpus, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """A measurement for every form of the peer and every seed but those that are `done`."""
        self.peer.write_data(corpus, self.place)
        write_windows(EvalRange(corpus.val, self.peer.window, self.tokens), self.place / "windows.npz")
        missing = [(form, seed) for seed in range(self.seeds) for form in self.forms if (form, seed) not in done]
        forms = dict.fromkeys(form for form, _ in missing)
        fits = {form: self.peer.amount_within(self.place, form, 60 * self.minutes) for form in forms}
        for form, seed in missing:
            yield self.row(corpus, form, seed, self.peer.settings(form, fits[form]))

    def row(self, corpus: Corpus, form: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """The peer once, and stint in its seconds; for the headline in less and less of them."""
        name, speed = f"out-{form}-{seed}", matmul_speed()
        ran = self.peer.run(self.place, name, seed, settings)
        goal = self.peer.loss(self.place, name, settings, self.place / "windows.npz")
        points: list[dict[str, Any]] = []
        for share in SHARES if form == self.forms[-1] else SHARES[:1]:
            point = self.point(corpus, f"{form}-{seed}-{share:.3f}", seed, share, share * ran.seconds)
            points.append(point)
            print(f"{form} seed {seed}: {self.peer.title} {goal:.4f} in {ran.seconds:.0f} s, stint {point['loss']:.4f}"
                  f" ({point['loss_own_window']:.4f} in its own windows, {point['bits_per_byte']:.4f} bits per byte)"
                  f" in {point['seconds']:.0f} s", flush=True)  # fmt: skip
            if point["loss"] > goal:
                break
        return {
            "form": form,
            "seed": seed,
            "iterations": ran.iterations,
            "seconds": ran.seconds,
            "peer_loss": goal,
            # The same tokens, hence the same bytes.
            "peer_bits_per_byte": goal * points[0]["bits_per_byte"] / points[0]["loss"],
            "matmul_flops_per_second": speed,
            "peer_tokens": ran.tokens,
            "git": git_commit(),
            "stint": points,
            "time_to_loss": time_to_loss(goal, ran.seconds, points),
        }

    def point(self, corpus: Corpus, name: str, seed: int, share: float, seconds: float) -> dict[str, Any]:
        """One run of stint's."""
        speed = matmul_speed()
        arguments = [f"budget.hours={seconds / 3600:.8g}", *self.arguments]
        folder = run_stint(self.place, self.folder, name, seed, arguments)
        result = result_of(folder)
        device = open_device("cpu", None, "float32", 1.0)
        figures = score_run(folder, corpus, self.tokens, self.peer.window, device)
        return {
            "share": share,
            "seconds": result["spent"]["hours"] * 3600 + result["prepare_s"],
            "tokens": result["spent"]["tokens"],
            "loss": figures["loss"],
            "bits_per_byte": figures["bits_per_byte"],
            "matmul_flops_per_second": speed,
            "loss_own_window": score_run(folder, corpus, self.tokens, None, device)["loss"],
            "model": result["model"],
        }


def matmul_speed() -> float:
    """FLOP/s of a large matrix product now, on the cores that every run has: how the machine wanders between two runs."""
    device = open_device("cpu", None, "float32", 1.0)
    return measure_peak(device.torch_device, torch.float32, device.synchronize)


def time_to_loss(goal: float, seconds: float, points: list[dict[str, Any]]) -> float | None:
    """How many times faster stint had the peer's loss: on the line through the two budgets around it, loss against the
    logarithm of seconds; the shortest budget's ratio, a lower bound, where all were better."""
    better = [point for point in points if point["loss"] <= goal]
    worse = [point for point in points if point["loss"] > goal]
    if not better:
        return None
    least = min(better, key=lambda point: point["seconds"])
    if not worse:
        return float(seconds / least["seconds"])
    most = max(worse, key=lambda point: point["seconds"])
    share = (goal - least["loss"]) / (most["loss"] - least["loss"])
    needed = math.log(least["seconds"]) + share * (math.log(most["seconds"]) - math.log(least["seconds"]))
    return float(seconds / math.exp(needed))


def earlier_rounds(path: Path, asked: Comparison) -> list[dict[str, Any]]:
    """What an earlier start of the same command measured, or of one that differs in its seeds and forms alone, with the same
    settings of the peer. Seeds and forms that are not asked for now stay: they were paid for."""
    if not path.exists():
        return []
    earlier, now = json.loads(path.read_text()), asked.content([])
    if earlier["settings"] != now["settings"] or _alike(earlier["how"]) != _alike(now["how"]):
        return []
    return list(earlier["rounds"])


def _alike(how: str) -> str:
    """A command without its seeds and forms."""
    return re.sub(r" --(seeds|forms)( [^-]\S*)+", "", how)


def conclude(peer: Peer, forms: tuple[str, ...], found: list[dict[str, Any]]) -> None:
    """Print what it comes to."""
    for form in forms:
        gains = [row["peer_loss"] - row["stint"][0]["loss"] for row in found if row["form"] == form]
        if gains:
            print(f"{form}: {statistics.mean(gains):.3f} nats better in the same seconds")
    ratios = [row["time_to_loss"] for row in found if row["form"] == forms[-1]]
    factors = ", ".join(f"{ratio:.2f}" if ratio else "-" for ratio in ratios)
    print(f"time to {forms[-1]} {peer.title}'s loss: {factors} times faster")


def parsed() -> tuple[Comparison, Path]:
    """What the command line asks for, and the file of its result."""
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--peer", required=True, help=KNOWN)
    parser.add_argument("--minutes", type=float, default=5.0, help="the peer's, start and all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=524288, help="of the validation part")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all that the peer has")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "against", help="folder of the runs")
    parser.add_argument("--output", type=Path, help="default: bench/results/against_PEER.json")
    parser.add_argument("arguments", nargs="*", help="for stint's train.py")
    options = parser.parse_args()
    folder = str(Path(options.corpus).resolve())
    peer = find_peer(options.peer, folder)
    if peer is None:
        sys.exit(f"--peer {options.peer!r} is not {KNOWN}; skipped")
    forms = tuple(options.forms or peer.forms)
    if unknown := set(forms) - set(peer.forms):
        sys.exit(f"--forms {' '.join(sorted(unknown))}: {peer.title} has {', '.join(peer.forms)}")
    place = (options.place / peer.name).resolve()
    arguments = tuple(options.arguments)
    asked = Comparison(peer, folder, place, options.minutes, options.seeds, options.tokens, forms, arguments)
    return asked, options.output or RESULTS / f"against_{peer.name}.json"


def main() -> None:
    asked, output = parsed()
    asked.place.mkdir(parents=True, exist_ok=True)
    corpus = prepared_corpus(asked.folder)
    found = earlier_rounds(output, asked)
    if others := {str(row.get("git")) for row in found} - {str(git_commit())}:
        print(
            f"{output.name} has rounds of stint at {', '.join(sorted(others))}; they stay, now it is at {git_commit()}"
        )
    for row in asked.rounds(corpus, {(row["form"], row["seed"]) for row in found}):
        found.append(row)
        write_result(output, asked.content(found))
    conclude(asked.peer, asked.forms, found)


if __name__ == "__main__":
    main()
