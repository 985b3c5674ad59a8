"""Score a trained model on any text: `python evaluate.py checkpoint=outputs/NAME data.path=my.jsonl.zst`.

It prints the figures of the final evaluation of a run: loss, perplexity, bits per byte and accuracy, in total and by
source. Under torchrun, every process scores its share of the text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cli.launch import launch, leave
from common.errors import MachineError
from common.format import format_count
from common.json_io import significant
from config import EvaluateConfig
from data.eval_windows import EvalRange
from data.files.find_files import describe_not_read, find_files
from data.files.readers import read_documents, source_id
from data.tokenizers.tokenizer import Tokenizer
from device.distributed import join_world, leave_world, local_device
from run.report.console import Console


def main(config: EvaluateConfig) -> None:
    """Score the model and print the figures; with output=json, as JSON."""
    from device.device import open_device

    wanted, name = config.device, local_device(config.device.name)
    world = join_world(name)
    # A peak of 1 FLOP/s, so that none is measured: no MFU is shown.
    device = open_device(name, wanted.threads, wanted.precision, 1.0)
    figures = score(config, device) if config.data.path is not None else {}
    if config.tasks:
        figures |= score_tasks(config, device)
    note = world.broadcast(figures["note"])
    if note != figures["note"]:  # the run is training
        raise MachineError(
            f"the processes read different checkpoints of {config.checkpoint}; name one, .../checkpoint/step-N"
        )
    leave_world(world)
    if world.rank == 0:
        if note:
            print(note, file=sys.stderr)
        if config.output == "json":
            print(json.dumps(significant(figures, 10), indent=1))
            return
        if config.data.path is not None:
            show_figures(figures)
        if config.tasks:
            show_tasks(figures)


def score(config: EvaluateConfig, device: Any) -> dict[str, Any]:
    """The figures of `evals.language_model.evaluate`, with checkpoint, data, and what was not read or left out.

    `note` says how far the run of the model was; it is empty for a finished one.
    """
    from evals.language_model import evaluate
    from run.load_model import load_model

    assert config.checkpoint is not None
    assert config.data.path is not None
    loaded = load_model(config.checkpoint, device.torch_device)
    block_size = loaded.model.shape.block_size
    left_out: dict[str, int] = {}
    tokens, source_ids, sources = read_tokens(config, loaded.tokenizer, left_out)
    windows = EvalRange.from_tokens(tokens, source_ids, sources, block_size, eot=loaded.tokenizer.eot)
    figures = evaluate(
        loaded.model,
        windows,
        loaded.tokenizer.token_bytes,
        sources,
        config.micro_batch,
        device.torch_device,
        device.autocast,
    )
    about = {
        "checkpoint": config.checkpoint,
        "note": loaded.note,
        "data": config.data.path,
        "not_read": find_files(config.data.path).names_not_read,
        "left_out": left_out,
    }
    return {**about, **figures}


def score_tasks(config: EvaluateConfig, device: Any) -> dict[str, Any]:
    """Score the model on the tasks. Returns {"checkpoint", "note", "parameters", "tasks": {name: figures}}."""
    from evals.bookkeeping.answers import AnswerFile
    from evals.run_task import Respondent, answer_items, figures_of, marks_of
    from evals.scoring import Scorer
    from evals.tasks.registry import open_tasks
    from evals.tasks.task import TaskOptions
    from run.load_model import load_model

    assert config.checkpoint is not None
    loaded = load_model(config.checkpoint, device.torch_device)
    scorer = Scorer(loaded.model, loaded.tokenizer, device.torch_device, device.autocast, config.micro_batch)
    parameters = sum(each.numel() for each in loaded.model.parameters())
    respondent = Respondent(scorer, f"{loaded.about['sha256']} {loaded.tokenizer.fingerprint}", parameters)
    folder = Path(config.folder) if config.folder else Path(config.checkpoint) / "evaluations"
    tasks = [task for name, options in config.tasks.items() for task in open_tasks(name, TaskOptions.of(options))]
    figures = {}
    for task in tasks:
        answers = AnswerFile(folder / f"{task.name}.answers.jsonl")
        answer_items(task, respondent, answers)
        figures[task.name] = figures_of(task, marks_of(task, answers, respondent.fingerprint))
    return {"checkpoint": config.checkpoint, "note": loaded.note, "parameters": parameters, "tasks": figures}


def show_tasks(figures: dict[str, Any]) -> None:
    """Print a table with a row for each task."""
    rows = [
        (
            name,
            part["items"],
            shown(part["score"], "{:.2%}"),
            part["interval"] and "{:.2%} to {:.2%}".format(*part["interval"]),
        )
        for name, part in figures["tasks"].items()
    ]
    Console(required=True).table(f"{figures['checkpoint']}", ["task", "items", "score", "95 % interval"], rows)


def read_tokens(
    config: EvaluateConfig, tokenizer: Tokenizer, left_out: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Tokenize the text: each document is followed by the end-of-text token, as in training.

    Returns token ids (n,), the source id of each token (n,), and the names of the sources by id. Documents that are not
    text are counted in `left_out`, by reason.
    """
    token_parts: list[np.ndarray] = []
    source_parts: list[np.ndarray] = []
    sources: dict[str, int] = {}
    count = 0
    data = config.data
    assert data.path is not None
    documents: Iterable[Any] = read_documents(data.path, data.text_key, data.bad_documents, left_out)
    for document in documents:
        ids = np.append(tokenizer.encode(document.text), tokenizer.dtype.type(tokenizer.eot))
        token_parts.append(ids)
        source_parts.append(np.full(len(ids), source_id(sources, document.source), dtype=np.int32))
        count += len(ids)
        if config.tokens is not None and count >= config.tokens:
            break
    token_ids, source_ids = np.concatenate(token_parts), np.concatenate(source_parts)
    return token_ids[: config.tokens], source_ids[: config.tokens], list(sources)


def show_figures(figures: dict[str, Any]) -> None:
    """Print a table with a row for each source and one for all of them."""

    def row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
        return (
            name,
            format_count(part["tokens"]),
            shown(part["loss"], "{:.4f}"),
            shown(part["perplexity"], "{:.2f}"),
            shown(part["bits_per_byte"], "{:.4f}"),
            shown(part["accuracy"], "{:.2%}"),
        )

    columns = ["source", "tokens", "loss", "perplexity", "bits per byte", "accuracy"]
    rows = [row(name, part) for name, part in figures["by_source"].items()]
    console = Console(required=True)
    console.table(f"{figures['checkpoint']} on {figures['data']}", columns, [*rows, row("all", figures)])
    if figures["not_read"]:
        console.say(describe_not_read(figures["not_read"]))
    if figures["left_out"]:
        console.say(f"left out: {', '.join(f'{n:,} {reason} documents' for reason, n in figures['left_out'].items())}")


def shown(value: float | None, form: str) -> str:
    """`value` in the format `form`, or a dash for None."""
    return "-" if value is None else form.format(value)


# Hydra's completion for fish works for scripts that contain "@hydra.main".
if __name__ == "__main__":
    launch(main, "evaluate")
    leave()
