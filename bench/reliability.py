"""docs/reliability.md from bench/results/faults.json and soak.json: python -m bench.reliability

What stint promises is written here; what came of it is read from the file, so that the page cannot say anything else than what
was found. A test compares the two.
"""

from __future__ import annotations

import json
from typing import Any

from bench.common import RESULTS, ROOT
from bench.table import source_of, table

RESULT, DOC = RESULTS / "faults.json", ROOT / "docs" / "reliability.md"
SOAK = RESULTS / "soak.json"
HEAD = """# Reliability

Nothing that was paid for is lost: after any fault, type the same command again. Training goes on from the newest checkpoint
that is whole, with the budget that is left; the seconds that were spent stay spent. At most one interval between two checkpoints
is done again (2 % of the hours, from two seconds to ten minutes, and a minute without hours; `checkpoint.every_s` sets it).

Made by `python -m bench.reliability`; the figures are from [faults.json](../bench/results/faults.json).
"""
PROMISES = (  # what happens, what stint does, what it costs
    (
        "kill -9, a power cut, out of memory for the system",
        "the same command goes on from the newest whole checkpoint; each is written beside the old ones, flushed and renamed,"
        " so that none is ever half there",
        "what came after it",
    ),
    (
        "SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGINT",
        "saves and ends with status 128 + signal, whatever it is doing; signals after the first change nothing, but a second"
        " SIGINT ends it on the spot",
        "nothing",
    ),
    ("a damaged checkpoint", "its checksum shows it: one line, and the one before it is used", "one more interval"),
    (
        "a damaged or lost ledger",
        "the newest checkpoint and the curve say what was spent; one line",
        "nothing, or seconds",
    ),
    ("a damaged plan.json", "its copy beside the checkpoints is used; one line", "nothing"),
    (
        "a damaged shard, manifest, tokenizer or model",
        "one line and status 2 before anything is computed with it",
        "preparing again, or a copy",
    ),
    (
        "a full disk, a quota, a write error",
        "a checkpoint that cannot be written costs a warning, and the next one is tried; at the end of the run the disk is"
        " asked twice, then one line and status 1",
        "nothing that was saved",
    ),
    (
        "a slow disk",
        "checkpoints become rarer, to take no more than `checkpoint.max_fraction` of the time; more is kept for the end",
        "that share",
    ),
    (
        "out of memory in a step, an evaluation or the warm-up",
        "half as many sequences at a time, twice as often: the same batch, the same mathematics",
        "part of a step",
    ),
    (
        "a loss that is no number, or worse than guessing for 32 steps",
        "back to the newest good checkpoint, once, at half the learning rate; the second time the run ends as `diverged`."
        " In float16, a step whose gradient is no number is skipped; elsewhere every step would have to wait for the device to"
        " know that in time",
        "what came after that checkpoint",
    ),
    (
        "a suspended process, a machine that sleeps",
        "it counts, for a budget of an hour is an hour on the wall: booked as idle, said, and `standstill_s` in result.json",
        "the time",
    ),
    ("jumps of the system's clock", "no duration is ever taken from it", "nothing"),
    (
        "a run that goes on on another machine",
        "it is said; micro-batches are chosen for what is there, and the plan is held against the new speed",
        "nothing",
    ),
    ("two processes that want one run", "the second one ends with one line and status 2", "nothing"),
    ("wandb hangs or fails", "one warning; metrics.jsonl is the record", "nothing"),
)


