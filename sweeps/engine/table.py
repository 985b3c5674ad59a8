"""The table of a sweep: one row per job, the noise between seeds, and the verdict on which settings are best."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.json_io import mapping, read_json
from common.noise import squares_within
from run.history import read_result
from sweeps.engine.job import read_records
from sweeps.engine.scored_text import (
    BITS_PER_BYTE,
    is_task,
    items_of,
    metric_for,
    metric_of,
    text_options,
    texts_of,
    tokenizers_of,
)

SEED = "seed"
BUDGET_RATIO_ALLOWED = 2.0  # the noise of another sweep is used if its median budget differs by at most this factor
SPEED_RATIO_WARNED = 1.2  # warn if jobs of the same shape differ in tokens per second by this factor or more


def short_label(settings: dict[str, str]) -> str:
    """Settings as text, each option without its config group."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric is better. It is for accuracy and the scores of tasks."""
    return metric == "accuracy" or is_task(metric)


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes:
        value: The metric by which the sweep is ranked, None without a result.
        settings: The options that vary in the sweep, as on the command line.
        hours: The job's budget.
        longer: Whether it is a longer run of the best job, on hours that were left over.
        result: The content of result.json, or empty.
    """

    number: int
    name: str
    run: Path
    status: str
    why: str
    value: float | None
    overrides: tuple[str, ...]
    settings: dict[str, str]
    hours: float | None
    hours_spent: float
    longer: bool
    result: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the job is ranked. Longer runs are not."""
        return self.status == "finished" and self.value is not None and not self.longer

    def of(self, part: str, key: str) -> Any:
        """The value of `key` in the section `part` of result.json, or None."""
        return mapping(self.result.get(part)).get(key)

    def metric(self, name: str) -> float | None:
        """The value of a metric in result.json: a figure of the final evaluation, or the score of a task."""
        return metric_of(self.result, name)

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or self.name

    @property
    def short(self) -> str:
        """The settings without their config groups; the job's name if it has no settings."""
        return short_label(self.settings) or self.name

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """The settings without the seed. Rows that are equal in this repeat the same experiment."""
        return tuple((key, value) for key, value in self.settings.items() if key != SEED)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    settings: dict[str, str]
    rows: list[Row]
    mean: float

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "all"


