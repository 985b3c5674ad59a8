"""Plans: what they must add up to, what the rules say at known points, and what a user may fix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from budget.clock import Limits
from budget.flops import flops_per_token
from budget.laws import LAWS
from budget.planner import (
    Plan,
    Request,
    batch_for,
    beta2_for,
    candidates,
    learning_rate_for,
    make_plan,
    shortlist,
)
from errors import UserError
from model.shape import PRESETS, Shape

MODERN = Shape(1, 1, 64, 512, 50304, **PRESETS["modern"])


def request(**changes: object) -> Request:
    return replace(Request(Limits(flops=3.4e18), MODERN, LAWS["chinchilla-table3"]), **changes)  # type: ignore[arg-type]


def test_the_competitions_budget() -> None:
    """3.4e18 FLOPs: the competition's notes say about 170M parameters and 3.4B tokens."""
    plan = make_plan(request())
    assert plan.parameters_law == pytest.approx(169e6, rel=0.1)
    assert plan.tokens == pytest.approx(3.4e9, rel=0.1)
    assert plan.optimum["parameters"] == pytest.approx(169e6, rel=0.01)
    assert plan.optimum["tokens"] == pytest.approx(3.38e9, rel=0.01)


def test_hours_at_the_peak_are_the_same_budget() -> None:
    """3 hours of 312 TFLOP/s are 3.37e18 FLOPs; at a real 35 % the plan is smaller."""
    peak = make_plan(request(limits=Limits(hours=3), flops_per_second=312e12))
    real = make_plan(request(limits=Limits(hours=3), flops_per_second=0.35 * 312e12))
    assert peak.flops == pytest.approx(3.37e18, rel=0.01)
    assert peak.parameters_law == pytest.approx(169e6, rel=0.1)
    assert real.parameters_law < 0.7 * peak.parameters_law


@pytest.mark.parametrize("budget", [1e12, 1e15, 1e18, 1e21])
def test_a_plan_spends_what_it_has_and_no_more(budget: float) -> None:
    plan = make_plan(request(limits=Limits(flops=budget)))
    assert plan.tokens == plan.steps * plan.batch_tokens
    assert plan.flops == pytest.approx(plan.tokens * flops_per_token(plan.sized(MODERN)))
    assert 0.9 * budget < plan.flops <= budget
    assert plan.batch_tokens % plan.block_size == 0


def test_a_larger_budget_never_gets_a_smaller_model() -> None:
    sizes = [make_plan(request(limits=Limits(flops=10**e))).parameters_law for e in range(14, 22)]
    assert sizes == sorted(sizes)


def test_tokens_and_steps_are_budgets_too() -> None:
    by_tokens = make_plan(request(limits=Limits(tokens=1e9)))
    assert 0.99e9 < by_tokens.tokens <= 1e9
    by_steps = make_plan(request(limits=Limits(steps=100)))
    assert by_steps.steps == 100
    fixed = make_plan(request(limits=Limits(steps=50), batch_tokens=1024))
    assert (fixed.steps, fixed.tokens) == (50, 50 * 1024)


def test_what_the_user_fixes_stays_fixed() -> None:
    plan = make_plan(request(n_layer=18, n_embd=768, n_head=12, batch_tokens=512 * 66, learning_rate=1e-3))
    assert (plan.n_layer, plan.n_embd, plan.n_head) == (18, 768, 12)
    assert (plan.batch_tokens, plan.learning_rate) == (33792, 1e-3)
    assert plan.alternatives == []
    assert {shape.n_layer for shape in candidates(request(n_layer=24))} == {24}
    assert {shape.n_embd for shape in candidates(request(n_embd=640))} == {640}
    assert all(shape.n_embd % 12 == 0 for shape in candidates(request(n_head=12)))
    assert candidates(request(n_layer=1000, n_head=7))  # no usual proportions: still something


def test_every_candidate_can_be_built() -> None:
    assert not [mistake for shape in candidates(request()) for mistake in shape.mistakes()]


def test_measured_speed_decides() -> None:
    """With a device on which only one of the sizes is fast, that one wins, and the others say why they lost."""
    hours = request(limits=Limits(hours=1), flops_per_second=1e13)
    shapes = shortlist(hours)
    assert 3 <= len(shapes) <= 6
    slow = {shape: 1e11 / flops_per_token(shape) for shape in shapes}
    for fast in shapes[1:-1]:
        plan = make_plan(hours, {**slow, fast: 1e13 / flops_per_token(fast)}, "measured")
        assert plan.sized(MODERN) == fast
        assert {(a.n_layer, a.n_embd) for a in plan.alternatives} == {
            (s.n_layer, s.n_embd) for s in shapes if s != fast
        }
        assert all("less compute" in alternative.reason for alternative in plan.alternatives)
        assert plan.source["tokens_per_second"] == "measured"


def test_rules_at_published_points() -> None:
    """3.4B tokens, 3.4e18 FLOPs: Step Law 161K and DeepSeek 337K tokens a batch; Step Law's rate at 108M is 2.8e-3."""
    assert batch_for(3.4e9, 3.4e18, 512) == 2**18
    shape = Shape(12, 12, 866, 512, 4096, **PRESETS["modern"])
    assert shape.non_vocab_parameters() == pytest.approx(108e6, rel=0.01)
    assert learning_rate_for(shape, 3.4e9, round(0.58 * 3.4e9**0.571)) == pytest.approx(2.8e-3, rel=0.03)
    without = replace(shape, qk_norm=False)
    assert learning_rate_for(without, 3.4e9, 160_000) == pytest.approx(0.7 * 2.8e-3, rel=0.05)
    assert (beta2_for(2**18), beta2_for(2**17)) == (0.95, 0.99)


def test_a_budget_below_one_step_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"budget.tokens=1000 does not hold one step of 65,536 tokens"):
        make_plan(request(limits=Limits(tokens=1000), batch_tokens=65536))


def test_a_plan_survives_its_file() -> None:
    plan = make_plan(request())
    assert Plan.from_dict(plan.to_dict()) == plan


def test_notes_warn_of_what_the_plan_cannot_know() -> None:
    tiny = make_plan(request(limits=Limits(flops=1e13)))
    assert any("extrapolated" in note for note in tiny.notes)
    assert any("vocabulary" in note for note in tiny.notes)
