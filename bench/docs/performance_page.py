"""Generate docs/performance.md and the README's comparison from bench/results/: python -m bench.docs.performance_page

A test compares both with the result files. Only findings.md is written by hand.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT
from bench.peers import PEERS
from bench.peers.peer import FORMS, Peer
from budget.clock import Limits
from model.config import PLAIN
from training.plan_run import probe_seconds

DOC = ROOT / "docs" / "performance.md"
FINDINGS = ROOT / "bench" / "findings.md"
README, BEGIN, END = ROOT / "README.md", "<!-- against: begin -->\n", "<!-- against: end -->"
HEAD = """# Performance

`python -m bench.docs.performance_page` generates this page from the files in [bench/results](../bench/results). Each section
ends with its file and the command that measures it again. Losses are in nats per token on validation text. "2 x 128" means 2
layers of width 128. Unless a table names another device, two cores of a shared machine were used, whose speed varies.

In the comparisons with other trainers, both train for the same wall-clock time on the same machine, start-up included, with
the same corpus and tokenizer, and both are scored on the same validation tokens. The other trainer's settings are its own
(`shipped`), or its own with the schedule's horizon set to the measured time (`matched`), or `matched` with batch size and
learning rate tuned (`tuned`). `Times as fast` is the other trainer's time divided by the budget with which stint reaches the
same loss. Each program keeps its own GOMP_SPINCOUNT (see the end of this page).
"""


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def source_of(path: Path, found: dict[str, Any]) -> str:
    """A result file and the command that makes it."""
    return f"[{path.name}](../bench/results/{path.name}): `{found['how']}`"


def speedup_text(ratio: float, goal: float, points: list[dict[str, Any]]) -> str:
    """A ratio of times as text. It is a lower bound if even the shortest run reached the goal."""
    return f"{'at least ' if all(point['loss'] <= goal for point in points) else ''}{ratio:.1f}"


def against(peer: type[Peer], found: dict[str, Any]) -> list[str]:
    rows = []
    for row in sorted(found["rounds"], key=lambda row: (FORMS.index(row["form"]), row["seed"])):
        full = row["stint"][0]
        ratio = row["time_to_loss"]
        rows.append(
            [
                row["form"],
                str(row["seed"]),
                f"{row['seconds']:.0f} s",
                f"{row['peer_loss']:.3f}",
                f"{full['loss']:.3f}",
                f"{row['peer_loss'] - full['loss']:.3f}",
                speedup_text(ratio, row["peer_loss"], row["stint"]) if ratio and len(row["stint"]) > 1 else "-",
            ]
        )
    headline = max((row["form"] for row in found["rounds"]), key=FORMS.index)
    last = [row for row in found["rounds"] if row["form"] == headline]
    ratios = [row["time_to_loss"] or 0.0 for row in last]  # 0: the loss was not reached in the peer's time
    summary = (
        [
            f"stint reached the loss of {peer.title} ({last[0]['form']}) {statistics.median(ratios):.1f} times as fast (median).",
            "",
        ]
        if ratios
        else []
    )
    parameters = [row["stint"][0]["model"]["parameters"] for row in found["rounds"]]
    sizes = " to ".join(dict.fromkeys(f"{bound(parameters) / 1e6:.0f}M" for bound in (min, max)))
    return [
        f"## Against {peer.title}",
        "",
        *([peer.note, ""] if peer.note else []),
        f"Scored on {found['validation_tokens']:,} validation tokens in windows of {found['window']} tokens. stint's models"
        f" have {sizes} parameters, most of them in the hashed bigram embedding.",
        "",
        *summary,
        *table(
            ["settings", "seed", "seconds", f"{peer.title}'s loss", "stint's loss", "lower by", "times as fast"], rows
        ),
    ]


def engine(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["shape"],
            f"{row['vocabulary']:,}",
            f"{row['tokens_a_step']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['flops_per_second'] / 1e9:.0f}",
            f"{row['share_of_matmul']:.0%}",
            *(f"{row['milliseconds'][part] / row['milliseconds']['all']:.0%}" for part in PARTS),
            *(f"{row[name + '_over_stint']:.2f}" for name in ("plain_loss", "adamw")),
            f"{row['peak_memory'] / 2**20:,.0f}",
        ]
        for row in found["rows"]
    ]
    columns = [
        "shape",
        "vocabulary",
        "tokens per step",
        "tokens/s",
        "GFLOP/s",
        "relative to matmul",
        *PARTS,
        "plain loss",
        "AdamW",
        "MiB",
    ]
    return [
        "## A training step",
        "",
        f"On {found['device']}, {found['threads']} threads, {found['precision']}. `loader` to `optimizer` are shares of the"
        " step's time. `relative to matmul` is the ratio to the FLOP/s of one large matrix product in the same process."
        " `plain loss` and `AdamW` are the times of a step with torch's cross-entropy of all logits at once, and with AdamW"
        " instead of Muon, relative to the unchanged step (medians of pairs). `MiB` is the peak memory.",
        "",
        *table(columns, rows),
    ]


PARTS = ("loader", "forward", "backward", "clip", "optimizer")


def ablation(found: dict[str, Any]) -> list[str]:
    rows = []
    order = sorted(
        found["rows"],
        key=lambda row: (row["name"].startswith("classic"), -math.inf if row["worse"] is None else -row["worse"]),
    )
    for row in order:
        per_token, worse = ("-" if row[key] is None else f"{row[key]:+.3f}" for key in ("per_token", "worse"))
        step = "-" if row["step"] is None else f"{row['step']:.2f}"
        rows.append([row["name"], f"{row['loss']:.3f}", str(row["runs"]), per_token, step, worse])
    noise = [f"{deviation:.3f} ({recipe})" for recipe, deviation in found["noise"].items() if deviation is not None]
    idle = parts_without_effect(found)
    return [
        "## Ablation",
        "",
        f"Each run takes {found['minutes']:g} minute{'s' * (found['minutes'] != 1)} on {found['threads']} thread"
        f"{'s' * (found['threads'] != 1)}. A row changes one part of the configuration `modern` or `classic`. `Same tokens` is"
        " the difference in loss for the same number of tokens; `step time` is relative to the unchanged configuration, with an"
        " error of about 0.01; `same time` is the difference in loss with the step time counted. A positive difference is worse."
        + (f" The standard deviation of one difference is {', '.join(noise)}." if noise else ""),
        "",
        "`modern` has all parts that a row is `without` and no part that a row is `with`."
        + (
            f" Without one of the following it is not worse by more than twice the noise: {', '.join(idle)}. Those that belong"
            " to the block help larger models; plans below 1e14 FLOPs leave them out"
            " (`block_for` in `budget/planner/hyperparameters.py`)."
            if idle
            else ""
        ),
        "",
        *table(["configuration", "loss", "runs", "same tokens", "step time", "same time"], rows),
    ]


def parts_without_effect(found: dict[str, Any]) -> list[str]:
    """Parts of `modern` without which it is not worse by more than twice the standard error."""
    noise = found["noise"]["modern"] or 0.0
    return [
        row["name"].removeprefix(MODERN_WITHOUT)
        for row in found["rows"]
        if row["name"].startswith(MODERN_WITHOUT)
        and row["worse"] is not None
        and row["worse"] <= 2 * noise / math.sqrt(row["runs"])
    ]


MODERN_WITHOUT = "modern without "


def tuning(found: dict[str, Any]) -> list[str]:
    rows = []
    for budget in found["budgets"]:
        plan, planned = budget["planned"], budget["losses"]["as planned"]
        others = sorted((loss, name) for name, loss in budget["losses"].items() if name != "as planned")
        rows.append(
            [
                f"{budget['minutes']:g} min",
                f"{plan['n_layer']} x {plan['n_embd']}, {'plain' if plan.get('block') == PLAIN else 'modern'} block,"
                f" batch {plan['batch_tokens']:,}, rate {plan['learning_rate']:g}",
                f"{planned:.3f}",
                ", ".join(f"{name} {loss - planned:+.3f}" for loss, name in others),
            ]
        )
    curve = found["curve"]
    return [
        "## The plan against its neighbours",
        "",
        "Each row compares the planned run with runs in which one choice of the plan or one default is changed. All get the same"
        " time: each trains on the number of tokens that it would reach at its own measured speed, on"
        f" {', '.join(sorted({str(budget['threads']) for budget in found['budgets']}))} thread. Differences in loss are relative"
        " to the planned run; a negative one is better. A run of another width has the bigram embedding that plans have at that"
        " width. `plain block` means layer norm, GELU, GPT-2's initialisation, no query and key norm and no x0 shortcut, all at"
        " once; plans below 1e14 FLOPs have it.",
        "",
        *table(["budget", "planned", "loss", "differences with one choice changed"], rows),
        "",
        f"A fit to the {curve['runs']} runs that differ in size, {curve['flops'][0]:.1g} to {curve['flops'][1]:.1g} FLOPs:"
        f" ln L = level - {curve['slope']:.3f} ln C + {curve['curvature']:.3f} (ln N / ({curve['centre']:.2f} N*))^2, where N* is"
        f" Chinchilla's optimal size. Its rms error in ln L is {curve['rms']:.4f}. The planner weighs sizes by this curve"
        " (`SMALL_CURVE` in `budget/laws/published.py`).",
    ]


def correction(found: dict[str, Any]) -> list[str]:
    """The gain of changing batch and rates in the middle of a run: mean over seeds, in percent of the loss."""
    seeds = sorted({run["seed"] for run in found["runs"]})

    def gain(key: str) -> str:
        losses = {(run["arm"], run["seed"]): run[key] for run in found["runs"]}
        gains = [1 - losses["corrected", seed] / losses["as planned", seed] for seed in seeds]
        return f"{statistics.mean(gains):.2%} ± {statistics.stdev(gains) / math.sqrt(len(gains)):.2%}"

    share, settings = found["share_of_budgets"], found["settings"]
    batches = f"{settings['corrected']['batch_tokens']:,} tokens per batch instead of {settings['as planned']['batch_tokens']:,}"
    return [
        "## Why a plan is not corrected during a run",
        "",
        f"A plan for {found['planned_tokens']:,} tokens was run on a device that was 25 % slower than in the plan's trial."
        f" For the tokens that such a run reaches, the plan's rules give {batches}. Switching to it after a tenth of the budget"
        f" lowered the loss by {gain('loss')} for the same number of tokens ({len(seeds)} seeds; {gain('loss_in_result')} on the"
        f" 14 documents of the runs' own evaluations). In {1 - share:.0%} of budgets the rules give the planned batch. So plans"
        " are not corrected during a run.",
    ]


def startup(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["name"],
            f"{row['first_step_s']:.1f} s",
            f"{row['steps_to_steady']:.0f}",
            f"{1000 * row['typical_step_s']:.0f} ms",
        ]
        for row in found["rows"]
    ]
    return [
        "## Start-up",
        "",
        f"Medians of {found['runs_each']} runs of {3600 * found['hours']:.0f} s each. `Steps until steady` counts the steps"
        " before the first one of typical duration. The plan's trials may take"
        f" {probe_seconds(Limits(hours=found['hours'])):g} s of such a run,"
        f" {probe_seconds(Limits(hours=1 / 12)):g} s of a run of five minutes, and"
        f" {probe_seconds(Limits(hours=24.0)):g} s at most.",
        "",
        *table(["run", "time to the first step", "steps until steady", "step time"], rows),
    ]


def same(found: dict[str, Any]) -> list[str]:
    return [
        "## `classic` equals nanoGPT's GPT-2",
        "",
        f"Both trained from the same weights on the same batches. Over {found['steps']} steps their losses differ by at most"
        f" {found['largest_difference']:.0e}; nanoGPT prints 4 digits. The learning rate is constant in both, so this compares"
        " the model, the loss, AdamW, gradient clipping and the loop, but neither initialisation nor schedule.",
    ]


def gpu(found: dict[str, Any]) -> list[str]:
    """The result of bench.speed.gpu. Either stage may be missing."""
    lines = ["## One GPU", "", f"On {found['device']}, torch {found['torch']}, {found['precision']}."]
    lines += [f"MFU is relative to {found['peak_flops'] / 1e12:.0f} TFLOP/s ({found['peak_source']}).", ""]
    rows = [
        [
            f"{row['parameters'] / 1e6:.0f}M, {row['shape']}",
            str(row["block_size"]),
            row["compile"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['mfu']:.0%}",
            f"{row['share_of_matmul']:.0%}",
            "-" if row["compile_s"] is None else f"{row['compile_s']:.0f} s",
            f"{row['peak_memory'] / 2**30:.1f}",
        ]
        for row in found.get("speed", [])
    ]
    columns = [
        "model",
        "block",
        "compile",
        "tokens/s",
        "MFU",
        "relative to matmul",
        "compile time, cold cache",
        "peak memory, GiB",
    ]
    lines += [*table(columns, rows), ""] if rows else []
    if loss := found.get("loss"):
        peer, ratio = loss["peer"], loss.get("time_to_loss")
        runs = [("nanoGPT", peer), *(("stint", run) for run in loss["stint"])]
        lines += table(["", "seconds", "loss"], [[name, f"{r['seconds']:.0f}", f"{r['loss']:.3f}"] for name, r in runs])
        lines += [
            "",
            f"stint reached nanoGPT's loss {speedup_text(ratio, peer['loss'], loss['stint'])} times as fast."
            if ratio
            else "stint did not reach nanoGPT's loss.",
        ]
    return lines


def peer_tuning(peer: type[Peer], found: dict[str, Any]) -> list[str]:
    tuned = {row["name"]: row["loss"] for row in found["rows"]}.get("tuned", math.nan)  # NaN until it is finished
    rows = [
        [
            row["name"],
            f"{row['loss']:.3f}",
            f"{row['loss'] - tuned:+.3f}",
            f"{row['iterations']:,}",
        ]
        for row in sorted(found["rows"], key=lambda row: float(row["loss"]))
    ]
    return [
        f"## {peer.title}'s settings",
        "",
        f"Each row changes one setting of {peer.title}'s tuned form, with one seed and the schedule's horizon matched. It gets"
        f" the number of iterations that fit into {found['minutes']:g} minutes at its speed; the speeds were measured in turn.",
        "",
        *table(["setting", "loss", "relative to tuned", "iterations"], rows),
    ]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    **{f"against_{peer.name}": partial(against, peer) for peer in PEERS},
    **{f"tune_{peer.name}": partial(peer_tuning, peer) for peer in PEERS},
    "same_as_nanogpt": same,
    "engine": engine,
    "gpu": gpu,
    "ablate": ablation,
    "tune": tuning,
    "mid_run_correction": correction,
    "startup": startup,
}


def text() -> str:
    """The page, with a section for each result file that exists."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            parts.append("\n".join([*section(found), "", source_of(path, found), ""]))
    return "\n".join([*parts, FINDINGS.read_text()])


