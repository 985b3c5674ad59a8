"""A short form of bench.faults.prove_faults, and tests that it detects losses."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.docs.performance_page import read_results
from bench.docs.reliability_page import DOC, text
from bench.faults import prove_faults
from bench.faults.prove_faults import Chain, KeptChains, Row, chain, disturb, exit_failures, figures, reference
from bench.faults.watched_run import Accounts, lost_at_resumes
from tests.conftest import TINY


@pytest.fixture
def small(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the runs short, 150 steps, in a folder of this test."""
    often = ("checkpoint.every_s=0.05", "checkpoint.max_fraction=1.0")
    monkeypatch.setattr(prove_faults, "PLACE", tmp_path)
    monkeypatch.setattr(prove_faults, "OPTIONS", (*TINY, "budget.steps=150", "eval.every=0", *often, "name=faults"))
    (tmp_path / "texts").symlink_to(place / "texts")
    return tmp_path


def test_a_run_killed_while_saving_ends_with_the_same_weights(small: Path) -> None:
    """The short form of make prove-faults, which kills and stops runs hundreds of times, in every phase."""
    weights, typical = reference()
    assert set(typical) >= set(prove_faults.KILLED)
    done = chain("kills", 0, ("checkpoint",), weights, typical)
    assert [row.signal for row in done.rows] == ["SIGKILL"]
    assert done.identical
    assert done.failures == []
    assert figures([asdict(done)])["disturbed"] == 1


def test_a_decreasing_budget_is_a_failure(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledgers = iter([Accounts(9.0), Accounts(1.0)])
    monkeypatch.setattr(prove_faults, "read_accounts", lambda place: next(ledgers))
    row = Row("forgets", "import")
    disturb(row, signal.SIGKILL, {"import": 0.1}, random.Random(0))
    assert row.failures == ["the spent budget decreased from 9.00 to 1.00 s"]


@pytest.mark.parametrize(
    ("number", "status", "phase", "exit_s", "failures"),
    [
        (signal.SIGKILL, -9, "training", 0.0, 0),
        (signal.SIGTERM, 143, "training", 4.9, 0),
        (signal.SIGTERM, 0, "report", 1.0, 0),
        (signal.SIGTERM, -15, "import", 0.0, 0),
        (signal.SIGTERM, -15, "training", 0.0, 1),
        (signal.SIGTERM, 1, "training", 0.0, 1),
        (signal.SIGTERM, 143, "training", 5.1, 1),
        (signal.SIGTERM, None, "training", 180.0, 1),
    ],
)
def test_exit_statuses_and_times_that_are_failures(
    number: int, status: int | None, phase: str, exit_s: float, failures: int
) -> None:
    assert len(exit_failures(number, status, phase, exit_s, "last line")) == failures


def test_steps_repeated_after_a_kill_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "faults-0"
    folder.mkdir()
    lines = [
        {"event": "resume", "step": 0},
        *({"step": step, "loss": 1.0, "hours": step / 3600} for step in range(1, 10)),
        {"event": "resume", "step": 6},
        *({"step": step, "loss": 1.0, "hours": (step + 3) / 3600} for step in range(7, 9)),
        {"event": "resume", "step": 8},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    assert lost_at_resumes(tmp_path) == [(0, 0.0), (3, pytest.approx(3.0)), (0, 0.0)]


def test_finished_chains_are_kept_for_the_same_commit(tmp_path: Path) -> None:
    done = Chain("kills-0", [Row("kills-0", "training", "training", "SIGKILL")], True, [(1, 0.1)], [])
    added = KeptChains(tmp_path / "chains.jsonl", "a").add(done)
    assert KeptChains(tmp_path / "chains.jsonl", "a").chains == {"kills-0": added}
    assert KeptChains(tmp_path / "chains.jsonl", "b").chains == {}


def test_the_reliability_page_matches_the_results() -> None:
    assert DOC.read_text() == text(read_results()), "run python -m bench.docs.reliability_page"
