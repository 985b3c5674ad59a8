"""The doctor: one line per check even if it fails; no secret, no network, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cli import doctor_checks
from cli.doctor import as_json, as_text, examine, main
from cli.doctor_checks import CHECKS, NOTE, OK, PROBLEM, Finding
from tests.conftest import ROOT

PLACE = Path()


def raising(place: Path) -> Finding:
    raise OSError(5, "a disk\nthat breaks")


def exiting(place: Path) -> Finding:
    sys.exit(3)


def hanging(place: Path) -> Finding:
    threading.Event().wait()
    raise AssertionError


def importing(place: Path) -> Finding:
    import no_such_package_anywhere  # noqa: F401

    raise AssertionError


def test_a_check_that_raises_exits_or_hangs_gives_a_finding() -> None:
    began = time.monotonic()
    checks = (
        ("raises", 5.0, raising),
        ("exits", 5.0, exiting),
        ("hangs", 0.2, hanging),
        ("imports", 5.0, importing),
        ("good", 5.0, lambda place: Finding(OK, "fine")),
    )
    found = examine(checks, PLACE, 10.0)
    assert time.monotonic() - began < 2
    assert [finding.status for finding in found.values()] == [NOTE, NOTE, NOTE, PROBLEM, OK]
    text = as_text(found)
    assert "check failed (OSError: [Errno 5] a disk that breaks)" in text
    assert "no answer within 0 s" in text
    assert "pip install" in found["imports"].hint
    assert text.endswith("make train will not work here: imports")
    assert all(finding.hint for finding in found.values() if finding.status != OK)


def test_all_checks_together_keep_the_time_limit() -> None:
    began = time.monotonic()
    found = examine([(str(i), 1.0, hanging) for i in range(10)], PLACE, 0.5)
    assert time.monotonic() - began < 1.5
    assert len(found) == 10
    assert "skipped" in found["9"].found


def test_findings_as_json() -> None:
    found = {"a": Finding(OK, "x"), "b": Finding(PROBLEM, "y", "z")}
    content = json.loads(as_json(found))
    assert content["works"] is False
    assert content["checks"][1] == {"name": "b", "status": "problem", "found": "y", "mend": "z"}
    assert json.loads(as_json({"a": Finding(NOTE, "x", "m")}))["works"] is True


SPY = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"network: {event} {arguments}")
sys.addaudithook(refuse)
from cli.doctor import main
status = main(sys.argv[1:])
sys.stdout.flush()
import os
os._exit(status)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """All checks, run once in a process that has secrets in its environment and must not use the network."""
    place = tmp_path_factory.mktemp("place")
    netrc = place / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password SENTINEL-netrc-0123456789\n")
    netrc.chmod(0o644)
    environment = {**os.environ, "NETRC": str(netrc), "HF_TOKEN": "SENTINEL-token-0123456789"}
    environment |= {"HTTPS_PROXY": "http://me:SENTINEL-proxy@proxy:1", "AWS_SECRET_ACCESS_KEY": "SENTINEL-aws-123456"}
    began = time.monotonic()
    command = [sys.executable, "-c", SPY, "--json", str(place)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert time.monotonic() - began < 20
    assert "SENTINEL" not in answer.stdout + answer.stderr
    assert answer.stderr == ""
    content = json.loads(answer.stdout)
    assert answer.returncode == (0 if content["works"] else 1)
    assert not list(place.glob("outputs*"))
    return {check["name"]: Finding(check["status"], check["found"], check["mend"]) for check in content["checks"]}


def test_every_check_works_without_a_network(report: dict[str, Finding]) -> None:
    assert list(report) == [name for name, _, _ in CHECKS]
    assert [f.found for f in report.values() if "check failed" in f.found or "no answer" in f.found] == []
    assert all(finding.hint for finding in report.values() if finding.status != OK)


def test_the_findings_are_true(report: dict[str, Finding]) -> None:
    import torch

    assert sys.version.split()[0] in report["python"].found
    assert torch.__version__ in report["torch"].found
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}" in report["cores"].found
    assert "FLOP/s" in report["peak"].found
    assert float(report["peak"].found.split()[0]) > 1e8
    assert "MB/s" in report["disk"].found
    assert "file locks work" in report["disk"].found
    assert "token set" in report["hub"].found


def test_a_key_that_other_users_can_read_is_reported(report: dict[str, Finding]) -> None:
    assert "key for api.wandb.ai set" in report["wandb"].found
    assert report["wandb"].status == NOTE
    assert "chmod 600" in report["wandb"].hint


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cli.doctor.CHECKS", (("a", 1.0, lambda place: Finding(PROBLEM, str(place), "fix it")),))
    assert main([str(tmp_path)]) == 1
    assert f"problem  a          {tmp_path}\n" in (text := capsys.readouterr().out)
    assert "-> fix it" in text
    monkeypatch.setattr("cli.doctor.CHECKS", (("a", 1.0, lambda place: Finding(NOTE, "x", "y")),))
    assert main([]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["--no-such"])
    assert stopped.value.code == 2


# Single checks on machines where something is missing.


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_checks, "_write_speed", refuse)
    found = doctor_checks.disk(tmp_path)
    assert found.status == PROBLEM
    assert "output_dir" in found.hint


@pytest.mark.parametrize(
    ("check", "function", "free", "status"),
    [
        ("disk", "cli.doctor_checks._free", 1e8, PROBLEM),
        ("disk", "cli.doctor_checks._free", 1e9, NOTE),
        ("memory", "device.device.available_memory", 5e8, PROBLEM),
        ("memory", "device.device.available_memory", 2e9, NOTE),
        ("memory", "device.device.available_memory", 16e9, OK),
    ],
)
def test_little_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, function: str, free: float, status: str
) -> None:
    monkeypatch.setattr(function, lambda *folder: free)
    assert getattr(doctor_checks, check)(tmp_path).status == status


def test_a_container_with_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "_cpu_quota", lambda: 1.5)
    monkeypatch.setattr(doctor_checks, "usable_cores", lambda: 64)
    found = doctor_checks.cores(tmp_path)
    assert found.status == NOTE
    assert "device.threads=1" in found.hint


def test_packages_against_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "_requirements", lambda file: ["numpy==0.1", "torch==2.13.0"])
    found = doctor_checks.packages(tmp_path)
    assert found.status == NOTE
    assert "(lock: 0.1)" in found.found
    monkeypatch.setattr(doctor_checks, "_requirements", lambda file: ["no-such-package==1"])
    assert doctor_checks.packages(tmp_path).status == PROBLEM
    assert "no-such-package" in doctor_checks.packages(tmp_path).found


def test_a_python_without_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.stdlib.source_files", list)
    assert doctor_checks.corpora(tmp_path).status == PROBLEM


def test_a_cache_of_compiled_code_that_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads and runs the files of this cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    assert "other users" in doctor_checks._cache_problem(tmp_path)
    tmp_path.chmod(0o700)
    assert doctor_checks._cache_problem(tmp_path) == ""
    assert doctor_checks._cache_problem(tmp_path / "absent") == ""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "another user" in doctor_checks._cache_problem(tmp_path)


def test_a_gpu_that_torch_cannot_use_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use it")
    assert doctor_checks.device(tmp_path).status == OK
    monkeypatch.setattr(doctor_checks, "_has_nvidia", lambda: True)
    found = doctor_checks.device(tmp_path)
    assert found.status == NOTE
    assert "NVIDIA" in found.found


def test_cached_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.tokenizers.tokenizer import PUBLISHED, _cache_name

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert doctor_checks.tiktoken(tmp_path).status == NOTE
    for file in PUBLISHED["gpt2"][1]:
        (tmp_path / _cache_name(file)).write_bytes(b"x")
    assert "cached: gpt2 " in doctor_checks.tiktoken(tmp_path).found
    assert doctor_checks.tiktoken(tmp_path).status == OK
