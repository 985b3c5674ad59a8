r"""Classification of texts: which of a set of labels is the most likely continuation of a text?

A template says how the model is asked, e.g. "{text}\nLabel: {label}". Its part before {label} is the context; the rest, with the
text of a label in the place of {label}, is the continuation that is scored. A text behind {label} is thus scored with it. The
template may have any field of the items. With task.score=generate the model continues the context instead, and its answer is the
label with whose text it begins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError
from common.format import shortened
from common.paths import user_path
from common.typed import closest
from evals.scoring import Request
from evals.statistics import accuracy, score_of
from evals.tasks.multiple_choice import MEASURES, measures
from evals.tasks.rows import Row, read_each, rows_and_errors
from evals.tasks.task import MACRO_F1, Answer, Generated, Item, TaskOptions, token_counts
from evals.tasks.template import fields_of, render, split_at, template_of

TEMPLATE = "{text}\nLabel: {label}"
TEXT, LABEL = "text", "label"  # fields of a template, and the default names of the items' fields
IDS = ("id", "ID")  # names of a field with the id of an item
MOST_LABELS = 1000
PMI, GENERATE = "pmi", "generate"
OUTSIDE = "(no label)"  # the answer where the generated text begins with no label

SCORES = (*MEASURES, PMI, GENERATE)


@dataclass(frozen=True)
class Classification:
    """See `Task`.

    Attributes:
        labels: The text of each label.
        skipped: Invalid items that were left out.
        warnings: What is wrong with the labels, as sentences.
    """

    name: str
    options: TaskOptions
    items: Sequence[Item]
    labels: Mapping[str, str]
    skipped: int = 0
    warnings: tuple[str, ...] = ()
    kind: str = "classify"
    statistic: str = MACRO_F1

    @property
    def by(self) -> str:
        """The score that chooses the label: task.score."""
        return self.options.score or "sum"

    @property
    def chance(self) -> float:
        """The macro F1 of always giving the most frequent label."""
        return float(majority([item.content["gold"] for item in self.items], list(self.labels))["macro_f1"])

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """The label that task.score chooses, and that of each other score (`answers`).

        - text: the text of the item; of several fields of the template, joined by " | "
        - logprobs: {label: log-probability}; of equally likely labels the first one is the answer
        - generated: the text instead, with task.score=generate
        - cut, unknown: tokens of the requests, see `Score`; the largest of all labels
        """
        if isinstance(answer, Generated):
            answers = {GENERATE: self._label_in(answer.text)}
            details: dict[str, Any] = {"generated": answer.text, "cut": answer.cut, "unknown": 0}
        else:
            labels = list(self.labels)
            scored = [request.continuation for request in item.requests[: len(labels)]]
            answers = {name: labels[int(each.argmax())] for name, each in measures(answer, scored, self.by).items()}
            details = {
                "logprobs": {label: score.logprob for label, score in zip(labels, answer, strict=False)},
                "cut": max(score.cut for score in answer),
                "unknown": max(score.unknown for score in answer),
            }
        gold, chosen = item.content["gold"], answers[self.by]
        about = {"id": item.id, "text": item.content["text"], "gold": gold}
        return {**about, "answer": chosen, "score": float(chosen == gold), "answers": answers, **details}

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The figures of classification. `score` is the macro F1 under task.score.

        - scored_by: task.score; labels: the text of each label
        - accuracy: {score: {value, standard_error}}, macro_f1: {score: value}, of task.score and of all other scores that need
          no other requests
        - weighted_f1: F1 averaged over items instead of labels
        - by_label: {label: {precision, recall, f1, support, answers}}: how many items have it, and how many have it as answer
        - confusion: {gold: labels of rows, answers: labels of columns, counts: [row, ...]}
        - majority: {label, accuracy, macro_f1} of always giving the most frequent label
        - outside: {gold: items whose label is not one of the labels, answers: generated texts that begin with no label}; both
          count as wrong
        - empty: items without text; contradictory: items whose text also occurs with another label
        - skipped: invalid items that were left out
        - cut, unknown: tokens cut off, and unknown tokens; items_cut, items_unknown: number of items with such tokens
        - warnings: what is wrong with the labels, as sentences
        """
        gold, answers = [mark["gold"] for mark in marks], [mark["answer"] for mark in marks]
        by_label, confusion = confusion_of(gold, answers, list(self.labels))
        rated = {name: [_rated(mark["gold"], mark["answers"][name]) for mark in marks] for name in marks[0]["answers"]}
        return {
            "scored_by": self.by,
            "labels": dict(self.labels),
            "accuracy": {name: accuracy([mark["score"] for mark in each]) for name, each in rated.items()},
            "macro_f1": {name: score_of(each, MACRO_F1) for name, each in rated.items()},
            "weighted_f1": sum(each["f1"] * each["support"] for each in by_label.values()) / len(marks),
            "by_label": by_label,
            "confusion": confusion,
            "majority": majority(gold, list(self.labels)),
            "outside": {"gold": sum(each not in self.labels for each in gold), "answers": answers.count(OUTSIDE)},
            "empty": sum(not mark["text"].strip(" |") for mark in marks),
            "contradictory": contradictory(marks),
            "skipped": self.skipped,
            **token_counts(marks, "cut", "unknown"),
            "warnings": list(self.warnings),
        }

    def _label_in(self, text: str) -> str:
        """The label with whose text `text` begins; the longest, because one may begin with another."""
        found = [label for label, said in self.labels.items() if text.strip().startswith(said.strip())]
        return max(found, key=lambda label: len(self.labels[label].strip()), default=OUTSIDE)


