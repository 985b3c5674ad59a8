"""What this machine has, and what will not work on it: `python -m cli.doctor [--json] [FOLDER]`, or `make doctor`.

FOLDER is where runs and corpora go; the current one where none is given. It ends within 20 seconds and asks no network.
Exit status 1 means that `make train` will not work here.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cli.doctor_checks import CHECKS, NOTE, PROBLEM, Check, Finding
from common.monotonic import now
from common.redaction import redacted

LIMIT_S = 18.0  # of all checks together


def examine(checks: Sequence[tuple[str, float, Check]], place: Path, limit_s: float) -> dict[str, Finding]:
    """What each of (name, seconds, check) finds. One that raises, or takes too long, is a finding as well."""
    deadline = now() + limit_s
    found = {}
    for name, seconds, check in checks:
        left = deadline - now()
        if left > 0:
            found[name] = _within(min(seconds, left), check, place)
        else:
            found[name] = Finding(NOTE, f"not looked at: the checks before it took {limit_s:g} s", "see what is slow")
    return found


def _within(seconds: float, check: Check, place: Path) -> Finding:
    answers: queue.SimpleQueue[Finding] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(check(place))
        except BaseException as error:  # a broken library may raise anything, SystemExit too
            reason = " ".join(str(error).split())
            answers.put(Finding(*_failed(check, f"{type(error).__name__}: {reason}")))

    threading.Thread(target=work, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return Finding(NOTE, f"no answer within {seconds:.0f} s", "a disk or a driver that hangs? see dmesg")


def _failed(check: Check, reason: str) -> tuple[str, str, str]:
    missing = reason.startswith(("ModuleNotFoundError", "ImportError"))
    mend = f"{sys.executable} -m pip install -r requirements.lock" if missing else "see the reason"
    return (PROBLEM if missing else NOTE), f"could not be looked at ({reason})", mend


def as_text(found: dict[str, Finding]) -> str:
    """One line a finding, its mend below."""
    lines = []
    for name, finding in found.items():
        lines.append(f"{finding.status:<8} {name:<10} {finding.found}")
        if finding.mend:
            lines.append(f"{'':<19} -> {finding.mend}")
    return "\n".join([*lines, "", verdict(found)])


def verdict(found: dict[str, Finding]) -> str:
    """The last line: whether `make train` will work, and if not, why."""
    stopping = [name for name, finding in found.items() if finding.status == PROBLEM]
    return f"make train will not work here: {', '.join(stopping)}" if stopping else "make train will work here"


def as_json(found: dict[str, Finding]) -> str:
    """The same for a program."""
    checks = [{"name": name, **asdict(finding)} for name, finding in found.items()]
    return json.dumps({"works": not _stops(found), "checks": checks}, indent=1)


def _stops(found: dict[str, Finding]) -> bool:
    return any(finding.status == PROBLEM for finding in found.values())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cli.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where runs and corpora go")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    found = examine(CHECKS, options.folder, LIMIT_S)
    print(redacted(as_json(found) if options.json else as_text(found)))
    return 1 if _stops(found) else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a check that hangs must not keep the process
