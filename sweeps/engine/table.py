"""The jobs of a sweep as rows: what was varied, what came out, how large noise is, and who wins by more than that."""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.json_io import read_json
from common.noise import squares_within

SEED = "seed"
HIGHER_IS_BETTER = ("accuracy",)
SAME_BUDGET = 2.0  # noise is taken from runs whose hours are within this factor
UNEQUAL = 1.2  # the fastest job of a shape against the slowest: from here on it is worth a warning


def short(settings: dict[str, str]) -> str:
    """Settings without the config group of each knob."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())


@dataclass(frozen=True)
class Row:
    """One job. `settings` holds the knobs that vary in the sweep, as on the command line; hours: its budget; longer: the
    run that the hours left over bought."""

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
        """Whether it is to be ranked; a longer run, of what the others left, is not."""
        return self.status == "finished" and self.value is not None and not self.longer

    def of(self, part: str, key: str) -> Any:
        """A figure of result.json, or None."""
        return (self.result.get(part) or {}).get(key)

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or self.name

    @property
    def short(self) -> str:
        """As `label`, for where there is little room."""
        return short(self.settings) or self.name

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """The settings without the seed: what the same is that is run several times."""
        return tuple((key, value) for key, value in self.settings.items() if key != SEED)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    settings: dict[str, str]
    rows: list[Row]
    mean: float

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "all"


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder tells it. noise: standard deviation of the metric between seeds, None where nothing says."""

    folder: Path
    name: str
    metric: str
    command: list[str]
    rows: list[Row]
    noise: float | None
    noise_from: str
    freedom: int = 0  # degrees of freedom of the noise
    keys: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        """The finished ones, the best first."""
        found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            if row.finished:
                found.setdefault(row.group, []).append(row)
        groups = [
            Group(dict(settings), rows, statistics.mean(float(row.value or 0.0) for row in rows))
            for settings, rows in found.items()
        ]
        return sorted(groups, key=lambda group: group.mean, reverse=self.metric in HIGHER_IS_BETTER)

    @property
    def devices(self) -> list[str]:
        return sorted({str(row.of("environment", "device")) for row in self.rows if row.finished})

    def command_of(self, row: Row) -> str:
        """What to type for this job alone."""
        return shlex.join([*self.command, *row.overrides])

    def ties(self, best: Group) -> list[Group]:
        """Groups that noise does not tell from the best one; empty where noise is not known."""
        if self.noise is None:
            return []
        limit = student(self.freedom) * self.noise
        return [
            group
            for group in self.groups
            if group is not best
            and group.settings != best.settings
            and abs(group.mean - best.mean) <= limit * math.sqrt(1 / len(group.rows) + 1 / len(best.rows))
        ]


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: the standard errors that 5 % of differences exceed by chance, where the noise was
    estimated with so many degrees of freedom. With three seeds it is 4.3, not 2."""
    from scipy.special import stdtrit  # without scipy.stats, whose import takes several times as long

    return float(stdtrit(max(1, freedom), 0.975))


def read_sweep(folder: Path) -> Sweep:
    """What a sweep's folder holds. Raises UserError where it is none."""
    about = read_json(folder / "sweep.json")
    if not isinstance(about, dict):
        raise UserError(f"{folder} is no sweep's folder; give one of outputs/sweeps/")
    records = [read_json(path) for path in sorted((folder / "jobs").glob("*.json"))]
    found = sorted((each for each in records if isinstance(each, dict)), key=lambda each: each["number"])
    given = [dict(_parts(override) for override in each["overrides"]) for each in found]
    keys = varying([settings for settings, each in zip(given, found, strict=True) if not each.get("longer")])
    metric = str(found[0]["metric"]) if found else "loss"
    rows = [
        _row(each, {key: settings.get(key, "-") for key in keys}, metric)
        for each, settings in zip(found, given, strict=True)
    ]
    noise, noise_from, freedom = noise_of(rows)
    if noise is None:
        noise, noise_from, freedom = noise_of_sibling(folder, metric, rows)
    return Sweep(folder, about["name"], metric, about["command"], rows, noise, noise_from, freedom, keys)


def _parts(override: str) -> tuple[str, str]:
    """A knob and its value as it is shown: Hydra writes 7.75e10 as 77500000000.0."""
    key, _, value = override.partition("=")
    return key, f"{float(value):g}" if re.fullmatch(r"\d{7,}\.0", value) else value


def varying(given: list[dict[str, str]]) -> list[str]:
    """The knobs that are not the same in all jobs, in the order of the command line."""
    keys = list(dict.fromkeys(key for settings in given for key in settings))
    return [key for key in keys if len({settings.get(key) for settings in given}) > 1]