def comparison() -> str:
    """The README's table: a row for each peer and form of its settings, with medians over the seeds."""
    rows: list[list[str]] = []
    everything: list[dict[str, Any]] = []
    for peer in PEERS:
        path = RESULTS / f"against_{peer.name}.json"
        found = json.loads(path.read_text())["rounds"] if path.exists() else []
        everything += found
        for form in FORMS:
            runs = [row for row in found if row["form"] == form]
            rows += [[peer.title, form, str(len(runs)), *medians(runs)]] if runs else []
    columns = ["", "its settings", "seeds", "its loss", "stint's", "lower by", "to the same loss"]
    lines = table(columns, rows)
    if any(block_of(run) != PLAIN for run in everything):
        lines += [
            "",
            "In some of these runs stint used `modern`'s block; its plans for this compute now use the plain one.",
        ]
    return "".join(f"{line}\n" for line in lines)


def block_of(row: dict[str, Any]) -> dict[str, Any]:
    """The block options of stint's run with the peer's time."""
    return {name: row["stint"][0]["model"][name] for name in PLAIN}


def medians(runs: list[dict[str, Any]]) -> list[str]:
    """Medians of the peer's loss, stint's loss, their difference per seed, and the ratio of times, as text."""
    pairs = [(row["peer_loss"], row["stint"][0]["loss"]) for row in runs]
    losses = [*zip(*pairs, strict=True), [peer - own for peer, own in pairs]]
    # 0: not reached in the peer's time. A single run that reached the loss has no shorter run, and gives no ratio.
    with_ratio = [row for row in runs if len(row["stint"]) > 1 or not row["time_to_loss"]]
    ratio = statistics.median(row["time_to_loss"] or 0.0 for row in with_ratio) if with_ratio else None
    bound = any(point["loss"] <= row["peer_loss"] for row in with_ratio for point in row["stint"][-1:])
    times = "-" if ratio is None else f"{'at least ' * bound}{ratio:.1f} times as fast" if ratio else "not reached"
    return [*(f"{statistics.median(values):.2f}" for values in losses), times]


def with_comparison(readme: str) -> str:
    """The README with the current table."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + comparison() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOC.write_text(text())
    README.write_text(with_comparison(README.read_text()))
