"""Fit a scaling law to finished runs, for law=local: read their records, fit, plot and save.

    python -m budget.laws.refit outputs/*            # or make law
    python -m budget.laws.refit outputs/* --metric bits_per_byte --output outputs/law.json

The runs may mix sizes and budgets; at least three sizes at the same budget (a slice) tell the most. The law counts
compute as 6ND. Runs of equal budget.flops, which includes attention, or of equal budget.hours also form a slice,
although their 6ND differs. Their losses are moved to the same 6ND along the slope of approach 3, and the output shows
how far they were apart. All runs must have been evaluated on the same tokens. Losses of different tokenizers cannot
be compared; bits per byte of the same text can.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
from collections import Counter
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
from common.json_io import mapping
from common.paths import user_path
from common.safe_read import JSON_BYTES, is_amount, parse_json, read_bytes
from model.config import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_OUTPUT = Path("outputs/law.json")
DEFAULT_LAW = "chinchilla-table3"
DRAWN = 0.06  # height of the drawn part of a parabola, in ln loss; the fit holds near the minimum only
METRICS = ("loss", "bits_per_byte")
YAML_BYTES = 1 << 16  # ten times the config.yaml of a run; parsing deeply nested YAML takes quadratic time
# Options that may differ between repetitions of a run: the seed, and options that do not affect the training.
NOT_SETUP = (
    *("seed", "name", "output_dir", "fresh", "output", "explain", "wandb", "checkpoint", "plan.folder"),
    *("plan.corpus_tokens", "data.cache_dir", "data.workers", "budget.extend", "budget.extend_hours"),
)


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a run's record that the fit and its checks use."""

    name: str
    point: Point
    tokenizer: str
    corpus: str  # fingerprint of the prepared corpus
    scored: str  # fingerprint of the tokens that were predicted
    text: str | None  # fingerprint of the validation text; None in records of earlier versions
    block_size: int
    optimizer: str
    bigram_rows: int
    block: str


class UnusableRun(Exception):
    """A run that cannot be used; the message is half a sentence with the reason and the file."""


def _yaml(content: bytes) -> Any:
    """Parse YAML without aliases, a few lines of which can expand to terabytes; stint's files have none."""
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content, Loader=yaml.SafeLoader)):
        raise ValueError("it contains aliases")
    return yaml.safe_load(content)


class Record:
    """One of a run's files. Raises UnusableRun for a file that cannot be read, and for an entry that is missing or invalid."""

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
        """Return the value at a dotted name."""
        value = self.content
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise UnusableRun(f"its {self.name} lacks {name}")
            value = value[key]
        return value

    def number(self, name: str) -> float:
        """Return a positive number; the fit takes its logarithm."""
        value = self.entry(name)
        if not is_amount(value) or not value:
            raise UnusableRun(f"{name} in its {self.name} is {value!r}, not a positive number")
        return float(value)

    def text(self, name: str) -> str:
        """Return the string under the dotted `name`."""
        value = self.entry(name)
        if not isinstance(value, str):
            raise UnusableRun(f"{name} in its {self.name} is {value!r}, not a string")
        return value


def setup_of(folder: Path, corpus: str) -> str:
    """Return a hash of everything that decided a run except its seed.

    It covers the options, the planned batch, the corrections that earlier versions made during a run, and the corpus.
    """
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


def _epoch_tokens(result: Record) -> float:
    """Return the training tokens of one epoch; of a mix, that of its most repeated source."""
    if mapping(result.content.get("data")).get("mix"):
        return result.number("spent.tokens") / result.number("data.epochs")
    return result.number("data.train_tokens")


def spent_of(result: Record) -> dict[str, float]:
    """Return what the run spent, by measure of a budget; hours only where they ended the run."""
    spent = {name: result.number(f"spent.{name}") for name in ("flops_6nd", "flops")}
    if result.content.get("stopped_by") == "hours":
        spent["hours"] = result.number("spent.training_hours")
    return spent


def read_run(folder: Path, metric: str) -> FinishedRun | str:
    """Return the run in `folder`, or the reason why it is left out."""
    try:
        result = Record(folder / "result.json")
        if result.content.get("status") != "finished":
            return f"its status is {result.content.get('status')}"
        if result.content.get("init"):
            return "it started from the weights of another model, and a law is for training from random weights"
        corpus = result.text("data.fingerprint")
        # As in the planner, repeated tokens count as the number of new ones that they are worth.
        tokens = effective_tokens(result.number("spent.tokens"), _epoch_tokens(result))
        size, loss = result.number("model.parameters_law"), result.number(f"eval.{metric}")
        return FinishedRun(
            folder.name,
            Point(size, tokens, loss, setup_of(folder, corpus), spent_of(result)),
            result.text("data.tokenizer"),
            corpus,
            result.text("eval.fingerprint"),
            result.content["data"].get("text_fingerprint"),
            int(result.number("model.block_size")),
            # Records of earlier versions lack these keys: AdamW without a bigram embedding was the only choice.
            str(result.content.get("plan", {}).get("optimizer", "adamw")),
            int(result.content["model"].get("bigram_rows", 0)),
            ", ".join(f"{option}={result.content['model'].get(option)}" for option in PLAIN),
        )
    except UnusableRun as reason:
        return str(reason)


