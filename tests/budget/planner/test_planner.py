"""Plans: their arithmetic, the rules at published points, and the values that a user may fix."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budget.clock import Limits
from budget.flops import flops_per_token
from budget.laws.published import EPOCH, LAWS, LOCAL
from budget.planner.candidates import candidates
from budget.planner.hyperparameters import (
    ADAMW_STEPS,
    MUON_STEPS,
    STEP_RULES,
    StepRule,
    batch_efficiency,
    batch_for,
    beta2_for,
    bigram_rows_for,
    block_for,
    block_size_for,
    critical_batch,
    dropout_for,
    learning_rate_for,
    learning_rates,
    muon_overhead,
    optimizer_for,
    warmup_for,
    weight_decay_for,
)
from budget.planner.plan import Request, load_plan
from budget.planner.planner import NEAR, SHORTLIST, TIE, batch_and_optimizer, choose, make_plan, shortlist
from common.errors import UserError
from model.config import PLAIN, PRESETS, Shape

MODERN = Shape(1, 1, 64, 512, 50304, **PRESETS["modern"])


def request(**changes: object) -> Request:
    return replace(Request(Limits(flops=3.4e18), MODERN, LAWS["chinchilla-table3"]), **changes)  # type: ignore[arg-type]


def test_plan_for_the_competition_budget() -> None:
    """3.4e18 FLOPs: the competition's notes say about 170M parameters and 3.4B tokens."""
    plan = make_plan(request())
    assert plan.parameters_law == pytest.approx(169e6, rel=0.1)
    assert plan.tokens == pytest.approx(3.4e9, rel=0.1)
    assert plan.optimum["parameters"] == pytest.approx(169e6, rel=0.01)
    assert plan.optimum["tokens"] == pytest.approx(3.38e9, rel=0.01)


def test_the_shapes_to_measure_have_usual_proportions_where_there_is_a_choice() -> None:
    """Of large models; Hoffmann et al. 2022, Table A9: 40 to 99, median 64."""
    for flops in (1e16, 1e17, 1e18, 1e19):
        template = replace(MODERN, block_size=64, vocab_size=4096)
        listed = shortlist(choose(request(limits=Limits(flops=flops), template=template)))
        assert all(40 <= shape.n_embd / shape.n_layer <= 100 for shape in listed)


def test_the_proportions_that_a_user_asks_for_hold() -> None:
    """Also for small models, whose own grid is wider."""
    small = replace(MODERN, block_size=64, vocab_size=4096)
    asked = request(limits=Limits(flops=5e13), template=small)
    assert any(shape.n_embd > 100 * shape.n_layer for shape in candidates(asked))
    assert all(40 <= shape.n_embd / shape.n_layer <= 60 for shape in candidates(replace(asked, aspect=(40.0, 60.0))))
    wide = [shape for shape in candidates(request(aspect=(100.0, 200.0))) if shape.n_embd > 512]
    assert wide
    assert all(99 < shape.n_embd / shape.n_layer <= 200 for shape in wide)


def test_hours_at_the_peak_are_the_same_budget() -> None:
    """3 hours of 312 TFLOP/s are 3.37e18 FLOPs; at a real 35 % the plan is smaller."""
    peak = make_plan(request(limits=Limits(hours=3), flops_per_second=312e12))
    real = make_plan(request(limits=Limits(hours=3), flops_per_second=0.35 * 312e12))
    assert peak.flops == pytest.approx(3.37e18, rel=0.01)
    assert peak.parameters_law == pytest.approx(169e6, rel=0.1)
    assert real.parameters_law < 0.7 * peak.parameters_law


@pytest.mark.parametrize("budget", [1e12, 1e15, 1e18, 1e21])
def test_a_plan_spends_its_budget_and_no_more(budget: float) -> None:
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


def test_fixed_values_are_kept() -> None:
    plan = make_plan(request(n_layer=18, n_embd=768, n_head=12, batch_tokens=512 * 66, learning_rate=1e-3))
    assert (plan.n_layer, plan.n_embd, plan.n_head) == (18, 768, 12)
    assert (plan.batch_tokens, plan.learning_rate) == (33792, 1e-3)
    assert plan.alternatives == []


