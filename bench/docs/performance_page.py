"""Generate docs/performance.md and the README's comparison from bench/results/: python -m bench.docs.performance_page

The text of the page is in performance.md.j2, and its last part in bench/findings.md. A test compares the page and the README
with the result files.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.common import RESULTS, ROOT
from bench.peers import PEERS
from bench.peers.peer import FORMS
from budget.clock import Limits
from model.config import PLAIN
from training.plan_run import probe_seconds

DOC = ROOT / "docs" / "performance.md"
FINDINGS = ROOT / "bench" / "findings.md"
README, BEGIN, END = ROOT / "README.md", "<!-- against: begin -->\n", "<!-- against: end -->"
MODERN_WITHOUT = "modern without "


def render(template: str, **values: Any) -> str:
    """Render a Markdown template in this folder. `value|fmt(SPEC)` formats a number, and shows None as "-"."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fmt"] = lambda value, spec, unit="": "-" if value is None else format(value, spec) + unit
    return environment.get_template(template).render(values)


def read_results() -> dict[str, dict[str, Any]]:
    """The contents of bench/results/ by name."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def text(results: dict[str, dict[str, Any]]) -> str:
    """The page, with a section for each result that it knows."""
    functions = (
        *(speedup_text, sorted_rounds, parameter_range, median_time_to_loss, sorted_ablation, parts_without_effect),
        *(correction_gain, trial_seconds, tuned_loss),
    )
    values = {function.__name__: function for function in functions}
    page = render("performance.md.j2", results=results, peers=PEERS, PLAIN=PLAIN, **values)
    return page + FINDINGS.read_text()


def speedup_text(ratio: float, goal: float, points: list[dict[str, Any]]) -> str:
    """A ratio of times as text. It is a lower bound if even the shortest run reached the goal."""
    return f"{'at least ' if all(point['loss'] <= goal for point in points) else ''}{ratio:.1f}"


def sorted_rounds(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds by form of settings and seed. The last has the form of the main comparison."""
    return sorted(found["rounds"], key=lambda row: (FORMS.index(row["form"]), row["seed"]))


def parameter_range(rounds: list[dict[str, Any]]) -> str:
    """The fewest and the most parameters of stint's models with the peer's time."""
    parameters = [row["stint"][0]["model"]["parameters"] for row in rounds]
    return " to ".join(dict.fromkeys(f"{bound(parameters) / 1e6:.0f}M" for bound in (min, max)))


def median_time_to_loss(rounds: list[dict[str, Any]], form: str) -> float:
    """The median ratio of times with a form of settings. 0: the loss was not reached in the peer's time."""
    return statistics.median(row["time_to_loss"] or 0.0 for row in rounds if row["form"] == form)


def tuned_loss(found: dict[str, Any]) -> float:
    """The loss of a peer's tuned form; NaN until it is finished."""
    return {row["name"]: row["loss"] for row in found["rows"]}.get("tuned", math.nan)


def sorted_ablation(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `modern`, then those of `classic`, each from the worst to the best."""

    def position(row: dict[str, Any]) -> tuple[bool, float]:
        return row["name"].startswith("classic"), -math.inf if row["worse"] is None else -row["worse"]

    return sorted(found["rows"], key=position)


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


def correction_gain(found: dict[str, Any], key: str) -> str:
    """The gain of changing batch and rates in the middle of a run: mean over seeds, in percent of the loss."""
    losses = {(run["arm"], run["seed"]): run[key] for run in found["runs"]}
    gains = [1 - losses["corrected", seed] / losses["as planned", seed] for seed in {seed for _, seed in losses}]
    return f"{statistics.mean(gains):.2%} ± {statistics.stdev(gains) / math.sqrt(len(gains)):.2%}"


def trial_seconds(hours: float) -> float:
    """The seconds that the plan's trials may take of a run of `hours`."""
    return probe_seconds(Limits(hours=hours))


def comparison() -> str:
    """The README's table: a row for each peer and form of its settings, with medians over the seeds."""
    rows: list[list[str]] = []
    everything: list[dict[str, Any]] = []
    results = read_results()
    for peer in PEERS:
        found = results.get(f"against_{peer.name}", {"rounds": []})["rounds"]
        everything += found
        for form in FORMS:
            runs = [row for row in found if row["form"] == form]
            rows += [[peer.title, form, str(len(runs)), *medians(runs)]] if runs else []
    columns = ["", "its settings", "seeds", "its loss", "stint's", "lower by", "to the same loss"]
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    if any(block_of(run) != PLAIN for run in everything):
        note = "In some of these runs stint used `modern`'s block; its plans for this compute now use the plain one."
        lines += ["", note]
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
    DOC.write_text(text(read_results()))
    README.write_text(with_comparison(README.read_text()))
