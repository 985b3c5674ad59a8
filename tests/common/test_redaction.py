"""Secrets of the environment never reach a record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import MachineError, reported
from common.json_io import write_json
from common.redaction import find_leaked_secrets, is_secret, redacted
from run.report.console import Console
from tests.conftest import ROOT, TINY, folder_of

KEY, TOKEN = "0123456789abcdef0123456789abcdef01234567", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SHORT_TOKEN", "true")


def test_secrets_are_known_by_their_names() -> None:
    names = ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "password", "api_key", "GITHUB_PAT", "secret-key"]
    assert [name for name in names if not is_secret(name)] == []
    others = ["tokens", "budget", "TOKENIZERS_PARALLELISM", "path", "WANDB_MODE", "tokenizer"]
    assert [name for name in others if is_secret(name)] == []


def test_output_and_records_contain_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "log.txt")
    console.say(f"request to https://user:{KEY}@api failed")
    console.table("t", ["a"], [[TOKEN]])
    write_json(tmp_path / "status.json", {"reason": f"HTTPError: {TOKEN}", "flag": "true"})
    with pytest.raises(SystemExit), reported():
        raise MachineError(f"401 for https://api/?token={TOKEN}")
    shown = capsys.readouterr()
    assert shown.err == "error: 401 for https://api/?token=<HF_TOKEN>\n"
    for text in (shown.out, (tmp_path / "log.txt").read_text(), (tmp_path / "status.json").read_text()):
        assert KEY not in text
        assert TOKEN not in text
    assert json.loads((tmp_path / "status.json").read_text()) == {"reason": "HTTPError: <HF_TOKEN>", "flag": "true"}
    assert redacted("nothing here is true") == "nothing here is true"


def test_an_option_with_a_secret_is_named_without_the_value() -> None:
    (line,) = find_leaked_secrets([("wandb.entity", KEY), ("wandb.tags", ["a", "b"]), ("seed", 1)])
    assert "wandb.entity" in line
    assert "WANDB_API_KEY" in line
    assert KEY not in line
    assert len(find_leaked_secrets([("wandb.tags", ["a", f"x{TOKEN}"])])) == 1


@pytest.mark.parametrize(
    "argument", [f"wandb.entity={KEY}", "wandb.project=${oc.env:HF_TOKEN}", f"+hydra.job.env={TOKEN}"]
)
def test_a_run_that_would_record_a_secret_is_refused(tmp_path: Path, argument: str) -> None:
    """On the command line, or by way of an interpolation: before anything is written."""
    words = [sys.executable, str(ROOT / "train.py"), *TINY, "data.path=x", "budget.steps=1", argument]
    answer = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "holds the value of" in answer.stderr
    assert KEY not in answer.stderr + answer.stdout
    assert TOKEN not in answer.stderr + answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_whole_run_holds_a_secret(place: Path) -> None:
    """With wandb's own files, which are binary, and everything that was shown."""
    words = [*TINY, f"data.path={place / 'texts'}", "budget.steps=20", "wandb.mode=offline", "name=private"]
    answer = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], capture_output=True, text=True, cwd=place, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    files = [path for path in folder_of(place, "private").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    texts = [path.read_bytes() for path in files] + [answer.stdout.encode(), answer.stderr.encode()]
    for secret in (KEY.encode(), TOKEN.encode()):
        assert not [path for path, text in zip([*files, "out", "err"], texts, strict=True) if secret in text]
