"""Selects what wandb gets of a run: its options under their names on the command line, and its summary figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.json_io import is_number, mapping
from common.redaction import is_secret

PLAN_FIELDS = (
    "n_layer", "n_head", "n_embd", "block_size", "bigram_rows", "parameters", "tokens", "steps", "batch_tokens",
    "optimizer", "learning_rate", "weight_decay", "warmup", "beta2", "dropout",
)  # fmt: skip


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, the names of the command line."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, Path) else value
    return flat


def public_config(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened config without the entries that are secret by their names."""
    return {key: value for key, value in flatten(nested).items() if not any(map(is_secret, key.split(".")))}


def wandb_name(name: str) -> str:
    """A dotted name as wandb accepts it: "eval.loss" -> "eval_loss".

    wandb sorts and filters only by names of letters, digits and underscores (docs.wandb.ai, "Metric naming constraints").
    """
    return re.sub(r"\W", "_", name)


def figures(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{"eval": {"loss": 3.5}} -> {"eval_loss": 3.5}, without empty values."""
    return {wandb_name(key): value for key, value in flatten(nested).items() if value not in (None, {})}


def wandb_config(config: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run on wandb: every option, and under `planned` the values in the plan."""
    planned = {name: plan[name] for name in PLAN_FIELDS if name in plan}
    return {**config, "planned": planned | mapping(plan.get("block"))}


def wandb_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The wandb summary of a run: its scores, ledger, spent budget and plan, with the names of result.json.

    `off_plan` holds the relative difference between the actual and the planned values: actual / planned - 1.
    """
    scores, spent, plan = (mapping(result.get(name)) for name in ("eval", "spent", "plan"))
    budget, rates = mapping(result.get("budget")), mapping(result.get("throughput"))
    hours = budget.get("hours")
    pairs = {
        "tokens": (plan.get("predicted_tokens"), spent.get("tokens")),
        "tokens_per_second": (plan.get("predicted_tokens_per_second"), rates.get("tokens_per_second")),
        "loss": (plan.get("predicted_loss"), scores.get("loss")),
        "hours": (hours and hours + (result.get("extended_hours") or 0.0), spent.get("hours")),
    }
    tasks = {name: mapping(task) for name, task in mapping(result.get("tasks")).items()}
    whole = ("status", "stopped_by", "eval", "spent", "ledger_s", "throughput", "budget")
    return {
        **{name: result[name] for name in whole if result.get(name) is not None},
        "tasks": {
            name: {key: value for key, value in task.items() if is_number(value)} for name, task in tasks.items()
        },
        "mix": mapping(mapping(result.get("data")).get("mix")),
        "model": {"parameters": mapping(result.get("model")).get("parameters")},
        "plan": {name: value for name, value in plan.items() if is_number(value)},
        "why_off_plan": "; ".join(plan.get("why_off") or ()) or None,
        "off_plan": {
            name: actual / planned - 1 for name, (planned, actual) in pairs.items() if planned and is_number(actual)
        },
    }
