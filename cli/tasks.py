"""Resolves the names in tasks= and eval.tasks=: each is a task preset, NAME:PATH, or lm_eval:NAME."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from cli.validate import value_problems
from common.typed import closest
from config import TaskConfig

LM_EVAL = "lm_eval"  # in lm_eval:NAME, the name of a task of lm-evaluation-harness follows, not a path


class NotATask(Exception):
    """A mistake in tasks=, as one line."""


def resolve_tasks(options: Any, common: TaskConfig, option: str) -> list[str]:
    """Replace `options.tasks`, a list of names or a mapping, by a mapping from names to options of the tasks.

    `option` is its name in messages. Returns the problems, one line each.

    Later ones win: the preset, the options task.*, the entry's own options or path. Resolving an entry again changes nothing,
    because the configuration of a run holds the resolved tasks.
    """
    if options.tasks is None:
        return []
    try:
        options.tasks = as_entries(options.tasks)
    except NotATask as error:
        return [f"{option}: {error}"]
    problems = []
    everywhere = {leaf.name: getattr(common, leaf.name) for leaf in fields(TaskConfig)}
    everywhere = {name: value for name, value in everywhere.items() if value is not None}
    for name, own in options.tasks.items():
        try:
            options.tasks[name] = _resolved(name, own or {}, everywhere)
        except NotATask as error:
            problems.append(f"{option}: {error}")
    return problems


def as_entries(given: Any) -> dict[str, Any]:
    """A mapping from names to options, from such a mapping, one name, or a list of NAME and NAME:PATH."""
    if isinstance(given, dict):
        if bad := [name for name, own in given.items() if not (own is None or isinstance(own, dict))]:
            raise NotATask(f"{bad[0]}: {given[bad[0]]!r} is not a mapping of options task.*")
        return {str(name): own for name, own in given.items()}
    entries: dict[str, Any] = {}
    for each in given if isinstance(given, list) else [given]:
        if not isinstance(each, str) or not each.strip():
            raise NotATask(f"{each!r} is not the name of a task; write e.g. [blimp,quiz:FILE]")
        name, _, argument = each.partition(":")
        name, own = (each, {}) if name == LM_EVAL else (name, {"path": argument} if argument else {})
        if name in entries:
            raise NotATask(f"{name} is given twice; give each a name: {{first: {{kind: ..., path: ...}}, second: ...}}")
        entries[name] = own
    return entries


def _resolved(name: str, own: dict[str, Any], everywhere: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    preset = {"kind": LM_EVAL} if name.startswith(f"{LM_EVAL}:") else {} if "kind" in own else _preset(name)
    given: dict[Any, Any] = {**preset, **everywhere, **own}  # an option is replaced as a whole: labels are not added up
    options = [leaf.name for leaf in fields(TaskConfig)]
    if unknown := [key for key in given if key not in options]:
        raise NotATask(
            f"{name}: {unknown[0]} is not an option of tasks{closest(unknown[0], options)}; `--help task` lists them"
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TaskConfig), given)
        typed: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
        problems = value_problems(TaskConfig(**typed))
    except (OmegaConfBaseException, ValueError) as error:
        raise NotATask(f"the options of {name} are not valid: {str(error).splitlines()[0]}") from None
    if problems := [
        line for line in problems if line.partition("=")[0] not in everywhere
    ]:  # those are reported as options task.*
        raise NotATask(f"{name}: {problems[0]}")
    if typed["kind"] is None:
        raise NotATask(f"{name} has no kind; add one to its preset, e.g. kind: multiple_choice")
    if typed["path"] is not None and (Path(typed["path"]).expanduser() / name).is_dir():
        typed["path"] = str(Path(typed["path"]) / name)
    return {key: value for key, value in typed.items() if value is not None}


def _preset(name: str) -> dict[str, Any]:
    """The options of a preset. Hydra's own reader is used, because the user's folder may be a package (`pkg://`)."""
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    repository = ConfigRepository(GlobalHydra.instance().config_loader().get_search_path())
    presets = repository.get_group_options("task")
    if name not in presets:
        raise NotATask(
            f"{name!r} is not a task; allowed: {', '.join(presets)}, {LM_EVAL}:NAME, or a mapping with kind"
            f"{closest(name, presets)}"
        )
    try:
        loaded = repository.load_config(f"task/{name}")
        assert loaded is not None
        own: dict[str, Any] = OmegaConf.to_container(loaded.config, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise NotATask(f"the preset task/{name}.yaml cannot be read: {' '.join(str(error).split())}") from None
    if loaded.defaults_list:
        raise NotATask(f"the preset task/{name}.yaml has a defaults list; write its values into the preset itself")
    if not isinstance(own, dict):
        raise NotATask(f"the preset task/{name}.yaml is not a mapping of options task.*")
    return own
