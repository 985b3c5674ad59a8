"""The plan of a run, made once from measured speed, and the reasons why its tokens came out different."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from budget.clock import Limits
from budget.flops import flops_per_token
from budget.laws.published import LAWS, LOCAL, Law, load_law
from budget.planner.hyperparameters import block_for, block_size_for
from budget.planner.plan import MAX_EPOCHS, Plan, Request, load_plan
from budget.planner.planner import choose, make_plan, overhead_estimate
from budget.planner.trial_search import measured_plan
from common.errors import UserError
from common.json_io import significant, write_json
from config import Config, open_block, optim_settings, template, with_eot
from device.compile_cost import first_that_pays
from device.specs import BY_NAME, DeviceSpec
from model.config import Shape, padded_vocab
from model.optim.settings import AUTO
from run.report.plan_report import show_plan, show_plan_briefly
from training.context import Session
from training.trial_client import DeviceTrialClient, TrialProcess

if TYPE_CHECKING:
    from data.shards import Corpus
    from data.sources.base import DataSpec
    from device.device import Device

# Share of a device's peak that small models reach, to find candidates worth measuring; the measurement replaces it.
FIRST_GUESS_MFU = 0.3


# On a CPU by the width, fitted to bench/results/engine.json (docs/performance.md). Share at devices.REFERENCE_WIDTH, and half
# width.
CPU_GUESS_MFU, CPU_HALF_WIDTH = 0.65, 80.0


def limits_of(config: Config) -> Limits:
    """The budget as the clock and the planner read it."""
    budget = config.budget
    return Limits(
        hours=budget.hours,
        flops=budget.flops,
        tokens=budget.tokens,
        steps=budget.steps,
        counts=budget.counts,
        extend_hours=budget.extend_hours,
    )


@dataclass(frozen=True)
class Text:
    """What a plan has to know of the text: ids of its tokenizer and the tokenizer's name, training tokens and the corpus'
    fingerprint where they are known."""

    n_vocab: int | None
    tokenizer: str
    train_tokens: float | None
    fingerprint: str | None = None


def spec_of(config: Config) -> DataSpec:
    """The corpus as data.prepare reads it."""
    from data.sources.base import DataSpec

    return DataSpec(**{**asdict(config.data), "fallbacks": tuple(config.data.fallbacks)})


def law_of(config: Config, tokenizer: str) -> Law:
    """The law to plan by. Raises UserError for a law of the user's own that was fitted with another tokenizer."""
    if config.law != LOCAL:
        return LAWS[config.law]
    law, about = load_law(Path(config.plan.law_file))
    if about.get("metric") != "loss":  # bits per byte hold for any tokenizer, but give no loss in nats
        return replace(law, draws=())
    if about.get("tokenizer") not in (None, tokenizer):
        raise UserError(
            f"law=local: {config.plan.law_file} is about runs with data.tokenizer={about['tokenizer']}, this one has"
            f" {tokenizer}; refit from runs of this tokenizer, or fit bits per byte: python -m budget.laws.refit outputs/*"
            " --metric bits_per_byte"
        )
    return law


def corpus_notes(config: Config, fingerprint: str | None) -> tuple[str, ...]:
    """What is to be said where a law of the user's own may be about another corpus than `fingerprint`."""
    if config.law != LOCAL:
        return ()
    known = load_law(Path(config.plan.law_file))[1].get("corpora")
    if not known:
        return (f"law=local: {config.plan.law_file} does not say which corpus it is about; make it again: make law",)
    if fingerprint is None:
        return ("law=local holds for the corpus of its runs; the one planned for is not prepared, so not compared",)
    if fingerprint in known:
        return ()
    runs = ", ".join(each[:8] for each in known)
    return (
        f"law=local was fitted on another corpus ({fingerprint[:8]}, its runs: {runs}); size and loss may be off: make"
        " law from runs on this one",
    )


def max_epochs_of(config: Config) -> float:
    """How often the corpus may be repeated; the embedded one, which is small and only shows that all works, as often as
    a fast device gets through it."""
    if config.plan.max_epochs is not None:
        return config.plan.max_epochs
    embedded = config.data.source == "stdlib" and config.plan.corpus_tokens is None
    return math.inf if embedded else MAX_EPOCHS


