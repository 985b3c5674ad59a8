"""Writes and reads start.json: the shape of a run's model, its tokenizer, its corpus and the origin of its first weights.

With this file, an unfinished run can be evaluated, a run whose text was changed is not continued by mistake, and a run that began
with the weights of another one no longer needs that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.checksum import verify_checksum
from common.errors import UserError
from common.format import format_count
from common.json_io import is_number, mapping, write_json
from common.safe_read import load_json
from run.checkpoint_state import checkpoints
from run.directory import RunDirectory
from training.context import Session

if TYPE_CHECKING:
    from data.shards import Corpus
    from model.config import Shape


def read_start(run: RunDirectory) -> dict[str, Any]:
    """The content of start.json; empty if it is missing (in runs of earlier versions) or damaged."""
    try:
        return verify_checksum(load_json(run.start))
    except (OSError, ValueError):
        return {}


def record_start(session: Session, corpus: Corpus, shape: Shape, init: dict[str, Any] | None) -> None:
    """Write tokenizer.json and start.json, unless a resumed run has them.

    `init` tells where the first weights are from; None: they are random, or the run's own checkpoint replaces them.
    """
    run, tokenizer, asked = session.run, corpus.tokenizer, session.config.init
    if init is None and asked.source != "scratch":
        init = init_of(run) or {"source": asked.source, "checkpoint": asked.checkpoint}
    content = {
        "format": 1,
        "shape": shape.to_dict(),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "n_vocab": tokenizer.n_vocab,
        "data_fingerprint": corpus.fingerprint,
        "init": init,
    }
    changed = read_start(run) != content
    if changed or not run.tokenizer.exists():
        tokenizer.save(run.tokenizer)
    if changed:
        write_json(run.start, content, checksummed=True)


def init_of(run: RunDirectory) -> dict[str, Any] | None:
    """Where the first weights of the run are from, as in result.json; None: they are random."""
    return mapping(read_start(run).get("init")) or None


def weights_in_words(init: Mapping[str, Any]) -> str:
    """Where the first weights are from, e.g. "the weights of outputs/NAME (300 steps, 76.8k tokens)"."""
    spent = ", ".join(f"{format_count(init[unit])} {unit}" for unit in ("steps", "tokens") if is_number(init.get(unit)))
    return f"the weights of {init.get('checkpoint')}{f' ({spent})' if spent else ''}"


def check_same_corpus(session: Session, corpus: Corpus) -> None:
    """Raise UserError if the text of a run was changed since it began to train."""
    run, began = session.run, read_start(session.run).get("data_fingerprint")
    if began in (None, corpus.fingerprint) or not checkpoints(run.checkpoints):
        return
    raise UserError(
        f"the text of {run.folder} was changed since the run began (corpus {str(began)[:8]} then, {corpus.fingerprint[:8]}"
        " now); restore the text, or start again with fresh=true, or go on with the new text in a new run:"
        f" init=run init.checkpoint={run.folder}"
    )