def test_measured_speed_decides_the_size() -> None:
    """If only one of the sizes is fast on a device, it wins, and the others state why they lost."""
    hours = request(limits=Limits(hours=1), flops_per_second=1e13)
    shapes = shortlist(choose(hours))
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
    assert batch_for(3.4e9, 3.4e18, 512, ADAMW_STEPS) == batch_for(3.4e9, 3.4e18, 512, MUON_STEPS) == 2**18
    shape = Shape(12, 12, 866, 512, 4096, **PRESETS["modern"])
    assert shape.non_vocab_parameters() == pytest.approx(108e6, rel=0.01)
    assert learning_rate_for(shape, 3.4e9, round(0.58 * 3.4e9**0.571), "adamw") == pytest.approx(2.8e-3, rel=0.03)
    without = replace(shape, qk_norm=False)
    assert learning_rate_for(without, 3.4e9, 160_000, "adamw") == pytest.approx(0.7 * 2.8e-3, rel=0.05)
    assert (beta2_for(2**18), beta2_for(2**17)) == (0.95, 0.99)


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget.tokens=1000 is too small for one step of 65,536 tokens"):
        make_plan(request(limits=Limits(tokens=1000), batch_tokens=65536))


def test_more_rules_at_published_points() -> None:
    """The case of 170M parameters and 3.4B tokens in each paper's own formula."""
    assert critical_batch(3.07e9) == pytest.approx(998 * 512, rel=0.01)
    assert batch_efficiency(critical_batch(1e9), 1e9) == 0.5
    shape = Shape(18, 12, 768, 512, 50304, **PRESETS["modern"])
    rates = learning_rates(shape, 3.4e9, 2**18)
    assert rates["deepseek"] == pytest.approx(1.5e-3, rel=0.1)
    assert rates["moonlight"] == pytest.approx(1.1e-3, rel=0.1)
    assert rates["porian"] == pytest.approx(4.0e-3, rel=0.05)
    assert weight_decay_for(170e6, 3.4e9, 131_072, 1e-3) == pytest.approx(0.17, abs=0.01)
    assert weight_decay_for(170e6, 3.4e9, 163_840, 2e-3) == pytest.approx(0.11, abs=0.01)
    assert weight_decay_for(170e6, 3.4e8, 163_840, 2e-3) == 0.3
    assert weight_decay_for(3e5, 3e6, 4096, 1e-2) == 0.1, "a model far smaller than those the rule was fitted on"
    assert warmup_for(170e6, 3.4e9) == 0.05
    assert (warmup_for(1e6, 1e9), warmup_for(1e6, 1e6)) == (0.01, 0.1)
    assert [dropout_for(epochs) for epochs in (None, 0.5, 4.0, 4.1)] == [0, 0, 0, 0.1]


def test_muons_learning_rate_is_higher_in_short_runs() -> None:
    tiny = Shape(1, 1, 64, 64, 4096, **PRESETS["modern"])
    rates = [learning_rate_for(tiny, steps * 2048, 2048, "muon") for steps in (100, 350, 700, 3000)]
    assert rates == [0.02, 0.014, 0.01, 0.01]
    assert learning_rate_for(tiny, 350 * 2048, 2048, "adamw") == 4e-3


def test_a_batch_leaves_enough_steps_and_stays_below_the_critical_one() -> None:
    def batches(rule: StepRule, *tokens: float) -> list[int]:
        return [batch_for(each, 120 * each**2 / 400, 64, rule) for each in tokens]

    assert batches(ADAMW_STEPS, 1e5, 3.2e5, 1e6, 3e6) == [256, 1024, 1024, 1024]
    assert batches(MUON_STEPS, 1e5, 3.2e5, 1e6, 3e6) == [256, 1024, 2048, 4096]
    for rule, fewest in ((ADAMW_STEPS, 1450), (MUON_STEPS, 600)):
        assert all(tokens / batch >= fewest for tokens in (3e6, 1e8) for batch in batches(rule, tokens))
        assert batch_for(3.4e9, 3.4e18, 512, rule, saturation=2**20) <= critical_batch(3.4e9)
        assert batch_for(3.4e9, 3.4e18, 512, rule, saturation=2**18 + 1) >= 2**18


