"""Resolves the names in data.mix: each is a data preset, or else a path of text."""

from __future__ import annotations

import glob
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.validate import find_problems
from common.typed import closest
from config import LARGEST_MIX, MIX_WIDE, RUN_WIDE, Config, DataConfig, leaves, mixed_sources

SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-9, 1e9  # far beyond any use; their ratios are exact enough in float64


class NotAMix(Exception):
    """A mistake in data.mix, as one line."""


def resolve_mix(config: Config) -> list[str]:
    """Replace each entry of data.mix by {"weight": ..., and the options of data.* that its preset or path stands for}.

    An entry may also be such a mapping. Without `source`, it adds to the options that its name stands for; with `source`, the
    name is free. Resolving an entry again changes nothing, because the file of a sweep's job holds the resolved mix. Sets
    data.source=mix. Returns the problems, one line each.
    """
    data = config.data
    if not data.mix:
        return ["data.source=mix needs data.mix={NAME: WEIGHT, ...}"] if data.source == "mix" else []
    if len(data.mix) > LARGEST_MIX:
        return [f"data.mix names {len(data.mix)} sources; allowed: at most {LARGEST_MIX}"]
    data.source = "mix"
    problems = _ignored(data)
    for name, given in data.mix.items():
        try:
            data.mix[name] = _resolved(name, given)
        except NotAMix as error:
            problems.append(f"data.mix: {error}")
    return problems or _problems_of_sources(config)


def _resolved(name: str, given: Any) -> dict[str, Any]:
    weight = given.get("weight") if isinstance(given, dict) else given
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise NotAMix(f"the weight of {name!r} is {weight!r}; allowed: a positive number")
    if not SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:
        raise NotAMix(
            f"the weight of {name!r} is {weight:g}; allowed: a positive number, {SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
        )
    given = given if isinstance(given, dict) else {}
    named = {} if "source" in given else _options(name)
    own = named | {key: value for key, value in given.items() if key != "weight"}
    return {"weight": float(weight), **_checked(name, own)}


def _options(name: str) -> dict[str, Any]:
    """The options that a name stands for: those of the preset, or the path."""
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    repository = ConfigRepository(GlobalHydra.instance().config_loader().get_search_path())
    presets = [preset for preset in repository.get_group_options("data") if preset != "mix"]
    if not name.strip() or not name.isprintable():
        raise NotAMix(f"the name {name!r} is empty or not printable; put the path into a data preset, and name that")
    if name in presets:
        loaded = repository.load_config(f"data/{name}")
        assert loaded is not None
        if loaded.defaults_list:
            raise NotAMix(f"the preset {name} has a defaults list; write its values into the preset itself")
        own: dict[str, Any] = OmegaConf.to_container(loaded.config, resolve=True)  # type: ignore[assignment]
        return {key: value for key, value in own.items() if key not in RUN_WIDE}
    if glob.has_magic(name) or _exists(name):
        return {"source": "text", "path": name}
    raise NotAMix(
        f"{name!r} is neither a data preset ({', '.join(presets)}) nor the path of a file, folder or glob that exists"
        f"{closest(name, presets)}"
    )


def _exists(path: str) -> bool:
    with suppress(OSError, RuntimeError, ValueError):  # too long a name, an unknown home folder, or NUL
        return Path(path).expanduser().exists()
    return False


def _checked(name: str, own: dict[str, Any]) -> dict[str, Any]:
    """The options of a source, of the declared types."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        typed: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(DataConfig), own))  # type: ignore[assignment]
    except (OmegaConfBaseException, ValueError) as error:
        raise NotAMix(f"the options of {name!r} are not valid: {str(error).splitlines()[0]}") from None
    if misplaced := [key for key in own if key in RUN_WIDE or key == "mix"]:
        raise NotAMix(
            f"the options of {name!r} set {misplaced[0]}, which is one for the whole mix; set data.{misplaced[0]}="
        )
    return {key: typed[key] for key in ("source", *own)}


def _ignored(data: DataConfig) -> list[str]:
    """A line if options are set that describe one corpus."""
    ours = (*MIX_WIDE, *RUN_WIDE, "source", "mix")
    defaults = {name: value for name, _, value in leaves(DataConfig())}
    given = [name for name, _, value in leaves(data) if name not in ours and value != defaults[name]]
    if not given:
        return []
    options = ", ".join(f"data.{name}={getattr(data, name)}" for name in given)
    return [
        f"data.mix does not use {options}; leave out the option, or the preset that sets it (data=mix sets none), and name the"
        " corpus in data.mix"
    ]


def _problems_of_sources(config: Config) -> list[str]:
    """What is wrong with the options of single sources, and not with those of the run."""
    known = find_problems(config)
    return [
        f"data.mix: {name!r}: {line}"
        for name, data in mixed_sources(config.data).items()
        for line in find_problems(replace(config, data=data))
        if line.startswith("data.") and line not in known
    ]
