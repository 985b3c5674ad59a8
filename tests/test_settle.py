"""The one correction of a run, and what its record says of the plan."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from budget.clock import Limits
from budget.laws import LAWS
from budget.planner import Plan, Request, make_plan
from budget.rules import batch_for
from model.shape import PRESETS, Shape
from settle import why_off
from tests.conftest import command, folder_of, train
from tests.test_train import points, result_of

# The batch and the rates are free, and the assumed speed is far from true: 100 % of a peak many times the real one.
WRONG = (
    "optim.batch_tokens=null", "optim.learning_rate=null", "optim.weight_decay=null", "mfu=1.0",
    "device.peak_flops=1e12", "budget.hours=0.005", "eval.every=0", "samples.prompts=[]",
)  # fmt: skip


def test_a_wrong_plan_is_corrected_once_also_across_a_resume(place: Path) -> None:
    with subprocess.Popen(command(place, *WRONG, name="wrong"), cwd=place, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = list((place / "outputs").glob("wrong-*/log.txt"))
            if found and "corrected:" in found[0].read_text():
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait()
    train(place, *WRONG, name="wrong")
    folder, result = folder_of(place, "wrong"), result_of(place, "wrong")
    assert (folder / "log.txt").read_text().count("corrected:") == 1
    plan, correction, spent = (
        json.loads((folder / "plan.json").read_text()),
        result["plan"]["correction"],
        result["spent"],
    )
    assert result["plan"]["predicted_tokens"] == plan["tokens"] > 10 * spent["tokens"]
    assert correction["tokens"] < plan["tokens"] / 5
    # The rules' answers for the tokens that there really are, not for those of the plan.
    assert correction["batch_tokens"] == batch_for(
        correction["tokens"], 6 * plan["parameters_law"] * correction["tokens"], plan["block_size"]
    )
    assert correction["batch_tokens"] < plan["batch_tokens"]
    assert correction["trained"] == correction["step"] * plan["batch_tokens"]
    later = spent["steps"] - correction["step"]
    assert spent["tokens"] == correction["trained"] + later * correction["batch_tokens"]
    assert max(p["learning_rate"] for p in points(folder)) == pytest.approx(correction["learning_rate"], rel=0.05)
    assert "that were assumed" in result["plan"]["why_off"][0]


def test_a_plan_that_fits_is_left_alone(place: Path) -> None:
    train(place, "budget.steps=60", name="fits")
    result = result_of(place, "fits")
    assert result["plan"]["correction"] is None
    assert result["plan"]["why_off"] == []


def hours_plan() -> Plan:
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])
    request = Request(Limits(hours=1.0), template, LAWS["chinchilla-table3"], flops_per_second=1e13, overhead_s=100.0)
    return make_plan(request, speed_source="measured")


@pytest.mark.parametrize(
    ("speed", "training_s", "rates", "said"),
    [
        (1.03, 3500, [1.0, 1.0, 1.0, 1.0, 1.0], []),
        (0.8, 3500, [1.0] * 10, ["that were measured (-20%)"]),
        (1.0, 3000, [1.0] * 10, ["600.0 s of the budget", "s were planned"]),
        (0.7, 3500, [1.0, 1.0, 0.8, 0.8, 0.5, 0.5], ["(-30%)", "on the way (-50%)"]),
    ],
)
def test_the_record_says_why_tokens_were_off(
    speed: float, training_s: float, rates: list[float], said: list[str]
) -> None:
    plan = hours_plan()
    assert plan.tokens_per_second is not None
    tokens = speed * plan.tokens_per_second * training_s
    spent = {"tokens": tokens, "training_hours": training_s / 3600}
    reasons = why_off(plan, spent, 3600.0, rates)
    assert bool(reasons) == bool(said)
    assert all(part in " ".join(reasons) for part in said)
