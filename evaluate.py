"""Score a trained model on any text, and on tasks: `python evaluate.py checkpoint=outputs/NAME data.path=my.jsonl.zst`.

For a text, it prints the figures of the final evaluation of a run: loss, perplexity, bits per byte and accuracy, in total
and by source. For tasks (`tasks=[blimp] task.path=FOLDER`), it prints their scores, and keeps answers, predictions and a
report in a folder. Under torchrun, every process scores its share of the items of tasks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.compose import checked_config
from cli.launch import SweepFunctions, launch, leave
from common.errors import MachineError, UserError
from common.format import format_count
from common.json_io import significant
from common.paths import user_path
from common.signals import Interrupted, Signals
from config import EvaluateConfig
from data.eval_windows import EvalRange
from data.files.find_files import describe_not_read, find_files
from data.files.readers import read_documents, source_id
from data.tokenizers.tokenizer import Tokenizer
from device.distributed import World, join_world, leave_world, local_device
from evals.bookkeeping.ranking import SweepResults
from run.report.console import Console, Status
from run.report.evaluation_tables import show_tasks

if TYPE_CHECKING:
    from evals.evaluation import Models
    from evals.pace import Pace

SWEEP = SweepResults()


def main(config: EvaluateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the model and print the figures; with output=json, as JSON.

    Returns the figures, and the predictions of each task.
    """
    from device.device import open_device
    from evals.evaluation import Models

    wanted, name = config.device, local_device(config.device.name)
    world = join_world(name)
    # A peak of 1 FLOP/s, so that none is measured: no MFU is shown.
    device = open_device(name, wanted.threads, wanted.precision, 1.0)
    models = Models(device.torch_device, device.autocast, device.precision, config.micro_batch)
    figures: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    with interruptible(world) as signals:
        if config.data.path is not None:
            figures |= score_text(config, models, device)
        if config.tasks:
            evaluation, predictions = score_tasks(config, models, world, signals)
            figures |= evaluation
    note = world.broadcast(figures["note"])
    if note != figures["note"]:  # the run is training
        raise MachineError(
            f"the processes read different checkpoints of {config.checkpoint}; name one, .../checkpoint/step-N"
        )
    leave_world(world)
    if world.rank == 0:
        show(config, figures)
    return figures, predictions


def run_job(composed: Any, number: int, overrides: list[str], sweep_dir: str) -> float | None:
    """Run one job of a sweep and return its score, the mean over its tasks."""
    with SWEEP.job(number, overrides, Path(sweep_dir)) as finished:
        config = checked_config(composed)
        if config.output == "json":  # standard output holds that of the jobs
            SWEEP.stream = sys.stderr
        figures, predictions = main(config)
        return finished(figures, predictions).score if config.tasks else None


def conclude_sweep() -> None:
    """Rank the jobs of the sweep that this process ran, if any."""
    if int(os.environ.get("RANK") or 0) == 0:  # of the processes of torchrun
        SWEEP.conclude()


@contextmanager
def interruptible(world: World) -> Iterator[Signals]:
    """Inside this context, a stopping signal ends the process with one line and the status of the signal."""
    with Signals() as signals:
        try:
            yield signals
        except Interrupted as stop:
            if world.rank == 0:
                print(
                    f"stopped by {stop.name}; type the same command to go on from the answers so far", file=sys.stderr
                )
            sys.exit(stop.exit_status)


def score_text(config: EvaluateConfig, models: Models, device: Any) -> dict[str, Any]:
    """The figures of `evals.language_model.evaluate`, with checkpoint, data, and what was not read or left out.

    `note` says how far the run of the model was; it is empty for a finished one.
    """
    from evals.language_model import evaluate

    assert config.checkpoint is not None
    assert config.data.path is not None
    loaded = models.load(config.checkpoint)
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


