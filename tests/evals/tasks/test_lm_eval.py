"""Tests that tasks of lm-evaluation-harness give the figures that the harness gives with the same weights."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.tokenizers.tokenizer import Tokenizer, own_tokenizer
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items, figures_of, marks_of
from evals.scoring import Scorer
from evals.tasks.registry import open_tasks
from evals.tasks.task import TaskOptions
from model.gpt import GPT
from tests.evals.small import pair_of_llamas, scorer, trained_tokenizer

pytest.importorskip("lm_eval")

COLOURS = ("red", "green", "deep blue", "yellow-ish")
QUIZ = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
test_split: test
metadata: {version: 1.0}
"""
KINDS = {
    "quiz": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "words": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{question}} {{question}} {{question}} {{question}} {{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "free": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    questions = [
        " ".join(draw.choices(["what", "is", "the", "colour", "of", "it"], k=draw.randrange(2, 7))) for _ in range(25)
    ]
    return [{"question": each, "choices": COLOURS, "answer": draw.randrange(4)} for each in questions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of each kind, and a tokenizer trained on their text."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    for name, text in KINDS.items():
        (path / f"{name}.yaml").write_text(QUIZ.replace("NAME", name).replace("PATH", str(path / "data.jsonl")) + text)
    trained_tokenizer(path, [row["question"] for row in rows()])
    return path


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[GPT, Any, Tokenizer]:
    tokenizer = own_tokenizer(str(folder / "tokenizer.json"))
    return *pair_of_llamas(tokenizer.n_vocab), tokenizer


def evaluated(
    name: str, folder: Path, own: Scorer, keep: int | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (task,) = open_tasks(f"lm_eval:{name}", TaskOptions("lm_eval", path=str(folder)))
    assert task.name == f"lm_eval:{name}"
    if keep is not None:
        object.__setattr__(task, "items", task.items[:keep])
    answers = AnswerFile(None)
    answer_items(task, Respondent(own, "model"), answers)
    marks = marks_of(task, answers, "model")
    json.dumps(marks, allow_nan=False)
    return figures_of(task, marks), marks


def harness(model: Any, name: str, folder: Path) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluate(model, manager.load([name]), bootstrap_iters=0)
    assert found is not None
    return found


def hf(theirs: Any, folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    library = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    return HFLM(pretrained=theirs, tokenizer=library, batch_size=8, max_length=64)


def test_a_quiz_gives_the_harness_s_figures_with_the_same_weights(folder: Path, models: Any, capfd: Any) -> None:
    from evals.tasks.lm_eval_model import StintLM

    ours, theirs, tokenizer = models
    figures, marks = evaluated("quiz", folder, scorer(ours, tokenizer))
    assert capfd.readouterr() == ("", "")
    for model in (hf(theirs, folder), StintLM(scorer(ours, tokenizer))):
        expected = harness(model, "quiz", folder)
        for metric in ("acc", "acc_norm"):
            assert figures["metrics"][metric] == pytest.approx(expected["results"]["quiz"][f"{metric},none"])
        for mark, sample in zip(marks, expected["samples"]["quiz"], strict=True):
            assert mark["id"] == str(sample["doc_id"])
            assert mark["score"] == sample["acc_norm"]
            assert mark["answer"] == pytest.approx([float(each[0][0]) for each in sample["resps"]], abs=1e-4)
    assert (figures["main_metric"], figures["items"]) == ("acc_norm", 25)
    assert figures["score"] == figures["metrics"]["acc_norm"]
    assert 0 <= figures["interval"][0] < figures["score"] < figures["interval"][1] <= 1


def test_perplexity_of_texts_longer_than_the_window_equals_the_harness_s(folder: Path, models: Any) -> None:
    ours, theirs, tokenizer = models
    figures, _ = evaluated("words", folder, scorer(ours, tokenizer))
    expected = harness(hf(theirs, folder), "words", folder)["results"]["words"]
    for metric in ("word_perplexity", "bits_per_byte"):
        assert figures["metrics"][metric] == pytest.approx(expected[f"{metric},none"], rel=1e-5)
    assert figures["score"] is figures["interval"] is figures["main_metric"] is None


def test_free_answers_are_marked_by_the_harness(folder: Path, models: Any) -> None:
    from evals.tasks.lm_eval_model import StintLM

    ours, _, tokenizer = models
    figures, marks = evaluated("free", folder, scorer(ours, tokenizer), keep=4)
    samples = harness(StintLM(scorer(ours, tokenizer)), "free", folder)["samples"]["free"]
    assert [mark["answer"] for mark in marks] == [sample["resps"][0][0] for sample in samples[:4]]
    assert figures["metrics"]["exact_match"] == figures["score"] == 0
    assert figures["items"] == 4


def test_a_prompt_longer_than_the_window_is_cut_for_the_harness(folder: Path, models: Any) -> None:
    from lm_eval.api.instance import Instance

    from evals.tasks.lm_eval_model import StintLM

    ours, _, tokenizer = models
    instance = Instance("generate_until", {}, (("what is the colour of it " * 40), {"max_gen_toks": 3}), 0)
    assert len(StintLM(scorer(ours, tokenizer)).generate_until([instance])) == 1


def test_what_cannot_be_loaded_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    (tmp_path / "lost.yaml").write_text(QUIZ.replace("NAME", "lost").replace("PATH", "nowhere.jsonl") + KINDS["quiz"])
    (tmp_path / "code.yaml").write_text(
        (folder / "quiz.yaml").read_text().replace("quiz", "code") + "unsafe_code: true\n"
    )
    # Without the harness's own tasks, whose index takes ten seconds.
    whole = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: whole(**given | {"include_defaults": False}))
    for name, message in {
        "qui": "lm-evaluation-harness has no task 'qui'",
        "lost": "lm-evaluation-harness cannot load it (FileNotFoundError",
        "code": "runs code that the model writes",
    }.items():
        with pytest.raises(UserError) as caught:
            open_tasks(f"lm_eval:{name}", TaskOptions("lm_eval", path=str(tmp_path)))
        assert message in str(caught.value)
        assert len(caught.value.messages) == 1
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean lm_eval:quiz"):
        open_tasks("lm_eval:quizz", TaskOptions("lm_eval", path=str(folder)))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.tasks.lm_eval.find_spec", lambda name: None)
    assert importlib.util.find_spec("lm_eval")
    with pytest.raises(
        UserError, match="tasks=lm_eval:hellaswag needs the package lm_eval; install it with: pip install"
    ):
        open_tasks("lm_eval:hellaswag", TaskOptions("lm_eval"))
