"""docs/reliability.md from bench/results/faults.json and soak.json: python -m bench.docs.reliability_page

The promises are written in this file, and the results are read from those files. A test compares the page with both.
"""

from __future__ import annotations

import json
from typing import Any

from bench.common import RESULTS, ROOT
from bench.docs.performance_page import source_of, table

RESULT, DOC = RESULTS / "faults.json", ROOT / "docs" / "reliability.md"
SOAK = RESULTS / "soak.json"
HEAD = """# Reliability

After any fault, type the same command again. Training resumes from the newest intact checkpoint with the budget that is left;
time that was spent stays spent. At most the work since that checkpoint is done again. By default the interval between
checkpoints is 2 % of the budget's hours, at least two seconds and at most ten minutes, and a minute for a budget without hours;
`checkpoint.every_s` sets it.

`python -m bench.docs.reliability_page` generates this page; the figures are from [faults.json](../bench/results/faults.json).
"""
PROMISES = (  # fault, behaviour of stint, loss
    (
        "kill -9, a power cut, the system's out-of-memory killer",
        "the same command resumes from the newest intact checkpoint; a checkpoint is written to a temporary name, flushed, then"
        " renamed, so it is either complete or absent",
        "the work since that checkpoint",
    ),
    (
        "SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGINT",
        "the run saves and exits with status 128 + signal, in any phase; further signals change nothing, except that a second"
        " SIGINT ends it at once",
        "nothing",
    ),
    (
        "a damaged checkpoint",
        "its checksum fails; one warning, and the previous checkpoint is used",
        "one more interval",
    ),
    (
        "a damaged or missing ledger",
        "what was spent is read from the newest checkpoint and the metrics; one warning",
        "nothing, or seconds",
    ),
    ("a damaged plan.json", "its copy beside the checkpoints is used; one warning", "nothing"),
    (
        "a damaged shard, manifest, tokenizer or model",
        "a one-line error with exit status 2 before the file is used",
        "nothing; prepare the corpus again, or use a copy of the model",
    ),
    (
        "a full disk, a quota, a write error",
        "a checkpoint that cannot be written is a warning, and the run continues; at the end of the run each write is tried"
        " twice, then a one-line error with exit status 1",
        "nothing that was saved",
    ),
    (
        "a slow disk",
        "checkpoints become less frequent, so that they take at most `checkpoint.max_fraction` of the time; the reserve for"
        " the end of the run grows",
        "that share of the time",
    ),
    (
        "out of memory in a step, an evaluation or the warm-up",
        "micro-batches of half the size, twice as many: the same batch and the same gradient",
        "part of a step",
    ),
    (
        "a non-finite loss, or one worse than guessing for 32 steps",
        "the run is rolled back once to the newest good checkpoint and continues at half the learning rate; the second time it"
        " ends as `diverged`. In float16, a step with a non-finite gradient is skipped; in other precisions such a check would"
        " make every step wait for the device",
        "the work since that checkpoint",
    ),
    (
        "a suspended process, a machine that sleeps",
        "that time counts, as a budget of an hour is an hour of wall clock; it is booked as idle, reported, and recorded as"
        " `standstill_s` in result.json",
        "the time",
    ),
    ("the system's clock is changed", "nothing: no duration is measured with it", "nothing"),
    (
        "a run resumed on another machine",
        "the run reports it, chooses micro-batches for that machine, and compares the plan with the new speed",
        "nothing",
    ),
    ("a second process for the same run", "it ends with a one-line error and exit status 2", "nothing"),
    ("wandb hangs or fails", "one warning; metrics.jsonl is the record", "nothing"),
)


