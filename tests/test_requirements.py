"""Tests that the lock files pin every requirement, and that the tests run with the versions that users get."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def lines(name: str) -> set[str]:
    """The requirements in a file, without comments and references to other files."""
    stripped = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in stripped if line and not line.startswith("-r")}


def names(requirements: set[str]) -> set[str]:
    """The normalised package names of requirements such as `PyYAML>=6`."""
    return {re.split(r"[<>=!~\[]", line)[0].strip().lower().replace("_", "-") for line in requirements}


def test_every_requirement_is_locked_to_one_version() -> None:
    for name in ("requirements", "requirements-dev"):
        locked = lines(f"{name}.lock")
        assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in locked)
        assert names(lines(f"{name}.in")) <= names(locked)


def test_tests_run_with_the_versions_that_users_get() -> None:
    assert lines("requirements.lock") <= lines("requirements-dev.lock")
