"""Send offline runs to wandb's server: `python -m run.tracking.sync outputs/NAME ...`.

`wandb sync` does the sending, one file for each process of a run, and it appends: what was sent must not be sent again. This
module finds the files that are left, oldest first, leaves a live run alone, and turns a failure into one line and an exit
status. `wandb sync` itself exits with 0 then, and where a killed process left a file without an end, it does not go on to
the files of the processes after it.
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
from run.tracking.logger import load_wandb, no_account, synced_marker, tear_down, why_not_online

SEND_LIMIT_S = 600.0  # for one file; wandb retries for hours when the network is lost while it sends
HEADER_BYTES = 7  # all that a process leaves that was killed before wandb first wrote to the disk


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit status 2 for a folder that is no run or no account, 1 where the server cannot be reached."""
    parser = argparse.ArgumentParser(prog="python -m run.tracking.sync", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="outputs/NAME", help="folders of runs")
    with reported():
        sync_all(parser.parse_args(arguments).folders)


def sync_all(folders: Sequence[Path]) -> None:
    """Send what is left of each run and print one line for each."""
    wrong = [folder for folder in folders if not (folder / "config.yaml").is_file()]
    if wrong:
        raise UserError(
            *(f"{path} is not a run, it has no config.yaml; give folders such as outputs/NAME" for path in wrong)
        )
    if any(map(unsent_files, folders)):
        require_server(folders[0])
    for folder in folders:
        print(sync(folder), flush=True)


def unsent_files(folder: Path) -> list[Path]:
    """The offline files of a run that have points and are not on the server, oldest first."""
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    return [file for file in files if not synced_marker(file).exists() and file.stat().st_size > HEADER_BYTES]


def require_server(directory: Path) -> None:
    """Raise UserError without an account and MachineError without a network, both of which wandb would wait for."""
    wandb = load_wandb(directory.absolute())
    try:
        if missing := no_account(wandb):
            raise UserError(missing)
        if reason := why_not_online(wandb):
            raise MachineError(f"{reason}; nothing is lost, the same command sends it later")
    finally:
        tear_down()


def sync(folder: Path) -> str:
    """Send the files of one run; returns a line that says what was done."""
    files = unsent_files(folder)
    if not files:
        return f"{folder}: nothing to send"
    lock = try_lock(folder / "lock")
    if isinstance(lock, str):  # wandb marks a file as sent although the run still writes to it
        return f"{folder}: is in use by {lock}; call again when it has ended"
    with lock:
        urls = [send(file) for file in files]
    return f"{folder}: {len(files)} offline file{'s' if len(files) > 1 else ''} sent to {urls[-1]}"


def send(file: Path) -> str:
    """Send one file with `wandb sync`; returns the run's address. Raises MachineError where wandb did not send all of it."""
    command = [sys.executable, "-m", "wandb", "sync", str(file)]
    environment = {**os.environ, "WANDB_SILENT": "false"}  # its messages are all that it says about a failure
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SEND_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"{file} was not sent within {SEND_LIMIT_S:g} s; the same command goes on from there"
        ) from None
    told = done.stdout + done.stderr
    if "ends with an incomplete record" in told:  # a killed process; all that is readable was sent
        synced_marker(file).touch()
    if not synced_marker(file).exists():
        errors = re.findall(r"(?:ERROR|Error:) (.+)", told) or ["`wandb sync` gave no reason"]
        raise MachineError(f"{file} was not sent: {errors[-1]}; the same command sends it later")
    addresses = re.findall(r"https?://\S+/runs/\S+", told)
    return addresses[-1] if addresses else "wandb"


if __name__ == "__main__":
    main()
