"""The plan from trials on a simulated device of known speed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from budget.clock import Limits
from budget.flops import flops_per_token
from budget.laws.published import LAWS
from budget.planner.hyperparameters import STEP_RULES, batch_for, largest_batch
from budget.planner.plan import Plan, Request
from budget.planner.trial_search import CONFIRM_S, TooLarge, Trial, largest_fitting, measured_plan
from common.errors import UserError
from device.compile_cost import CompileOption
from model.config import PRESETS, Shape

GIB = 2**30


class Device:
    """Runs every shape at `flops` FLOP/s, and takes `update_s` more each step; each trial takes its seconds of the
    `budget`."""

    def __init__(self, flops: float, budget: float = 30.0, update_s: float = 0.0, memory: float = math.inf) -> None:
        self.flops, self.left, self.update_s, self.memory = flops, budget, update_s, memory
        self.asked: list[tuple[Shape, int, str]] = []
        self.compiled_speedup, self.compile_s = 1.5, 10.0

    def seconds_left(self) -> float:
        return self.left

    def rate(self, shape: Shape) -> float:
        return self.flops / flops_per_token(shape)

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        return 8 * shape.block_size

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        self.asked.append((shape, batch_tokens, compiled))
        if 16 * shape.parameters() > self.memory:
            raise TooLarge
        if compiled == "off":
            self.left -= seconds
            return Trial(1 / self.rate(shape), self.update_s, 8, 1000) if self.left >= 0 else None
        self.left -= seconds + self.compile_s
        rate = self.rate(shape) * self.compiled_speedup
        trial = Trial(1 / rate, self.update_s, 8, 1000, self.compile_s, compile_cache="cold")
        return trial if self.left >= 0 else None


def request(hours: float = 1.0, flops_per_second: float = 1e13, **changes: object) -> Request:
    template = Shape(1, 1, 64, 256, 4096, **PRESETS["modern"])
    base = Request(Limits(hours=hours), template, LAWS["chinchilla-table3"], flops_per_second=flops_per_second)
    return replace(base, **changes)


def plan_on(
    wanted: Request,
    device: Device,
    options: Sequence[CompileOption] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    return measured_plan(wanted, device, options, say)


def test_the_plan_is_made_at_the_measured_speed_not_at_the_assumed_one() -> None:
    device = Device(flops=2e13)
    plan = plan_on(request(flops_per_second=1e13), device)
    shape = plan.sized(request().template)
    assert plan.tokens_per_second == pytest.approx(2e13 / flops_per_token(shape))
    assert plan.tokens == pytest.approx(3600 * plan.tokens_per_second, rel=1e-3)
    assert plan.source["tokens_per_second"] == "measured"
    assert (plan.micro_batch, plan.peak_memory) == (8, 1000)


def test_trials_keep_their_time_and_start_with_the_most_promising_shape() -> None:
    device = Device(flops=1e13, budget=0.5)
    plan_on(request(), device)
    assert device.left >= 0
    generous = Device(flops=1e13)
    plan = plan_on(request(), generous)
    assert device.asked[0][0] == generous.asked[0][0]
    assert 0.5 < device.asked[0][0].matmul_parameters() / plan.parameters_law < 2


class SlowDevice(Device):
    """Its trials take as long as real ones: to build the model, and for four steps or more of up to `most` sequences; they
    count as late where they end after the time."""

    late, most, build_s = 0, 8, 0.0

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        return min(batch_tokens, self.most * shape.block_size)

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        at_once = self.at_once(shape, batch_tokens)
        one_s, counted, steps = at_once / self.rate(shape), 0.0, 0
        while counted < seconds or steps < 3:
            counted, steps = counted + one_s + self.update_s, steps + 1
        took = self.build_s + one_s * (1 if at_once == batch_tokens else 2) + self.update_s + counted
        trial = super().measure(shape, batch_tokens, took, compiled)
        self.late += trial is None
        return trial and replace(trial, micro_batch=at_once // shape.block_size, start_s=self.build_s)


@pytest.mark.parametrize("most", [8, 64, 1024])
@pytest.mark.parametrize("budget", [2.0, 3.3, 4.0, 5.7, 8.0, 11.1, 16.0])
@pytest.mark.parametrize(("build_s", "update_s"), [(0.0, 0.0), (0.5, 0.02)])
def test_no_trial_is_begun_that_cannot_end_in_time(budget: float, most: int, build_s: float, update_s: float) -> None:
    device = SlowDevice(flops=1e11, budget=budget, update_s=update_s)
    device.most, device.build_s = most, build_s
    plan = plan_on(request(hours=0.2, flops_per_second=1e11), device)
    assert device.late == 0 or len(device.asked) == 1  # how long the first will take nobody knows
    assert plan.source["tokens_per_second"] == ("measured" if device.late == 0 else "assumed")


def test_shapes_without_time_for_a_trial_are_named() -> None:
    said: list[str] = []
    device = SlowDevice(flops=1e11, budget=4.0)
    plan_on(request(hours=0.2, flops_per_second=1e11), device, say=said.append)
    [named] = [line.removeprefix("no time to try ").split(", ") for line in said if line.startswith("no time")]
    tried = {f"{shape.n_layer} x {shape.n_embd}" for shape, _, _ in device.asked}
    assert not tried & set(named)
    assert len(tried) + len(named) == 6


def test_with_enough_time_all_shapes_are_tried_twice_and_the_best_confirmed() -> None:
    device, seconds = SlowDevice(flops=1e11, budget=30.0), []
    measure = device.measure
    device.measure = lambda *given: seconds.append(given[2]) or measure(*given)  # type: ignore[method-assign]
    plan_on(request(hours=0.2, flops_per_second=1e11), device)
    assert set(Counter(shape for shape, _, _ in device.asked).values()) == {2, 3}
    assert seconds[-1] == CONFIRM_S


def test_another_width_is_tried_before_a_third_depth_of_one() -> None:
    """The time per token is linear in the depth, so a third depth adds little."""
    template = Shape(1, 1, 64, 64, 4096, **PRESETS["modern"])
    for flops in (3e10, 5e10, 1e11):
        device = Device(flops=flops)
        plan_on(request(hours=1 / 6, flops_per_second=flops, template=template), device)
        widths = [width for _, width in dict.fromkeys((shape.n_layer, shape.n_embd) for shape, _, _ in device.asked)]
        thirds = [i for i, width in enumerate(widths) if widths[:i].count(width) >= 2]
        assert not thirds or all(widths[:i].count(widths[i]) >= 2 for i in range(thirds[0], len(widths)))


def test_the_last_trial_is_of_the_chosen_shape() -> None:
    """This holds however little time is left after the first round."""
    again = 0
    for budget in range(6, 26):
        device = SlowDevice(flops=1e11, budget=budget)
        plan = plan_on(request(hours=0.2, flops_per_second=1e11), device)
        shapes = [shape for shape, _, _ in device.asked]
        if len(shapes) > len(set(shapes)):
            again += 1
            assert shapes[-1] == plan.sized(request().template)
            assert device.late == 0
    assert again == 20


def test_without_time_for_a_trial_the_plan_reports_an_assumed_speed() -> None:
    said: list[str] = []
    plan = plan_on(request(), Device(flops=1e13, budget=-1.0), say=said.append)
    assert plan.source["tokens_per_second"] == "assumed"
    assert "assumed" in said[0]


def test_shapes_that_do_not_fit_are_dropped_and_no_fit_is_an_error() -> None:
    free = plan_on(request(), Device(flops=1e13))
    said: list[str] = []
    tight = plan_on(request(), Device(1e13, memory=15.9 * free.parameters), say=said.append)
    assert tight.parameters < free.parameters
    assert any("does not fit" in line for line in said)
    with pytest.raises(UserError, match="fits into the memory"):
        plan_on(request(), Device(1e13, memory=1000))


def test_a_device_that_needs_large_batches_gets_them_within_the_rules() -> None:
    long = request(hours=0.175, n_layer=2, n_embd=128)  # many tokens for its size: room for larger batches
    small = plan_on(long, Device(flops=1e13))
    rate = small.tokens_per_second
    assert rate is not None
    quick = plan_on(long, Device(1e13, update_s=0.02 * small.batch_tokens / rate))
    assert quick.batch_tokens == small.batch_tokens
    assert quick.tokens_per_second == pytest.approx(rate / 1.02)
    slow = plan_on(long, Device(1e13, update_s=0.15 * small.batch_tokens / rate))
    assert slow.batch_tokens == 2 * small.batch_tokens <= largest_batch(slow.tokens, STEP_RULES[slow.optimizer])
    assert batch_for(slow.tokens, slow.flops_6nd, 256, STEP_RULES[slow.optimizer]) < slow.batch_tokens
    assert slow.source["batch_tokens"] == "saturation"
    assert slow.tokens_per_second == pytest.approx(rate / (1 + 0.15 / 2))  # that of its own batch
    assert slow.tokens == pytest.approx(0.175 * 3600 * slow.tokens_per_second, rel=1e-3)
    fixed = plan_on(request(batch_tokens=256), Device(1e13, update_s=1e-4))
    assert fixed.batch_tokens == 256


class NoisyDevice(Device):
    """Every second trial is 15 % faster, as on a machine that others share; `most` sequences are tried at once."""

    most = 8

    def rate(self, shape: Shape) -> float:
        return super().rate(shape) * (1.15 if len(self.asked) % 2 == 0 else 1.0)

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        trial = super().measure(shape, batch_tokens, seconds, compiled)
        return trial and replace(trial, micro_batch=self.most)


def test_measurement_noise_does_not_look_like_a_gain_of_a_larger_batch() -> None:
    """With equal micro-batches, a faster second trial is noise; a batch of several passes needs no second trial."""
    long = request(hours=0.175, n_layer=2, n_embd=128)
    steady = plan_on(long, Device(flops=1e13))
    for most in (8, steady.batch_tokens // 256):
        device = NoisyDevice(flops=1e13)
        device.most = most
        plan = plan_on(long, device)
        assert plan.batch_tokens == steady.batch_tokens
        assert plan.source["batch_tokens"] == "step-law+deepseek"
        if most == 8:
            assert {batch for _, batch, _ in device.asked[1:]} == {steady.batch_tokens}


def test_all_trials_after_the_first_round_use_the_plans_batch() -> None:
    device = Device(flops=1e13, update_s=1e-5)
    plan = plan_on(request(hours=0.175), device)
    tried = {shape for shape, _, _ in device.asked}
    after = device.asked[-len(tried) - 1 :]  # the second round, and the longer one
    assert {batch for _, batch, _ in after} == {plan.batch_tokens}


def test_a_lucky_trial_is_corrected_by_the_confirmation() -> None:
    class Lucky(Device):
        def rate(self, shape: Shape) -> float:
            return super().rate(shape) * (1.3 if len(self.asked) == 1 else 1.0)

    plan = plan_on(request(), Lucky(flops=1e13))
    assert plan.tokens_per_second == pytest.approx(1e13 / flops_per_token(plan.sized(request().template)))


def test_compilation_counts_at_its_measured_cost_and_speedup() -> None:
    device = Device(flops=1e13)
    eager = plan_on(request(), Device(flops=1e13))
    plan = plan_on(request(), device, [CompileOption("on", 15.0, 2.0)])
    assert (plan.compiled, plan.compile_s, plan.compile_speedup) == (True, 10.0, 1.5)
    assert (plan.compiling, plan.compile_cache) == ("on", "cold")
    assert plan.source["compile"] == "measured"
    assert plan.flops == pytest.approx(1.5 * eager.flops * (3600 - 10) / 3600, rel=0.01)
    assert (eager.compiling, eager.compile_cache) == ("off", None)


def test_the_first_compile_option_that_pays_is_used() -> None:
    device = Device(flops=1e13)
    ways = [CompileOption("on", 1000.0, 2.0), CompileOption("regional", 15.0, 2.0)]  # the first one saves 1800 s
    plan = plan_on(request(), device, ways)
    assert (plan.compiling, plan.compiled, plan.regional) == ("regional", True, True)
    assert [how for _, _, how in device.asked if how != "off"] == ["regional"]
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.compiling == "regional"


def test_a_plan_without_the_regional_key_is_read() -> None:
    content = json.loads(json.dumps(plan_on(request(), Device(flops=1e13), say=print).to_dict()))
    del content["regional"], content["compile_cache"]
    assert Plan.from_dict({**content, "compiled": True}).compiling == "on"


def test_compilation_without_a_speedup_is_not_used() -> None:
    device = Device(flops=1e13)
    device.compiled_speedup = 1.001
    plan = plan_on(request(), device, [CompileOption("on", 15.0, 2.0)])
    assert not plan.compiled


def test_without_time_to_try_it_compilation_counts_as_expected() -> None:
    plan = plan_on(request(), Device(1e13, budget=5.0), [CompileOption("on", 45.0, 1.5)])
    assert plan.compiled
    assert plan.source["compile"] == "expected"
    assert plan.tokens == pytest.approx((3600 - 45) * plan.tokens_per_second, rel=1e-3)


def test_compilation_pays_if_it_saves_twice_its_cost_or_was_asked_for() -> None:
    assert [CompileOption("on", 45.0, 1.5).pays(seconds) for seconds in (None, 1, 269, 271)] == [False] * 3 + [True]
    assert all(CompileOption("on", 45.0, 1.5, asked=True).pays(seconds) for seconds in (None, 1))


@pytest.mark.parametrize(
    ("fixed", "each", "first", "most", "expected"),
    [
        (4.0, 0.05, 8, 64, 64),  # 7.2 of 10 GiB; in proportion to 32's 5.6 it would be 11.2
        (1.0, 0.1, 8, 64, 64),  # 7.4
        (1.0, 0.2, 8, 64, 32),  # 7.4; 64 would take 13.8
        (1.0, 0.2, 64, 64, 32),
        (1.0, 0.5, 64, 64, 16),  # 9.0 of 10 leave a tenth; 32 take 17
        (8.5, 0.4, 4, 64, 1),  # 8.9
        (0.0, 0.001, 3, 5, 5),
    ],
)
def test_the_largest_micro_batch_leaves_a_tenth_of_the_memory(
    fixed: float, each: float, first: int, most: int, expected: int
) -> None:
    """Memory of `fixed` + `each` x sequences GiB on a device with 10; beyond it there is no answer but TooLarge."""
    tried: list[int] = []

    def attempt(micro_batch: int) -> tuple[Trial, int]:
        tried.append(micro_batch)
        used = fixed + each * micro_batch
        if used > 10:
            raise TooLarge
        return Trial(1.0, 1.0, micro_batch, int(used * GIB)), 10 * GIB

    found = largest_fitting(attempt, first, most)
    assert found is not None
    assert found[0].micro_batch == expected
    assert len(tried) == len(set(tried)) <= 8


def test_a_shape_too_large_for_one_sequence_is_too_large() -> None:
    def attempt(micro_batch: int) -> tuple[Trial, int]:
        return Trial(1.0, 1.0, micro_batch, 95), 100

    with pytest.raises(TooLarge):
        largest_fitting(attempt, 4, 4)
