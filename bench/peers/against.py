"""Compare stint with a peer: the same time on the same machine, the same corpus, the same validation tokens.

    python -m bench.peers.against CORPUS --peer ../nanoGPT --minutes 5      # two hours on two idle cores
    python -m bench.peers.against CORPUS --peer ../llm-baselines
    python -m bench.peers.against CORPUS --peer cramming                    # its settings in stint; needs no checkout

The peer's own training script runs from the user's checkout on stint's prepared corpus, with three forms of its settings:
shipped, with sizes for a CPU; matched, with the schedule's horizon set to the time; and tuned, with batch size and learning
rate tuned as well, which is the main comparison. The number of iterations that fit is measured first. stint then runs for the
seconds that the peer took, and again for 1/3, 1/4, ... of them until it no longer reaches the peer's loss. This gives the
time-to-loss ratio. All seconds from process start to exit count for both; evaluations of the peer are limited to one batch.
Both are scored on the same validation tokens in windows of the peer's length, and stint also in windows of its own length.
The result is bench/results/against_PEER.json. The same command, also with more seeds or forms, measures only what is missing.
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
        folder: The corpus, in SlimPajama's layout.
        place: Working folder of all runs.
        minutes: Time of a run of the peer, start-up included.
        tokens: Number of validation tokens.
        arguments: Options of stint's train.py.
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
        """The command without paths of this machine."""
        command = " ".join(["python -m bench.peers.against CORPUS", *self.arguments])
        options = f"--peer {self.peer.given} --minutes {self.minutes:g} --seeds {self.seeds} --tokens {self.tokens}"
        return f"{command} {options} --forms {' '.join(self.forms)}"

    def content(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of the result file with the rounds `found`."""
        return {
            "how": self.how(),
            "torch": torch.__version__,
            "validation_tokens": self.tokens,
            "window": self.peer.window,
            "settings": {form: self.peer.settings(form, 0) for form in self.peer.forms},
            "rounds": found,
        }

    def rounds(self, corpus: Corpus, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """Measure every form and seed that is not in `done`, one after another."""
        self.peer.write_data(corpus, self.place)
        write_windows(EvalRange(corpus.val, self.peer.window, self.tokens), self.place / "windows.npz")
        missing = [(form, seed) for seed in range(self.seeds) for form in self.forms if (form, seed) not in done]
        forms = dict.fromkeys(form for form, _ in missing)
        fits = {form: self.peer.amount_within(self.place, form, 60 * self.minutes) for form in forms}
        for form, seed in missing:
            yield self.row(corpus, form, seed, self.peer.settings(form, fits[form]))

    def row(self, corpus: Corpus, form: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        """Run the peer once and stint for the same seconds; for the last form also for decreasing shares of them."""
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
        """Run stint once for `seconds` and score it."""
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
    """FLOP/s of a large matrix product now, on the cores of the runs. It shows how the machine's speed changes between runs."""
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
    """The rounds in the result file, if its command differs only in seeds and forms and the peer's settings are the same.

    Rounds of seeds and forms that are not requested now are kept."""
    if not path.exists():
        return []
    earlier, now = json.loads(path.read_text()), asked.content([])
    if earlier["settings"] != now["settings"] or _without_seeds_and_forms(earlier["how"]) != _without_seeds_and_forms(
        now["how"]
    ):
        return []
    return list(earlier["rounds"])


def _without_seeds_and_forms(how: str) -> str:
    return re.sub(r" --(seeds|forms)( [^-]\S*)+", "", how)


def conclude(peer: Peer, forms: tuple[str, ...], found: list[dict[str, Any]]) -> None:
    """Print the mean gains and the time-to-loss ratios."""
    for form in forms:
        gains = [row["peer_loss"] - row["stint"][0]["loss"] for row in found if row["form"] == form]
        if gains:
            print(f"{form}: {statistics.mean(gains):.3f} nats better in the same seconds")
    ratios = [row["time_to_loss"] for row in found if row["form"] == forms[-1]]
    factors = ", ".join(f"{ratio:.2f}" if ratio else "-" for ratio in ratios)
    print(f"time to {forms[-1]} {peer.title}'s loss: {factors} times faster")


def parsed() -> tuple[Comparison, Path]:
    """The comparison of the command line and its result file. Exits for an unknown peer or form."""
    parser = argument_parser(__doc__, corpus=True)
    parser.add_argument("--peer", required=True, help=KNOWN)
    parser.add_argument("--minutes", type=float, default=5.0, help="time of a run of the peer, start-up included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=524288, help="number of validation tokens")
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="default: all forms of the peer")
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "against", help="folder of the runs")
    parser.add_argument("--output", type=Path, help="default: bench/results/against_PEER.json")
    parser.add_argument("arguments", nargs="*", help="options of stint's train.py")
    options = parser.parse_args()
    folder = str(Path(options.corpus).resolve())
    peer = find_peer(options.peer, folder)
    if peer is None:
        sys.exit(f"--peer {options.peer!r} is not {KNOWN}; skipped")
    forms = tuple(options.forms or peer.forms)
    if unknown := set(forms) - set(peer.forms):
        sys.exit(f"--forms {' '.join(sorted(unknown))}: the forms of {peer.title} are {', '.join(peer.forms)}")
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
            f"{output.name} has rounds of stint at {', '.join(sorted(others))}; they are kept, new ones are at {git_commit()}"
        )
    for row in asked.rounds(corpus, {(row["form"], row["seed"]) for row in found}):
        found.append(row)
        write_result(output, asked.content(found))
    conclude(asked.peer, asked.forms, found)


if __name__ == "__main__":
    main()
