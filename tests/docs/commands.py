"""The checks of the command line, in process, for commands of the documentation."""

from __future__ import annotations

import shlex
import sys

import pytest

CONFIGS = {"train.py": "config", "plan.py": "config", "evaluate.py": "evaluate", "sample.py": "sample"}


def checked(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Check "python SCRIPT.py ..." with every option and unit as written. Returns its config and its arguments for Hydra.

    Raises UserError as the command would.
    """
    from cli.overrides import check_command_line, readable

    _, script, *arguments = shlex.split(command, comments=True)
    config = CONFIGS[script]
    monkeypatch.setattr(sys, "argv", [script, *readable(config, arguments)])
    check_command_line(config)
    return config, sys.argv[1:]
