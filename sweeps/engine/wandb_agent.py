"""Convert a Hydra sweep to a file for `wandb sweep`, so that wandb agents on several machines run its jobs.

    python -m sweeps.engine.wandb_agent seeds budget.hours=0.05 > agents.yaml
    wandb sweep agents.yaml

A job is the same run, in the same folder, as in the Hydra sweep. Whichever starts it second finds it finished.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sweeps.engine.hydra_callback  # noqa: F401 (registers the resolvers of sweeps/*.yaml)
from cli.compose import as_user_error, register_schemas
from common.errors import UserError, reported
from common.typed import closest
from config import CONF
from sweeps.engine.scored_text import BITS_PER_BYTE, changes_tokenizer
from sweeps.engine.table import HIGHER_IS_BETTER

SWEEPS = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: the name of a sweep, then overrides as for train.py. A user error has exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.engine.wandb_agent", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="the sweep: sweeps/NAME.yaml")
    text = "as for train.py; KEY=VALUE,VALUE,... is swept"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    options = parser.parse_args(arguments)
    with reported():
        print(yaml.safe_dump(agent_file(options.name, options.overrides), sort_keys=False), end="")


def agent_file(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The content of the file that `wandb sweep` reads: the swept options under their own names, and the command of a job.

    Raises UserError for an unknown sweep, for an override that cannot be read, and if no option has several values.
    """
    known = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"sweep {name} is not known; allowed: {', '.join(known)}{closest(name, known)}")
    config = compose_sweep(name, single_values(parse_values(overrides)))
    params = [f"{key}={value}" for key, value in (config["hydra"]["sweeper"].get("params") or {}).items()]
    values_of = parse_values([*params, *overrides])
    swept = {key: values for key, values in values_of.items() if len(values) > 1}
    parameters = {key: {"values": [parse_scalar(value) for value in values]} for key, values in swept.items()}
    if not parameters:
        raise UserError(f"sweep {name} sweeps nothing; give an option several values, e.g. seed=1,2,3")
    metric = BITS_PER_BYTE if any(map(changes_tokenizer, swept)) else config["sweep"]["metric"]
    # A single job; online, so that wandb learns that it has run.
    given = ["hydra.mode=RUN", "wandb.mode=online", *single_values(values_of)]
    file = {
        "program": "train.py",
        "name": name,
        "project": config["wandb"]["project"],
        "entity": config["wandb"]["entity"],
        "method": "grid",
        "metric": {
            "name": f"eval_{metric}",
            "goal": "maximize" if metric in HIGHER_IS_BETTER else "minimize",
        },
        "parameters": parameters,
        "command": ["${env}", "python", "train.py", "-cd", "sweeps", "-cn", name, *given, "${args_no_hyphens}"],
    }
    return {key: value for key, value in file.items() if value is not None}


def parse_values(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option, in Hydra's spelling. The last override of an option counts.

    Raises UserError for an override that is neither a value nor a list of values."""
    values: dict[str, list[str]] = {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            key = override.get_key_element()
            if not override.is_sweep_override():
                values[key] = [override.get_value_element_as_str()]
            elif override.is_discrete_sweep():
                values[key] = [str(value) for value in override.sweep_string_iterator()]
            else:
                raise UserError(f"{text!r} is a range without steps; an agent needs a list: {key}=VALUE,VALUE,...")
        except HydraException as error:
            raise UserError(f"{text!r} cannot be read as KEY=VALUE: {' '.join(str(error).split())}") from None
    return values


def single_values(values_of: dict[str, list[str]]) -> list[str]:
    """The options that have one value, as overrides."""
    return [f"{key}={values[0]}" for key, values in values_of.items() if len(values) == 1]


def parse_scalar(text: str) -> Any:
    """A number or boolean as a Python value, so that wandb draws it on an axis; anything else in Hydra's spelling."""
    value = OverridesParser.create().parse_override(f"x={text}").value()
    return value if isinstance(value, bool | int | float) else text


def compose_sweep(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The groups hydra, wandb and sweep of the sweep's configuration, resolved. Raises UserError if Hydra rejects it."""
    register_schemas()
    folder = "'file://{}'".format(str(CONF).replace("'", "\\'"))  # quoted, as the checkout may be at any path
    try:
        with initialize_config_dir(str(SWEEPS), version_base="1.3"), tempfile.TemporaryDirectory() as empty:
            # In an empty folder, ${plan_relative:} does not take the values of an earlier sweep with this name.
            search = [f"hydra.searchpath=[{folder}]", f"hydra.sweep.dir='{empty}'"]
            config = compose(name, [*search, *overrides], return_hydra_config=True)
            swept = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
            wandb, sweep = (OmegaConf.to_container(config[group], resolve=True) for group in ("wandb", "sweep"))
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from None
    return {"hydra": {"sweeper": swept}, "wandb": wandb, "sweep": sweep}


if __name__ == "__main__":
    main()
