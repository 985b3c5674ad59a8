"""Classification of texts: a model that learned the labels, figures against scikit-learn, and files that are refused."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cli.compose import checked_config, register_schemas
from common.errors import UserError
from data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items, figures_of, marks_of
from evals.scoring import Request, Score, Scorer
from evals.statistics import score_of
from evals.tasks.classify import OUTSIDE, Classification, load_classify
from evals.tasks.task import Answer, Generated, Item, TaskOptions
from model.config import PRESETS, Shape
from model.gpt import GPT

ROOT = Path(__file__).parents[3]
WINDOW = 32


def tsv(folder: Path, rows: list[tuple[str, str]], header: str = "text\tlabel") -> str:
    path = folder / "items.tsv"
    path.write_text("".join(f"{line}\n" for line in (header, *("\t".join(row) for row in rows))))
    return str(path)


def load(path: str, **options: Any) -> Classification:
    (task,) = load_classify("quiz", TaskOptions("classify", path=path, **options))
    return task  # type: ignore[no-any-return]


def problems(path: str, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert not any("\n" in message for message in caught.value.messages)
    return list(caught.value.messages)


def scored(*logprobs: float, tokens: int = 1, n_bytes: int = 1, cut: int = 0) -> list[Score]:
    return [Score(logprob, tokens, n_bytes, False, cut) for logprob in logprobs]


def figures(task: Classification, answer: Callable[[Item], Answer]) -> dict[str, Any]:
    found = figures_of(task, [task.mark(item, answer(item)) for item in task.items])
    json.dumps(found, allow_nan=False)
    return found


# A model that was trained on a rule: the text has one digit, and the label says whether it is odd.


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return get_tokenizer("bytes", None, Path(), "")


def odd_and_even(seed: int, count: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    digits = [draw.randrange(10) for _ in range(count)]
    texts = [[draw.choice("abcdefgh") for _ in range(7)] for _ in digits]
    for text, digit in zip(texts, digits, strict=True):
        text[draw.randrange(7)] = str(digit)
    return [("".join(text), ("even", "odd")[digit % 2]) for text, digit in zip(texts, digits, strict=True)]


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Scorer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": WINDOW, "vocab_size": 257}
    model = GPT(Shape(**sizes, **PRESETS["llama"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = [[256, *tokenizer.encode(f"{text}\nLabel: {label}"), 256, 256][:21] for text, label in odd_and_even(0, 4000)]
    tokens = torch.from_numpy(np.asarray(rows).astype(np.int64))
    for batch in tokens.split(32):
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits[:, 8:].flatten(0, 1), batch[:, 9:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Scorer(model, tokenizer, "cpu", contextlib.nullcontext, micro_batch=8)


def evaluated(task: Classification, scorer: Scorer) -> dict[str, Any]:
    answers = AnswerFile(None)
    answer_items(task, Respondent(scorer, "model"), answers)
    return figures_of(task, marks_of(task, answers, "model"))


def test_a_planted_rule_is_found_by_every_score(trained: Scorer, tmp_path: Path) -> None:
    path = tsv(tmp_path, odd_and_even(1, 200))
    found = evaluated(load(path, score="pmi", prefix="always"), trained)
    assert found["score"] > 0.95 > 0.6 > found["chance"]
    assert set(found["macro_f1"]) == set(found["accuracy"]) == {"sum", "per_token", "per_byte", "per_character", "pmi"}
    assert min(found["macro_f1"].values()) > 0.9
    written = evaluated(load(path, score="generate", max_new_tokens=5, prefix="always"), trained)
    assert written["score"] > 0.95
    # What the model was not taught is not found: the labels in other words.
    assert evaluated(load(path, labels={"odd": "x", "even": "y"}, prefix="always"), trained)["score"] < 0.8


def test_the_text_of_an_item_that_is_too_long_is_cut_from_the_left_and_counted(trained: Scorer, tmp_path: Path) -> None:
    rows = [("hgfe" * 10 + text, label) for text, label in odd_and_even(2, 20)]
    task = load(tsv(tmp_path, [*rows, ("a1bcdefg", "odd")]), prefix="always")
    with pytest.raises(UserError, match="too_long=cut"):
        evaluated(task, trained)
    found = evaluated(replace(task, options=replace(task.options, too_long="cut")), trained)
    # 1 + 48 + 8 + 4 bytes and end-of-text in a window of 32: what is left is the end of the text.
    assert found["items_cut"] == 20 and found["cut"] > 400
    assert found["accuracy"]["sum"]["value"] > 0.8


# What the model is asked.


def test_the_template_is_cut_at_the_label(tmp_path: Path) -> None:
    path = tsv(tmp_path, [("good", "1"), ("bad", "0")])
    labels = {"1": "yes", "0": "no"}
    task = load(path, template=r"{text} {{x}}\nSo: {label}!", labels=labels, score="pmi")
    assert task.items[0].requests == (
        Request("good {x}\nSo: ", "yes!"),
        Request("good {x}\nSo: ", "no!"),
        Request(" {x}\nSo: ", "yes!"),
        Request(" {x}\nSo: ", "no!"),
    )
    # A text behind the label is scored with it: pmi is then log p(text | label).
    task = load(path, template="{label}: {text}", labels=labels, score="pmi")
    assert task.items[1].requests == (
        Request("", "yes: bad"),
        Request("", "no: bad"),
        Request("", "yes: "),
        Request("", "no: "),
    )
    generated = load(path, template="{text} = {label}", score="generate").items[0]
    assert (generated.prompt, generated.requests) == ("good =", ())


def test_a_template_may_have_other_fields_and_not_the_right_answer(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"premise": "a", "hypothesis": "b", "class": 1}, {"premise": "c", "hypothesis": "d", "class": 0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {"label_key": "class", "labels": {1: "yes", 0: "no"}}
    task = load(str(path), template="{premise}. So {hypothesis}? {label}", **common)
    assert task.items[1].requests == (Request("c. So d? ", "yes"), Request("c. So d? ", "no"))
    assert [item.content["gold"] for item in task.items] == ["1", "0"]
    assert (
        "asks with 'class', the field with the right answer"
        in problems(str(path), template="{premise} {class} {label}", **common)[0]
    )
    (message,) = problems(str(path), template="{premis} {label}", **common)
    assert (
        "{premis} is not a field; allowed: {text}, {label}, {premise}, {hypothesis}; did you mean premise?" in message
    )
    for template in ("{premise}", "{label}", "{premise} {label} {label}"):
        assert "write {label} once" in problems(str(path), template=template, **common)[0]


def test_items_have_the_ids_of_the_file_or_their_numbers(tmp_path: Path) -> None:
    path = tsv(tmp_path, [("7", "a", "x"), ("9", "b", "y")], "ID\ttext\tlabel")  # type: ignore[list-item]
    assert [item.id for item in load(path).items] == ["7", "9"]
    path = tsv(tmp_path, [("7", "a", "x"), ("7", "b", "y")], "ID\ttext\tlabel")  # type: ignore[list-item]
    assert [item.id for item in load(path).items] == ["1", "2"]


# How answers are marked.


def test_each_score_divides_by_what_its_name_says(tmp_path: Path) -> None:
    task = load(tsv(tmp_path, [("t", "é"), ("u", "abc")]), labels=["abc", "é"], score="pmi")
    # log-probabilities -3 and -2.5, of 2 and 1 tokens, 3 and 2 bytes, 3 and 1 characters; -4 and -2 without the text
    answer = [Score(-3.0, 2, 3, False), Score(-2.5, 1, 2, False), *scored(-4.0, -2.0)]
    mark = task.mark(task.items[0], answer)
    assert mark["answers"] == {"sum": "é", "per_token": "abc", "per_byte": "abc", "per_character": "abc", "pmi": "abc"}
    assert (mark["gold"], mark["answer"], mark["score"]) == ("é", "abc", 0.0)
    assert mark["logprobs"] == {"abc": -3.0, "é": -2.5}
    # Two bytes of one character: -2.5 / 2 is more than -1.4, and -2.5 / 1 is less.
    mark = task.mark(task.items[0], [Score(-4.2, 3, 3, False), Score(-2.5, 1, 2, False), *scored(-4.2, -2.5)])
    assert (mark["answers"]["per_byte"], mark["answers"]["per_character"]) == ("é", "abc")


def test_a_generated_answer_is_the_longest_label_it_begins_with(tmp_path: Path) -> None:
    task = load(tsv(tmp_path, [("t", "neg"), ("u", "negative")]), score="generate")
    said = [task.mark(task.items[1], Generated(text, 3))["answer"] for text in (" negative\n", "neg.", "", "positive")]
    assert said == ["negative", "neg", OUTSIDE, OUTSIDE]
    found = figures(task, lambda item: Generated(" negatives" if item.id == "2" else "?", 2))
    assert found["outside"] == {"gold": 0, "answers": 1}
    assert found["accuracy"][task.by]["value"] == 0.5
    assert found["confusion"]["answers"] == ["neg", "negative", OUTSIDE]
    assert found["confusion"]["counts"] == [[0, 0, 1], [0, 1, 0]]


def drawn(seed: int, golds: str, answers: str) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(draw.choice(golds), draw.choice(answers)) for _ in range(57)]


@pytest.mark.parametrize(
    ("golds", "answers"), [("abc", "abc"), ("aab", "abc"), ("aabcx", "abc"), ("abcxy", "aac-"), ("ab", "c-")]
)
def test_figures_are_those_of_scikit_learn(golds: str, answers: str, tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
    pairs = drawn(3, golds, answers)
    task = load(tsv(tmp_path, [("t", gold) for gold, _ in pairs]), labels=["c", "b", "a"], score="generate")
    said = {item.id: answer for item, (_, answer) in zip(task.items, pairs, strict=True)}
    found = figures(task, lambda item: Generated(said[item.id], 1))
    gold, predicted = zip(*pairs, strict=True)
    rows = ["c", "b", "a", *sorted({*gold} - {*"abc"})]
    expected = metrics.precision_recall_fscore_support(gold, predicted, labels=rows, zero_division=0)
    columns = [[row[name] for row in found["by_label"].values()] for name in ("precision", "recall", "f1", "support")]
    assert list(found["by_label"]) == rows
    np.testing.assert_allclose(columns, expected)
    average = {"labels": sorted(set(gold)), "zero_division": 0}
    assert found["score"] == pytest.approx(metrics.f1_score(gold, predicted, average="macro", **average))
    assert found["weighted_f1"] == pytest.approx(metrics.f1_score(gold, predicted, average="weighted", **average))
    assert found["accuracy"][task.by]["value"] == pytest.approx(metrics.accuracy_score(gold, predicted))
    right = [float(a == b) for a, b in pairs]
    assert found["accuracy"]["generate"]["standard_error"] == pytest.approx(np.std(right, ddof=1) / len(right) ** 0.5)
    matrix = metrics.confusion_matrix(gold, predicted, labels=[*rows, "-"])
    assert found["confusion"]["gold"] == rows
    shown = [0, 1, 2, *([len(rows)] if "-" in predicted else [])]
    assert found["confusion"]["counts"] == matrix[: len(rows), shown].tolist()
    assert np.sum(found["confusion"]["counts"]) == len(pairs)
    assert found["outside"] == {"gold": sum(each in "xy" for each in gold), "answers": predicted.count("-")}


def test_the_baseline_gives_the_most_frequent_label(tmp_path: Path) -> None:
    task = load(tsv(tmp_path, [("t", label) for label in "bbbbbbaacc"]))
    found = figures(task, lambda item: scored(0.0, 1.0, 0.0))  # the labels are sorted: b is the second
    assert found["majority"] == {"label": "b", "accuracy": 0.6, "macro_f1": 0.25}  # F1 of b: 2 * 6 / (6 + 10)
    assert found["chance"] == found["score"] == 0.25
    assert found["accuracy"][task.by]["value"] == 0.6
    assert score_of([{"gold": "a", "answer": "a", "score": 1.0}], task.statistic) == 1.0


def test_odd_items_are_counted(tmp_path: Path) -> None:
    rows = [("same", "a"), ("same", "b"), ("same", "a"), ("twice", "a"), ("twice", "a"), ("", "b"), (" ", " b ")]
    task = load(tsv(tmp_path, rows))
    found = figures(task, lambda item: scored(-1.0, -2.0, cut=5 * (item.id == "4")))
    assert (found["contradictory"], found["empty"], found["items_cut"], found["cut"], found["skipped"]) == (
        3,
        2,
        1,
        5,
        0,
    )
    assert found["accuracy"][task.by]["value"] == 4 / 7
    # The same text behind the label.
    assert load(task.options.path or "", template="{label}: {text}").items[0].content["text"] == "same"


# What is warned about and what is refused.


def test_a_label_that_begins_another_is_warned_about_where_it_matters(tmp_path: Path) -> None:
    path = tsv(tmp_path, [("t", "neg"), ("u", "negative")])
    (warning,) = figures(load(path), lambda item: scored(-1, -1))["warnings"]
    assert "'negative' begins with that of 'neg'" in warning
    assert load(path, score="per_token").warnings == ()
    assert load(path, template="{text} {label}.").warnings == ()  # "neg." does not begin "negative."
    assert load(path, labels={"neg": "bad", "negative": "very bad"}).warnings == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"], "task.labels has 1 labels ('a'); allowed: 2 to 1,000"),
        ({}, "task.labels has 0 labels"),
        (["a", "a"], "task.labels has 'a' twice"),
        ({"a": "x", "b": ""}, "the text of label 'b' is empty"),
        ({"a": "x", "b": " x"}, "labels 'a', 'b' have the same text 'x'"),
        (["a", " "], "is empty, not a label"),
        ({"a": "x", "b": ["y", "z"]}, "is ['y', 'z'], not a label"),
        ([0.5, 1], "is 0.5, not a label"),
        ("a", "task.labels='a' is neither [LABEL, ...] nor {LABEL: TEXT, ...}"),
        (["x", "y"], "has none of the labels of task.labels, x, y; its labels are a, b"),
        ([str(n) for n in range(1001)], "task.labels has 1,001 labels ('0', '1', '2', ...)"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: Any, message: str, tmp_path: Path) -> None:
    assert message in "; ".join(problems(tsv(tmp_path, [("t", "a"), ("u", "b")]), labels=labels))


def test_wrong_columns_are_named_with_the_option_that_chooses_them(tmp_path: Path) -> None:
    path = tsv(tmp_path, [("t", "a"), ("u", "b")], "Text\tsentiment")
    text, label = sorted(problems(path))[::-1]
    assert "no field 'text'; its fields are Text, sentiment; set task.text_key=FIELD; did you mean Text?" in text
    assert "no field 'label'; its fields are Text, sentiment; set task.label_key=FIELD" in label
    assert load(path, text_key="Text", label_key="sentiment").items[1].content["gold"] == "b"
    # The text as labels: almost every item has another one.
    rows = [(f"text {n}", "a") for n in range(1001)]
    assert "1,001 labels ('text 0'" in problems(tsv(tmp_path, rows), text_key="label", label_key="text")[0]
    assert "asks with 'text', the field with the right answer" in problems(tsv(tmp_path, rows), label_key="text")[0]
    assert "1 labels ('a'); allowed: 2 to 1,000; set task.labels" in problems(tsv(tmp_path, rows))[0]


def test_invalid_items_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    good: list[dict[str, Any]] = [
        {"text": "t", "label": True},
        {"text": "u", "label": False},
        {"text": "v", "label": " true"},
    ]
    bad: list[dict[str, Any]] = [
        {"text": "w"},
        {"text": 3, "label": "true"},
        {"label": "true"},
        {"text": "x", "label": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*good, *bad)))
    messages = problems(str(path))
    assert len(messages) == 5
    assert [message.partition(": ")[0][-1] for message in messages[:4]] == ["4", "5", "6", "7"]
    assert "label is None, not a label" in messages[0] and "text is 3, not a text" in messages[1]
    task = load(str(path), bad_items="skip")
    assert [item.content["gold"] for item in task.items] == ["true", "false", "true"]
    assert figures(task, lambda item: scored(-1, -2))["skipped"] == 4
    assert [item.id for item in task.items] == ["1", "2", "3"]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*good, *bad)) + "{\n[]\n")
    assert [message.partition(": ")[0][-1] for message in problems(str(path))[:2]] == ["8", "9"]
    assert load(str(path), bad_items="skip").skipped == 6


def bad_files(folder: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    path = tsv(folder, [("t", "a"), ("u", "b")])
    yield path, {"score": "letter"}, "task.score=letter is not a score of classify; allowed: sum, per_token"
    yield str(folder), {}, "is a folder; give task.path one of its files: items.tsv"
    yield str(folder / "none.tsv"), {}, "task.path"
    (folder / "latin.csv").write_bytes(b"text,label\ncaf\xe9,a\n")
    yield str(folder / "latin.csv"), {}, "not valid UTF-8"
    (folder / "empty.tsv").write_text("text\tlabel\n")
    yield str(folder / "empty.tsv"), {}, "has no items"
    (folder / "ragged.tsv").write_text("text\tlabel\na\tb\tc\n")
    yield str(folder / "ragged.tsv"), {}, "ragged.tsv:2"
    yield path, {"template": "FILE:none.txt"}, "task.template=FILE:none.txt cannot be read"


def test_files_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for path, options, message in bad_files(tmp_path):
        assert message in problems(path, **options)[0]
    with pytest.raises(UserError, match="tasks=quiz needs"):
        load_classify("quiz", TaskOptions("classify"))


def test_the_presets_are_complete(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    path = tsv(tmp_path, [("t", "neutral"), ("u", "positive")], "tweet\tlabel")
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = ["checkpoint=.", "tasks=[afrisenti,classify]", f"task.path={path}", "task.score=pmi"]
        tasks = checked_config(compose("evaluate", words)).tasks
        labels = checked_config(compose("evaluate", [*words, "task.labels={positive: gut, 0: schlecht}"])).tasks
    (task,) = load_classify("afrisenti", TaskOptions(**tasks["afrisenti"]))
    assert task.items[0].requests[0] == Request("t\nSentiment: ", "positive")
    assert list(task.labels) == ["positive", "neutral", "negative"]
    assert tasks["classify"]["kind"] == "classify"
    assert labels["afrisenti"]["labels"] == {"positive": "gut", 0: "schlecht"}
