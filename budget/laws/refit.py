"""A scaling law from finished runs, for `law=local`: reads their records, fits, draws the picture, saves.

    python -m budget.laws.refit outputs/*            # or make law
    python -m budget.laws.refit outputs/* --metric bits_per_byte --output outputs/law.json

Runs may be of any mixture of sizes and budgets; slices of one budget with at least three sizes say most. The law counts
compute as 6ND. Runs of equal budget.flops (which has attention in it) or budget.hours are slices too, though no exact
ones: their losses are moved to one 6ND by the slope of approach 3, and the output says by how much they differed. All
must have been scored on the same tokens: losses of different tokenizers cannot be compared, bits per byte of the same
text can.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from budget.laws.fit import Fit, Point, fit
from budget.laws.published import LAWS, effective_tokens, law_range, save_law
from common.errors import MachineError, UserError, reported
from common.safe_read import JSON_BYTES, parse_json, read_bytes
from model.config import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_OUTPUT = Path("outputs/law.json")
DEFAULT_LAW = "chinchilla-table3"
DRAWN = 0.06  # of a parabola, in ln loss: it is fitted to the points near its bottom
METRICS = ("loss", "bits_per_byte")
YAML_BYTES = 1 << 16  # ten times the config.yaml of a run; reading what is nested without end takes quadratic time
# Knobs that may differ between runs that differ in their luck alone: the seed, and what does not touch the training.
NOT_SETUP = (
    *("seed", "name", "output_dir", "fresh", "output", "explain", "wandb", "checkpoint", "plan.folder"),
    *("plan.corpus_tokens", "data.cache_dir", "data.workers", "budget.extend_hours"),
)


@dataclass(frozen=True)
class FinishedRun:
    """What of a run's record the fit and its checks need."""

    name: str
    point: Point
    tokenizer: str
    corpus: str  # fingerprint of the prepared corpus
    scored: str  # fingerprint of the tokens that were predicted
    block_size: int
    optimizer: str
    bigram_rows: int
    block: str


class UnusableRun(Exception):
    """Why a run's folder does not count, in half a line that names the file."""


def _yaml(content: bytes) -> Any:
    """The value of a YAML text without aliases, of which a few lines can stand for terabytes; stint writes none."""
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content, Loader=yaml.SafeLoader)):
        raise ValueError("it has aliases")
    return yaml.safe_load(content)


