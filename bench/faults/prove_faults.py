"""Is anything lost that was paid for? Runs that are killed and stopped in every phase, and typed again; and every other fault.

    python -m bench.faults.prove_faults --kills 200 --signals 56

A chain is one run, killed (or stopped by a signal) again and again, each time at a random moment of the phase that is next,
and followed by the same command; the last process ends by itself. Its weights are held against those of a run that nobody
disturbed. Then come the tests of all other faults. What goes wrong is written down as a row, and the next chain begins.

About four seconds a kill. A chain that is done is kept in outputs/prove-faults/, so that the same command, typed again, goes
on; --fresh begins anew.
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
from bench.faults.watched_run import Watched, accounts, digest, resumes
from common.signals import STOPPING
from run.environment import git_commit
from tests.conftest import TINY

RESULT = RESULTS / "faults.json"
PLACE = ROOT / "outputs" / "prove-faults"
TESTS = ("tests/training/test_faults.py", "tests/training/test_injected_faults.py", "tests/training/test_corruption.py")
STEPS = 1000
EVERY_S = 0.2  # between checkpoints
KNOBS = (
    *TINY,
    f"budget.steps={STEPS}",
    f"checkpoint.every_s={EVERY_S}",
    "checkpoint.max_fraction=1.0",
    "eval.tokens=20000",
    "eval.interim_tokens=5000",
    "name=faults",
)
# What is disturbed in one run, in the order in which it comes; what has been done cannot be disturbed any more.
KILLED = (
    "preparing", "preparing", "import", "warm-up", "training", "checkpoint", "evaluation", "training", "checkpoint", "report",
)  # fmt: skip
STOPPED = ("preparing", "import", "warm-up", "training", "checkpoint", "evaluation", "report")
ENTRIES = {"checkpoint": 5, "evaluation": 4, "report": 3}  # of a phase that comes often, any of so many
LIMIT_S = 5.0  # to save and be gone after a signal
PATIENCE_S = 180.0  # with a process that should end by itself


@dataclass
class Row:
    """One process of a chain. `phase`: where it was when it was disturbed, None when it ended by itself before; seconds:
    `lived_s` from its start to then, `exit_s` from the signal to its end, `uncounted_s` that its ledger does not know of."""

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
    """A run that was disturbed, from its first process to its last. `lost`: for each process that went on, the steps
    and seconds since the checkpoint that it went on from."""

    name: str
    rows: list[Row]
    identical: bool
    lost: list[tuple[int, float]]
    failures: list[str]


def texts() -> Path:
    """A corpus whose preparing takes long enough to be disturbed: Python's own modules."""
    folder = PLACE / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        (folder / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8", errors="replace"))
    return folder


def knobs(name: str) -> list[str]:
    """The command of a chain; corpus and run lie in a folder of its own."""
    place = PLACE / name
    return [*KNOBS, f"data.path={PLACE / 'texts'}", f"data.cache_dir={place / 'prepared'}", f"output_dir={place}"]


def reference() -> tuple[str, dict[str, float]]:
    """The hash of the weights that nobody disturbed, and the seconds that a phase typically takes."""
    shutil.rmtree(PLACE / "reference", ignore_errors=True)
    with Watched(knobs("reference")) as process:
        entered = process.to_the_end(PATIENCE_S)
        if process.status != 0:
            sys.exit(f"the run that nobody disturbs failed: {process.said()}")
    durations: dict[str, list[float]] = defaultdict(list)
    for (phase, began), (_, ended) in pairwise(entered):
        durations[phase].append(ended - began)
    typical = {phase: statistics.median(sorted(seconds)[-5:]) for phase, seconds in durations.items()}
    typical["training"] = sum(durations["training"]) / len(KILLED)
    return digest(PLACE / "reference"), typical


def disturb(row: Row, number: int, typical: dict[str, float], draw: random.Random) -> None:
    """Start the run, disturb it with signal `number` at a random moment of the phase that is wanted, and look at what it
    left behind."""
    folder = PLACE / row.chain
    before = accounts(folder)
    with Watched(knobs(row.chain)) as process:
        entry = draw.randint(1, ENTRIES.get(row.wanted, 1))
        came = process.wait_for(row.wanted, entry, PATIENCE_S)
        if came and process.pause(draw.uniform(0, 0.9 * typical[row.wanted])):
            sent = time.monotonic()
            row.phase = process.phase()
            os.kill(process.pid, number)
            status = process.wait(PATIENCE_S)
            row.exit_s = time.monotonic() - sent
            row.failures += judged(number, status, row.phase, row.exit_s, process.said())
        elif process.wait(PATIENCE_S) != 0:
            row.failures.append(f"it failed by itself: {process.said()}")
        row.lived_s = process.lived_s()
    after = accounts(folder)
    if after.spent_s < before.spent_s - 1e-6:
        row.failures.append(f"the budget spent went back from {before.spent_s:.2f} to {after.spent_s:.2f} s")
    if row.phase not in (None, "import", "preparing"):
        row.uncounted_s = row.lived_s - (after.spent_s - before.spent_s) - after.prepare_s


def judged(number: int, status: int | None, phase: str, exit_s: float, said: str) -> list[str]:
    """What is wrong with the end of a process that got a signal."""
    if status is None:
        return [f"still there {PATIENCE_S:g} s after the signal"]
    early = phase == "import" and status == -number  # not yet listening, and nothing to save
    if status not in (-signal.SIGKILL, 0) and status != 128 + number and not early:
        return [f"ended with status {status}: {said}"]
    if number != signal.SIGKILL and exit_s > LIMIT_S:
        return [f"took {exit_s:.1f} s to save and end"]
    return []


def chain(kind: str, index: int, wanted: tuple[str, ...], weights: str, typical: dict[str, float]) -> Chain:
    """One run, disturbed in the phases `wanted`, one after the other, and then left to end."""
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
    with Watched(knobs(name)) as process:
        process.to_the_end(PATIENCE_S)
        if process.status != 0:
            failures.append(f"{name}: the last process ended with status {process.status}: {process.said()}")
    identical = digest(PLACE / name) == weights
    if not identical:
        failures.append(f"{name}: its weights are not those of the run that nobody disturbed")
    lost = resumes(PLACE / name)
    if kind == "signals" and any(steps for steps, _ in lost):
        failures.append(f"{name}: steps were lost after a signal that lets a run save: {lost}")
    failures += [f"{name}, {row.signal} in {row.phase or row.wanted}: {each}" for row in rows for each in row.failures]
    if not failures:
        shutil.rmtree(PLACE / name, ignore_errors=True)
    return Chain(name, rows, identical, lost, failures)


class Kept:
    """The chains that are done, also by earlier processes of this command on the same commit."""

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


def chains(kind: str, count: int, order: tuple[str, ...], kept: Kept, weights: str, typical: dict[str, float]) -> Any:
    """Chains until `count` processes were disturbed."""
    done, index, found = 0, 0, []
    while done < count:
        name = f"{kind}-{index}"
        row = kept.chains.get(name) or kept.add(chain(kind, index, order[: count - done], weights, typical))
        disturbed = sum(each["phase"] is not None for each in row["rows"])
        done, index = done + max(1, disturbed), index + 1
        found.append(row)
        print(f"{name}: {disturbed} {kind}, {done} of {count}; {'; '.join(row['failures']) or 'identical'}", flush=True)
    return found


def figures(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and worst cases of chains, by the phase that was disturbed."""
    rows = [row for each in found for row in each["rows"] if row["phase"] is not None]
    by_phase = {}
    for phase in PHASES:
        here = [row for row in rows if row["phase"] == phase]
        exits = [row["exit_s"] for row in here if row["exit_s"] is not None]
        by_phase[phase] = {"disturbed": len(here), "worst_exit_s": round(max(exits, default=0.0), 2)}
    lost = [pair for each in found for pair in each["lost"]]
    uncounted = [row["uncounted_s"] for row in rows if row["uncounted_s"] is not None]
    signals = [row["signal"] for row in rows]
    return {
        "disturbed": len(rows),
        "by_phase": by_phase,
        "by_signal": {name: signals.count(name) for name in sorted(set(signals))},
        "runs": len(found),
        "identical": sum(each["identical"] for each in found),
        "worst_lost_steps": max((steps for steps, _ in lost), default=0),
        "worst_lost_s": round(max((seconds for _, seconds in lost), default=0.0), 2),
        "worst_uncounted_s": round(max(uncounted, default=0.0), 2),
        "failures": [failure for each in found for failure in each["failures"]],
    }


class Outcomes:
    """A plugin of pytest: one row for each test function."""

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
                crash = getattr(report.longrepr, "reprcrash", None)  # no path of this machine, as its last line has
                said = (crash.message if crash else str(report.longrepr)).strip().splitlines()
                row["bad"].append(f"{report.nodeid}: {said[0] if said else 'no reason given'}")


def other_faults() -> list[dict[str, Any]]:
    """The tests of all other faults, those that take minutes as well."""
    import pytest

    outcomes = Outcomes()
    pytest.main(["-q", "-m", "slow or not slow", *TESTS], plugins=[outcomes])
    return list(outcomes.rows.values())


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes killed with -9")
    parser.add_argument("--signals", type=int, default=56, help="processes stopped with a signal")
    parser.add_argument("--fresh", action="store_true", help="forget the chains that are done")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(PLACE, ignore_errors=True)
    for name in STOPPING:  # what nohup, or a shell's &, has made us ignore the runs would ignore while they load
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    texts()
    kept = Kept(PLACE / "chains.jsonl", git_commit())
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
    print("\n".join(failures) or "no failure")
    print(f"{RESULT}; python -m bench.docs.reliability_page writes docs/reliability.md")


if __name__ == "__main__":
    main()
