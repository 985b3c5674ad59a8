"""Checks whether stint works on this machine: `python -m cli.doctor [--json] [FOLDER]`, or `make doctor`.

FOLDER is the folder for runs and corpora; the default is the current folder. The checks end within 20 seconds and do not
use the network. Exit status 1 means that `make train` will not work here.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cli.doctor_checks import CHECKS, NOTE, PROBLEM, Check, Finding
from common.errors import reported
from common.monotonic import now
from common.paths import user_path
from common.redaction import redacted

LIMIT_S = 18.0  # for all checks together


def examine(checks: Sequence[tuple[str, float, Check]], place: Path, limit_s: float) -> dict[str, Finding]:
    """Run each (name, time limit in seconds, check). A check that raises or takes too long gives a finding as well."""
    deadline = now() + limit_s
    findings = {}
    for name, seconds, check in checks:
        left = deadline - now()
        if left > 0:
            findings[name] = _run_check(min(seconds, left), check, place)
        else:
            skipped = f"skipped: earlier checks took {limit_s:g} s"
            findings[name] = Finding(NOTE, skipped, "find out which check above is slow")
    return findings


def _run_check(seconds: float, check: Check, place: Path) -> Finding:
    results: queue.SimpleQueue[Finding] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(check(place))
        except BaseException as error:  # a broken library may raise anything, even SystemExit
            reason = f"check failed ({type(error).__name__}: {' '.join(str(error).split())})"
            if isinstance(error, ImportError):  # a missing package stops `make train`, anything else may not
                install = f"{sys.executable} -m pip install -r requirements.lock"
                results.put(Finding(PROBLEM, reason, install))
            else:
                results.put(Finding(NOTE, reason, "see the reason"))

    threading.Thread(target=work, daemon=True).start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        return Finding(NOTE, f"no answer within {seconds:.0f} s", "a disk or a driver may hang; see dmesg")


def as_text(findings: dict[str, Finding]) -> str:
    """One line per finding with its hint on the line below; the last line says whether `make train` will work here."""
    lines = []
    for name, finding in findings.items():
        lines.append(f"{finding.status:<8} {name:<10} {finding.found}")
        if finding.hint:
            lines.append(f"{'':<19} -> {finding.hint}")
    problems = ", ".join(name for name, finding in findings.items() if finding.status == PROBLEM)
    verdict = f"make train will not work here: {problems}" if problems else "make train will work here"
    return "\n".join([*lines, "", verdict])


def as_json(findings: dict[str, Finding]) -> str:
    """The findings for programs: works (bool) and checks, a list of name, status, found and mend (the hint)."""
    checks = [{"name": name, "status": f.status, "found": f.found, "mend": f.hint} for name, f in findings.items()]
    return json.dumps({"works": not _has_problem(findings), "checks": checks}, indent=1)


def _has_problem(findings: dict[str, Finding]) -> bool:
    return any(finding.status == PROBLEM for finding in findings.values())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cli.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=user_path,
        default=Path(),
        help="folder for runs and corpora (default: the current folder)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    findings = examine(CHECKS, options.folder, LIMIT_S)
    print(redacted(as_json(findings) if options.json else as_text(findings)))
    return 1 if _has_problem(findings) else 0


if __name__ == "__main__":
    with reported():
        status = main(sys.argv[1:])
    os._exit(status)  # a check that hangs must not keep the process alive
