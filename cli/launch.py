"""Starts a script: checks the command line, lets Hydra compose the configuration, and reports errors in one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cli.compose import as_user_error, checked_config, register_schemas
from cli.help import asked_for_help, help_page
from cli.overrides import check_command_line, readable, refuse_secrets
from common.errors import MachineError, UserError, reported
from common.signals import Interrupted
from config import CONF, SCRIPTS, Config

# Iterations that a waiting thread of GNU's OpenMP runtime (torch's on Linux) spins before it sleeps. The default slows steps
# down several times on a busy machine, 0 costs a third on an idle one; 3000, about 10 microseconds, is close to the better of
# both (docs/performance.md). The runtime reads the variable when it is loaded.
BEFORE_TORCH = {"GOMP_SPINCOUNT": "3000"}

STORAGES = (
    "sqlalchemy",
    "sqlite3",
    "alembic",
)  # the packages of Optuna's storage, whose exceptions have no common class


@dataclass(frozen=True)
class SweepFunctions:
    """The functions that `launch` calls for a sweep. They must be module-level functions, because launchers pickle them.

    Attributes:
        run_job: Called with (composed configuration, job number, overrides, folder of the sweep) by launchers other than stint's
            own. Runs the job and returns the sweep's metric.
        conclude: Writes the results of the sweep that this process started, if any, however it ended.
        isolated: Whether each job runs in a process of its own. Otherwise all jobs run in this process, one after the other.
    """

    run_job: Callable[[Any, int, list[str], str], float | None]
    conclude: Callable[[], None]
    isolated: bool = True


def launch(task: Callable[[Any], Any], script: str, sweep: SweepFunctions | None = None) -> None:
    """Run `task(config)` under Hydra with the options of `script` (a key of SCRIPTS) from the command line.

    With `sweep`, the jobs of a multirun are run by these functions. User errors end with exit status 2 and machine errors with
    1, each with one line on standard error.
    """
    if asked_for_help(sys.argv[1:]):
        with reported():
            print(help_page(script, Path(sys.argv[0]).name, sys.argv[1:]))
        return
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    with reported():
        _launch(Task(task, script, sweep))


def leave(status: int = 0) -> NoReturn:
    """Flush the output and end the process without shutting down the interpreter.

    The shutdown takes up to a second, and a live thread of torch.distributed would abort the process during it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Task:
    """The callable that Hydra calls with a composed configuration.

    Some launchers pickle it. The pickle leaves out the script's function, because their jobs run as processes of train.py.
    """

    def __init__(self, function: Callable[[Any], Any] | None, script: str, sweep: SweepFunctions | None) -> None:
        self.function, self.script, self.sweep = function, script, sweep

    @property
    def isolated(self) -> bool:
        """Whether each job of a sweep runs in a process of its own."""
        return self.sweep is not None and self.sweep.isolated

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (None, self.script, self.sweep)

    def __call__(self, composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        if self.sweep is not None and hydra.mode == RunMode.MULTIRUN:
            job = int(hydra.job.num), list(hydra.overrides.task), str(hydra.sweep.dir)
            return self.sweep.run_job(composed, *job)
        assert self.function is not None
        with reported():  # inside Hydra, which would print its own report of an exception
            config = checked_config(composed)
            if isinstance(config, Config):
                label_as_job(config)
            self.function(config)
        return None


def _launch(task: Task) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print a traceback and exit with status 1
    refuse_secrets()
    sys.argv[1:] = readable(task.script, sys.argv[1:])
    check_command_line(task.script)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=task.script)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from None
    except ValueError as error:
        if "No trials are completed" not in str(error):  # Optuna's message once every trial has failed
            raise
        raise MachineError("no trial of the study has finished; the table shows why") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in STORAGES:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"hydra.sweeper.storage cannot be used: {reason}; give e.g. hydra.sweeper.storage=sqlite:///study.db"
        ) from None
    except Interrupted as stop:
        print(f"sweep   stopped by {stop.name}; run the same command again to continue", flush=True)
        sys.exit(stop.exit_status)
    finally:
        if task.sweep is not None:
            task.sweep.conclude()


def label_as_job(config: Config) -> None:
    """Set the wandb group and tags of a sweep's job that a wandb agent starts (-cn NAME hydra.mode=RUN).

    The group is the job's name; the tags are that name and the job's overrides. A group that is already set is kept.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.job.config_name in SCRIPTS or config.wandb.group:
        return
    overrides = [text for text in hydra.overrides.task if not text.startswith(("wandb.", "output"))]
    config.wandb.group = config.name
    config.wandb.tags = list(dict.fromkeys([*config.wandb.tags, config.name, *overrides]))
