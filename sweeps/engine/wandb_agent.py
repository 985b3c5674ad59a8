"""A Hydra sweep as a file for `wandb sweep`, so that wandb's agents, on as many machines as there are, run its jobs:

    python -m sweeps.engine.wandb_agent seeds budget.hours=0.05 > agents.yaml
    wandb sweep agents.yaml

A job is the same run as in the Hydra sweep, in the folder of the same name: whoever comes second finds it finished.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cli.compose import as_user_error, register_schemas
from common.errors import UserError, reported
from config import CONF, closest
from sweeps.engine.table import HIGHER_IS_BETTER

SWEEPS = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: the name of a sweep, then overrides as train.py takes them. Exit status 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.engine.wandb_agent", description=__doc__.split(":")[0])
    parser.add_argument("name", help="the sweep: sweeps/NAME.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py; with commas it is swept")
    options = parser.parse_args(arguments)
    with reported():
        print(yaml.safe_dump(sweep_file(options.name, options.overrides), sort_keys=False), end="")


def sweep_file(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What `wandb sweep` reads: the knobs that are swept, under their own names, and the command of a job.

    Raises UserError for a sweep that does not exist, an override that cannot be read, or nothing to sweep.
    """
    known = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"sweep {name} is not known; allowed: {', '.join(known)}{closest(name, known)}")
    config = composed(name, [f"{key}={values[0]}" for key, values in choices(overrides).items() if len(values) == 1])
    params = [f"{key}={value}" for key, value in (config["hydra"]["sweeper"].get("params") or {}).items()]
    told = choices([*params, *overrides])
    fixed = [f"{key}={values[0]}" for key, values in told.items() if len(values) == 1]
    parameters = {key: {"values": list(map(plain, values))} for key, values in told.items() if len(values) > 1}
    if not parameters:
        raise UserError(f"sweep {name} sweeps nothing; give an option several values, e.g. seed=1,2,3")
    mode = ["hydra.mode=RUN", "wandb.mode=online"]  # one job; wandb counts it as run when it hears of it
    file = {
        "program": "train.py",
        "name": name,
        "project": config["wandb"]["project"],
        "entity": config["wandb"]["entity"],
        "method": "grid",
        "metric": {
            "name": f"eval_{config['sweep']['metric']}",
            "goal": "maximize" if config["sweep"]["metric"] in HIGHER_IS_BETTER else "minimize",
        },
        "parameters": parameters,
        "command": ["${env}", "python", "train.py", "-cd", "sweeps", "-cn", name, *mode, *fixed, "${args_no_hyphens}"],
    }
    return {key: value for key, value in file.items() if value is not None}


def choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The values of each knob, in Hydra's spelling; the last override of a knob counts. Raises UserError for one that is
    neither a value nor a list of values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: dict[str, list[str]] = {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            key = override.get_key_element()
            if not override.is_sweep_override():
                found[key] = [override.get_value_element_as_str()]
            elif override.is_discrete_sweep():
                found[key] = [str(value) for value in override.sweep_string_iterator()]
            else:
                raise UserError(f"{text!r} is a range without steps; an agent takes a list: {key}=VALUE,VALUE,...")
        except HydraException as error:
            raise UserError(f"{text!r} cannot be read as KEY=VALUE: {' '.join(str(error).split())}") from None
    return found


def plain(text: str) -> Any:
    """A number or truth value as itself, so that wandb draws it on an axis; anything else in Hydra's spelling."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(f"x={text}").value()
    return value if isinstance(value, bool | int | float) else text


def composed(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The sweep's configuration with Hydra's own part, resolved. Raises UserError where Hydra refuses it."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    importlib.import_module("sweeps.engine.hydra_callback")  # the resolvers of the sweeps' files
    register_schemas()
    folder = "'file://{}'".format(str(CONF).replace("'", "\\'"))  # in quotes: the checkout may lie at any path
    try:
        with initialize_config_dir(str(SWEEPS), version_base="1.3"), tempfile.TemporaryDirectory() as nowhere:
            # What an earlier sweep of that name chose around its budget is not for this one.
            ours = [f"hydra.searchpath=[{folder}]", f"hydra.sweep.dir='{nowhere}'"]
            config = compose(name, [*ours, *overrides], return_hydra_config=True)
            swept = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
            wandb, sweep = (OmegaConf.to_container(config[group], resolve=True) for group in ("wandb", "sweep"))
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from None
    return {"hydra": {"sweeper": swept}, "wandb": wandb, "sweep": sweep}


if __name__ == "__main__":
    main()