def confusion_of(
    gold: Sequence[str], answers: Sequence[str], labels: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the figures of each label and the confusion matrix, see `Classification.figures`.

    Labels of items that are not in `labels` come behind them as rows; OUTSIDE is the last column if there are such answers. A
    ratio of zero to zero is 0.
    """
    rows = [*labels, *sorted({*gold} - {*labels})]
    columns = [*rows, OUTSIDE]
    counts = np.zeros((len(rows), len(columns)), dtype=np.int64)
    index = {name: i for i, name in enumerate(columns)}
    np.add.at(counts, ([index[each] for each in gold], [index[each] for each in answers]), 1)
    right, support, answered = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)[:-1]
    by_label = {
        label: {
            "precision": _ratio(right[i], answered[i]),
            "recall": _ratio(right[i], support[i]),
            "f1": _ratio(2 * right[i], answered[i] + support[i]),
            "support": int(support[i]),
            "answers": int(answered[i]),
        }
        for i, label in enumerate(rows)
    }
    shown = [*range(len(labels)), *([len(rows)] if counts[:, -1].any() else [])]
    return by_label, {"gold": rows, "answers": [columns[i] for i in shown], "counts": counts[:, shown].tolist()}


def majority(gold: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return {label, accuracy, macro_f1} of always giving the most frequent of `labels`; of several, the first."""
    label = max(labels, key=Counter(gold).__getitem__)
    share = gold.count(label) / len(gold)
    return {"label": label, "accuracy": share, "macro_f1": score_of([_rated(each, label) for each in gold], MACRO_F1)}


def contradictory(marks: Sequence[dict[str, Any]]) -> int:
    """Return the number of items whose text occurs with another label as well."""
    labels: dict[str, set[str]] = defaultdict(set)
    for mark in marks:
        labels[mark["text"]].add(mark["gold"])
    return sum(len(labels[mark["text"]]) > 1 for mark in marks)


def _rated(gold: str, answer: str) -> dict[str, Any]:
    return {"gold": gold, "answer": answer, "score": float(gold == answer)}


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0


def load_classify(name: str, options: TaskOptions) -> list[Any]:
    """Load the texts of a file, see `rows_and_errors`, with their labels.

    Labels are compared without spaces at their ends. Raises UserError for a file without the fields that the template has or
    without labels, for fewer than two labels, for labels that cannot be told apart, and for invalid items.
    """
    if options.score not in (None, *SCORES):
        raise UserError(f"task.score={options.score} is not a score of classify; allowed: {', '.join(SCORES)}")
    if options.path is None:
        raise UserError(f"tasks={name} needs task.path=FILE, with a text and a label in each row")
    path = user_path(options.path)
    if path.is_dir():
        files = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
        raise UserError(f"{path} is a folder; give task.path one of its files: {', '.join(files[:20])}")
    rows, unreadable = read_each(rows_and_errors(path), lambda row: row, options.bad_items)
    if not rows:
        raise UserError(f"{path} has no items; give task.path=FILE with a text and a label in each row")
    question = Question.of(options, rows)
    read, skipped = read_each(rows, question.read, options.bad_items)
    labels = labels_of(options.labels, sorted({gold for _, gold in read}), f"{path}: field {question.label_key!r}")
    ids = _ids(rows)
    items = [question.item(ids[row.place], row, gold, labels, options) for row, gold in read]
    return [
        Classification(name, options, items, labels, unreadable + skipped, tuple(question.warnings(labels, options)))
    ]


@dataclass(frozen=True)
class Question:
    """How the model is asked about a text.

    Attributes:
        before, after: The template before and behind {label}.
        columns: The field of the items for each field of the template other than {label}.
        label_key: The field of the items with the right label.
    """

    before: str
    after: str
    columns: Mapping[str, str]
    label_key: str

    @classmethod
    def of(cls, options: TaskOptions, rows: Sequence[Row]) -> Question:
        """Check the template and the names of fields against those of the rows."""
        question = cls._of_template(options)
        columns = dict.fromkeys(str(key) for row in rows for key in row.values)
        wanted = {"task.label_key": question.label_key}
        if TEXT in question.columns:
            wanted["task.text_key"] = question.columns[TEXT]
        if missing := [
            f"{rows[0].place}: no field {key!r}; its fields are {', '.join(columns)[:400]}; set {option}=FIELD"
            f"{closest(key, columns)}"
            for option, key in wanted.items()
            if key not in columns
        ]:
            raise UserError(*missing)
        if question.label_key in question.columns.values():
            raise UserError(
                f"task.template asks with {question.label_key!r}, the field with the right answer: write {{label}}"
            )
        allowed = [TEXT, LABEL, *(key for key in columns if key != question.label_key)]
        render(question.before + question.after, dict.fromkeys(allowed, ""))
        return question

    @classmethod
    def _of_template(cls, options: TaskOptions) -> Question:
        template = template_of(options) or TEMPLATE
        parts = split_at(template, LABEL)
        fields = fields_of(template) - {LABEL}
        if len(parts) != 2 or not fields:
            raise UserError(
                f"task.template has {{label}} {len(parts) - 1} times and {len(fields)} other fields; write {{label}} once, and"
                " the text, e.g. '{text}\\nLabel: {label}'"
            )
        columns = {name: (options.text_key or TEXT) if name == TEXT else name for name in sorted(fields)}
        return cls(parts[0], parts[1], columns, options.label_key or LABEL)

    def read(self, row: Row) -> tuple[Row, str]:
        """Return a row and its label. Raises UserError if a field of the template is not a text, or the label is not valid."""
        self.values(row)
        try:
            return row, label_of(row.values.get(self.label_key))
        except ValueError as error:
            raise UserError(f"{row.place}: {self.label_key} {error}") from None

    def values(self, row: Row) -> dict[str, str]:
        """Return the texts of the template's fields."""
        return {name: row.text(column) for name, column in self.columns.items()}

    def item(self, id: str, row: Row, gold: str, labels: Mapping[str, str], options: TaskOptions) -> Item:
        """Return the item of a row."""
        values = self.values(row)
        content = {"gold": gold, "text": " | ".join(values.values())}
        if options.score == GENERATE:
            # Spaces at the end belong to the first word of the answer, as in `Scorer.encode`.
            return Item(id, prompt=render(self.before, values).rstrip(" "), content=content)
        requests = self.requests(values, labels)
        if options.score == PMI:
            requests += self.requests(dict.fromkeys(values, ""), labels)
        return Item(id, requests, content=content)

    def requests(self, values: Mapping[str, str], labels: Mapping[str, str]) -> tuple[Request, ...]:
        """Return the request of each label."""
        context, after = render(self.before, values), render(self.after, values)
        return tuple(Request(context, label + after) for label in labels.values())

    def warnings(self, labels: Mapping[str, str], options: TaskOptions) -> Iterable[str]:
        """Yield a sentence for each label whose continuation another begins with, where that decides the answer."""
        if options.score not in (None, "sum"):
            return
        after = render(self.after, dict.fromkeys(self.columns, ""))
        for label, text in labels.items():
            for other, longer in labels.items():
                if other != label and (longer + after).startswith(text + after):
                    yield (
                        f"the text of label {other!r} begins with that of {label!r}, which is therefore never less likely by"
                        " task.score=sum; set task.score=per_token or pmi, or end task.template with a mark: '{label}.'"
                    )


def label_of(value: object) -> str:
    """Return a label from a file or an option as text. Raises ValueError if it is neither a text nor a whole number."""
    if isinstance(value, bool):
        return str(value).lower()  # as JSON has it
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))  # 1.0 is how a column of numbers with gaps is written
    if not isinstance(value, str):
        raise ValueError(f"is {shortened(value)}, not a label: write a text or a whole number")
    if not value.strip():
        raise ValueError("is empty, not a label: write a text or a whole number")
    return value.strip()


