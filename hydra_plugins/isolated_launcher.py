"""The default Hydra launcher of sweeps: runs the sweeper's jobs with `sweeps.engine`. Hydra finds plugins in this folder.

The class must stay importable by its name and cheap to import, because Hydra imports every plugin at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

TARGET = {"_target_": "hydra_plugins.isolated_launcher.IsolatedLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=TARGET, provider="stint")


class Result(JobReturn):
    """The result of a job. Unlike Hydra's JobReturn, it logs nothing when the job has failed."""

    @property
    def return_value(self) -> Any:
        if isinstance(self._return_value, Exception):
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value
        self.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED


class IsolatedLauncher(BasicLauncher):
    """Runs every job of train.py in a new process on a device of its own; other scripts use Hydra's basic launcher."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        task = self.task_function
        if not getattr(task, "isolated", False):
            return [
                _result(job.overrides or (), job._return_value)
                for job in super().launch(job_overrides, initial_job_idx)
            ]
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.utils import filter_overrides, setup_globals

        from cli.compose import checked_config
        from sweeps.engine.job import make_job
        from sweeps.engine.pruning import run_all

        setup_globals()
        assert self.hydra_context is not None and self.config is not None and task is not None
        sweep_dir, jobs = self.config.hydra.sweep.dir, []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            HydraConfig.instance().set_config(config)
            jobs.append(make_job(checked_config(config), number, list(filter_overrides(overrides)), sweep_dir))
        return [_result(overrides, value) for overrides, value in zip(job_overrides, run_all(jobs), strict=True)]


def _result(overrides: Sequence[str], value: Any) -> Result:
    result = Result(overrides=list(overrides))
    result.return_value = value
    return result
