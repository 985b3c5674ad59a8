"""What a run began with, on disk from its start: the shape of its model, its tokenizer, its corpus and where its weights are
from.

With it, an unfinished run can be evaluated, a run whose text was changed is not continued by mistake, and a run that began
with the weights of another one no longer needs that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.checksum import verify_checksum
from common.errors import UserError
from common.json_io import mapping, write_json
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

    `init` tells where the first weights are from; None: they are random.
    """
    run, tokenizer = session.run, corpus.tokenizer
    if not run.tokenizer.exists():
        tokenizer.save(run.tokenizer)
    if read_start(run).get("data_fingerprint") == corpus.fingerprint:
        return
    content = {
        "format": 1,
        "shape": shape.to_dict(),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "n_vocab": tokenizer.n_vocab,
        "data_fingerprint": corpus.fingerprint,
        "init": init,
    }
    write_json(run.start, content, checksummed=True)


def init_of(run: RunDirectory) -> dict[str, Any] | None:
    """Where the first weights of the run are from, as in result.json; None: they are random."""
    return mapping(read_start(run).get("init")) or None


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