class Record:
    """One of a run's files. An older or damaged one is Unusable as soon as what it lacks is asked for."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            content = read_bytes(path, YAML_BYTES if path.suffix == ".yaml" else JSON_BYTES)
            self.content = _yaml(content) if path.suffix == ".yaml" else parse_json(content)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            self.content = None
        if not isinstance(self.content, dict):
            raise UnusableRun(f"no readable {self.name}")

    def entry(self, name: str) -> Any:
        """What stands under a dotted name."""
        found = self.content
        for key in name.split("."):
            if not isinstance(found, dict) or key not in found:
                raise UnusableRun(f"its {self.name} lacks {name}")
            found = found[key]
        return found

    def number(self, name: str) -> float:
        """A positive number: the fit takes its logarithm."""
        value = self.entry(name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UnusableRun(f"{name} in its {self.name} is {value!r}, not a positive number")
        return float(value)

    def text(self, name: str) -> str:
        value = self.entry(name)
        if not isinstance(value, str):
            raise UnusableRun(f"{name} in its {self.name} is {value!r}, not a text")
        return value


def setup_of(folder: Path, corpus: str) -> str:
    """Stands for all that decided a run besides its seed: its knobs, the batch that was planned, what earlier
    versions of the code corrected on the way, and the corpus."""
    config = Record(folder / "config.yaml").content
    for dotted in NOT_SETUP:
        group, _, leaf = dotted.rpartition(".")
        place = config.get(group) if group else config
        if isinstance(place, dict):
            place.pop(leaf, None)
    batch = Record(folder / "plan.json").number("batch_tokens")
    plan = Record(folder / "result.json").content.get("plan")
    correction = plan.get("correction") if isinstance(plan, dict) else None
    corrected = [(correction or {}).get(name) for name in ("batch_tokens", "learning_rate", "weight_decay")]
    content = json.dumps([config, batch, corrected, corpus], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def spent_of(result: Record) -> dict[str, float]:
    """What the run spent in each measure that its budget may have been given in; hours where they were the limit."""
    spent = {name: result.number(f"spent.{name}") for name in ("flops_6nd", "flops")}
    if result.content.get("stopped_by") == "hours":
        spent["hours"] = result.number("spent.training_hours")
    return spent


def read_run(folder: Path, metric: str) -> FinishedRun | str:
    """The run in `folder`, or why it does not count."""
    try:
        result = Record(folder / "result.json")
        if result.content.get("status") != "finished":
            return f"its status is {result.content.get('status')}"
        corpus = result.text("data.fingerprint")
        # What the plan compares budgets by: repeated tokens count for the new ones that they are worth.
        tokens = effective_tokens(result.number("spent.tokens"), result.number("data.train_tokens"))
        size, loss = result.number("model.parameters_law"), result.number(f"eval.{metric}")
        return FinishedRun(
            folder.name,
            Point(size, tokens, loss, setup_of(folder, corpus), spent_of(result)),
            result.text("data.tokenizer"),
            corpus,
            result.text("eval.fingerprint"),
            int(result.number("model.block_size")),
            # Older records are of AdamW without tables, the only ones there were.
            str(result.content.get("plan", {}).get("optimizer", "adamw")),
            int(result.content["model"].get("bigram_rows", 0)),
            ", ".join(f"{knob}={result.content['model'].get(knob)}" for knob in PLAIN),
        )
    except UnusableRun as why:
        return str(why)


def read_runs(folders: Sequence[Path], metric: str) -> tuple[list[FinishedRun], list[str]]:
    """Runs that count, and a line for each folder that does not."""
    runs, left_out = [], []
    for folder in folders:
        if not folder.is_dir():
            continue
        found = read_run(folder, metric)
        if isinstance(found, str):
            left_out.append(f"{folder}: left out, {found}")
        else:
            runs.append(found)
    return runs, left_out


def check_comparable(runs: Sequence[FinishedRun], metric: str) -> list[str]:
    """Raises UserError for runs whose figures cannot be compared; returns what is worth saying about the others."""
    if not runs:
        raise UserError("no finished run among the folders; give some, e.g. python -m budget.laws.refit outputs/*")
    tokenizers = _counted(run.tokenizer for run in runs)
    if metric == "loss" and len(tokenizers) > 1:
        raise UserError(
            f"the runs have different tokenizers ({_shown(tokenizers)}), nats per token cannot be compared; give runs of one,"
            " or fit bits per byte: --metric bits_per_byte"
        )
    scored = _counted(run.scored[:8] for run in runs)
    if metric == "loss" and len(scored) > 1:
        raise UserError(
            f"the runs were scored on different tokens ({_shown(scored)}), e.g. another corpus or eval.tokens; give runs that"
            " were scored alike: a short budget cuts its evaluation, so set eval.tokens low enough for the shortest"
        )
    notes = []
    for what, found in (
        ("corpora", _counted(run.corpus[:8] for run in runs)),
        ("block sizes", _counted(str(run.block_size) for run in runs)),
        ("optimizers", _counted(run.optimizer for run in runs)),
        ("bigram tables", _counted(f"{run.bigram_rows} rows" for run in runs)),
        ("blocks", _counted(run.block for run in runs)),
    ):
        if len(found) > 1:
            notes.append(
                f"the runs have different {what} ({_shown(found)}); the law mixes their effect with the size's"
            )
    return notes


def _counted(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} in {n}" for name, n in sorted(counts.items()))


def format_fit(found: Fit) -> list[str]:
    """What the fit says, for the terminal."""
    law = found.law
    lines = []
    for each in found.slices:
        sizes = f"{len(each.points)} runs, {min(p.parameters for p in each.points):.3g} to"
        sizes += f" {max(p.parameters for p in each.points):.3g} parameters"
        best = (
            each.refused
            or f"best {each.parameters:.3g} +- {each.error:.0%}, {each.loss:.4f}, curvature {each.curvature:.3f}"
        )
        unequal = f", 6ND differs by {each.spread - 1:.0%}: moved to one compute" if each.spread > 1.01 else ""
        lines.append(f"{each.flops:.3g} FLOPs: {sizes}{unequal}: {best}")
    lines.append(f"N* = {math.exp(law.intercept):.4g} C^{law.exponent:.4f}, measured from {_range(law.measured)} FLOPs")
    top = law.measured[1]
    for factor in (1, 4, 16):
        low, high = law.interval(factor * top) or (math.nan, math.nan)
        size, tokens = law.parameters(factor * top), law.tokens(factor * top)
        predicted = law.predict(size, tokens)
        loss = f", loss {predicted[0]:.4f} ({predicted[1]:.4f} to {predicted[2]:.4f})" if predicted else ""
        others = "{:.3g} to {:.3g}".format(*law_range(factor * top))
        lines.append(
            f"at {factor * top:.3g} FLOPs: {size:.3g} parameters ({low:.3g} to {high:.3g}),"
            f" {tokens:.3g} tokens{loss}; the published laws say {others}"
        )
    return lines + [f"note: {warning}" for warning in found.warnings]


def _range(values: tuple[float, float]) -> str:
    return f"{values[0]:.3g} to {values[1]:.3g}"


def draw(found: Fit, metric: str, path: Path) -> None:
    """The isoFLOP picture: loss against size for each budget with its parabola, and the optimum against compute."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_slices(left, found, metric)
    draw_law(right, found)
    figure.savefig(path, dpi=120)


