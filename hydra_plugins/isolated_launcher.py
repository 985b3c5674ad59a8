"""Hydra's side of a sweep: turns what the sweeper asks for into jobs of `sweeps.engine.scheduler`. Hydra finds plugins in this folder.

The class must stay importable by its name, and cheap to import: Hydra imports every plugin at every start.
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
    """What became of a job; unlike Hydra's own, it says nothing on its own account when it failed."""

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
    """Every job is a fresh process with a device of its own. Scripts without sweeps of their own run as Hydra's basic
    launcher runs them."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        task = self.task_function
        if not getattr(task, "isolated", False):
            return super().launch(job_overrides, initial_job_idx)
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.utils import filter_overrides, setup_globals

        from cli.compose import checked_config
        from sweeps.engine.job import job_of
        from sweeps.engine.pruning import run_all

        setup_globals()
        assert self.hydra_context is not None and self.config is not None and task is not None
        sweep_dir, composed = self.config.hydra.sweep.dir, []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            one = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            HydraConfig.instance().set_config(one)
            composed.append(job_of(checked_config(one), number, list(filter_overrides(overrides)), sweep_dir))
        results = []
        for overrides, value in zip(job_overrides, run_all(composed), strict=True):
            result = Result(overrides=list(overrides))
            result.return_value = value
            results.append(result)
        return results