def _row(record: dict[str, Any], settings: dict[str, str], metric: str) -> Row:
    """A record as a row; one of an earlier start, which went by another metric, is asked for this one."""
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
        result=(read_json(run / "result.json") or {}) if record["status"] in ("finished", "diverged") else {},
    )
    asked = row.status == "finished" and record["metric"] != metric
    return replace(row, value=row.of("eval", metric)) if asked else row


def noise_of(rows: list[Row]) -> tuple[float | None, str, int]:
    """Standard deviation between runs that differ in the seed alone, pooled over the settings that have several; where it is
    from, and its degrees of freedom."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for row in rows:
        if row.finished and row.value is not None and SEED in row.settings:
            groups.setdefault(row.group, []).append(row.value)
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return None, "", 0
    squares, freedom = squares_within(several)
    return math.sqrt(squares / freedom), f"{freedom + len(several)} runs with other seeds", freedom


def noise_of_sibling(folder: Path, metric: str, rows: list[Row]) -> tuple[float | None, str, int]:
    """The noise that the sweep `seeds` beside this one found, in the metric of this one's rows; where its runs were no others
    than these: noise is larger in short runs than in long ones, and another on another text."""
    sibling = folder.parent / "seeds"
    if sibling == folder or not (sibling / "sweep.json").exists():
        return None, "", 0
    seeds = [replace(row, value=row.of("eval", metric)) for row in read_sweep(sibling).rows]
    noise, _, freedom = noise_of(seeds)
    if noise is None:
        return None, "", 0
    if unlike := _unlike(rows, seeds):
        return None, f"the sweep `seeds` beside this one had {unlike}, so its noise is not this one's", 0
    values, theirs = ([row.value for row in some if row.finished and row.value] for some in (rows, seeds))
    if metric == "perplexity" and values:  # it is the logarithm whose noise is the same at any height
        noise *= statistics.median(values) / statistics.median(theirs)
    return noise, "the sweep `seeds` beside this one", freedom


def _unlike(rows: list[Row], seeds: list[Row]) -> str:
    """What the finished runs of one sweep do not share with those of another; nothing where they can be compared."""
    ours, theirs = ([row for row in some if row.finished] for some in (rows, seeds))
    for what, part, key in (("another text", "data", "fingerprint"), ("another device", "environment", "device")):
        if {row.of(part, key) for row in ours} - {row.of(part, key) for row in theirs}:
            return what
    if not ours:
        return ""
    mine, other = (statistics.median(row.hours_spent for row in some) for some in (ours, theirs))
    return "another budget" if max(mine, other) > SAME_BUDGET * min(mine, other) else ""


def columns_of(sweep: Sweep) -> list[str]:
    return [
        "#",
        *sweep.keys,
        "status",
        sweep.metric,
        "bits/byte",
        "layers x width",
        "tokens",
        "hours",
        "tokens/s",
        "why",
    ]


def cells_of(sweep: Sweep, row: Row) -> list[str]:
    """A row of the table, as text."""
    model = row.result.get("model") or {}
    size = f"{model['n_layer']} x {model['n_embd']}" if "n_layer" in model else "-"
    return [
        str(row.number),
        *row.settings.values(),
        row.status,
        _shown(row.value, ".4f"),
        _shown(row.of("eval", "bits_per_byte"), ".4f"),
        size,
        _shown(row.of("spent", "tokens"), ",.0f"),
        _shown(row.hours_spent, ".3g"),
        _shown(row.of("throughput", "tokens_per_second"), ",.0f"),
        row.why if len(row.why) <= 60 else row.why[:59] + "…",
    ]


def _shown(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


CSV_FIGURES = (
    *(("eval", key) for key in ("loss", "loss_se", "perplexity", "bits_per_byte", "accuracy")),
    *(("spent", key) for key in ("hours", "training_hours", "tokens", "steps", "flops", "flops_6nd")),
    *(("model", key) for key in ("n_layer", "n_head", "n_embd", "block_size", "parameters", "parameters_law")),
    *(("throughput", key) for key in ("tokens_per_second", "mfu")),
    ("environment", "device"),
)


def as_csv(sweep: Sweep) -> str:
    """One line a job, every figure with its name of result.json."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{part}.{key}" for part, key in CSV_FIGURES]
    writer.writerow(["number", "run", *sweep.keys, "status", "why", *figures])
    for row in sweep.rows:
        values = ["" if row.of(part, key) is None else row.of(part, key) for part, key in CSV_FIGURES]
        writer.writerow([row.number, row.name, *row.settings.values(), row.status, row.why, *values])
    return text.getvalue()


def ranked(sweep: Sweep, force: bool = False) -> list[Group]:
    """The groups, the best first; none where equal hours were on different devices, unless forced."""
    apart = len(sweep.devices) > 1 and any(row.of("budget", "hours") for row in sweep.rows)
    return [] if apart and not force else sweep.groups