@dataclass(frozen=True)
class Sweep:
    """A sweep, read from its folder.

    Attributes:
        metric: The metric by which the jobs are ranked: sweep.metric, or bits per byte if their tokenizers differ.
        wanted_metric: sweep.metric.
        command: The command of a single job, without overrides.
        noise: Standard deviation of the metric between seeds; None if unknown.
        noise_from: The source of the noise, or the reason why it is unknown.
        freedom: Degrees of freedom of the noise.
        keys: The options that vary.
    """

    folder: Path
    name: str
    metric: str
    wanted_metric: str
    command: list[str]
    rows: list[Row]
    noise: float | None
    noise_from: str
    freedom: int
    keys: list[str]

    @property
    def finished(self) -> list[Row]:
        """The rows that can be ranked."""
        return [row for row in self.rows if row.finished]

    @property
    def texts(self) -> dict[Hashable, list[Row]]:
        """The finished rows by the text, or the items of the task, that they were scored on."""
        rows_by_text = defaultdict[Hashable, list[Row]](list)
        for text, row in zip(_texts_of(self.finished, self.metric), self.finished, strict=True):
            rows_by_text[text].append(row)
        return rows_by_text

    @property
    def groups(self) -> list[Group]:
        """The groups of finished rows, best first."""
        return self.groups_of(self.finished)

    def groups_of(self, rows: Sequence[Row]) -> list[Group]:
        """The groups of some finished rows, best first."""
        rows_by_settings: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in rows:
            rows_by_settings.setdefault(row.group, []).append(row)
        groups = [
            Group(dict(settings), same, statistics.mean(float(row.value or 0.0) for row in same))
            for settings, same in rows_by_settings.items()
        ]
        return sorted(groups, key=lambda group: group.mean, reverse=higher_is_better(self.metric))

    @property
    def devices(self) -> list[str]:
        return sorted({str(row.of("environment", "device")) for row in self.rows if row.finished})

    def command_of(self, row: Row) -> str:
        """The command that runs this job without the sweep."""
        return shlex.join([*self.command, *row.overrides])

    def ties(self, best: Group) -> list[Group]:
        """The groups whose difference from the best one is within noise; empty if the noise is unknown."""
        if self.noise is None:
            return []
        limit = t_quantile(self.freedom) * self.noise
        return [
            group
            for group in self.groups
            if group is not best
            and group.settings != best.settings
            and abs(group.mean - best.mean) <= limit * math.sqrt(1 / len(group.rows) + 1 / len(best.rows))
        ]


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` degrees of freedom. With three seeds (2 degrees) it is 4.3.

    Only 5 % of differences exceed this many standard errors by chance."""
    from scipy.special import stdtrit  # importing scipy.stats takes several times as long

    return float(stdtrit(max(1, freedom), 0.975))


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep from its folder. Raises UserError if it is not a sweep's folder."""
    about = read_json(folder / "sweep.json")
    if not isinstance(about, dict):
        raise UserError(f"{folder} is not the folder of a sweep; give a folder in outputs/sweeps/")
    records = sorted(filter(None, read_records(folder / "jobs")), key=lambda record: record["number"])
    overrides = [dict(_split_override(text) for text in record["overrides"]) for record in records]
    keys = varying_keys([given for given, record in zip(overrides, records, strict=True) if not record.get("longer")])
    metric = str(records[0]["metric"]) if records else "loss"
    rows = [
        _row(record, {key: given.get(key, "-") for key in keys}, metric)
        for record, given in zip(records, overrides, strict=True)
    ]
    wanted, metric = metric, metric_for([row.result for row in rows if row.finished], metric)
    if metric != wanted:
        rows = [replace(row, value=row.metric(metric)) for row in rows]
    noise, noise_from, freedom = estimate_noise(rows)
    if noise is None:
        noise, noise_from, freedom = noise_of_seeds_sweep(folder, metric, rows)
    return Sweep(folder, about["name"], metric, wanted, about["command"], rows, noise, noise_from, freedom, keys)


def _texts_of(rows: Sequence[Row], metric: str) -> list[Hashable]:
    """What identifies the text that each row was scored on or, if the metric is a task, its items."""
    if is_task(metric):
        return items_of([row.result for row in rows], metric)
    options = [dict(_split_override(text) for text in row.overrides) for row in rows]
    return texts_of([row.result for row in rows], options)


def _split_override(override: str) -> tuple[str, str]:
    """An option and its value as it is shown. Hydra writes 7.75e10 as 77500000000.0, which is shortened again."""
    key, _, value = override.partition("=")
    return key, f"{float(value):g}" if re.fullmatch(r"\d{7,}\.0", value) else value


def varying_keys(given: list[dict[str, str]]) -> list[str]:
    """The options that differ between jobs, in the order of the command line."""
    keys = list(dict.fromkeys(key for settings in given for key in settings))
    return [key for key in keys if len({settings.get(key) for settings in given}) > 1]


def _row(record: dict[str, Any], settings: dict[str, str], metric: str) -> Row:
    """Make a row of a record. If an earlier start of the sweep used another metric, the value is read from result.json."""
    run = Path(record["run"])
    row = Row(
        number=record["number"],
        name=record["name"],
        run=run,
        status=record["status"],
        why=record["why"],
        value=record["value"],
        overrides=tuple(record["overrides"]),
        settings=settings,
        hours=record["hours"],
        hours_spent=record["hours_spent"],
        longer=bool(record.get("longer")),
        result=read_result(run) if record["status"] in ("finished", "diverged") else {},
    )
    other_metric = row.status == "finished" and record["metric"] != metric
    return replace(row, value=row.metric(metric)) if other_metric else row


def estimate_noise(rows: list[Row]) -> tuple[float | None, str, int]:
    """The noise: standard deviation between runs that differ only in the seed, pooled over the settings with several seeds.

    Returns the noise (None if unknown), its source, and its degrees of freedom."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for row in rows:
        if row.finished and row.value is not None and SEED in row.settings:
            groups.setdefault(row.group, []).append(row.value)
    repeated = [values for values in groups.values() if len(values) > 1]
    if not repeated:
        return None, "", 0
    squares, freedom = squares_within(repeated)
    return math.sqrt(squares / freedom), f"{freedom + len(repeated)} runs with other seeds", freedom


def noise_of_seeds_sweep(folder: Path, metric: str, rows: list[Row]) -> tuple[float | None, str, int]:
    """As `estimate_noise`, for the sweep `seeds` in the same output folder, in the metric of this sweep.

    Its noise is used only if text, device and budget agree: noise depends on the text, and is larger in short runs."""
    sibling = folder.parent / "seeds"
    if sibling == folder or not (sibling / "sweep.json").exists():
        return None, "", 0
    seeds = [replace(row, value=row.metric(metric)) for row in read_sweep(sibling).rows]
    noise, _, freedom = estimate_noise(seeds)
    if noise is None:
        return None, "", 0
    if difference := _difference(rows, seeds, metric):
        return None, f"the sweep `seeds` had {difference}, so its noise does not apply", 0
    values, seed_values = ([row.value for row in part if row.finished and row.value] for part in (rows, seeds))
    if metric == "perplexity" and values:  # its noise is proportional to its level: perplexity = exp(loss)
        noise *= statistics.median(values) / statistics.median(seed_values)
    return noise, "the sweep `seeds`", freedom


def _difference(rows: list[Row], seeds: list[Row], metric: str) -> str:
    """What makes the noise of one sweep's finished runs inapplicable to another's; an empty string if it applies."""
    ours, theirs = ([row for row in part if row.finished] for part in (rows, seeds))
    if not ours:
        return ""
    texts, devices = _texts_of(ours + theirs, metric), [row.of("environment", "device") for row in ours + theirs]
    tokenizers = tokenizers_of([row.result for row in ours + theirs])
    properties = [("another text", texts), ("another device", devices)]
    if metric != BITS_PER_BYTE and not is_task(metric):
        properties.append(("another tokenizer", tokenizers))
    for name, values in properties:
        if set(values[: len(ours)]) - set(values[len(ours) :]):
            return name
    budget, seeds_budget = _median_budgets(ours, theirs)
    return "another budget" if max(budget, seeds_budget) > BUDGET_RATIO_ALLOWED * min(budget, seeds_budget) else ""


def _median_budgets(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[float, float]:
    """The median budgets of two sweeps, by the first limit that all runs have, or else the hours that they spent.

    The budget that was set is compared where possible: on a busy machine a run limited by steps may take twice as long."""
    for limit in ("hours", "flops", "tokens", "steps"):
        if all(row.of("budget", limit) for row in (*ours, *theirs)):
            return _median([row.of("budget", limit) for row in ours]), _median(
                [row.of("budget", limit) for row in theirs]
            )
    return _median([row.hours_spent for row in ours]), _median([row.hours_spent for row in theirs])


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def table_columns(sweep: Sweep) -> list[str]:
    """The column titles of the table."""
    figures = (sweep.wanted_metric, "bits/byte", "layers x width", "tokens", "hours", "tokens/s")
    return ["#", *sweep.keys, "status", *figures, "why"]


def table_cells(sweep: Sweep, row: Row) -> list[str]:
    """The cells of a row of the table, as text."""
    layers, width = row.of("model", "n_layer"), row.of("model", "n_embd")
    return [
        str(row.number),
        *row.settings.values(),
        row.status,
        _format(row.value if sweep.metric == sweep.wanted_metric else row.metric(sweep.wanted_metric), ".4f"),
        _format(row.of("eval", "bits_per_byte"), ".4f"),
        f"{layers} x {width}" if layers else "-",
        _format(row.of("spent", "tokens"), ",.0f"),
        _format(row.hours_spent, ".3g"),
        _format(row.of("throughput", "tokens_per_second"), ",.0f"),
        row.why if len(row.why) <= 60 else row.why[:59] + "…",
    ]


def _format(value: Any, spec: str) -> str:
    return format(value, spec) if isinstance(value, int | float) else "-"


CSV_FIGURES = (
    *(("eval", key) for key in ("loss", "loss_se", "perplexity", "bits_per_byte", "accuracy")),
    *(("spent", key) for key in ("hours", "training_hours", "tokens", "steps", "flops", "flops_6nd")),
    *(("model", key) for key in ("n_layer", "n_head", "n_embd", "block_size", "parameters", "parameters_law")),
    *(("throughput", key) for key in ("tokens_per_second", "mfu")),
    ("environment", "device"),
)


def as_csv(sweep: Sweep) -> str:
    """One line per job. The columns of figures have their names in result.json, as "section.key"."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{part}.{key}" for part, key in CSV_FIGURES]
    tasks = list(dict.fromkeys(name for row in sweep.rows for name in mapping(row.result.get("tasks"))))
    scores = [f"tasks.{name}.score" for name in tasks]
    writer.writerow(["number", "run", *sweep.keys, "status", "why", *figures, *scores])
    for row in sweep.rows:
        values = ["" if row.of(part, key) is None else row.of(part, key) for part, key in CSV_FIGURES]
        values += ["" if row.metric(name) is None else row.metric(name) for name in tasks]
        writer.writerow([row.number, row.name, *row.settings.values(), row.status, row.why, *values])
    return text.getvalue()


def ranked_groups(sweep: Sweep, force: bool = False) -> list[Group]:
    """The groups, best first. Empty if `incomparable` gives a reason, unless `force`."""
    return [] if incomparable(sweep) and not force else sweep.groups


def incomparable(sweep: Sweep) -> str:
    """The reason why the jobs are not ranked, as a sentence; an empty string if they are."""
    anyway = f"python -m sweeps.engine.report {shlex.quote(str(sweep.folder))} --force ranks them anyway."
    if len(sweep.texts) > 1:
        return (
            f"The jobs were scored on different {'items' if is_task(sweep.metric) else 'text'}"
            f" ({'; '.join(_text_labels(sweep))}), so they are not ranked: a better {in_words(sweep.metric)} may only mean that"
            f" they are easier; {anyway}"
        )
    if len(sweep.devices) > 1 and any(row.of("budget", "hours") for row in sweep.rows):
        return (
            f"The jobs ran on different devices ({', '.join(sweep.devices)}). Equal hours are not equal budgets there, so the"
            f" jobs are not ranked; {anyway}"
        )
    return ""


def in_words(metric: str) -> str:
    """A metric's name as text, e.g. "bits per byte"."""
    return metric.replace("_", " ")


def _text_labels(sweep: Sweep) -> list[str]:
    """A label for each text: the options that led to it, or a number."""
    labels = [
        ", ".join(f"{key}={value}" for key, value in text_options(rows[0].settings).items())
        for rows in sweep.texts.values()
    ]
    if len({*labels}) == len(labels):
        return labels
    return [f"text {number}" for number in range(1, len(labels) + 1)]


def _best_by_text(sweep: Sweep) -> list[str]:
    """The best settings on each text with which several were tried, a sentence each."""
    lines = []
    for label, rows in zip(_text_labels(sweep), sweep.texts.values(), strict=True):
        groups = sweep.groups_of(rows)
        if len(groups) > 1:
            text = text_options(groups[0].settings)
            settings = {key: value for key, value in groups[0].settings.items() if key not in text}
            name = ", ".join(f"{key}={value}" for key, value in settings.items()) or groups[0].label
            lines.append(f"Best on {label}: {name} with {in_words(sweep.metric)} {groups[0].mean:.4f}.")
    return lines


def verdict(sweep: Sweep, force: bool = False) -> list[str]:
    """The verdict on the sweep, in sentences. The first names the best settings, or the reason why there are none."""
    groups = ranked_groups(sweep, force)
    if not sweep.groups:
        return ["No job has finished, so there is nothing to compare."]
    if not groups:
        return [incomparable(sweep), *(_best_by_text(sweep) if len(sweep.texts) > 1 else [])]
    best = groups[0]
    runs = f" (mean of {len(best.rows)} runs)" if len(best.rows) > 1 else ""
    name = f"Best: {best.label} with" if len(groups) > 1 else f"{best.label}:"
    lines = [f"{name} {in_words(sweep.metric)} {best.mean:.4f}{runs}.", *_other_metric(sweep)]
    unfair = _unequal_speeds(sweep) + _cut_short(sweep)
    lines += _unequal_scores(sweep) + unfair
    if sweep.noise is None:
        if len(groups) > 1:
            why = f" ({sweep.noise_from})" if sweep.noise_from else ""
            lines.append(f"The noise is unknown{why}, so differences may mean nothing. Add seed=1,2,3 to the sweep.")
        return lines
    lines.append(f"Noise: standard deviation {sweep.noise:.4f} between seeds (from {sweep.noise_from}).")
    ties = sweep.ties(best)
    if ties:
        lines.append(f"Within noise of the best: {'; '.join(f'{g.label} ({g.mean:.4f})' for g in ties)}.")
    worse = [group for group in groups[1:] if group not in ties]
    if worse:
        doubt = " (perhaps because the machine was slower for them)" if unfair else ""
        lines.append(f"Worse by more than the noise{doubt}: {'; '.join(f'{g.label} ({g.mean:.4f})' for g in worse)}.")
    return lines


def _other_metric(sweep: Sweep) -> list[str]:
    """A sentence if the jobs are not ranked by the metric that was asked for."""
    if sweep.metric == sweep.wanted_metric:
        return []
    return [
        f"The jobs have different tokenizers, so they are ranked by {in_words(sweep.metric)}; {sweep.wanted_metric} is per"
        " token and cannot be compared between them."
    ]


def _unequal_scores(sweep: Sweep) -> list[str]:
    """A warning if the final evaluations were on different amounts of text.

    They are limited by eval.tokens, and shortened to fit into the hours. A number of tokens is another amount of text for
    another tokenizer, so tokenizers are compared on the whole validation text.
    """
    if is_task(sweep.metric):
        return _unequal_items(sweep)
    tokenizers = tokenizers_of([row.result for row in sweep.finished])
    unit = "tokens" if len(set(tokenizers)) < 2 else "bytes"
    sizes = sorted({size for row in sweep.finished if (size := row.of("eval", unit))})
    if len(sizes) < 2 or len(sweep.texts) > 1:
        return []
    advice = f"eval.tokens={sizes[0]} or a larger eval.max_fraction makes them comparable"
    if unit == "bytes":
        whole = max((row.of("data", "validation_tokens") or 0 for row in sweep.finished), default=0)
        tokens = f"eval.tokens={whole}" if whole else "a larger eval.tokens"
        advice = (
            f"{tokens}, with a larger eval.max_fraction where hours cut it, scores the whole text with each tokenizer"
        )
    return [
        f"The jobs were scored on different amounts of text, {sizes[0]:,} to {sizes[-1]:,} validation {unit}; {advice}."
    ]


def _unequal_items(sweep: Sweep) -> list[str]:
    """A warning if the final evaluations of the task that ranks the jobs had different numbers of its items."""
    counts = sorted({count for row in sweep.finished if (count := mapping(row.of("tasks", sweep.metric)).get("items"))})
    if len(counts) < 2:
        return []
    return [
        f"The jobs were scored on different numbers of items of {sweep.metric}, {counts[0]:,} to {counts[-1]:,}; a larger"
        " eval.max_fraction makes them comparable."
    ]


def _cut_short(sweep: Sweep) -> list[str]:
    """A warning if jobs with a budget in FLOPs, tokens or steps were ended by their hours."""
    numbers = [
        f"#{row.number}"
        for row in sweep.rows
        if row.finished
        and row.result.get("stopped_by") == "hours"
        and any(row.of("budget", key) for key in ("flops", "tokens", "steps"))
    ]
    if not numbers:
        return []
    return [
        f"The hours of {', '.join(numbers)} ended before their other budget was spent; a larger budget.hours lets them spend it."
    ]


def _unequal_speeds(sweep: Sweep) -> list[str]:
    """A warning if jobs of the same shape and batch ran at clearly different speeds, so that equal hours were not equal."""
    speeds = defaultdict[tuple[Any, ...], list[float]](list)
    for row in sweep.rows:
        steps, rate = row.of("spent", "steps"), row.of("throughput", "tokens_per_second")
        if row.finished and row.of("budget", "hours") and steps and rate:
            shape = [row.of("model", key) for key in ("n_layer", "n_embd", "block_size", "activation")]
            speeds[*shape, bool(row.of("model", "dropout")), round(row.of("spent", "tokens") / steps)].append(rate)
    slowest, fastest = max(
        ((min(rates), max(rates)) for rates in speeds.values()), key=lambda ends: ends[1] / ends[0], default=(1.0, 1.0)
    )
    if fastest < SPEED_RATIO_WARNED * slowest:
        return []
    return [
        f"The same model with the same batch ran at {slowest:,.0f} to {fastest:,.0f} tokens/s, so the machine was not equally"
        " fast for all jobs; budget.tokens=N instead of hours makes them comparable."
    ]


def hours_by_kind(sweep: Sweep) -> list[tuple[str, float]]:
    """The hours spent by kind of job, and those that pruned jobs left for others."""
    hours = defaultdict[str, float](float)
    for row in sweep.rows:
        hours["a longer run of the best" if row.longer else row.status] += row.hours_spent
    saved = sum(max(0.0, row.hours - row.hours_spent) for row in sweep.rows if row.status == "pruned" and row.hours)
    listed = [*hours.items(), ("left by pruned jobs", saved)]
    return [(kind, spent) for kind, spent in listed if spent or kind not in ("not started", "left by pruned jobs")]
