"""Files damaged on the disk: the damage is found and reported in one line, and never gives a wrong result silently.

Random ranges of bytes are flipped, overwritten, doubled, cut out or cut off. A reader must find the damage, or read
exactly what was written if the damage does not matter (other white space in JSON).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budget.ledger import read_ledger
from budget.planner.plan import load_plan
from common.errors import UserError
from data.prepare import prepare
from data.shards import SPLITS, open_corpus, verify
from data.sources.base import DataSpec
from run.checkpoint import checkpoints, latest_accounts, latest_checkpoint
from run.load_model import load_model
from tests.conftest import run_here

FEW, MANY = 30, 500
EXAMPLES = pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


@dataclass(frozen=True)
class Damage:
    """Damage of type `how` to `length` bytes of a file, from the relative position `where` (0 to 1)."""

    how: str
    where: float
    length: int
    mask: int

    def __call__(self, raw: bytes) -> bytes:
        start = int(self.where * len(raw))
        end = min(len(raw), start + self.length)
        touched = {
            "flip": bytes(byte ^ self.mask for byte in raw[start:end]),
            "zero": bytes(end - start),
            "fill": bytes([self.mask]) * (end - start),
            "cut out": b"",
            "double": raw[start:end] * 2,
        }
        return raw[:start] if self.how == "cut off" else raw[:start] + touched[self.how] + raw[end:]


DAMAGES = st.builds(
    Damage,
    how=st.sampled_from(["flip", "flip", "flip", "zero", "fill", "cut out", "double", "cut off"]),
    where=st.floats(0, 1, exclude_max=True),
    length=st.one_of(st.integers(1, 4), st.integers(1, 4096)),
    mask=st.integers(1, 255),
)


@contextmanager
def damaged(path: Path, damage: Damage) -> Iterator[bool]:
    """Damage the file inside the block. Yields whether its bytes differ."""
    raw = path.read_bytes()
    path.write_bytes(damage(raw))
    try:
        yield damage(raw) != raw
    finally:
        path.write_bytes(raw)


def many(
    examples: int, files: list[Path], check: Callable[[Path], None], record: Callable[[str, object], None]
) -> None:
    """Call `check(file)` for `examples` random damages, each to one of the files."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == FEW,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage=DAMAGES, file=st.sampled_from(files))
    def one(damage: Damage, file: Path) -> None:
        with damaged(file, damage) as changed:
            if changed:
                check(file)

    one()
    record("cases", examples)


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its own corpus."""
    here = tmp_path_factory.mktemp("damaged")
    shutil.copytree(place / "texts", here / "texts")
    return run_here(here, "budget.steps=20", name="damaged")


def read(call: Callable[[], Any]) -> Any:
    """The result of a reader, or None if it raises UserError with one line per message."""
    try:
        return call()
    except UserError as error:
        assert all(len(message.splitlines()) == 1 for message in error.messages)
        return None


@EXAMPLES
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(
    run: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    """A damaged checkpoint: any range of bytes of any of its files."""
    folder = run / "checkpoint"
    newest, previous = checkpoints(folder)[:2]
    good = latest_checkpoint(folder, pytest.fail)
    assert good is not None

    def check(file: Path) -> None:
        warnings: list[str] = []
        found = latest_checkpoint(folder, warnings.append)
        assert found is not None
        if warnings:
            assert len(warnings) == 1
            assert f"{newest.name} is damaged" in warnings[0]
            assert found.state.step == int(previous.name.removeprefix("step-"))
            (folder / f"{newest.name}.damaged").rename(newest)
        else:
            assert (found.state, found.ledger) == (good.state, good.ledger)
            assert all(torch.equal(found.model[name], value) for name, value in good.model.items())
            assert all(torch.equal(found.optimizer[name], value) for name, value in good.optimizer.items())
        assert sum(latest_accounts(folder).values()) > 0, "the spent budget is known even so"

    many(examples, sorted(newest.iterdir()), check, record_property)


@EXAMPLES
def test_a_damaged_ledger_is_rejected_or_reads_the_same(
    run: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    """A damaged ledger.json: never another sum of seconds."""
    good = read_ledger(run / "ledger.json")
    assert good is not None

    def check(file: Path) -> None:
        found = read_ledger(file)
        assert found is None or all(found[key] == good[key] for key in ("ledger_s", "extended_hours", "clean"))

    many(examples, [run / "ledger.json"], check, record_property)


@EXAMPLES
def test_a_damaged_plan_is_rejected_or_reads_the_same(
    run: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    """A damaged plan.json: never another learning rate."""
    good = load_plan(run / "plan.json")

    def check(file: Path) -> None:
        assert read(lambda: load_plan(file)) in (None, good)

    many(examples, [run / "plan.json"], check, record_property)


@EXAMPLES
def test_a_damaged_corpus_is_rejected_or_reads_the_same(
    run: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    """A damaged corpus: any range of bytes of a shard, its table of documents, the manifest or the tokenizer."""
    folder = next(path for path in (run.parents[1] / "prepared").iterdir() if path.is_dir())

    def whole() -> Any:
        verify(folder)
        corpus = open_corpus(folder)
        arrays = [
            np.array(array)
            for split in SPLITS
            for parts in (
                getattr(corpus, split).shards,
                getattr(corpus, split).starts,
                getattr(corpus, split).source_ids,
            )
            for array in parts
        ]
        return corpus.fingerprint, corpus.sources, corpus.tokenizer.name, corpus.manifest["splits"], arrays

    good = whole()

    def check(file: Path) -> None:
        found = read(whole)
        if found is not None:
            assert found[:-1] == good[:-1]
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found[-1], good[-1], strict=True))

    many(examples, sorted(folder.iterdir()), check, record_property)


@EXAMPLES
def test_a_damaged_model_is_rejected_or_reads_the_same(
    run: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    """A damaged model: weights, model.json with its shape, or tokenizer.json."""
    cpu = torch.device("cpu")
    good = load_model(str(run), cpu)

    def check(file: Path) -> None:
        found = read(lambda: load_model(str(run), cpu))
        if found is not None:
            assert found.model.shape == good.model.shape
            assert found.tokenizer.fingerprint == good.tokenizer.fingerprint
            assert all(torch.equal(found.model.state_dict()[name], v) for name, v in good.model.state_dict().items())

    many(
        examples, [run / name for name in ("model.safetensors", "model.json", "tokenizer.json")], check, record_property
    )


@EXAMPLES
def test_a_damaged_preparation_state_is_rejected_or_gives_the_same_corpus(
    place: Path,
    tmp_path: Path,
    examples: int,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """A damaged state of a preparation that was interrupted: refused in one line, or the same corpus."""
    monkeypatch.setattr("data.prepare.BATCH_BYTES", 20_000)
    monkeypatch.setattr("data.prepare.COMMIT_TOKENS", 20_000)
    spec = DataSpec(
        source="text", path=str(place / "texts"), tokenizer="bytes", validation_fraction=0.2, workers=1,
        cache_dir=str(tmp_path / "prepared"),
    )  # fmt: skip
    good = prepare(spec, progress=False, log=lambda line: None)
    shutil.rmtree(good.folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("data.prepare._complete", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(spec, progress=False, log=lambda line: None)
    kept = tmp_path / "kept"
    shutil.copytree(good.folder, kept)

    def check(file: Path) -> None:
        shutil.rmtree(good.folder, ignore_errors=True)
        shutil.copytree(kept, good.folder)
        found = read(lambda: prepare(spec, progress=False, log=lambda line: None))
        assert found is None or found.manifest["fingerprint"] == good.manifest["fingerprint"]

    many(examples, [kept / "state.sqlite"], check, record_property)
