"""Sentiment of Swahili tweets, by models that are trained on 1,800 of them: python -m bench.quality.sentiment FOLDER

FOLDER: sw_train.tsv and sw_test.tsv of AfriSenti (Muhammad et al. 2023, arXiv:2302.08956). A model is trained on the texts alone,
one on texts with the label behind them, and one with the label in front of them; each is a run of --minutes on one core. Finished
runs are used again. Each model is asked as it was trained, the first one in both ways, with every task.score except letter; only
the second one is scored by generate. Macro F1 has an interval, and so have its differences to always giving the most frequent
label and to the untrained twin (paired bootstrap). Writes bench/results/sentiment.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.common import RESULTS, ROOT, argument_parser, result_of, train, write_result
from device.device import Device, open_device
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items, marks_of
from evals.scoring import Scorer
from evals.statistics import Marks, accuracy, interval, paired_difference, score_of
from evals.tasks.classify import Classification, load_classify, majority
from evals.tasks.rows import read_rows
from evals.tasks.task import MACRO_F1, TaskOptions
from evals.tasks.template import render
from model.gpt import GPT
from run.load_model import load_model

RESULT, PLACE = RESULTS / "sentiment.json", ROOT / "outputs" / "sentiment"
TEMPLATES = {"label behind": "{text}\nSentiment: {label}", "label in front": "{label}: {text}"}
TRAINED_ON = {"texts alone": "{text}", **TEMPLATES}
ASKED = {"texts alone": [*TEMPLATES]}
BY = {"label behind": ("pmi", "generate")}  # only this model writes labels
MODEL = (
    "model.n_layer=2",
    "model.n_embd=128",
    "model.n_head=4",
    "model.block_size=128",
    "model.bigram_rows=0",
    "model.dropout=0.2",
)


def trained(name: str, folder: Path, minutes: float) -> Path:
    """Train on the rendered texts of FOLDER, unless it has been done, and return the folder of the run."""
    out = PLACE / name.replace(" ", "_")
    if found := sorted(out.glob("run-*/result.json")):
        return found[-1].parent
    rows = [row.values for row in read_rows(folder / "sw_train.tsv")]
    texts = [render(TRAINED_ON[name], {"text": row["tweet"], "label": row["label"]}) for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    (out / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = ("data=text", f"data.path={out / 'texts.jsonl'}", "data.tokenizer=bpe-1024", "plan.max_epochs=1000")
    train([*data, *MODEL, f"budget.hours={minutes}m", "device.name=cpu", "device.threads=1", f"output_dir={out}"])
    return next(out.glob("run-*/result.json")).parent


def task_of(folder: Path, template: str, score: str) -> Classification:
    """The test set. Training begins each text with end-of-text, so the requests do as well."""
    options = TaskOptions(
        "classify",
        path=str(folder / "sw_test.tsv"),
        template=template,
        score=score,
        text_key="tweet",
        labels=["positive", "neutral", "negative"],
        prefix="always",
        too_long="cut",
        max_new_tokens=5,
    )
    (task,) = load_classify("sentiment", options)
    return task  # type: ignore[no-any-return]


def answered(respondent: Respondent, folder: Path, template: str, by: Sequence[str] = ("pmi",)) -> dict[str, Marks]:
    """The marks by score: pmi needs all requests of the others."""
    found: dict[str, Marks] = {}
    for task in (task_of(folder, template, score) for score in by):
        answers = AnswerFile(None)
        answer_items(task, respondent, answers)
        marks = marks_of(task, answers, respondent.fingerprint)
        for score in marks[0]["answers"]:
            found[score] = [chosen(mark, mark["answers"][score]) for mark in marks]
    return found


def chosen(mark: dict[str, Any], answer: str) -> dict[str, Any]:
    """A mark with another answer."""
    return {"id": mark["id"], "gold": mark["gold"], "answer": answer, "score": float(answer == mark["gold"])}


def rated(model: Respondent, twin: Respondent, folder: Path, template: str, by: Sequence[str]) -> dict[str, Any]:
    """The figures by score."""
    untrained, figures = answered(twin, folder, template), {}
    for score, marks in answered(model, folder, template, by).items():
        constant = [chosen(mark, most_frequent(marks)["label"]) for mark in marks]
        figures[score] = {
            "macro_f1": score_of(marks, MACRO_F1),
            "interval": interval(marks, MACRO_F1),
            "accuracy": accuracy([mark["score"] for mark in marks]),
            "more_than_majority": paired_difference(marks, constant, MACRO_F1),
            "untrained": score_of(untrained[score], MACRO_F1) if score in untrained else None,
            "more_than_untrained": paired_difference(marks, untrained.get(score, []), MACRO_F1),
        }
    return figures


def most_frequent(marks: Marks) -> dict[str, Any]:
    """The figures of always giving the most frequent label."""
    return majority([mark["gold"] for mark in marks], ["positive", "neutral", "negative"])


def measured(name: str, folder: Path, minutes: float, device: Device) -> dict[str, Any]:
    """Train a model and rate it, asked as it was trained; the one that saw no label, in each way."""
    run = trained(name, folder, minutes)
    loaded = load_model(str(run), device.torch_device)
    torch.manual_seed(1337)
    twin = GPT(loaded.model.shape)
    parameters = sum(each.numel() for each in loaded.model.parameters())
    scorer = Scorer(loaded.model, loaded.tokenizer, device.torch_device, device.autocast)
    model, untrained = (Respondent(each, name) for each in (scorer, replace(scorer, model=twin)))
    result = result_of(run)
    return {
        "parameters": parameters,
        "tokens": result["spent"]["tokens"],
        "loss": result["eval"]["loss"],
        "asked": {
            way: rated(model, untrained, folder, TEMPLATES[way], BY.get(name, ("pmi",)))
            for way in ASKED.get(name, [name])
        },
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder with sw_train.tsv and sw_test.tsv")
    parser.add_argument("--minutes", type=float, default=2.5, help="budget of a run")
    options = parser.parse_args()
    device = open_device("cpu", 1, "auto", 1.0)
    test = task_of(options.folder, TEMPLATES["label behind"], "sum").items
    baseline = most_frequent([{"gold": item.content["gold"]} for item in test])
    models = {name: measured(name, options.folder, options.minutes, device) for name in TRAINED_ON}
    how = f"python -m bench.quality.sentiment FOLDER --minutes {options.minutes:g}"
    write_result(RESULT, {"how": how, "items": len(test), "majority": baseline, "models": models})


if __name__ == "__main__":
    main()