def request_for(config: Config, text: Text, flops_per_second: float | None, overhead_s: float) -> Request:
    """The planner's request: the user's fixed sizes, and rules for the block size and vocabulary where they are open."""
    limits, model = limits_of(config), config.model
    shape = template(config)
    if found := size_mistakes(config, text.n_vocab, model.block_size):
        raise UserError(*found)
    if model.vocab_size is None:
        assert text.n_vocab is not None
        shape = replace(shape, vocab_size=padded_vocab(text.n_vocab))
    flops = _rough_flops(limits, flops_per_second)
    if model.block_size is None:
        shape = replace(shape, block_size=block_size_for(flops, shape.vocab_size))
    by_compute, block = open_block(config), block_for(flops)
    shape = replace(shape, **{knob: block[knob] for knob in by_compute})
    shape = with_eot(config, shape, shape.vocab_size - 1)  # trials have random tokens: any id will do
    if found := size_mistakes(config, text.n_vocab, shape.block_size):
        raise UserError(*found)
    return Request(
        limits=limits,
        template=shape,
        law=law_of(config, text.tokenizer),
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        flops_per_second=flops_per_second,
        overhead_s=overhead_s,
        batch_tokens=config.optim.batch_tokens,
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        warmup=config.schedule.warmup,
        beta2=config.optim.beta2,
        dropout=model.dropout,
        optimizer=None if config.optim.name == AUTO else config.optim.name,
        corpus_tokens=text.train_tokens,
        aspect=(config.plan.aspect_min, config.plan.aspect_max),
        max_epochs=max_epochs_of(config),
        table_flops=flops if model.bigram_rows is None else None,
        block_by_compute=bool(by_compute),
        notes=corpus_notes(config, text.fingerprint),
    )


def size_mistakes(config: Config, n_vocab: int | None, block_size: int | None) -> list[str]:
    """Sizes that do not go together, one line each; None is not known yet."""
    found, vocab_size, batch = [], config.model.vocab_size, config.optim.batch_tokens
    if vocab_size is None and n_vocab is None:
        found.append(
            f"the vocabulary of data.tokenizer={config.data.tokenizer} is not known without its file;"
            " set model.vocab_size"
        )
    if vocab_size is not None and n_vocab is not None and vocab_size < n_vocab:
        found.append(
            f"model.vocab_size={vocab_size} is smaller than the {n_vocab} tokens of data.tokenizer="
            f"{config.data.tokenizer}; leave it out or raise it"
        )
    if batch is not None and block_size is not None and batch % block_size:
        near = max(1, round(batch / block_size)) * block_size
        found.append(f"optim.batch_tokens={batch} is not a multiple of model.block_size={block_size}; try {near}")
    return found


def check_early(config: Config) -> None:
    """Raise UserError for what the plan would refuse only once the corpus is prepared, which may take hours."""
    from data.tokenizer import check_name, vocab_size_of

    check_name(config.data.tokenizer)
    n_vocab, limits = vocab_size_of(config.data.tokenizer), limits_of(config)
    if n_vocab is None:  # a new one of tiktoken's: its file will tell
        return
    if found := size_mistakes(config, n_vocab, config.model.block_size):
        raise UserError(*found)
    if limits.seconds is None:  # no speed decides how much fits
        choose(request_for(config, Text(n_vocab, config.data.tokenizer, None), None, 0.0))


def _rough_flops(limits: Limits, flops_per_second: float | None) -> float | None:
    """The compute of a budget to within a factor of a few: enough to choose a context length. Steps alone say nothing."""
    guesses = [limits.flops] if limits.flops is not None else []
    if limits.seconds is not None and flops_per_second:
        guesses.append(limits.seconds * flops_per_second)
    if limits.tokens is not None:
        guesses.append(6 * limits.tokens**2 / 20)  # 20 tokens per parameter
    return min(guesses, default=None)


def with_mfu(plan: Plan, shape: Shape, peak_flops: float) -> Plan:
    """The plan with the share of the peak that its speed amounts to."""
    if not plan.tokens_per_second:
        return plan
    return replace(plan, mfu=plan.tokens_per_second * flops_per_token(shape) / peak_flops)


def peak_of(device: DeviceSpec, precision: str) -> float:
    """FLOP/s by the table. Raises UserError for a precision that it does not have."""
    peak = device.peak if precision == "auto" else device.peak_in(precision)
    if peak is None:
        raise UserError(
            f"device.precision={precision}: the table has no peak of device={device.name} for it; give device.peak_flops=,"
            " or leave device.precision=auto"
        )
    return peak


def plan_without_device(config: Config, text: Text) -> Plan:
    """A plan from the device table, or from FLOPs, tokens or steps alone; imports no torch."""
    device = BY_NAME.get(config.device.name)
    limits = limits_of(config)
    rate = peak = None
    if device is not None:
        peak = config.device.peak_flops or peak_of(device, config.device.precision)
        rate = peak * (config.mfu or device.expected_mfu)
    overhead = overhead_estimate(limits)
    request = request_for(config, text, rate, overhead)
    if device is not None:
        request = replace(request, memory=device.memory * 2.0**30)
        request = request if config.mfu else replace(request, half_width=device.half_width)
    plan = make_plan(request, speed_source="mfu" if config.mfu else "table")
    return with_mfu(plan, plan.sized(request.template), peak) if peak else plan


def wants_trials(config: Config, limits: Limits) -> bool:
    """Whether speeds are measured: where they decide something, and nobody said what to assume."""
    return not config.mfu and config.probe is not False and (config.probe is True or limits.seconds is not None)


