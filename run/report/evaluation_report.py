"""Writes the page of an evaluation: the scores of each task, what changed against a baseline, and the items behind them.

The page is one self-contained file. What an evaluation lacks is left out: figures of another kind of task, a baseline, texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common.format import format_count
from common.json_io import is_number, listing, mapping, number, write_text
from run.report import html as page
from run.report.dot_plot import Dot, dot_plot
from run.report.evaluation_tables import UNLESS_ZERO
from run.report.format_figures import formatted, percent

WORST, CHANGED, SAMPLES = 10, 5, 10  # items shown of each
LONGEST_TEXT = 20_000  # characters of one text; a page with a hundred of them stays readable
MOST_ROWS = 16  # of a table or plot that is open; BLiMP has 12 phenomena, and 67 paradigms
NORMAL_95 = 1.96  # standard errors from the mean to the ends of its 95 % interval
MOST_LABELS = 30  # of a confusion matrix
# Figures of every kind that are in the table of all tasks.
IN_OVERVIEW = (
    "kind", "items", "score", "interval", "chance", "statistic", "options", "available", "computed", "seconds", "checkpoint",
    "standard_error",
)  # fmt: skip
SHARES = ("score", "accuracy", "f1", "precision", "recall", "rouge", "adjusted")  # in the names of shares of 1
# Where a mark holds the text of its item; the first that it has is shown.
TEXT_KEYS = ("text", "question", "prompt", "context")

Mark = dict[str, Any]


class Block(NamedTuple):
    """A part of a task's section. `form` is the macro of templates/evaluation.html that shows it.

    The content is (heads, rows) for a table, texts or a matrix, pictures for dots, and lines for lines.
    """

    form: str
    title: str
    content: Any
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """A task of the evaluation: its figures, those of its comparison with the baseline, and the marks of both."""

    name: str
    figures: Mapping[str, Any]
    compared: Mapping[str, Any]
    marks: Sequence[Mark]
    baseline_marks: Sequence[Mark]

    @property
    def kind(self) -> str:
        return str(self.figures.get("kind"))

    @cached_property
    def before(self) -> dict[Any, Mark]:
        """The marks of the baseline by the ids of their items."""
        return {mark.get("id"): mark for mark in self.baseline_marks}


def write_evaluation_report(
    path: Path,
    evaluation: Mapping[str, Any],
    marks: Mapping[str, Sequence[Mark]],
    baseline: Mapping[str, Any] | None = None,
) -> None:
    """Write the page to `path`, atomically.

    Args:
        evaluation: The content of evaluation.json.
        marks: The predictions of each task: its marks, with the prompt or the requests of each item.
        baseline: The content of the baseline file, of which `marks` is read, if there is one.

    Raises OSError if the file cannot be written.
    """
    write_text(path, render(evaluation, marks, baseline or {}), several_writers=True)


def render(evaluation: Mapping[str, Any], marks: Mapping[str, Sequence[Mark]], baseline: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    earlier = mapping(baseline.get("marks"))
    compared = mapping(mapping(evaluation.get("comparison")).get("tasks"))
    parts = [
        Part(name, mapping(figures), mapping(compared.get(name)), _marks(marks.get(name)), _marks(earlier.get(name)))
        for name, figures in mapping(evaluation.get("tasks")).items()
    ]
    heads, rows = _overview(parts)
    return page.render(
        "evaluation.html",
        title=f"Evaluation of {_model_name(evaluation)}",
        outcome="finished",
        tiles=_tiles(evaluation, parts),
        remarks=_remarks(evaluation),
        overview_heads=heads,
        overview=rows,
        pictures=[dot_plot("Scores", dots)] if (dots := _task_dots(parts)) else [],
        sections=[(part.name, _blocks(part)) for part in parts],
    )


def _marks(given: Any) -> list[Mark]:
    return [mark for mark in listing(given) if isinstance(mark, dict)]


# The head of the page.


def _model_name(evaluation: Mapping[str, Any]) -> str:
    return Path(str(evaluation.get("checkpoint") or evaluation.get("answers") or "several models")).name


def _tiles(evaluation: Mapping[str, Any], parts: Sequence[Part]) -> list[tuple[str, str]]:
    models = [mapping(model) for model in mapping(evaluation.get("models")).values()]
    sizes = [format_count(model["parameters"]) for model in models if is_number(model.get("parameters"))]
    tiles = [("Model", _model_name(evaluation))]
    if sizes:
        tiles.append(("Parameters", ", ".join(sizes)))
    tiles += [
        ("Tasks", str(len(parts))),
        ("Items", _count(sum(number(part.figures.get("items"), 0) for part in parts))),
    ]
    comparison = mapping(evaluation.get("comparison"))
    if is_number(comparison.get("total")):
        of = len(mapping(comparison.get("tasks"))) + len(listing(comparison.get("unchanged")))
        tiles.append((f"Total (baseline {of})", f"{comparison['total']:.5f}"))
    return tiles


def _remarks(evaluation: Mapping[str, Any]) -> list[str]:
    comparison, options = mapping(evaluation.get("comparison")), mapping(evaluation.get("options"))
    remarks = [str(evaluation["note"])] if evaluation.get("note") else []
    remarks += map(str, listing(evaluation.get("warnings")))
    if comparison.get("kept"):
        remarks.append(f"This evaluation was kept as the baseline {comparison.get('baseline')}.")
    elif comparison.get("baseline"):
        remarks.append(f"Baseline: {comparison['baseline']}.")
    for key, words in (
        ("not_compared", "Not in the baseline"),
        ("unchanged", "Only in the baseline, and counted as unchanged"),
    ):
        if names := listing(comparison.get(key)):
            remarks.append(f"{words}: {', '.join(map(str, names))}.")
    if is_number(options.get("limit")):
        remarks.append(f"Only the first {options['limit']:,} items of each task were scored.")
    if is_number(options.get("fraction")) and options["fraction"] < 1:
        remarks.append(f"Only {percent(options['fraction'])} of the items of each task were scored.")
    if skipped := listing(options.get("skip")):
        remarks.append(f"Tasks left out: {', '.join(map(str, skipped))}.")
    return remarks


def _overview(parts: Sequence[Part]) -> tuple[list[str], list[list[str]]]:
    """The table of all tasks; the columns of the baseline only where a task has one."""
    heads = ["Task", "Items", "Score", "95 % interval", "Chance"]
    compared = any(part.compared for part in parts)
    if compared:
        heads += ["Baseline", "Difference", "95 % interval", "Score / baseline", "Total if only it changed"]
    rows = []
    for part in parts:
        figures, against = part.figures, part.compared
        row = [part.name, _count(figures.get("items")), _share(figures.get("score"))]
        row += [_interval(figures.get("interval")), _share(figures.get("chance"))]
        if compared:
            row += [
                _share(against.get("baseline")),
                _signed(against.get("delta")),
                _interval(against.get("interval"), signed=True),
                formatted(against.get("ratio"), "{:.5f}".format),
                formatted(against.get("overlay"), "{:.5f}".format),
            ]
        rows.append(row)
    return heads, rows


def _task_dots(parts: Sequence[Part]) -> list[Dot]:
    return [
        Dot(
            part.name,
            part.figures["score"],
            _ends(part.figures.get("interval")),
            _known(part.figures.get("chance")),
            _known(part.compared.get("baseline")),
        )
        for part in parts
        if is_number(part.figures.get("score"))
    ]


# The section of a task.


def _blocks(part: Part) -> list[Block]:
    functions = (_warnings, _facts, _tables, *OF_KIND.get(part.kind, (_worst, _changed)))
    return [block for function in functions for block in function(part)]


def _warnings(part: Part) -> Iterator[Block]:
    lines = [str(line) for line in listing(part.figures.get("warnings"))]
    if lines:
        yield Block("lines", "Warnings", lines)


def _facts(part: Part) -> Iterator[Block]:
    """The single figures that only this kind has."""
    rows = [
        (_words(key), _figure(key, value))
        for key, value in part.figures.items()
        if key not in IN_OVERVIEW
        and (is_number(value) or (isinstance(value, str) and value))
        and (value or key not in UNLESS_ZERO)
    ]
    if rows:
        yield Block("table", "", ([], rows))


def _tables(part: Part) -> Iterator[Block]:
    """The figures of parts of the task: of its paradigms, measures, or labels. Those with a score are drawn as well."""
    for key, value in part.figures.items():
        if key in IN_OVERVIEW or key in OWN_FORM or not _says_something(mapping(value)):
            continue
        rows = {str(name): mapping(entry) or {"value": entry} for name, entry in value.items()}
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        dots = [dot for name, row in rows.items() if (dot := _dot(name, row))]
        folded = len(rows) > MOST_ROWS
        if len(dots) > 1:
            title = f"{_words(key)}: plot of {len(dots)}" if folded else _words(key)
            yield Block("dots", title, [dot_plot("Score", sorted(dots, key=lambda dot: -dot.score))], folded)
        heads = ["", *map(_words, columns)] if columns != ["value"] else []
        cells = [
            [name, *(_figure(f"{key}.{name if column == 'value' else column}", row.get(column)) for column in columns)]
            for name, row in rows.items()
        ]
        title = f"{_words(key)}: table of {len(rows)}" if folded else "" if len(dots) > 1 else _words(key)
        yield Block("table", title, (heads, cells), folded)


def _says_something(parts: Mapping[str, Any]) -> bool:
    """Whether a value is neither 0, a count of what did not go wrong, nor its name, as the text of a label often is."""
    return any(value != 0 and value != name for name, value in parts.items())


def _dot(name: str, row: Mapping[str, Any]) -> Dot | None:
    """The dot of a part with a score, and the interval that it has itself or that follows from its standard error."""
    score = next((row[key] for key in ("score", "f1") if is_number(row.get(key))), None)
    if score is not None:
        return Dot(name, score, _ends(row.get("interval")))
    value, error = _known(row.get("value")), _known(row.get("standard_error"))
    if value is None or error is None:
        return None
    return Dot(name, value, (max(0.0, value - NORMAL_95 * error), min(1.0, value + NORMAL_95 * error)))


def _confusion(part: Part) -> Iterator[Block]:
    """The matrix of {"gold": labels of rows, "answers": labels of columns, "counts": rows}; a shade is a share of its row."""
    matrix = mapping(part.figures.get("confusion"))
    gold, answers, counts = (listing(matrix.get(key)) for key in ("gold", "answers", "counts"))
    if not counts:
        return
    title = "Confusion matrix: a row for each right label, a column for each answer"
    if max(len(gold), len(answers)) > MOST_LABELS:
        yield Block("lines", title, [f"It has {len(gold)} x {len(answers)} cells and is in evaluation.json."])
        return
    rows = []
    for label, row in zip(gold, counts, strict=False):
        cells = [int(number(count, 0)) for count in listing(row)]
        rows.append((label, [(f"{count:,}", round(100 * count / (sum(cells) or 1))) for count in cells]))
    yield Block("matrix", title, (answers, rows))


def _worst(part: Part) -> Iterator[Block]:
    """The items that the model got most wrong."""
    wrong = [mark for mark in part.marks if is_number(mark.get("score")) and mark["score"] < 1]
    if not wrong:
        return
    margins = {id(mark): margin(mark) for mark in wrong} if (margin := MARGINS.get(part.kind)) else {}
    wrong.sort(key=lambda mark: (mark["score"], number(margins.get(id(mark)), 0.0)))
    rows = [
        [
            str(mark.get("id", "")),
            _text_of(mark),
            _answer(mark, "gold"),
            _answer(mark, "answer"),
            formatted(margins.get(id(mark)), "{:.1f}".format),
        ]
        for mark in wrong[:WORST]
    ]
    heads = ["Item", "Text", "Right answer", "Answer", "Margin"]
    yield Block("texts", f"Worst items: {len(rows)} of {len(wrong):,} that are wrong", (heads, rows))
    if margins:
        yield Block(
            "lines", "", ["Margin: log-probability of the right answer minus that of the likeliest other one, nats."]
        )


def _pair_margin(mark: Mark) -> float | None:
    return _margin(listing(mark.get("logprobs")), 0)


def _choice_margin(mark: Mark) -> float | None:
    return _margin(listing(mark.get("logprobs")), mark.get("gold"))


def _label_margin(mark: Mark) -> float | None:
    logprobs = mapping(mark.get("logprobs"))
    labels = list(logprobs)
    return _margin(list(logprobs.values()), labels.index(mark["gold"]) if mark.get("gold") in labels else None)


def _margin(logprobs: Sequence[Any], gold: Any) -> float | None:
    """The log-probability at index `gold` minus the largest other one."""
    if not (isinstance(gold, int) and 0 <= gold < len(logprobs) > 1 and all(map(is_number, logprobs))):
        return None
    return float(logprobs[gold] - max(value for index, value in enumerate(logprobs) if index != gold))


MARGINS: dict[str, Callable[[Mark], float | None]] = {
    "minimal_pairs": _pair_margin,
    "multiple_choice": _choice_margin,
    "classify": _label_margin,
}


def _changed(part: Part) -> Iterator[Block]:
    """The items whose answer is better or worse than that of the baseline."""
    pairs = [
        (mark["score"] - part.before[mark.get("id")]["score"], mark, part.before[mark.get("id")])
        for mark in part.marks
        if is_number(mark.get("score")) and is_number(part.before.get(mark.get("id"), {}).get("score"))
    ]
    if not pairs:
        return
    sides = [
        ("Gained", sorted((pair for pair in pairs if pair[0] > 0), key=lambda pair: -pair[0])),
        ("Lost", sorted((pair for pair in pairs if pair[0] < 0), key=lambda pair: pair[0])),
    ]
    counts = ", ".join(f"{word.lower()} {len(changed):,}" for word, changed in sides)
    yield Block("lines", "Against the baseline", [f"Of {len(pairs):,} items that both answered: {counts}."])
    for word, changed in sides:
        rows = [
            [
                str(mark.get("id", "")),
                _text_of(mark),
                _answer(mark, "gold"),
                _answer({**mark, "answer_text": None, "answer": before.get("answer")}, "answer"),
                _answer(mark, "answer"),
            ]
            for _, mark, before in changed[:CHANGED]
        ]
        if rows:
            heads = ["Item", "Text", "Right answer", "Baseline", "Answer"]
            yield Block("texts", f"{word}: {len(rows)} of {len(changed):,}", (heads, rows))


def _samples(part: Part) -> Iterator[Block]:
    """Answers in free text, with their references and the answers of the baseline."""
    shown = list(part.marks[:SAMPLES])
    if not shown:
        return
    heads, with_baseline = ["Item", "Prompt", "Reference", "Answer"], bool(part.before)
    rows = []
    for mark in shown:
        row = [str(mark.get("id", "")), _text_of(mark), _answer(mark, "gold"), _answer(mark, "answer")]
        if with_baseline:
            row.append(_answer(part.before.get(mark.get("id"), {}), "answer"))
        rows.append([*row, _share(mark.get("score"))])
    heads += ["Baseline"] * with_baseline + ["Score"]
    yield Block("texts", f"Answers: {len(shown)} of {len(part.marks):,}", (heads, rows))


# The functions of a kind in the order of the section; other kinds show their worst items and what changed.
OF_KIND: dict[str, tuple[Callable[[Part], Iterator[Block]], ...]] = {
    "classify": (_confusion, _worst, _changed),
    "summarise": (_samples, _changed),
    "generate": (_samples, _changed),
}
OWN_FORM = ("confusion",)  # figures that a function of the kind shows


# Texts and numbers.


def _text_of(mark: Mark) -> str:
    """The text of an item as far as its mark has it: its own, or the context and the log-probability of each continuation."""
    if text := next((mark[key] for key in TEXT_KEYS if mark.get(key)), None):
        return _cut(text)
    requests = _requests(mark)
    contexts = {str(request.get("context", "")) for request in requests}
    shared = contexts.pop() if len(contexts) == 1 else ""
    lines = [
        f"{formatted(request.get('logprob'), '{:.1f}'.format)}  "
        f"{request.get('context', '') if request.get('context') != shared else ''}{request.get('continuation', '')}"
        for request in requests
    ]
    return _cut("\n".join([shared] * bool(shared) + lines))


def _requests(mark: Mark) -> list[dict[str, Any]]:
    """The requests of the answers, without the unconditional ones of task.score=pmi."""
    requests = [request for request in listing(mark.get("requests")) if isinstance(request, dict)]
    return requests[: len(mark["logprobs"])] if isinstance(mark.get("logprobs"), list | dict) else requests


def _answer(mark: Mark, key: str) -> str:
    """The right answer ("gold") or that of the model ("answer"); where it is an index, the text of that choice."""
    value, requests = mark.get(key), _requests(mark)
    if mark.get(f"{key}_text") is not None:
        return _cut(mark[f"{key}_text"])
    if isinstance(value, int) and 0 <= value < len(requests):
        return _cut(str(requests[value].get("continuation", "")).strip())
    return _cut(value)


def _cut(value: Any) -> str:
    text = "–" if value is None else str(value)
    return (
        text
        if len(text) <= LONGEST_TEXT
        else f"{text[:LONGEST_TEXT]}… and {len(text) - LONGEST_TEXT:,} more characters"
    )


def _words(key: str) -> str:
    """A key of the figures as a heading."""
    return (key[:1].upper() + key[1:].replace("_", " ")).replace("f1", "F1")


def _figure(key: str, value: Any) -> str:
    """A figure with the unit that its name implies."""
    if isinstance(value, list | tuple):
        return _interval(value) if _ends(value) else ", ".join(map(str, value))
    if not is_number(value):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return _share(value) if any(word in key for word in SHARES) and 0 <= value <= 1 else f"{value:.4g}"


def _share(value: Any) -> str:
    return formatted(value, "{:.1%}".format)


def _count(value: Any) -> str:
    return formatted(value, "{:,.0f}".format)


def _signed(value: Any) -> str:
    return formatted(value, lambda share: f"{100 * share:+.1f}")


def _interval(value: Any, signed: bool = False) -> str:
    ends, sign = _ends(value), "+" if signed else ""
    return f"{100 * ends[0]:{sign}.1f} to {100 * ends[1]:{sign}.1f}" if ends else "–"


def _ends(value: Any) -> tuple[float, float] | None:
    both = listing(list(value)) if isinstance(value, list | tuple) else []
    return (both[0], both[1]) if len(both) == 2 and all(map(is_number, both)) else None


def _known(value: Any) -> float | None:
    return float(value) if is_number(value) else None
