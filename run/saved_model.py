"""Finds the model in a run's folder: the finished one, or the newest checkpoint of a run that is not finished.

It only reads, and takes no lock, so that the run may go on meanwhile. Imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from common.checksum import verify_checksum
from common.errors import UserError
from common.format import format_percent
from common.json_io import read_json
from common.safe_read import is_count, load_json
from model.config import Shape
from run.checkpoint_state import FOLDER, TENSORS, checkpoints, read_state, state_of, step_of

# Tokens. No tensor of a rotary model shows its context length, which sets the size of its tables.
LONGEST_BLOCK = 1 << 20
MOST_NAMES = 10_000  # names in a folder that are compared with a misspelled one
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is looked for.

    Attributes:
        run: The run's folder.
        checkpoint: The folder of the checkpoint that was named; None for the run's final model or newest checkpoint.
        given: The option as it was typed, for messages.
    """

    run: Path
    checkpoint: Path | None
    given: str

    @property
    def finished(self) -> bool:
        """Whether the finished model is meant, and there."""
        return (
            self.checkpoint is None and (self.run / "model.safetensors").exists() and (self.run / "model.json").exists()
        )

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that may be read, newest first."""
        return checkpoints(self.run / "checkpoint") if self.checkpoint is None else [self.checkpoint]


@dataclass(frozen=True)
class SavedModel:
    """Weights on disk and what belongs to them. The content of the files is not verified, except by checksums in JSON.

    Attributes:
        weights: The path of the weights.
        tokenizer: The path of the tokenizer.
        about: The content of model.json. For a checkpoint, the same keys from start.json and state.json.
        note: One line that says how far the run was; empty for the model of a finished run.
    """

    weights: Path
    tokenizer: Path
    about: dict[str, Any]
    note: str


def find_model(text: str, option: str) -> ModelPlace:
    """Find the model that `option`=`text` names: a run's folder, or a checkpoint, a folder or a file in it.

    Raises UserError in one line if it is missing.
    """
    given, path = f"{option}={text}", Path(text).expanduser().absolute()
    try:
        if not path.exists():
            raise UserError(f"{given}: no such folder{_similar(text)}")
        path = path.parent if path.is_file() else path
        in_checkpoint = FOLDER.fullmatch(path.name) is not None and path.parent.name == "checkpoint"
        run = path.parent.parent if in_checkpoint else path.parent if path.name == "checkpoint" else path
        place = ModelPlace(run, path if in_checkpoint else None, given)
        if place.finished:
            return place
        if not place.checkpoints:
            raise UserError(f"{given} {_nothing_in(run)}")
        if not (run / "start.json").exists():
            raise UserError(
                f"{given} holds checkpoints of an earlier version, which kept neither shape nor tokenizer with them; repeat"
                " the run's command, which writes them at its start"
            )
    except OSError as error:
        raise UserError(f"{given} cannot be read ({error.strerror})") from None
    return place


def _similar(text: str) -> str:
    """The end of the message for a folder that does not exist: the runs with similar names, else some others."""
    parent, name = Path(text).parent, Path(text).name
    folder = parent.expanduser()
    if not folder.is_dir():
        return f"; {parent} does not exist either"
    names = sorted(path.name for path in _runs_in(folder))
    begin_alike = [each for each in names if name and each.startswith(name)]
    near = [*begin_alike, *difflib.get_close_matches(name, names, n=3, cutoff=0.5)]
    shown = [str(parent / each) for each in dict.fromkeys(near or names)][:3]
    if not shown:
        return f"; {parent} holds no run"
    return f"; did you mean {' or '.join(shown)}?" if near else f"; {parent} holds other runs, e.g. {', '.join(shown)}"


def _runs_in(folder: Path) -> list[Path]:
    """The folders of runs in `folder`."""
    return [path for path in islice(folder.iterdir(), MOST_NAMES) if (path / "config.yaml").exists()]


def _nothing_in(folder: Path) -> str:
    """What is wrong with a folder without a model."""
    if (folder / "config.yaml").exists():
        return "has no checkpoint yet: the run has not begun to train; repeat its command"
    runs = _runs_in(folder)
    hint = f"; it holds runs, e.g. {min(runs).name}" if runs else ""
    return f"holds no model (model.safetensors and model.json) and no checkpoint{hint}"


def final_model(place: ModelPlace) -> SavedModel:
    """The finished model. Raises UserError if its model.json is damaged."""
    path = place.run / "model.json"
    try:
        about = verify_checksum(read_json(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from None
    return SavedModel(place.run / "model.safetensors", place.run / "tokenizer.json", about, _went_on(place, about))


def _went_on(place: ModelPlace, about: dict[str, Any]) -> str:
    """A note on a finished model whose run was extended and has trained on since; else an empty string."""
    steps, newest = about.get("steps"), next(iter(place.checkpoints), None)
    if newest is None or steps is None or not is_count(steps) or step_of(newest) <= steps:
        return ""
    return f"finished model of step {steps:,}; the run was extended since: for its newest weights, name {newest.parent}/step-N"


def checkpointed_models(place: ModelPlace) -> Iterator[SavedModel]:
    """The models of the checkpoints with a readable state, newest first. Raises UserError if start.json is damaged."""
    start = place.run / "start.json"
    try:
        about = verify_checksum(load_json(start))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{start} is damaged ({error}); restore it from a copy, or repeat the run's command, which writes it again"
        ) from None
    for path in place.checkpoints:
        try:
            content = read_state(path)
            state, digest = state_of(content["state"]), content["sha256"][TENSORS[0]]
        except DAMAGE:  # damaged, or just replaced by a newer one
            continue
        what = "not finished" if place.checkpoint is None else "not the finished model"
        note = f"{what}: checkpoint of step {state.step:,}, {format_percent(state.progress)} of its budget"
        found = {**about, "steps": state.step, "tokens": state.tokens, "sha256": digest}
        yield SavedModel(path / TENSORS[0], place.run / "tokenizer.json", found, note)


def saved_model(place: ModelPlace) -> SavedModel:
    """The finished model, or that of the newest checkpoint with a readable state. Raises UserError if both are missing."""
    found = final_model(place) if place.finished else next(checkpointed_models(place), None)
    if found is None:
        raise UserError(f"{place.given} has no intact checkpoint; repeat the run's command")
    return found


def shape_of(about: dict[str, Any]) -> Shape:
    """The shape in model.json or start.json. Raises ValueError, KeyError, TypeError or UserError for an impossible one."""
    shape = Shape.from_dict(about["shape"])
    sizes = (shape.n_layer, shape.n_head, shape.n_embd, shape.vocab_size, shape.bigram_rows, shape.ffn_hidden or 0)
    if not all(map(is_count, sizes)) or not is_count(shape.block_size, LONGEST_BLOCK):
        raise ValueError("its shape holds an impossible size")
    if problems := shape.problems():
        raise ValueError(problems[0])
    return shape