def score_tasks(
    config: EvaluateConfig, models: Models, world: World, signals: Signals
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score the model on the tasks, and write the files of the evaluation.

    Returns it as evals/evaluation.py describes it, and the predictions of each task.
    """
    from evals import evaluation as stages
    from evals.bookkeeping.baseline import check_items, compare, read_baseline, write_baseline
    from evals.bookkeeping.submission import competition_rows, refuse_incomplete, write_submission

    loaded = stages.load_tasks(config.tasks, config.skip)
    tasks = [stages.select(task, config.limit, config.fraction) for task in loaded]
    kept_at, submission = (text and user_path(text) for text in (config.baseline, config.submission))
    baseline = read_baseline(kept_at) if kept_at else None
    if baseline:
        check_items(baseline, tasks)
    if submission:
        rows = competition_rows(tasks, "submission")
        refuse_incomplete(submission, rows, {item.id for task in tasks for item in task.items})
    routed = (
        stages.route_tasks(tasks, config.route, config.checkpoint) if config.checkpoint and not config.answers else {}
    )
    with stages.Folder.opened(folder_of(config), world.rank == 0) as folder, signals.deferred():
        with task_progress(config, world) as show_pace:
            answered, about = stages.answer_tasks(routed, models, folder, show_pace, signals.check, world)
        if config.answers:
            answered = stages.answered_by_file(tasks, user_path(config.answers))
        available = {task.name: len(task.items) for task in loaded}
        evaluation = stages.evaluation_of(tasks, available, answered, about, described(config))
        marks = {name: result.marks for name, result in answered.items()}
        if baseline:
            evaluation["comparison"] = compare(baseline, evaluation["tasks"], marks)
        elif kept_at and world.rank == 0:
            write_baseline(kept_at, evaluation, marks)
            evaluation["comparison"] = {"baseline": str(kept_at), "kept": True}
        if submission and world.rank == 0:
            write_submission(submission, rows, stages.answers_of(tasks, answered))
        predictions = {name: result.predictions for name, result in answered.items()}
        folder.write(evaluation, predictions, baseline)
    return evaluation, predictions


def folder_of(config: EvaluateConfig) -> Path | None:
    """The folder for the files of an evaluation: folder=, or evaluations/ in the folder of the checkpoint's run."""
    from run.saved_model import find_model

    if config.folder or config.checkpoint is None:
        return user_path(config.folder) if config.folder else None
    return find_model(config.checkpoint, "checkpoint").run / "evaluations"


def described(config: EvaluateConfig) -> dict[str, Any]:
    """What an evaluation says about the command that made it."""
    return {
        "checkpoint": config.checkpoint,
        "answers": config.answers,
        "options": {
            "limit": config.limit,
            "fraction": config.fraction,
            "skip": config.skip,
            "reference_parameters": config.reference_parameters,
        },
    }


@contextmanager
def task_progress(config: EvaluateConfig, world: World) -> Iterator[Callable[[Pace], None]]:
    """A progress bar, or lines, on standard output, with output=json on standard error."""
    if world.rank > 0:
        yield lambda pace: None
        return
    with Console(stream=sys.stderr if config.output == "json" else None).progress() as bar:
        yield lambda pace: bar.update(
            Status(
                progress=pace.items / pace.all_items,
                eta_s=pace.eta_s,
                phase=pace.task,
                items=(pace.items, pace.all_items),
                items_per_second=pace.per_second,
            )
        )


def show(config: EvaluateConfig, figures: dict[str, Any]) -> None:
    """Print the figures. Raises UserError for a comparison that is undefined in part."""
    from evals.bookkeeping.baseline import undefined_ratios

    notes = dict.fromkeys([figures["note"], *(each["note"] for each in figures.get("models", {}).values())])
    for note in filter(None, notes):
        print(note, file=sys.stderr)
    if config.output == "json":
        print(json.dumps(significant(figures, 10), indent=1))
    else:
        console = Console(required=True)
        if config.data.path is not None:
            show_figures(console, figures)
        if config.tasks:
            show_tasks(console, figures)
            if config.submission:
                console.say(f"submission: {config.submission}")
            if folder := folder_of(config):
                console.say(f"answers, predictions and report: {folder}")
    if config.tasks and (problems := undefined_ratios(figures["comparison"] or {})):
        raise UserError(*problems)


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


def show_figures(console: Console, figures: dict[str, Any]) -> None:
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
    launch(main, "evaluate", SweepFunctions(run_job, conclude_sweep, isolated=False))
    leave()
