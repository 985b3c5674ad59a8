"""Every program in bench/ can be started: few of them run with the tests, and mypy does not read them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import bench


def test_the_names_that_programs_import_exist() -> None:
    for module in pkgutil.walk_packages(bench.__path__, "bench."):
        if not module.name.startswith("bench.peers."):  # some of those run in the environment of another trainer
            import_module(module.name)