def read_runs(folders: Sequence[Path], metric: str) -> tuple[list[FinishedRun], list[str]]:
    """Return the usable runs, and one line for each folder that is left out."""
    found = {folder: read_run(folder, metric) for folder in folders if folder.is_dir()}
    runs = [run for run in found.values() if not isinstance(run, str)]
    return runs, [f"{folder}: left out, {run}" for folder, run in found.items() if isinstance(run, str)]


def check_comparable(runs: Sequence[FinishedRun], metric: str) -> list[str]:
    """Return notes on differences between the runs. Raises UserError where their losses cannot be compared."""
    if not runs:
        raise UserError(
            "no finished run in the folders; name folders of finished runs, e.g. python -m budget.laws.refit outputs/*"
        )
    tokenizers = Counter(run.tokenizer for run in runs)
    if metric == "loss" and len(tokenizers) > 1:
        raise UserError(
            f"the runs have different tokenizers ({_format_counts(tokenizers)}), whose losses in nats per token cannot be"
            " compared; name runs with one tokenizer, or fit bits per byte: --metric bits_per_byte"
        )
    scored = Counter(run.scored[:8] for run in runs)
    if metric == "loss" and len(scored) > 1:
        raise UserError(
            f"the runs were evaluated on different tokens ({_format_counts(scored)}), so their corpus or eval.tokens differ;"
            " name runs with the same evaluation (short budgets shorten it: set eval.tokens low enough for the shortest)"
        )
    texts = Counter(run.text[:8] for run in runs if run.text)
    if len(texts) > 1:
        raise UserError(
            f"the runs were evaluated on different text ({_format_counts(texts)}), whose {metric} cannot be compared; name runs"
            " with the same corpus"
        )
    notes = []
    for property_name, counts in (
        ("tokenizers", tokenizers),
        # With another tokenizer, a corpus of the same text has another fingerprint.
        ("corpora", Counter(run.corpus[:8] for run in runs if run.tokenizer == runs[0].tokenizer)),
        ("block sizes", Counter(str(run.block_size) for run in runs)),
        ("optimizers", Counter(run.optimizer for run in runs)),
        ("bigram embeddings", Counter(f"{run.bigram_rows} rows" for run in runs)),
        ("blocks", Counter(run.block for run in runs)),
    ):
        if len(counts) > 1:
            notes.append(
                f"the runs have different {property_name} ({_format_counts(counts)}); the law mixes their effect with that of"
                " the size"
            )
    return notes


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} in {n}" for name, n in sorted(counts.items()))


