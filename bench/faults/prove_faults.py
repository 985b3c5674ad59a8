"""Test that no paid work is lost: runs that are killed or stopped in every phase and resumed, and all other faults.

    python -m bench.faults.prove_faults --kills 200 --signals 56

A chain is one run that is killed (or stopped by a signal) several times, each time at a random moment of the next phase, and
then resumed by the same command; the last process ends by itself. Its weights are compared with those of an undisturbed run.
Then the tests of all other faults run. A failure is recorded, and the next chain starts.

One kill takes about four seconds. Finished chains are kept in outputs/prove-faults/, so the same command continues after an
interruption; --fresh starts again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, argument_parser, write_result
from bench.faults.phases import PHASES
from bench.faults.watched_run import WatchedRun, lost_at_resumes, read_accounts, weights_hash
from common.signals import STOPPING
from run.environment import git_commit
from tests.conftest import TINY

RESULT = RESULTS / "faults.json"
PLACE = ROOT / "outputs" / "prove-faults"
TESTS = ("tests/training/test_faults.py", "tests/training/test_injected_faults.py", "tests/training/test_corruption.py")
STEPS = 1000
EVERY_S = 0.2  # between checkpoints
OPTIONS = (
    *TINY,
    f"budget.steps={STEPS}",
    f"checkpoint.every_s={EVERY_S}",
    "checkpoint.max_fraction=1.0",
    "eval.tokens=20000",
    "eval.interim_tokens=5000",
    "name=faults",
)
# The phases to disturb in one run, in the order in which they occur. A phase that is over cannot be disturbed any more.
KILLED = (
    "preparing", "preparing", "import", "warm-up", "training", "checkpoint", "evaluation", "training", "checkpoint", "report",
)  # fmt: skip
STOPPED = ("preparing", "import", "warm-up", "training", "checkpoint", "evaluation", "report")
ENTRIES = {"checkpoint": 5, "evaluation": 4, "report": 3}  # for a repeated phase, one of its first entries is drawn
LIMIT_S = 5.0  # to save and exit after a signal
PATIENCE_S = 180.0  # for a process that should end by itself


@dataclass
class Row:
    """One process of a chain.

    Attributes:
        wanted: The phase to disturb.
        phase: The phase in which it was disturbed; None if it ended by itself before.
        lived_s: Seconds from its start to its end.
        exit_s: Seconds from the signal to its end.
        uncounted_s: Seconds that are missing in its ledger.
    """

    chain: str
    wanted: str
    phase: str | None = None
    signal: str | None = None
    lived_s: float = 0.0
    exit_s: float | None = None
    uncounted_s: float | None = None
    failures: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """A disturbed run, from its first process to its last. `lost`: steps and seconds that were lost at each resume."""

    name: str
    rows: list[Row]
    identical: bool
    lost: list[tuple[int, float]]
    failures: list[str]


def write_texts() -> Path:
    """Write a corpus that takes long enough to prepare: the modules of Python's standard library."""
    folder = PLACE / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        (folder / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8", errors="replace"))
    return folder


def run_options(name: str) -> list[str]:
    """The options of a chain's run. Each chain has its own folder for the prepared corpus and the run."""
    place = PLACE / name
    return [*OPTIONS, f"data.path={PLACE / 'texts'}", f"data.cache_dir={place / 'prepared'}", f"output_dir={place}"]


def reference() -> tuple[str, dict[str, float]]:
    """Run without disturbance. Returns the hash of the weights and the typical seconds of each phase."""
    shutil.rmtree(PLACE / "reference", ignore_errors=True)
    with WatchedRun(run_options("reference")) as process:
        entered = process.wait_to_end(PATIENCE_S)
        if process.status != 0:
            sys.exit(f"the undisturbed run failed: {process.last_line()}")
    durations: dict[str, list[float]] = defaultdict(list)
    for (phase, began), (_, ended) in pairwise(entered):
        durations[phase].append(ended - began)
    typical = {phase: statistics.median(sorted(seconds)[-5:]) for phase, seconds in durations.items()}
    typical["training"] = sum(durations["training"]) / len(KILLED)
    return weights_hash(PLACE / "reference"), typical


def disturb(row: Row, number: int, typical: dict[str, float], draw: random.Random) -> None:
    """Start the run, send signal `number` at a random moment of the phase `row.wanted`, and check the files that it leaves."""
    folder = PLACE / row.chain
    before = read_accounts(folder)
    with WatchedRun(run_options(row.chain)) as process:
        entry = draw.randint(1, ENTRIES.get(row.wanted, 1))
        entered = process.wait_for(row.wanted, entry, PATIENCE_S)
        if entered and process.pause(draw.uniform(0, 0.9 * typical[row.wanted])):
            sent = time.monotonic()
            row.phase = process.phase()
            os.kill(process.pid, number)
            status = process.wait(PATIENCE_S)
            row.exit_s = time.monotonic() - sent
            row.failures += exit_failures(number, status, row.phase, row.exit_s, process.last_line())
        elif process.wait(PATIENCE_S) != 0:
            row.failures.append(f"it failed without a signal: {process.last_line()}")
        row.lived_s = process.lived_s()
    after = read_accounts(folder)
    if after.spent_s < before.spent_s - 1e-6:
        row.failures.append(f"the spent budget decreased from {before.spent_s:.2f} to {after.spent_s:.2f} s")
    if row.phase not in (None, "import", "preparing"):
        row.uncounted_s = row.lived_s - (after.spent_s - before.spent_s) - after.prepare_s


def exit_failures(number: int, status: int | None, phase: str, exit_s: float, last_line: str) -> list[str]:
    """The failures in how a process ended after signal `number`."""
    if status is None:
        return [f"still running {PATIENCE_S:g} s after the signal"]
    early = phase == "import" and status == -number  # before its handlers were installed; nothing to save
    if status not in (-signal.SIGKILL, 0) and status != 128 + number and not early:
        return [f"ended with status {status}: {last_line}"]
    if number != signal.SIGKILL and exit_s > LIMIT_S:
        return [f"took {exit_s:.1f} s to save and end"]
    return []


def chain(kind: str, index: int, wanted: tuple[str, ...], weights: str, typical: dict[str, float]) -> Chain:
    """Disturb one run in the phases `wanted`, one after another, then let it end."""
    name = f"{kind}-{index}"
    shutil.rmtree(PLACE / name, ignore_errors=True)
    draw, rows = random.Random(name), list[Row]()
    for position, phase in enumerate(wanted):
        number = signal.Signals[STOPPING[(index + position) % len(STOPPING)]] if kind == "signals" else signal.SIGKILL
        row = Row(name, phase, signal=number.name)
        disturb(row, number, typical, draw)
        rows.append(row)
        if row.phase is None or row.failures:
            break
    failures = []
    with WatchedRun(run_options(name)) as process:
        process.wait_to_end(PATIENCE_S)
        if process.status != 0:
            failures.append(f"{name}: the last process ended with status {process.status}: {process.last_line()}")
    identical = weights_hash(PLACE / name) == weights
    if not identical:
        failures.append(f"{name}: its weights differ from those of the undisturbed run")
    lost = lost_at_resumes(PLACE / name)
    if kind == "signals" and any(steps for steps, _ in lost):
        failures.append(f"{name}: steps were lost although the signal lets a run save: {lost}")
    failures += [
        f"{name}, {row.signal} in {row.phase or row.wanted}: {failure}" for row in rows for failure in row.failures
    ]
    if not failures:
        shutil.rmtree(PLACE / name, ignore_errors=True)
    return Chain(name, rows, identical, lost, failures)


class KeptChains:
    """The finished chains, including those of earlier processes of this command on the same commit."""

    def __init__(self, path: Path, commit: str | None) -> None:
        self._path, self._commit = path, commit
        lines = path.read_text().splitlines() if path.exists() else []
        self.chains = {row["name"]: row for row in map(json.loads, lines) if row.pop("commit") == commit}

    def add(self, done: Chain) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(json.dumps(asdict(done)))
        self.chains[done.name] = row
        with self._path.open("a") as file:
            file.write(json.dumps({**row, "commit": self._commit}) + "\n")
        return row


def chains(
    kind: str, count: int, order: tuple[str, ...], kept: KeptChains, weights: str, typical: dict[str, float]
) -> Any:
    """Run chains until `count` processes were disturbed."""
    done, index, rows = 0, 0, []
    while done < count:
        name = f"{kind}-{index}"
        row = kept.chains.get(name) or kept.add(chain(kind, index, order[: count - done], weights, typical))
        disturbed = sum(process["phase"] is not None for process in row["rows"])
        done, index = done + max(1, disturbed), index + 1
        rows.append(row)
        print(f"{name}: {disturbed} {kind}, {done} of {count}; {'; '.join(row['failures']) or 'identical'}", flush=True)
    return rows


def figures(chains: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and worst cases of chains, by disturbed phase."""
    rows = [row for chain in chains for row in chain["rows"] if row["phase"] is not None]
    by_phase = {}
    for phase in PHASES:
        in_phase = [row for row in rows if row["phase"] == phase]
        exits = [row["exit_s"] for row in in_phase if row["exit_s"] is not None]
        by_phase[phase] = {"disturbed": len(in_phase), "worst_exit_s": round(max(exits, default=0.0), 2)}
    lost = [pair for chain in chains for pair in chain["lost"]]
    uncounted = [row["uncounted_s"] for row in rows if row["uncounted_s"] is not None]
    signals = [row["signal"] for row in rows]
    return {
        "disturbed": len(rows),
        "by_phase": by_phase,
        "by_signal": {name: signals.count(name) for name in sorted(set(signals))},
        "runs": len(chains),
        "identical": sum(chain["identical"] for chain in chains),
        "worst_lost_steps": max((steps for steps, _ in lost), default=0),
        "worst_lost_s": round(max((seconds for _, seconds in lost), default=0.0), 2),
        "worst_uncounted_s": round(max(uncounted, default=0.0), 2),
        "failures": [failure for chain in chains for failure in chain["failures"]],
    }


class Outcomes:
    """A pytest plugin that collects one row per test function."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            test = item.nodeid.split("[")[0]
            empty = {"test": test, "cases": 0, "seconds": 0.0, "bad": []}
            self.rows.setdefault(test, {**empty, "passed": 0, "failed": 0, "skipped": 0})

    def pytest_runtest_logreport(self, report: Any) -> None:
        row = self.rows[report.nodeid.split("[")[0]]
        row["seconds"] = round(row["seconds"] + report.duration, 2)
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            row[report.outcome] += 1
            row["cases"] += dict(report.user_properties).get("cases", 1)
            if report.outcome == "failed":
                crash = getattr(
                    report.longrepr, "reprcrash", None
                )  # unlike its last line, without a path of this machine
                lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
                row["bad"].append(f"{report.nodeid}: {lines[0] if lines else 'no reason given'}")


def other_faults() -> list[dict[str, Any]]:
    """Run the tests of all other faults, including slow ones. Returns a row per test function."""
    import pytest

    outcomes = Outcomes()
    pytest.main(["-q", "-m", "slow or not slow", *TESTS], plugins=[outcomes])
    return list(outcomes.rows.values())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes killed with -9")
    parser.add_argument("--signals", type=int, default=56, help="processes stopped with a signal")
    parser.add_argument("--fresh", action="store_true", help="discard the finished chains")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(PLACE, ignore_errors=True)
    for name in STOPPING:  # under nohup, or started with & by a shell, the runs would inherit ignored signals
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    write_texts()
    kept = KeptChains(PLACE / "chains.jsonl", git_commit())
    weights, typical = reference()
    print("typical seconds: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in typical.items()), flush=True)
    killed = chains("kills", options.kills, KILLED, kept, weights, typical)
    stopped = chains("signals", options.signals, STOPPED, kept, weights, typical)
    content = {
        "how": f"python -m bench.faults.prove_faults --kills {options.kills} --signals {options.signals}",
        "git": git_commit(),
        "cores": len(os.sched_getaffinity(0)),
        "steps": STEPS,
        "checkpoint_every_s": EVERY_S,
        "kills": figures(killed),
        "signals": figures(stopped),
        "others": other_faults(),
    }
    write_result(RESULT, content)
    failures = content["kills"]["failures"] + content["signals"]["failures"]
    failures += [line for row in content["others"] for line in row["bad"]]
    print("\n".join(failures) or "no failures")
    print(f"{RESULT}; python -m bench.docs.reliability_page writes docs/reliability.md")


if __name__ == "__main__":
    main()