def test_each_optimizer_gets_the_batch_of_its_own_rule() -> None:
    small, large = (Shape(2, 1, width, 64, 4096, **PRESETS["modern"]) for width in (64, 512))
    tokens = 5e5
    for shape, wanted in ((small, "muon"), (large, "adamw")):
        batch, optimizer = batch_and_optimizer(request(), shape, tokens)
        assert optimizer == wanted == optimizer_for(shape, batch)
        assert batch == batch_for(tokens, 6 * shape.matmul_parameters() * tokens, 64, STEP_RULES[wanted])
    assert batch_and_optimizer(request(optimizer="adamw"), small, tokens) == (1024, "adamw")
    assert batch_and_optimizer(request(), small, 2e5) == (512, "muon")
    assert batch_and_optimizer(request(limits=Limits(steps=200)), small, 2e5) == (1024, "muon"), "no more steps to gain"


def test_too_many_epochs_are_refused() -> None:
    with pytest.raises(UserError, match=r"\d+\.\d epochs of the corpus .* plan\.max_epochs=\d+"):
        make_plan(request(corpus_tokens=1e8))
    with pytest.raises(UserError, match=r"epochs of code, the most .* give code more text or a smaller weight"):
        make_plan(request(corpus_tokens=1e8, most_repeated="code"))
    plan = make_plan(request(corpus_tokens=1e8, max_epochs=100.0))
    assert plan.epochs is not None
    assert plan.epochs > 16
    assert plan.dropout == 0.1
    once = make_plan(request(corpus_tokens=1e12))
    assert (once.dropout, once.parameters_law) == (0.0, make_plan(request()).parameters_law)


def test_repetition_changes_the_choice() -> None:
    """Repeated text counts for less, so that a smaller model, which repeats it more, loses its advantage."""
    scarce = make_plan(request(corpus_tokens=2e8, max_epochs=100.0))
    assert scarce.parameters_law > make_plan(request()).parameters_law


def test_close_alternatives_are_listed_with_a_reason() -> None:
    plan = make_plan(request())
    close = [row for row in plan.alternatives if row.worse < TIE]
    assert len(close) > 5
    assert all(row.reason for row in close)
    sizes = [row.parameters_law for row in plan.alternatives]
    assert min(sizes) <= 0.5 * plan.parameters_law
    assert max(sizes) >= 2 * plan.parameters_law


def test_the_curve_has_its_minimum_at_the_choice_and_a_flat_bottom() -> None:
    """Porian et al. 2024: at 3e18 FLOPs a size 1.5 times off costs 0.7 % of the loss, so that within 1 % is wide."""
    plan = make_plan(request())
    worse = dict(plan.curve)
    assert worse[plan.parameters_law] == pytest.approx(0, abs=2e-4)
    low, high = plan.flat
    assert 0.5 < low / plan.parameters_law < 0.8
    assert 1.3 < high / plan.parameters_law < 2.0
    assert plan.bracket == pytest.approx((151e6, 192e6), rel=0.01)


def test_only_a_local_law_predicts_a_loss() -> None:
    own = replace(LAWS["epoch"], name=LOCAL, draws=(EPOCH, replace(EPOCH, E=1.9)), noise=0.002)
    plan = make_plan(request(law=own))
    assert plan.predicted_loss == pytest.approx(EPOCH.loss(plan.parameters_law, plan.tokens))
    low, high = plan.predicted_loss_interval or (0, 0)
    assert low < (plan.predicted_loss or 0) < high
    assert plan.interval is not None
    assert make_plan(request()).predicted_loss is None