def draw_slices(axes: Axes, found: Fit, metric: str) -> None:
    """Loss against size, a colour and a parabola for each budget, its best size starred."""
    for i, each in enumerate(found.slices):
        colour = f"C{i % 10}"
        sizes = np.array([p.parameters for p in each.points])
        axes.scatter(sizes, [p.loss for p in each.points], color=colour, s=22, label=f"{each.flops:.2g} FLOPs")
        if not each.refused:
            reach = math.exp(math.sqrt(DRAWN / each.curvature))
            x = np.geomspace(max(sizes.min(), each.parameters / reach), min(sizes.max(), each.parameters * reach), 100)
            axes.plot(x, each.loss * np.exp(each.curvature * np.log(x / each.parameters) ** 2), color=colour, lw=1)
            axes.plot(each.parameters, each.loss, marker="*", color=colour, markersize=12)
    axes.set(xscale="log", xlabel="parameters (blocks + one vocabulary matrix)", ylabel=metric.replace("_", " "))
    axes.set_title("Runs by budget; stars: the best size")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)


def draw_law(axes: Axes, found: Fit) -> None:
    """The best size against compute, with its interval, between the published laws."""
    law = found.law
    flops = np.geomspace(law.measured[0] / 2, law.measured[1] * 32, 60)
    bounds = np.array([law.interval(c) for c in flops])
    axes.fill_between(flops, bounds[:, 0], bounds[:, 1], alpha=0.25, color="C0", label="80 %")
    axes.plot(flops, [law.parameters(c) for c in flops], color="C0", label="these runs")
    for name, other in LAWS.items():
        style: dict[str, Any] = {"color": "0.35", "lw": 1.2} if name == DEFAULT_LAW else {"color": "0.8", "lw": 0.8}
        axes.plot(flops, [other.parameters(c) for c in flops], label=name if name == DEFAULT_LAW else None, **style)
    good = [each for each in found.slices if not each.refused]
    below = [s.parameters * (1 - math.exp(-s.error)) for s in good]
    above = [s.parameters * math.expm1(s.error) for s in good]
    best = [s.parameters for s in good]
    axes.errorbar([s.flops for s in good], best, yerr=[below, above], fmt="*", color="C0", markersize=10)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs (6ND)", ylabel="best parameters")
    axes.set_title("The law; grey: published ones")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)


def check_output(path: Path) -> None:
    """Raises UserError where no law can be saved: said before the minutes of a fit, not after them."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); name a file in a folder of yours, e.g. --output"
            f" {DEFAULT_OUTPUT}"
        ) from error


def save(found: Fit, runs: Sequence[FinishedRun], metric: str, path: Path) -> None:
    """The law, with what it is about, and its picture beside it."""
    about = {
        "metric": metric,
        "tokenizer": runs[0].tokenizer if len({run.tokenizer for run in runs}) == 1 else None,
        "corpora": sorted({run.corpus for run in runs}),
        "runs": [run.name for run in runs],
    }
    picture = path.with_suffix(".png")
    try:
        save_law(found.law, about, path)
        draw(found, metric, picture)
    except OSError as error:
        raise MachineError(f"{path} could not be written ({error}); the runs are untouched: free some space") from error
    print(f"saved {path} and {picture}; use it with law=local")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--metric", choices=METRICS, default="loss", help="what to fit (default: loss)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help=f"the law (default: {DEFAULT_OUTPUT})")
    options = parser.parse_args()
    with reported():
        check_output(options.output)
        runs, left_out = read_runs(options.folders, options.metric)
        for line in left_out:
            print(line)
        notes = check_comparable(runs, options.metric)
        found = fit([run.point for run in runs], source=f"{len(runs)} own runs")
        for line in [*(f"note: {note}" for note in notes), *format_fit(found)]:
            print(line)
        save(found, runs, options.metric, options.output)


if __name__ == "__main__":
    main()