def format_fit(fitted: Fit) -> list[str]:
    """Return the lines that describe the fit on the terminal."""
    law = fitted.law
    lines = []
    for s in fitted.slices:
        runs = f"{len(s.points)} runs, {_range([p.parameters for p in s.points])} parameters"
        best = s.refused or (
            f"best size {s.parameters:.3g} +- {s.error:.0%}, its loss {s.loss:.4f}, curvature {s.curvature:.3f}"
        )
        unequal = f", 6ND differs by {s.spread - 1:.0%} (losses moved to the same 6ND)" if s.spread > 1.01 else ""
        lines.append(f"{s.flops:.3g} FLOPs: {runs}{unequal}: {best}")
    lines.append(
        f"best size N* = {math.exp(law.intercept):.4g} C^{law.exponent:.4f}, measured from {_range(law.measured)} FLOPs"
    )
    top = law.measured[1]
    for factor in (1, 4, 16):
        low, high = law.interval(factor * top) or (math.nan, math.nan)
        size, tokens = law.parameters(factor * top), law.tokens(factor * top)
        predicted = law.predict(size, tokens)
        loss = f", loss {predicted[0]:.4f} ({predicted[1]:.4f} to {predicted[2]:.4f})" if predicted else ""
        lines.append(
            f"at {factor * top:.3g} FLOPs: {size:.3g} parameters ({low:.3g} to {high:.3g}),"
            f" {tokens:.3g} tokens{loss}; published laws: {_range(law_range(factor * top))} parameters"
        )
    return lines + [f"note: {warning}" for warning in fitted.warnings]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def draw(fitted: Fit, metric: str, path: Path) -> None:
    """Plot the loss by size for each budget with its parabola, and the best size by compute."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_slices(left, fitted, metric)
    draw_law(right, fitted)
    figure.savefig(path, dpi=120)


def draw_slices(axes: Axes, fitted: Fit, metric: str) -> None:
    """Plot the loss by size: one colour and parabola for each budget, with a star at its best size."""
    for i, s in enumerate(fitted.slices):
        colour = f"C{i % 10}"
        sizes = np.array([p.parameters for p in s.points])
        axes.scatter(sizes, [p.loss for p in s.points], color=colour, s=22, label=f"{s.flops:.2g} FLOPs")
        if not s.refused:
            reach = math.exp(math.sqrt(DRAWN / s.curvature))  # drawn from N* / reach to N* x reach
            x = np.geomspace(max(sizes.min(), s.parameters / reach), min(sizes.max(), s.parameters * reach), 100)
            axes.plot(x, s.loss * np.exp(s.curvature * np.log(x / s.parameters) ** 2), color=colour, lw=1)
            axes.plot(s.parameters, s.loss, marker="*", color=colour, markersize=12)
    axes.set(xscale="log", xlabel="parameters (blocks + one vocabulary matrix)", ylabel=metric.replace("_", " "))
    axes.set_title("Runs by budget (star: best size)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)


def draw_law(axes: Axes, fitted: Fit) -> None:
    """Plot the best size by compute, with its 80 % interval, among the published laws."""
    law = fitted.law
    flops = np.geomspace(law.measured[0] / 2, law.measured[1] * 32, 60)
    bounds = np.array([law.interval(c) for c in flops])
    axes.fill_between(flops, bounds[:, 0], bounds[:, 1], alpha=0.25, color="C0", label="80 % interval")
    axes.plot(flops, [law.parameters(c) for c in flops], color="C0", label="these runs")
    for name, other in LAWS.items():
        style: dict[str, Any] = {"color": "0.35", "lw": 1.2} if name == DEFAULT_LAW else {"color": "0.8", "lw": 0.8}
        axes.plot(flops, [other.parameters(c) for c in flops], label=name if name == DEFAULT_LAW else None, **style)
    good = [s for s in fitted.slices if not s.refused]
    below = [s.parameters * (1 - math.exp(-s.error)) for s in good]
    above = [s.parameters * math.expm1(s.error) for s in good]
    best = [s.parameters for s in good]
    axes.errorbar([s.flops for s in good], best, yerr=[below, above], fmt="*", color="C0", markersize=10)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs (6ND)", ylabel="best parameters")
    axes.set_title("Best size by compute (grey: published laws)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.2)


def check_output(path: Path) -> None:
    """Raise UserError where the law cannot be saved, before the fit takes its minutes."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); name a file in a writable folder, e.g. --output"
            f" {DEFAULT_OUTPUT}"
        ) from error


def save(fitted: Fit, runs: Sequence[FinishedRun], metric: str, path: Path) -> None:
    """Write the law with the tokenizer, corpora and runs that it rests on, and its plot next to it."""
    about = {
        "metric": metric,
        "tokenizer": runs[0].tokenizer if len({run.tokenizer for run in runs}) == 1 else None,
        "corpora": sorted({run.corpus for run in runs}),
        "runs": [run.name for run in runs],
    }
    picture = path.with_suffix(".png")
    try:
        save_law(fitted.law, about, path)
        draw(fitted, metric, picture)
    except OSError as error:
        raise MachineError(f"{path} could not be written ({error}); the runs are unchanged; free some space") from error
    print(f"saved {path} and {picture}; use it with law=local")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=user_path, help="folders of finished runs, e.g. outputs/*")
    parser.add_argument("--metric", choices=METRICS, default="loss", help="the metric to fit (default: loss)")
    parser.add_argument(
        "--output", type=user_path, default=DEFAULT_OUTPUT, help=f"the file for the law (default: {DEFAULT_OUTPUT})"
    )
    with reported():
        options = parser.parse_args()
        check_output(options.output)
        runs, left_out = read_runs(options.folders, options.metric)
        for line in left_out:
            print(line)
        notes = check_comparable(runs, options.metric)
        fitted = fit([run.point for run in runs], source=f"{len(runs)} own runs")
        for line in [*(f"note: {note}" for note in notes), *format_fit(fitted)]:
            print(line)
        save(fitted, runs, options.metric, options.output)


if __name__ == "__main__":
    main()
