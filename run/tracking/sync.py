"""Sends offline runs to wandb's server: `python -m run.tracking.sync outputs/NAME ...`.

`wandb sync` sends one file per process of a run. It appends to the curve, so a file must not be sent twice. This module finds
the files that have not been sent, oldest first, skips a run that is still going, and reports a failure in one line with an
exit status. `wandb sync` itself exits with 0 on failure, and it stops at the incomplete file of a killed process instead of
sending the files after it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import MachineError, UserError, reported
from common.file_lock import try_lock
from common.paths import user_path
from run.tracking.logger import load_wandb, no_account, synced_marker, tear_down, why_not_online

SEND_LIMIT_S = 600.0  # per file; wandb retries for hours if the network fails meanwhile
HEADER_BYTES = 7  # size of a file without points, left by a process that was killed early


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit status 2 for a folder that is not a run or a missing account, 1 if the server is unreachable."""
    parser = argparse.ArgumentParser(prog="python -m run.tracking.sync", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=user_path, metavar="outputs/NAME", help="folders of runs")
    with reported():
        sync_all(parser.parse_args(arguments).folders)


def sync_all(folders: Sequence[Path]) -> None:
    """Send the unsent files of each run and print one line per run."""
    invalid = [folder for folder in folders if not (folder / "config.yaml").is_file()]
    if invalid:
        raise UserError(
            *(f"{path} is not a run, it has no config.yaml; give folders such as outputs/NAME" for path in invalid)
        )
    if any(map(unsent_files, folders)):
        require_server(folders[0])
    for folder in folders:
        print(sync(folder), flush=True)


def unsent_files(folder: Path) -> list[Path]:
    """The offline files of a run that have points and have not been sent, oldest first."""
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    return [file for file in files if not synced_marker(file).exists() and file.stat().st_size > HEADER_BYTES]


def require_server(directory: Path) -> None:
    """Raise UserError without an account and MachineError without a network. wandb itself would wait."""
    wandb = load_wandb(directory.absolute())
    try:
        if missing := no_account(wandb):
            raise UserError(missing)
        if reason := why_not_online(wandb):
            raise MachineError(f"{reason}; nothing is lost, repeat the command later")
    finally:
        tear_down()


def sync(folder: Path) -> str:
    """Send the files of one run and return a line with the outcome."""
    files = unsent_files(folder)
    if not files:
        online = any((folder / "wandb").glob("run-*/*.wandb"))
        hint = "; what an online process could not send is sent when the run resumes online" if online else ""
        return f"{folder}: nothing to send{hint}"
    lock = try_lock(folder / "lock")
    if isinstance(lock, str):  # wandb would mark a file as sent while the run still writes to it
        return f"{folder}: is in use by {lock}; repeat the command when it has ended"
    with lock:
        urls = [send(file) for file in files]
    return f"{folder}: {len(files)} offline file{'s' if len(files) > 1 else ''} sent to {urls[-1]}"


def send(file: Path) -> str:
    """Send one file with `wandb sync` and return the run's address. Raises MachineError unless all of it was sent."""
    command = [sys.executable, "-m", "wandb", "sync", str(file)]
    environment = {**os.environ, "WANDB_SILENT": "false"}  # only its messages reveal a failure
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SEND_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"{file} was not sent within {SEND_LIMIT_S:g} s; repeat the command to continue") from None
    output = done.stdout + done.stderr
    if "ends with an incomplete record" in output:  # from a killed process; all readable points were sent
        synced_marker(file).touch()
    if not synced_marker(file).exists():
        errors = re.findall(r"(?:ERROR|Error:) (.+)", output) or ["`wandb sync` gave no reason"]
        raise MachineError(f"{file} was not sent: {errors[-1]}; repeat the command later")
    addresses = re.findall(r"https?://\S+/runs/\S+", output)
    return addresses[-1] if addresses else "wandb"


if __name__ == "__main__":
    main()
