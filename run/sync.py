"""Send runs to wandb from their own records: `python -m run.dashboard sync outputs/NAME ...`.

wandb's own `wandb sync` replays the files of one process after the other: a killed one took its last points with it, and
one that ran without wandb left none. metrics.jsonl tells the run as it was, whatever the number of its processes. Only
what the server lacks is sent, so a second call sends nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from errors import MachineError, UserError, reported
from json_io import mapping, read_json, write_json
from run.dashboard import (
    MAX_TAG_LENGTH,
    Request,
    last_shown_step,
    load_wandb,
    no_account,
    start_run,
    tear_down,
    wandb_id,
    why_not_online,
)
from run.headline import figures, headline, knobs, public_config
from run.history import read_metrics

OPEN_LIMIT_S = 30.0  # wandb's answer to a new run
UPLOAD_LIMIT_S = 600.0  # sending what is left of a run
GOOD = ("finished", "stopped", "running")  # wandb is told that the others failed


@dataclass(frozen=True)
class Content:
    """All that is sent of a run."""

    request: Request
    points: list[dict[str, Any]]
    summary: dict[str, Any]

    def digest(self) -> str:
        """Of the project it goes to, its knobs, points and figures: the same again needs no sending."""
        told = [self.request.project, self.request.entity, self.request.config, self.points, self.summary]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit status 2 for a folder that is no run or no account, 1 where the server cannot be reached."""
    parser = argparse.ArgumentParser(prog="python -m run.dashboard", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("sync", help="send runs to wandb; what was sent already is not sent again")
    one.add_argument("folders", nargs="+", type=Path, metavar="outputs/NAME", help="folders of runs")
    with reported():
        sync_all(parser.parse_args(arguments).folders)


def sync_all(folders: Sequence[Path]) -> None:
    """Sync each folder and say what was done; folders that are no runs are told together, before anything is sent."""
    wrong = [path for path in folders if not (path / "config.yaml").is_file()]
    if wrong:
        raise UserError(
            *(f"{path} is no run, it has no config.yaml; give folders such as outputs/NAME" for path in wrong)
        )
    try:
        for folder in folders:
            print(sync(folder), flush=True)
    finally:
        tear_down()


def sync(folder: Path) -> str:
    """Bring wandb's run to what `folder` records; returns one line that says what was done."""
    marker, content = folder / "wandb" / "synced.json", content_of(folder)
    done = mapping(read_json(marker))
    if done.get("digest") == content.digest():
        return f"{folder}: nothing new since it was sent to {done.get('url')}"
    if content.request.mode == "online" and in_use(folder):
        return f"{folder}: is running and sends its points itself; call again when it has ended"
    try:
        url, sent = send(content)
    except (UserError, MachineError):
        raise
    except Exception as error:  # whatever wandb raises: what was not sent is still in the record
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MachineError(
            f"{folder}: not all of it was sent ({reason}); the same command goes on from there"
        ) from None
    write_json(marker, {"schema": 1, "digest": content.digest(), "url": url, "points": len(content.points)})
    return f"{folder}: {sent} of {len(content.points)} points were new and are sent to {url}"


def content_of(folder: Path) -> Content:
    """What the run's files say: knobs, the points that no resume rolled back, and the figures of its end."""
    config = mapping(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    wandb = mapping(config.get("wandb"))
    plan, status = (mapping(read_json(folder / name)) for name in ("plan.json", "status.json"))
    if status.get("status") == "running" and not in_use(folder):
        status = {"status": "killed", "reason": "its process is gone"}
    request = Request(
        mode=str(wandb.get("mode", "online")),
        project=wandb.get("project") or "stint",
        entity=wandb.get("entity"),
        name=folder.absolute().name,
        run_id=wandb_id(folder),
        group=wandb.get("group"),
        tags=tuple(tag[:MAX_TAG_LENGTH] for tag in wandb.get("tags") or ()),
        config=public_config(knobs(config, plan)),
        directory=folder.absolute(),
    )
    points = [figures(point) for point in read_metrics(folder) if "event" not in point]
    return Content(request, points, figures({**headline(mapping(read_json(folder / "result.json"))), **status}))


def send(content: Content) -> tuple[str, int]:
    """Send the points after the last one that the server has, and the summary; returns the run's address and how many
    points were sent. Raises UserError without an account, MachineError without a network."""
    wandb = load_wandb(content.request.directory)
    if missing := no_account(wandb):
        raise UserError(missing)
    if reason := why_not_online(wandb):
        raise MachineError(f"{reason}; nothing is lost, the same command sends it later")
    run = start_run(wandb, content.request, "online", OPEN_LIMIT_S, UPLOAD_LIMIT_S)
    shown = last_shown_step(run)
    new = [point for point in content.points if point.get("step", 0) > shown]
    for point in new:
        run.log(point)
    run.summary.update(content.summary)
    url = str(run.url)
    run.finish(exit_code=0 if content.summary.get("status") in GOOD else 1)
    return url, len(new)


def in_use(folder: Path) -> bool:
    """Whether a live process has the run's lock."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # lets go of the lock as well
    return False