def phases(found: dict[str, Any]) -> list[str]:
    """Kills and signals by phase."""
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
        f"A run of {found['steps']:,} steps on one CPU thread saves a checkpoint every {found['checkpoint_every_s']:g} s. It is"
        " killed or stopped at random moments of each phase and resumed by the same command each time.",
        "",
        *table(["phase", "kill -9", "signals", "longest time to save and exit"], rows),
        "",
        f"- {kills['disturbed']} kills in {kills['runs']} runs: the final weights of {kills['identical']} runs equal those of an"
        f" undisturbed run, bit for bit. After a kill at most {kills['worst_lost_steps']} steps ({kills['worst_lost_s']:.2f} s)"
        f" were repeated, and at most {kills['worst_uncounted_s']:.2f} s of a killed process are missing in its ledger.",
        f"- {stops['disturbed']} signals ({signals}) in {stops['runs']} runs: the final weights of {stops['identical']} runs"
        f" equal those of an undisturbed run; {stops['worst_lost_steps']} steps were repeated.",
        "- A run with a budget of 299.9 s was killed with kill -9 after 13, 61 and 55 s and started again each time. All four"
        " processes together took 295.2 s (measured once; `git log -- bench/killed.py` finds the script).",
    ]


def others(found: dict[str, Any]) -> list[str]:
    """The tests of all other faults."""
    rows = [
        [
            row["test"].split("::test_")[1].replace("_", " ").capitalize(),
            f"{row['cases']:,}",
            "failed" if row["failed"] else "passed" if row["passed"] else "skipped",
            f"{row['seconds']:.1f} s",
        ]
        for row in found["others"]
    ]
    return ["## Other faults", "", *table(["test", "cases", "outcome", "duration"], rows)]


def failures(found: dict[str, Any]) -> list[str]:
    lines = [*found["kills"]["failures"], *found["signals"]["failures"]]
    lines += [line for row in found["others"] for line in row["bad"]]
    return ["## Failures", "", *([f"- {line}" for line in lines] or ["None."])]


def growth(found: dict[str, Any]) -> list[str]:
    """Resources of a long run, a long metrics.jsonl and a large corpus."""
    run, record, corpus = found["run"], found["record"], found.get("corpus")
    names = {"memory_mb": "memory, MB", "files": "open files", "disk_mb": "disk, MB", "tokens_per_second": "tokens/s"}
    rows = [
        [
            names.get(name, name),
            f"{figure['first']:,.0f}",
            f"{figure['last']:,.0f}",
            f"{figure['change']:+.1%}",
            f"{figure['limit']:.0%}",
        ]
        for name, figure in run["verdicts"].items()
    ]
    return [
        "## Growth over time",
        "",
        f"{run['minutes']:.0f} minutes of training, {run['steps']['number']:,} steps and {run['checkpoints_seen']} checkpoints."
        " Start-up and the final evaluation are left out.",
        "",
        *table(["figure", "first fifth", "last fifth", "change", "largest allowed change"], rows),
        "",
        f"- The report of a run with {record['lines']:,} lines of metrics takes {record['seconds']:.1f} s.",
        *([prepared(corpus)] if corpus else []),
    ]


def prepared(corpus: dict[str, Any]) -> str:
    """The memory for preparing a large corpus."""
    return (
        f"- Preparing {corpus['whole']['megabytes'] / 1000:.1f} GB of text took {corpus['whole']['peak_memory_mb']:.0f} MB of"
        f" memory; preparing a tenth of it took {corpus['tenth']['peak_memory_mb']:.0f} MB."
    )


def text() -> str:
    """The page."""
    found, soaked = json.loads(RESULT.read_text()), json.loads(SOAK.read_text())
    how = f"{source_of(RESULT, found)}; {source_of(SOAK, soaked)}"
    rows = [list(row) for row in PROMISES]
    promised = ["## Faults and behaviour", "", *table(["fault", "behaviour", "loss"], rows)]
    sections = [promised, *(section(found) for section in (phases, others, failures)), growth(soaked), [how]]
    return "\n\n".join([HEAD.rstrip("\n"), *("\n".join(section) for section in sections)]) + "\n"


if __name__ == "__main__":
    DOC.write_text(text())
