from __future__ import annotations

from pathlib import Path

import pytest

from run.tracking.fields import figures, flatten, public_config, wandb_config, wandb_summary


def test_flatten_uses_the_names_of_the_command_line() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": Path("x"), "f": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, 2], "e": "x", "f": {}}


def test_secrets_are_left_out() -> None:
    secret = {"api_key": 1, "hf_token": 1, "password": 1, "aws-secret": 1, "credentials": {"user": 1}, "apikey": 1}
    plain = {"tokens": 1, "tokenizer": 1, "batch_tokens": 1, "keys": 1, "max_tokens": 1}
    assert public_config({**secret, **plain, "deep": {"token": 1, "ok": 2}}) == {**plain, "deep.ok": 2}


def test_figures_have_names_that_wandb_can_sort_by() -> None:
    assert figures({"eval": {"loss": 3.5, "by source": {"C4-en": 1}}, "none": None}) == {
        "eval_loss": 3.5,
        "eval_by_source_C4_en": 1,
    }


def test_options_keep_their_names_and_the_plan_has_its_own() -> None:
    plan = {"n_layer": 8, "curve": [], "block": {"norm": "layernorm"}}
    shown = public_config(wandb_config({"model": {"n_layer": None}, "plan": {"max_epochs": 4}}, plan))
    assert shown == {"model.n_layer": None, "plan.max_epochs": 4, "planned.n_layer": 8, "planned.norm": "layernorm"}


def test_summary_has_the_deviation_from_the_plan() -> None:
    result = {
        "budget": {"hours": 1.0},
        "extended_hours": 1.0,
        "spent": {"hours": 1.9, "tokens": 110},
        "throughput": {"tokens_per_second": 30.0, "mfu": 0.4},
        "eval": {"loss": 3.3},
        "plan": {"predicted_tokens": 100, "predicted_tokens_per_second": 40.0, "predicted_loss": 3.0, "law": "x"},
    }
    shown = wandb_summary(result)
    assert shown["off_plan"] == pytest.approx({"tokens": 0.1, "tokens_per_second": -0.25, "loss": 0.1, "hours": -0.05})
    assert shown["plan"] == {"predicted_tokens": 100, "predicted_tokens_per_second": 40.0, "predicted_loss": 3.0}


def test_summary_has_the_sources_of_a_mix() -> None:
    result = {"data": {"train_tokens": 5, "mix": {"texts/code": {"weight": 0.2, "epochs": 1.5}}}}
    assert figures(wandb_summary(result)) == {"mix_texts_code_weight": 0.2, "mix_texts_code_epochs": 1.5}


def test_summary_of_a_run_without_a_result_or_a_plan() -> None:
    assert figures(wandb_summary({})) == {}
    diverged = wandb_summary(
        {"status": "diverged", "eval": None, "plan": {"predicted_tokens": 5}, "spent": {"tokens": None}}
    )
    assert figures(diverged) == {"status": "diverged", "plan_predicted_tokens": 5}