def verdict(sweep: Sweep, force: bool = False) -> list[str]:
    """What the sweep says, in sentences; the first names the winner, or why there is none."""
    groups = ranked(sweep, force)
    if not sweep.groups:
        return ["No job has finished, so there is nothing to compare."]
    if not groups:
        return [
            f"The jobs ran on different devices ({', '.join(sweep.devices)}): equal hours are not equal budgets, so they"
            " are not ranked; --force ranks them all the same."
        ]
    best = groups[0]
    unequal = _unequal_scores(sweep)
    lines = [f"Best: {best.label} with {sweep.metric} {best.mean:.4f}{_of_runs(best)}."]
    if len(groups) == 1:
        lines = [f"{best.label}: {sweep.metric} {best.mean:.4f}{_of_runs(best)}."]
    slower, short_of = _unequal_speeds(sweep), _cut_short(sweep)
    lines += unequal + slower + short_of
    if sweep.noise is None:
        if len(groups) > 1:
            why = f" ({sweep.noise_from})" if sweep.noise_from else ""
            lines.append(
                f"How large noise is was not measured{why}: differences may mean nothing. Add seed=1,2,3 to the sweep."
            )
        return lines
    lines.append(f"Noise of one run: {sweep.noise:.4f} (from {sweep.noise_from}).")
    ties = sweep.ties(best)
    if ties:
        lines.append(f"Within noise of it, a tie: {'; '.join(f'{g.label} ({g.mean:.4f})' for g in ties)}.")
    worse = [group for group in groups[1:] if group not in ties]
    if worse:
        doubt = ", for which the machine's speed may be the reason" if slower or short_of else ""
        lines.append(f"Worse by more than noise{doubt}: {'; '.join(f'{g.label} ({g.mean:.4f})' for g in worse)}.")
    return lines


def _unequal_scores(sweep: Sweep) -> list[str]:
    """A warning where the final evaluations, which are cut to fit the hours, were not of the same tokens."""
    sizes = sorted({row.of("eval", "tokens") for row in sweep.rows if row.finished and row.of("eval", "tokens")})
    if len(sizes) < 2:
        return []
    return [
        f"Not all were scored on the same text: {sizes[0]:,} to {sizes[-1]:,} validation tokens, as their seconds allowed;"
        f" eval.tokens={sizes[0]} or a larger eval.max_fraction makes them comparable."
    ]


def _cut_short(sweep: Sweep) -> list[str]:
    """A warning where jobs with a budget in FLOPs, tokens or steps ended by their hours instead."""
    cut = [
        f"#{row.number}"
        for row in sweep.rows
        if row.finished
        and row.result.get("stopped_by") == "hours"
        and any(row.of("budget", each) for each in ("flops", "tokens", "steps"))
    ]
    if not cut:
        return []
    return [
        f"Their hours ended before their budget of compute was spent: {', '.join(cut)}; they stand for what they did spend, and a"
        " larger budget.hours lets them reach it."
    ]


def _unequal_speeds(sweep: Sweep) -> list[str]:
    """A warning where hours bought some jobs more than others of the same shape, for reasons that are none of theirs."""
    speeds = defaultdict[tuple[Any, ...], list[float]](list)
    for row in sweep.rows:
        steps, rate = row.of("spent", "steps"), row.of("throughput", "tokens_per_second")
        if row.finished and row.of("budget", "hours") and steps and rate:
            shape = [row.of("model", key) for key in ("n_layer", "n_embd", "block_size", "activation")]
            speeds[*shape, bool(row.of("model", "dropout")), round(row.of("spent", "tokens") / steps)].append(rate)
    slowest, fastest = max(
        ((min(each), max(each)) for each in speeds.values()), key=lambda ends: ends[1] / ends[0], default=(1.0, 1.0)
    )
    if fastest < UNEQUAL * slowest:
        return []
    return [
        f"The same model with the same batch ran at {slowest:,.0f} to {fastest:,.0f} tokens/s: the machine was not as fast for"
        " all jobs, and their hours did not buy the same; budget.tokens= in place of hours makes them comparable."
    ]


def hours_of(sweep: Sweep) -> list[tuple[str, float]]:
    """What the sweep's hours went to, and what stopping jobs early left for others."""
    kinds = dict.fromkeys("a longer run of the best" if row.longer else row.status for row in sweep.rows)
    spent = [
        (kind, sum(r.hours_spent for r in sweep.rows if kind == ("a longer run of the best" if r.longer else r.status)))
        for kind in kinds
    ]
    spent = [(kind, hours) for kind, hours in spent if hours or kind != "not started"]
    saved = sum(max(0.0, row.hours - row.hours_spent) for row in sweep.rows if row.status == "pruned" and row.hours)
    return spent + ([("left by those that were pruned", saved)] if saved else [])


def _of_runs(group: Group) -> str:
    return f" (mean of {len(group.rows)} runs)" if len(group.rows) > 1 else ""
