"""The locks hold what the .in files ask for, and what tests run with is what users run with."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def lines(name: str) -> set[str]:
    """Requirements of a file, without comments and references to other files."""
    found = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in found if line and not line.startswith("-r")}


def names(requirements: set[str]) -> set[str]:
    return {re.split(r"[<>=!~\[]", line)[0].strip().lower().replace("_", "-") for line in requirements}


def test_every_requirement_is_locked_to_one_version() -> None:
    for name in ("requirements", "requirements-dev"):
        locked = lines(f"{name}.lock")
        assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in locked)
        assert names(lines(f"{name}.in")) <= names(locked)


def test_tests_run_with_the_versions_that_users_get() -> None:
    assert lines("requirements.lock") <= lines("requirements-dev.lock")