def test_every_choice_names_its_source() -> None:
    source = make_plan(request()).source
    assert {"size", "batch_tokens", "learning_rate", "weight_decay", "warmup", "beta2", "dropout"} <= set(source)
    fixed = make_plan(request(weight_decay=0.0, warmup=0.0, beta2=0.9, dropout=0.0, learning_rate=1e-3))
    assert (fixed.weight_decay, fixed.warmup, fixed.beta2, fixed.dropout) == (0.0, 0.0, 0.9, 0.0)
    assert [fixed.source[name] for name in ("weight_decay", "warmup", "beta2", "dropout")] == ["fixed"] * 4


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", "null", '{"n_layer": 2}', "\udcff"),  # damaged
        *({"curve": None}, {"mfu2": 1}, {"alternatives": [{"tokens": 3}]}, {"curve": [1, 2]}),  # of another version
    ],
)
def test_a_plan_that_cannot_be_read_is_a_one_line_error_with_a_hint(
    tmp_path: Path, content: str | dict[str, Any]
) -> None:
    if isinstance(content, dict):
        content = json.dumps({**make_plan(request()).to_dict(), **content})
    (tmp_path / "plan.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"plan\.json.*fresh=true") as raised:
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(raised.value)


def test_a_saved_plan_is_read_back(tmp_path: Path) -> None:
    plan = make_plan(request())
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    assert load_plan(tmp_path / "plan.json") == plan


def test_notes_warn_of_what_the_plan_cannot_know() -> None:
    tiny = make_plan(request(limits=Limits(flops=1e13)))
    assert any("extrapolated" in note for note in tiny.notes)
    assert any("vocabulary" in note and "data.tokenizer=" in note for note in tiny.notes)
    assert any("law=local" in note for note in tiny.notes)
    assert not make_plan(request()).notes


def test_muon_is_taken_where_its_overhead_is_less_than_what_it_saves() -> None:
    small = Shape(2, 2, 128, 64, 4096, **PRESETS["modern"])
    # 5 n / T of the blocks' work, and the blocks are 43 % of all
    assert muon_overhead(small, 1024) == pytest.approx(5 * 128 / 1024 * 393216 / 917504)
    assert muon_overhead(small, 2048) == pytest.approx(muon_overhead(small, 1024) / 2)
    assert [optimizer_for(small, batch) for batch in (256, 512, 1024)] == ["adamw", "adamw", "muon"]
    large = Shape(12, 6, 768, 1024, 50304, **PRESETS["modern"])
    assert muon_overhead(large, 2**17) < 0.03
    assert optimizer_for(large, 2**17) == "muon"
    plan = make_plan(request(batch_tokens=256, n_layer=2, n_embd=512, n_head=8))
    assert (plan.optimizer, plan.source["optimizer"]) == ("adamw", "overhead")
    fixed = make_plan(request(batch_tokens=256, n_layer=2, n_embd=512, n_head=8, optimizer="muon"))
    assert (fixed.optimizer, fixed.source["optimizer"]) == ("muon", "fixed")


def test_context_and_tables_follow_the_compute() -> None:
    found = [block_size_for(flops, 4096) for flops in (1e12, 9e13, 2e14, 9e16, 2e17, 9e18, 2e19)]
    assert found == [64, 64, 256, 256, 512, 512, 1024]
    assert block_size_for(1e12, 320) == 256, "64 bytes are too few"
    blocks = [block_for(flops) for flops in (1e12, 9e13, 2e14, None)]
    assert blocks[0] == blocks[1] == PLAIN
    assert blocks[2] == blocks[3]
    assert PRESETS["modern"] == PRESETS["modern"] | blocks[2], "what it is by itself"
    assert not set(blocks[0].items()) & set(blocks[2].items())
    rows = [bigram_rows_for(flops, 4096, 64) for flops in (1e12, 3e12, 2e14, 9e16, 2e17)]
    assert rows == [1 << 16, 1 << 18, 1 << 16, 1 << 16, 0]
    assert [bigram_rows_for(3e12, 4096, width) for width in (128, 192, 1024)] == [1 << 17, 1 << 16, 1 << 16]
    assert bigram_rows_for(1e12, 64, 64) == 64**2, "no more rows than there are pairs"


@pytest.mark.parametrize("flops", [1e12, 5e12, 1e13, 1.5e13, 2e13, 3e13, 1e14, 1e16, 1e18])
def test_the_sizes_to_measure_are_the_nearest_that_there_are(flops: float) -> None:
    """Of those that are as near the one of the most usual proportions, but never 2 x 128 for want of 1 x 128."""
    small = Shape(1, 1, 64, 64, 4096, **PRESETS["modern"])
    choice = choose(request(limits=Limits(flops=flops), template=small))
    sizes = [shape.matmul_parameters() for shape in choice.ranked]
    listed = {shape.matmul_parameters() for shape in shortlist(choice)}
    for factor in SHORTLIST:
        target = factor * choice.shape.matmul_parameters()
        nearest = min(abs(math.log(size / target)) for size in sizes)
        assert min(abs(math.log(size / target)) for size in listed) <= max(NEAR, nearest) + 1.5 * NEAR
