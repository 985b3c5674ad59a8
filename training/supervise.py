"""Supervise a run: open its folder, clock and signals; status.json is correct however the run ends."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from budget.clock import BudgetClock
from budget.ledger import Heartbeat
from common.errors import FULL_DISK, MachineError, UserError
from common.json_io import read_json
from common.signals import Interrupted, Signals
from config import Config, identity
from device.memory import out_of_memory
from run.directory import RunDirectory, full_disk, run_name
from run.report.console import Console
from training.context import Session, set_status
from training.divergence import Diverged
from training.plan_run import limits_of
from training.resume import restore_spent_budget
from training.setup import already_finished

DISK_FAULTS = (*FULL_DISK, errno.EROFS, errno.EIO, errno.ESTALE)

Stages = Callable[[Session], None]


def supervise(config: Config, config_yaml: str, stages: Stages) -> None:
    """Run `stages` on the session of a run, unless the run is finished. With output=json, print result.json.

    Args:
        config_yaml: The configuration as it is saved in the run's folder.

    Raises UserError for mistakes of the user, MachineError for faults of the machine and a diverged model.
    """
    clock = BudgetClock(limits_of(config))
    require_one_process()
    run = RunDirectory(Path(config.output_dir), run_name(config.name, identity(config)), config.fresh)
    console = Console(run.log, sys.stderr if config.output == "json" else None)
    try:
        if not already_finished(config, run, console):
            run.config.write_text(config_yaml)
            with Signals() as signals:
                run_stages(Session(config, run, clock, signals, console), stages)
    except OSError as error:
        if error.errno in DISK_FAULTS:
            raise full_disk(run.folder, error, "every checkpoint that was finished") from None
        raise
    finally:
        run.close()
    if config.output == "json":
        print(json.dumps(read_json(run.result)))


def require_one_process() -> None:
    """Raise UserError under torchrun: a run trains on one device, and every process would start the same run."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: train.py trains on one device; start it without torchrun"
            " (evaluate.py does run on several processes)"
        )


def run_stages(session: Session, stages: Stages) -> None:
    """Run the stages with a heartbeat that keeps the ledger on disk, and write how they ended to status.json."""
    run = session.run
    heartbeat = Heartbeat(session.clock, run.ledger, session.console.warn)
    try:
        restore_spent_budget(session)
        heartbeat.start()
        set_status(session, "running", "")
        stages(session)
    except Interrupted as stop:
        set_status(session, "stopped", stop.name)
        session.console.say(f"stopped by {stop.name}; type the same command to resume with the budget that is left")
        sys.exit(stop.exit_status)
    except Diverged as error:
        raise MachineError(f"diverged: {error}; lower optim.learning_rate, then fresh=true") from None
    except UserError as error:
        set_status(session, "failed", str(error))
        if run.created:
            heartbeat.close()
            run.discard()
        raise
    except BaseException as error:
        set_status(session, "failed", f"{type(error).__name__}: {error}")
        if out_of_memory(error):
            raise MachineError(
                f"out of memory ({' '.join(str(error).split())}); every checkpoint is kept; free memory that other"
                " processes use, then type the same command"
            ) from None
        raise
    finally:
        session.dashboard.finish()
        if run.folder.exists():
            heartbeat.close()