def labels_of(given: Any, found: Sequence[str], place: str) -> dict[str, str]:
    """Return the text of each label, from task.labels or else from `found`, the labels of the items at `place`.

    Raises UserError if there are no two labels that can be told apart, and if no item has one of the given labels.
    """
    if given is None:
        labels = {label: label for label in found}
        check_labels(labels, place)
        return labels
    labels = given_labels(given)
    check_labels(labels, "task.labels")
    if len(found) > MOST_LABELS:
        raise UserError(
            f"{place} has {len(found):,} labels; allowed: up to {MOST_LABELS:,}; is task.label_key the right field?"
        )
    if not {*labels} & {*found}:
        raise UserError(
            f"{place} has none of the labels of task.labels, {', '.join(labels)}; its labels are {', '.join(found)[:400]}"
        )
    return labels


def given_labels(labels: Any) -> dict[str, str]:
    """Return task.labels, a list of labels or a mapping from labels to their texts, as a mapping."""
    if not isinstance(labels, Mapping | list | tuple):
        raise UserError(f"task.labels={shortened(labels)} is neither [LABEL, ...] nor {{LABEL: TEXT, ...}}")
    pairs = labels.items() if isinstance(labels, Mapping) else zip(labels, labels, strict=True)
    try:
        read = [(label_of(label), text if isinstance(text, str) else label_of(text)) for label, text in pairs]
    except ValueError as error:
        raise UserError(f"task.labels: one of {shortened(labels)} {error}") from None
    if twice := [label for label, count in Counter(label for label, _ in read).items() if count > 1]:
        raise UserError(f"task.labels has {twice[0]!r} twice; write each label once")
    return dict(read)