def phases(found: dict[str, Any]) -> list[str]:
    """Kills and signals by the phase in which they arrived."""
    kills, stops = found["kills"], found["signals"]
    rows = [
        [
            phase,
            str(row["disturbed"]),
            str(stops["by_phase"][phase]["disturbed"]),
            f"{stops['by_phase'][phase]['worst_exit_s']:.2f} s",
        ]
        for phase, row in kills["by_phase"].items()
    ]
    signals = ", ".join(f"{count} {name}" for name, count in stops["by_signal"].items())
    return [
        "## Killed and stopped in every phase",
        "",
        f"A run of {found['steps']:,} steps on one thread of a CPU, a checkpoint every"
        f" {found['checkpoint_every_s']:g} s, disturbed again and again at random moments, each time followed by the same"
        " command.",
        "",
        *table(["phase", "kill -9", "signals", "saved and gone after, at worst"], rows),
        "",
        f"- {kills['disturbed']} kills in {kills['runs']} runs: the final weights of {kills['identical']} of them are, bit for"
        f" bit, those of a run that nobody disturbed. At most {kills['worst_lost_steps']} steps"
        f" ({kills['worst_lost_s']:.2f} s) were done again after a kill, and at most {kills['worst_uncounted_s']:.2f} s of a"
        " killed process are not on its ledger.",
        f"- {stops['disturbed']} signals ({signals}) in {stops['runs']} runs: {stops['identical']} with the same final weights;"
        f" {stops['worst_lost_steps']} steps were done again.",
        "- A run with a budget of 299.9 s was killed with kill -9 after 13, 61 and 55 s and started again each time. All four"
        " processes together took 295.2 s (measured once; `git log -- bench/killed.py` finds the script).",
    ]


def others(found: dict[str, Any]) -> list[str]:
    """The tests of all other faults."""
    rows = [
        [
            row["fault"].rstrip("."),
            f"{row['cases']:,}",
            "failed" if row["failed"] else "as promised" if row["passed"] else "not tried here",
            f"{row['seconds']:.1f} s",
        ]
        for row in found["others"]
    ]
    return ["## Every other fault", "", *table(["fault", "cases", "outcome", "took"], rows)]


def failures(found: dict[str, Any]) -> list[str]:
    lines = [*found["kills"]["failures"], *found["signals"]["failures"]]
    lines += [line for row in found["others"] for line in row["bad"]]
    return ["## Failures", "", *([f"- {line}" for line in lines] or ["None."])]


def growth(found: dict[str, Any]) -> list[str]:
    """Of a long run, a long record and a large corpus."""
    run, record, corpus = found["run"], found["record"], found.get("corpus")
    names = {"memory_mb": "memory, MB", "files": "open files", "disk_mb": "disk, MB", "tokens_per_second": "tokens/s"}
    rows = [
        [
            names.get(name, name),
            f"{each['first']:,.0f}",
            f"{each['last']:,.0f}",
            f"{each['change']:+.1%}",
            f"{each['limit']:.0%}",
        ]
        for name, each in run["verdicts"].items()
    ]
    return [
        "## Does anything grow?",
        "",
        f"{run['minutes']:.0f} minutes of training, {run['steps']['number']:,} steps, {run['checkpoints_seen']} checkpoints; the"
        " beginning, in which libraries are loaded, and the end left out.",
        "",
        *table(["figure", "first fifth", "last fifth", "change", "limit"], rows),
        "",
        f"- A record of {record['lines']:,} lines gives its report in {record['seconds']:.1f} s.",
        *([prepared(corpus)] if corpus else []),
    ]


def prepared(corpus: dict[str, Any]) -> str:
    """Of the memory that preparing a large corpus takes."""
    return (
        f"- Preparing {corpus['whole']['megabytes'] / 1000:.1f} GB of text took {corpus['whole']['peak_memory_mb']:.0f} MB of"
        f" memory, a tenth of it {corpus['tenth']['peak_memory_mb']:.0f} MB ({corpus['growth']:+.1%})."
    )


def text() -> str:
    """The page."""
    found, soaked = json.loads(RESULT.read_text()), json.loads(SOAK.read_text())
    how = f"{source_of(RESULT, found)}; {source_of(SOAK, soaked)}"
    rows = [list(row) for row in PROMISES]
    promised = ["## What happens", "", *table(["fault", "what stint does", "what it costs"], rows)]
    sections = [promised, *(section(found) for section in (phases, others, failures)), growth(soaked), [how]]
    return "\n\n".join([HEAD.rstrip("\n"), *("\n".join(section) for section in sections)]) + "\n"


if __name__ == "__main__":
    DOC.write_text(text())