def first_request(config: Config, text: Text, device: Device, overhead_s: float) -> Request:
    """What is asked of the planner before anything was measured here."""
    request = request_for(config, text, device.peak_flops * (config.mfu or FIRST_GUESS_MFU), overhead_s)
    if config.mfu or device.torch_device.type != "cpu":
        return request
    return replace(request, flops_per_second=device.peak_flops * CPU_GUESS_MFU, half_width=CPU_HALF_WIDTH)


def plan_here(
    config: Config,
    text: Text,
    device: Device,
    overhead_s: float,
    trials: TrialProcess | None,
    say: Callable[[str], None],
    detail: Callable[[str], None] | None = None,
) -> Plan:
    """A plan from speeds that `trials` measures on this machine, or from mfu= where there are none; `say` and `detail` as in
    `measured_plan`."""
    request = first_request(config, text, device, overhead_s)
    ways, seconds = device.compile_options(config.device.compile), request.limits.seconds
    if trials is not None:
        optim, probe_s = config.optim, probe_seconds(request.limits)
        prober = DeviceTrialClient(trials, device, optim_settings(config), optim.micro_batch, probe_s, say)
        plan = measured_plan(request, prober, ways, say, detail)
    else:
        if seconds is None and not config.mfu:  # speed decides nothing
            request = replace(request, flops_per_second=None)
        plan = make_plan(request, speed_source="mfu" if config.mfu else "assumed")
        way = first_that_pays(ways, None if seconds is None else seconds - overhead_s)
        plan = replace(plan, compiled=way is not None, regional=way is not None and way.how == "regional")
    return with_mfu(plan, plan.sized(request.template), device.peak_flops)


def probe_seconds(limits: Limits) -> float:
    """How long measuring may take: 2 % of the hours, at most 30 seconds, and at least one, in which a CPU does a few
    steps."""
    return 5.0 if limits.seconds is None else min(30.0, max(1.0, 0.02 * limits.seconds))


# Bytes of a parameter, in float32: the weight, its gradient and the one moment that every optimizer keeps; and of a token of
# a batch: two ids of 8 bytes.
LEAST_BYTES, TOKEN_BYTES = 12, 16


def saved_plan(session: Session) -> Plan | None:
    """The plan that this run began with, in an earlier process; its copy where it is damaged. Raises UserError where there
    is nothing that can be read: another plan might choose another shape, which no checkpoint of the run would fit."""
    run = session.run
    if not run.plan.exists() and not run.plan_copy.exists():
        return None
    try:
        return load_plan(run.plan)
    except UserError:
        if not run.plan_copy.exists():
            raise
        session.console.warn(f"{run.plan} is lost or damaged; its copy {run.plan_copy} is used")
        return load_plan(run.plan_copy)


def make_run_plan(session: Session, corpus: Corpus, device: Device, trials: TrialProcess | None) -> Plan:
    """A new plan, from measured speed where time is what is limited."""
    from data.loader import Loader

    limits = session.clock.limits
    overhead_s = 0.0
    if limits.seconds is not None and limits.counts == "all":
        ending = 4.0 + 0.05 * limits.seconds  # evaluations, saving and report, before they were measured
        overhead_s = session.clock.counted_s() + probe_seconds(limits) + min(60.0, ending)
    text = Text(corpus.tokenizer.n_vocab, corpus.tokenizer.name, corpus.train.n_tokens, corpus.fingerprint)
    block_size = first_request(session.config, text, device, overhead_s).template.block_size
    Loader(corpus.train, block_size, 1, 0)  # is the corpus long enough? Before measuring
    console = session.console
    plan = plan_here(session.config, text, device, overhead_s, trials, console.say, console.detail)
    if trials is not None:
        trials.close()  # what they hold of the device's memory is free from here on
    require_memory(plan, plan.sized(template(session.config)), device.free_memory())
    show_plan(plan, console.for_log(), limits)
    show_plan_briefly(plan, console, limits)
    content = significant(plan.to_dict(), 10)
    session.run.checkpoints.mkdir(exist_ok=True)
    for path in (session.run.plan_copy, session.run.plan):
        write_json(path, content, checksummed=True)
    return load_plan(session.run.plan)  # to the last digit what a resumed run will go on with


def require_memory(plan: Plan, shape: Shape, free: int) -> None:
    """Raise UserError where the plan cannot be trained in `free` bytes: the system would end the process without a word."""
    needed = LEAST_BYTES * shape.parameters() + TOKEN_BYTES * plan.batch_tokens
    if needed > free:
        raise UserError(
            f"{plan.n_layer} layers of width {plan.n_embd} with optim.batch_tokens={plan.batch_tokens} take at least"
            f" {needed / 2**30:,.1f} GiB to train and {free / 2**30:,.1f} are free; choose smaller model.* sizes or batches"
            " (null: planned), or another device="
        )