def check_labels(labels: Mapping[str, str], place: str) -> None:
    """Raise UserError for fewer than two labels, too many, a label without text, and two labels with the same text."""
    if not 2 <= len(labels) <= MOST_LABELS:
        shown = ", ".join(map(repr, [*labels][:3])) + (", ..." if len(labels) > 3 else "")
        raise UserError(f"{place} has {len(labels):,} labels ({shown}); allowed: 2 to {MOST_LABELS:,}; set task.labels")
    problems = [f"{place}: the text of label {label!r} is empty" for label, text in labels.items() if not text.strip()]
    same: dict[str, list[str]] = defaultdict(list)
    for label, text in labels.items():
        same[text.strip()].append(label)
    problems += [
        f"{place}: labels {', '.join(map(repr, names))} have the same text {text!r}, so nothing tells them apart"
        for text, names in same.items()
        if text and len(names) > 1
    ]
    if problems:
        raise UserError(*problems)


def _ids(rows: Sequence[Row]) -> dict[str, str]:
    """The id of each row by its place: that of the file if each row has one, else the number of the row."""
    for key in IDS:
        ids = [str(row.values.get(key)) for row in rows]
        if len({*ids}) == len(rows) > 1:
            return dict(zip((row.place for row in rows), ids, strict=True))
    return {row.place: str(number) for number, row in enumerate(rows, 1)}
