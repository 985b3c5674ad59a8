"""Checks that a Hydra plugin is installed in a version that works, and names the pip command if it is not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from cli.groups import config_folders
from common.errors import UserError
from common.typed import closest

# Optuna's storage needs SQLAlchemy 1: the sweeper needs Optuna 2, which cannot read its tables with SQLAlchemy 2.
SQLALCHEMY = "'SQLAlchemy<2'"
OPTUNA = ("hydra_plugins.hydra_optuna_sweeper", f"hydra-optuna-sweeper==1.3.0 {SQLALCHEMY}")
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher==1.2.0")
# By group and choice: the module that the choice needs, and what to give to pip. The versions are those of
# requirements-dev.lock.
PLUGINS = {
    "hydra/sweeper": {"optuna": OPTUNA, "tpe": OPTUNA},
    "hydra/launcher": {
        "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher==1.2.0"),
        "slurm": SUBMITIT,
        "submitit_slurm": SUBMITIT,
        "submitit_local": SUBMITIT,
    },
}
BUILT_IN = {"hydra/sweeper": ("basic",), "hydra/launcher": ("isolated", "basic")}


def plugin_problem(group: str, choice: str) -> str | None:
    """The problem with a sweeper or launcher whose plugin is missing or not known, or None."""
    if choice in PLUGINS[group]:
        module, packages = PLUGINS[group][choice]
        if _is_importable(module):
            return None
        return f"{group}={choice} needs a plugin that is not installed: pip install {packages}"
    own = any((folder / group / f"{choice}.yaml").exists() for folder in config_folders())
    if own or choice in BUILT_IN[group] or _is_registered(group, choice):
        return None
    allowed = (*BUILT_IN[group], *PLUGINS[group])
    return (
        f"{group}={choice} is not known; allowed: {', '.join(allowed)}{closest(choice, allowed)}; any other needs its"
        " plugin, installed by pip"
    )


def require_storage() -> None:
    """Raise UserError if the installed SQLAlchemy cannot hold Optuna's study (hydra.sweeper.storage)."""
    try:
        installed = version("SQLAlchemy")
    except PackageNotFoundError:
        installed = "none"
    if not installed.startswith("1."):
        raise UserError(
            f"hydra.sweeper.storage does not work with this Optuna and SQLAlchemy {installed}: pip install {SQLALCHEMY}, or"
            " leave it out (the same command continues a sweep without it)"
        )


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_registered(group: str, choice: str) -> bool:
    """Whether an installed plugin offers this choice."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports the plugins, which register their choices
    return f"{choice}.yaml" in ConfigStore.instance().list(group)
