"""From the command line to a checked configuration, and from a failure to one line: the only file that knows Hydra.

Four parts, each of which uses only those before it: composed configurations, checks of the command line, help pages, launch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cli.compose import as_user_error, options_of, register_schemas
from cli.help import asked_for_help, help_page
from cli.overrides import check_command_line
from common.errors import MachineError, reported
from common.signals import Interrupted
from config import CONF, SCRIPTS, Config

# -- launch ------------------------------------------------------------------------------------------------------------

# How many turns GNU's OpenMP runtime, torch's on Linux, spins before a waiting thread sleeps. Its default makes a step several
# times as long once another process is busy; 0 costs a third on an idle machine. 3000 turns, about 10 microseconds, come near
# the better of the two in both cases (docs/performance.md). Read when the runtime is loaded.
BEFORE_TORCH = {"GOMP_SPINCOUNT": "3000"}


@dataclass(frozen=True)
class SweepFunctions:
    """What a script that sweeps hands to `launch`; functions of modules, as launchers pickle them.

    run_job(configuration, number, overrides, folder of the sweep): run one job in a process of its own, for launchers that
    are not stint's; returns the sweep's metric. conclude(): write what is known about the sweep that this process started,
    if it did, whatever it ended with.
    """

    run_job: Callable[[Any, int, list[str], str], float | None]
    conclude: Callable[[], None]


def launch(task: Callable[[Any], None], script: str, sweep: SweepFunctions | None = None) -> None:
    """Run `task(config)` under Hydra with the options of `script` (a key of SCRIPTS) from the command line.

    sweep: in a multirun, every job is a process of its own, started by these functions. Mistakes of the user's end with
    status 2, faults of the machine with status 1, each in one line on standard error.
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
    """End the process with everything said, without taking the interpreter apart: that costs up to a second, and a thread
    of torch.distributed that is still alive then aborts the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Task:
    """What Hydra calls with a composed configuration. Pickled by launchers that start processes of their own, it leaves the
    script's function behind: there a job is a process of train.py."""

    def __init__(self, function: Callable[[Any], None] | None, script: str, sweep: SweepFunctions | None) -> None:
        self.function, self.script, self.sweep = function, script, sweep

    @property
    def isolated(self) -> bool:
        """Whether every job of a sweep is a process of its own."""
        return self.sweep is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (None, self.script, self.sweep)

    def __call__(self, composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        if self.sweep is not None and hydra.mode == RunMode.MULTIRUN:
            job = int(hydra.job.num), list(hydra.overrides.task), str(hydra.sweep.dir)
            return self.sweep.run_job(options_of(composed), *job)
        assert self.function is not None
        with reported():  # inside Hydra, which would put a report of its own around any exception
            config = options_of(composed)
            if isinstance(config, Config):
                label_as_job(config)
            self.function(config)
        return None


def _launch(task: Task) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing a trace and exiting with status 1
    check_command_line(task.script)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=task.script)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from None
    except ValueError as error:
        if "No trials are completed" not in str(error):  # what Optuna says, once it has tried them all
            raise
        raise MachineError("no trial of the study has finished; the table says why") from None
    except Interrupted as stop:
        print(f"sweep   stopped by {stop.name}; the same command goes on with what is left", flush=True)
        sys.exit(stop.exit_status)
    finally:
        if task.sweep is not None:
            task.sweep.conclude()


def label_as_job(config: Config) -> None:
    """Let wandb know a job of a sweep that an agent of its own starts (-cn NAME hydra.mode=RUN) by its name as its
    group, and by tags: that name and what the job was told. Where a group is given, by the user or the sweep, it stays."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.job.config_name in SCRIPTS or config.wandb.group:
        return
    told = [text for text in hydra.overrides.task if not text.startswith(("wandb.", "output"))]
    config.wandb.group = config.name
    config.wandb.tags = list(dict.fromkeys([*config.wandb.tags, config.name, *told]))
