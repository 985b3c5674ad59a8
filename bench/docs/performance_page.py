"""docs/performance.md, and the README's comparison, from the files under bench/results/: python -m bench.docs.performance_page

A test compares both with the files. Only findings.md is written by hand.
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

`python -m bench.docs.performance_page` generates this page from the files under [bench/results](../bench/results). Below each section stand its
file and the command that measures it again. Losses are in nats per token on validation text. "2 x 128" means 2 layers of
width 128. Where a table says CPU or names no device, two cores of a shared machine were used, whose speed changes over time.

In the comparisons with other trainers, both train for the same wall-clock time on the same machine, start-up included, with
the same corpus and tokenizer, and both are scored on the same validation tokens. The other trainer's settings are its own
(`shipped`), or its own with the schedule's horizon set to the measured time (`matched`), or `matched` with batch size and
learning rate tuned (`tuned`). `Times as fast` is its time divided by the time in which stint, planning for that time from
the start, reached its loss. Each program keeps its own GOMP_SPINCOUNT (see the end of this page).
"""


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def source_of(path: Path, found: dict[str, Any]) -> str:
    """A result's file and the command that makes it."""
    return f"[{path.name}](../bench/results/{path.name}): `{found['how']}`"


def speedup_text(ratio: float, goal: float, points: list[dict[str, Any]]) -> str:
    """A ratio of times; a lower bound where even the shortest run reached the goal."""
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
    ratios = [row["time_to_loss"] or 0.0 for row in last]  # 0: not even in the peer's own seconds
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
        f"Scored on {found['validation_tokens']:,} validation tokens in windows of {found['window']}. stint's models have {sizes}"
        " parameters; most of them are rows of the hashed bigram embedding.",
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
        "tokens a step",
        "tokens/s",
        "GFLOP/s",
        "of a bare matmul",
        *PARTS,
        "plain loss",
        "AdamW",
        "MiB",
    ]
    return [
        "## A training step",
        "",
        f"On {found['device']}, {found['threads']} threads, {found['precision']}. `loader` to `optimizer` are shares of the"
        " step's time. `of a bare matmul` compares FLOP/s with those of one large matrix product in the same process."
        " `plain loss` and `AdamW` are the time of a step with torch's cross-entropy of all logits at once, and with AdamW"
        " instead of Muon, divided by the time of the step as it is: medians of pairs. `MiB` is the peak memory.",
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
        "## One part more or less",
        "",
        f"Each run takes {found['minutes']:g} minute{'s' * (found['minutes'] != 1)} on {found['threads']} thread"
        f"{'s' * (found['threads'] != 1)}. A row changes one part of the configuration `modern` or `classic`. `Same tokens` is"
        " the difference in loss after as many tokens; `step time` is relative to the unchanged configuration and good to about"
        " 0.01; `same time` is the difference in loss with the step time counted. A positive difference is worse."
        + (f" The standard deviation of one difference is {', '.join(noise)}." if noise else ""),
        "",
        "`modern` has every part that a row is `without` and none that a row is `with`."
        + (
            f" It is not worse by more than twice the noise without: {', '.join(idle)}. Larger models are better with the"
            " parts of a block among these; plans below 1e14 FLOPs leave them out (`budget/planner/hyperparameters.py`, block_for)."
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
    for each in found["budgets"]:
        plan, planned = each["planned"], each["losses"]["as planned"]
        others = sorted((loss, name) for name, loss in each["losses"].items() if name != "as planned")
        rows.append(
            [
                f"{each['minutes']:g} min",
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
        "Does the planner choose well? Each row shows the planned run and runs with one choice changed, of the plan's or of the"
        " defaults. All get the same time: each trains on as many tokens as it would reach at its own measured speed, on"
        f" {', '.join(sorted({str(each['threads']) for each in found['budgets']}))} thread. Differences in loss are relative to"
        " the planned run; a negative one is better. A run of another width has the bigram embedding that plans have at that"
        " width. `plain block` is layer norm, GELU, GPT-2's initialisation, no query and key norm and no x0 shortcut at once;"
        " plans below 1e14 FLOPs have it.",
        "",
        *table(["budget", "planned", "loss", "with one choice changed"], rows),
        "",
        f"A curve through the {curve['runs']} runs of all sizes, {curve['flops'][0]:.1g} to {curve['flops'][1]:.1g} FLOPs:"
        f" ln L = level - {curve['slope']:.3f} ln C + {curve['curvature']:.3f} (ln N / ({curve['centre']:.2f} N*))^2, where N* is"
        f" Chinchilla's optimal size. Its rms error in ln L is {curve['rms']:.4f}. The planner weighs sizes by this curve"
        " (`budget/laws/published.py`, SMALL_CURVE).",
    ]


def correction(found: dict[str, Any]) -> list[str]:
    """What it bought to change batch and rates in the middle of a run, in the mean over seeds, in percent of the loss."""
    seeds = sorted({run["seed"] for run in found["runs"]})

    def gain(key: str) -> str:
        losses = {(run["arm"], run["seed"]): run[key] for run in found["runs"]}
        gains = [1 - losses["corrected", seed] / losses["as planned", seed] for seed in seeds]
        return f"{statistics.mean(gains):.2%} ± {statistics.stdev(gains) / math.sqrt(len(gains)):.2%}"

    share, settings = found["share_of_budgets"], found["settings"]
    batches = f"{settings['corrected']['batch_tokens']:,} tokens a batch instead of {settings['as planned']['batch_tokens']:,}"
    return [
        "## Why a plan stands",
        "",
        f"On a device a quarter slower than its trial, the rules say {batches} for the tokens that a run of"
        f" {found['planned_tokens']:,} planned ones really reaches. Following them after a tenth of the budget lowered the loss"
        f" by {gain('loss')} for as many tokens ({len(seeds)} seeds; {gain('loss_in_result')} on the 14 documents that these runs"
        f" scored themselves). In {1 - share:.0%} of budgets they say the same batch as the plan. So nothing is corrected in the"
        " middle of a run.",
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
        "## From the start of the process",
        "",
        f"Medians of {found['runs_each']} runs of {3600 * found['hours']:.0f} s each. `Steps until steady` counts the steps"
        " before the first one of typical length. Trials that measure a plan may take"
        f" {probe_seconds(Limits(hours=found['hours'])):g} s of such a run,"
        f" {probe_seconds(Limits(hours=1 / 12)):g} s of five minutes, and {probe_seconds(Limits(hours=24.0)):g} s at most.",
        "",
        *table(["run", "time to the first step", "steps until steady", "step time"], rows),
    ]


def same(found: dict[str, Any]) -> list[str]:
    return [
        "## `classic` is nanoGPT's GPT-2",
        "",
        f"Both trained from the same weights on the same batches. Over {found['steps']} steps their losses differ by at most"
        f" {found['largest_difference']:.0e}; nanoGPT prints 4 digits. The learning rate is constant in both, so this compares"
        " the model, the loss, AdamW, gradient clipping and the loop, but not initialisation or schedule.",
    ]


def gpu(found: dict[str, Any]) -> list[str]:
    """What bench.gpu measured within its time; either stage may be missing."""
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
        "of a bare matmul",
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
    tuned = {row["name"]: row["loss"] for row in found["rows"]}.get("tuned", math.nan)  # if it is not finished yet
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
        f"How well are {peer.title}'s settings tuned? Each row changes one setting of the tuned form, with one seed and the"
        " schedule's horizon matched. Each gets as many iterations as fit into"
        f" {found['minutes']:g} minutes at its speed, which was measured in turn with the others.",
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
    """The page, with a section for each result that is there."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            parts.append("\n".join([*section(found), "", source_of(path, found), ""]))
    return "\n".join([*parts, FINDINGS.read_text()])


def comparison() -> str:
    """The README's table: a row for each peer and form of its settings, medians over the seeds."""
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
    """The knobs of a block that stint had in the peer's own seconds."""
    return {knob: row["stint"][0]["model"][knob] for knob in PLAIN}


def medians(runs: list[dict[str, Any]]) -> list[str]:
    """Of the peer's loss, stint's, the difference within a seed, and the ratio of the times where it was looked for."""
    pairs = [(row["peer_loss"], row["stint"][0]["loss"]) for row in runs]
    losses = [*zip(*pairs, strict=True), [peer - own for peer, own in pairs]]
    # 0: not even in the peer's own seconds; no shorter run was made where the only one was better.
    sought = [row for row in runs if len(row["stint"]) > 1 or not row["time_to_loss"]]
    ratio = statistics.median(row["time_to_loss"] or 0.0 for row in sought) if sought else None
    bound = any(point["loss"] <= row["peer_loss"] for row in sought for point in row["stint"][-1:])
    times = "-" if ratio is None else f"{'at least ' * bound}{ratio:.1f} times as fast" if ratio else "not reached"
    return [*(f"{statistics.median(each):.2f}" for each in losses), times]


def with_comparison(readme: str) -> str:
    """The README with the table as it should be."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + comparison() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOC.write_text(text())
    README.write_text(with_comparison(README.read_text()))
