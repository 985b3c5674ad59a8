"""The plan of a run: the planner's request from the configuration, and the plan from measured or assumed speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from budget.clock import Limits
from budget.extension import UNITS
from budget.flops import flops_per_token
from budget.laws.published import LAWS, LOCAL, Law, load_law
from budget.planner.hyperparameters import block_for, block_size_for
from budget.planner.plan import MAX_EPOCHS, Plan, Request, load_plan
from budget.planner.planner import choose, make_plan, overhead_estimate
from budget.planner.trial_search import measured_plan
from common.errors import UserError
from common.format import format_number_of
from common.json_io import significant, write_json
from config import (
    Config,
    extension_of,
    open_block,
    optim_settings,
    template,
    with_eot,
)
from device.compile_cost import first_that_pays
from device.specs import BY_NAME, DeviceSpec
from model.config import Shape, padded_vocab
from model.optim.settings import AUTO
from run.report.plan_report import show_plan, show_plan_briefly
from training.context import Session
from training.corpus_text import Text, text_of, vocab_size_for
from training.trial_client import DeviceTrialClient, TrialProcess

if TYPE_CHECKING:
    from data.shards import Corpus
    from device.device import Device
    from training.initial_model import InitialModel

# Model FLOPs utilization (MFU) assumed on a GPU to find candidates worth measuring; the measurement replaces it.
FIRST_GUESS_MFU = 0.3
# The same on a CPU, where it depends on the width of the model: the MFU at device.specs.REFERENCE_WIDTH, and the width
# at which it is half of its maximum. Fitted to bench/results/engine.json (docs/performance.md).
CPU_GUESS_MFU, CPU_HALF_WIDTH = 0.65, 80.0


def limits_of(config: Config) -> Limits:
    """The limits of the budget, extension included, for the clock and the planner."""
    budget, added = config.budget, extension_of(config.budget)
    amounts = {unit: getattr(budget, unit) for unit in UNITS}
    totals = {unit: amount and amount + getattr(added, unit) for unit, amount in amounts.items()}
    return Limits(**totals, counts=budget.counts, added=added)


def law_of(config: Config, tokenizer: str) -> Law:
    """The scaling law to plan by. Raises UserError if law=local was fitted to runs with another tokenizer."""
    if config.law != LOCAL:
        return LAWS[config.law]
    law, about = load_law(Path(config.plan.law_file))
    if about.get("metric") != "loss":  # bits per byte hold for any tokenizer, but give no loss in nats
        return replace(law, draws=())
    if about.get("tokenizer") not in (None, tokenizer):
        raise UserError(
            f"law=local: {config.plan.law_file} was fitted to runs with data.tokenizer={about['tokenizer']}, this one has"
            f" {tokenizer}; refit from runs of this tokenizer, or fit bits per byte: python -m budget.laws.refit"
            " outputs/* --metric bits_per_byte"
        )
    return law


def corpus_notes(config: Config, fingerprint: str | None) -> tuple[str, ...]:
    """Notes of the plan if law=local may have been fitted to runs on another corpus than `fingerprint`."""
    if config.law != LOCAL:
        return ()
    corpora = load_law(Path(config.plan.law_file))[1].get("corpora")
    if not corpora:
        return (f"law=local: {config.plan.law_file} does not name the corpus of its runs; fit it again: make law",)
    if fingerprint is None:
        return (
            "law=local holds for the corpus of its runs; the planned corpus is not prepared, so it was not compared",
        )
    if fingerprint in corpora:
        return ()
    fitted_on = ", ".join(corpus[:8] for corpus in corpora)
    return (
        f"law=local was fitted on another corpus ({fitted_on}) than this one ({fingerprint[:8]}); size and loss may be"
        " wrong; fit a law to runs on this corpus: make law",
    )


def init_notes(config: Config) -> tuple[str, ...]:
    """A note of the plan if the first weights are not random, which the scaling law assumes."""
    if config.init.source == "scratch":
        return ()
    return ("the first weights are those of a trained model; the law holds for training from random weights",)


def max_epochs_of(config: Config) -> float:
    """How often the corpus may be repeated.

    For data.source=stdlib there is no limit: this corpus is small, and only shows that everything works.
    """
    if config.plan.max_epochs is not None:
        return config.plan.max_epochs
    unlimited = config.data.source == "stdlib" and config.plan.corpus_tokens is None
    return math.inf if unlimited else MAX_EPOCHS


def request_for(config: Config, text: Text, flops_per_second: float | None, overhead_s: float) -> Request:
    """The planner's request: the sizes that the user has set, and rules for those that are null.

    Args:
        flops_per_second: The speed to plan with; None if time is not limited.
        overhead_s: Seconds of the budget that are not training.

    Raises UserError, with a line for each pair of sizes that do not fit together.
    """
    limits, model = limits_of(config), config.model
    shape = template(config)
    if problems := size_problems(config, text.n_vocab, model.block_size):
        raise UserError(*problems)
    if model.vocab_size is None:
        assert text.n_vocab is not None
        shape = replace(shape, vocab_size=padded_vocab(text.n_vocab))
    flops = _rough_flops(limits, flops_per_second)
    if model.block_size is None:
        shape = replace(shape, block_size=block_size_for(flops, shape.vocab_size))
    by_compute, block = open_block(config), block_for(flops)
    shape = replace(shape, **{option: block[option] for option in by_compute})
    shape = with_eot(config, shape, shape.vocab_size - 1)  # trials use random tokens, so any id will do
    if problems := size_problems(config, text.n_vocab, shape.block_size):
        raise UserError(*problems)
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
        corpus_source=text.size_source,
        most_repeated=text.most_repeated,
        aspect=(config.plan.aspect_min, config.plan.aspect_max),
        max_epochs=max_epochs_of(config),
        table_flops=flops if model.bigram_rows is None else None,
        block_by_compute=bool(by_compute),
        notes=(*init_notes(config), *corpus_notes(config, text.fingerprint)),
    )


def _why_missing(tokenizer: str) -> str:
    """Why a tokenizer of the user's own cannot be had, to add to a line; "" if it can."""
    from data.tokenizers.tokenizer import is_own, own_tokenizer

    try:
        if is_own(tokenizer):
            own_tokenizer(tokenizer)
    except UserError as error:
        return f" ({error.messages[0]})"
    return ""


def size_problems(config: Config, n_vocab: int | None, block_size: int | None) -> list[str]:
    """A line for each pair of sizes that do not fit together. A size of None is not known yet."""
    problems, vocab_size, batch = [], config.model.vocab_size, config.optim.batch_tokens
    if vocab_size is None and n_vocab is None:
        problems.append(
            f"the vocabulary of data.tokenizer={config.data.tokenizer} is not known without its file;"
            f" set model.vocab_size{_why_missing(config.data.tokenizer)}"
        )
    if vocab_size is not None and n_vocab is not None and vocab_size < n_vocab:
        problems.append(
            f"model.vocab_size={vocab_size} is smaller than the {n_vocab} tokens of data.tokenizer="
            f"{config.data.tokenizer}; leave it out or raise it"
        )
    if batch is not None and block_size is not None and batch % block_size:
        near = max(1, round(batch / block_size)) * block_size
        problems.append(f"optim.batch_tokens={batch} is not a multiple of model.block_size={block_size}; try {near}")
    return problems


def check_early(config: Config, initial: InitialModel | None = None) -> None:
    """Raise UserError now for what the planner would refuse after the corpus is prepared, which may take hours."""
    from data.tokenizers.tokenizer import short_name

    n_vocab, limits = vocab_size_for(config, initial), limits_of(config)
    if n_vocab is None:  # a tokenizer of tiktoken whose size is not in our table; its file has it
        return
    if problems := size_problems(config, n_vocab, config.model.block_size):
        raise UserError(*problems)
    if limits.seconds is None:  # the plan does not depend on speed
        choose(request_for(config, Text(n_vocab, short_name(config.data.tokenizer), None), None, 0.0))


def _rough_flops(limits: Limits, flops_per_second: float | None) -> float | None:
    """The FLOPs of a budget within a factor of a few, to choose a context length; None if only steps are limited."""
    guesses = [limits.flops] if limits.flops is not None else []
    if limits.seconds is not None and flops_per_second:
        guesses.append(limits.seconds * flops_per_second)
    if limits.tokens is not None:
        guesses.append(6 * limits.tokens**2 / 20)  # C = 6 N D with D = 20 N (Hoffmann et al., arXiv:2203.15556)
    return min(guesses, default=None)


def with_mfu(plan: Plan, shape: Shape, peak_flops: float) -> Plan:
    """The plan with its model FLOPs utilization: FLOP/s at its speed, as a share of `peak_flops`."""
    if not plan.tokens_per_second:
        return plan
    return replace(plan, mfu=plan.tokens_per_second * flops_per_token(shape) / peak_flops)


def peak_of(device: DeviceSpec, precision: str) -> float:
    """Peak FLOP/s in the device table. Raises UserError if the table has none for this precision."""
    peak = device.peak if precision == "auto" else device.peak_in(precision)
    if peak is None:
        raise UserError(
            f"device.precision={precision}: the table has no peak of device={device.name} for it; set"
            " device.peak_flops=, or device.precision=auto"
        )
    return peak


def plan_without_device(config: Config, text: Text) -> Plan:
    """A plan from the device table, or from FLOPs, tokens or steps alone. It imports no torch."""
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
    """Whether to measure speed: probe=true, or probe=null with limited hours; not if mfu= gives the speed."""
    return not config.mfu and config.probe is not False and (config.probe is True or limits.seconds is not None)


def first_request(config: Config, text: Text, device: Device, overhead_s: float) -> Request:
    """The planner's request with an assumed speed, before anything was measured on this device."""
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
    """A plan from speeds that `trials` measures on this device, or from an assumed speed if `trials` is None.

    `say` and `detail` are those of `measured_plan`.
    """
    request = first_request(config, text, device, overhead_s)
    compile_options, limit_s = device.compile_options(config.device.compile), request.limits.seconds
    if trials is not None:
        optim, probe_s = config.optim, probe_seconds(request.limits)
        client = DeviceTrialClient(trials, device, optim_settings(config), optim.micro_batch, probe_s, say)
        plan = measured_plan(request, client, compile_options, say, detail)
    else:
        if limit_s is None and not config.mfu:  # the plan does not depend on speed
            request = replace(request, flops_per_second=None)
        plan = make_plan(request, speed_source="mfu" if config.mfu else "assumed")
        option = first_that_pays(compile_options, None if limit_s is None else limit_s - overhead_s)
        plan = replace(plan, compiled=option is not None, regional=option is not None and option.how == "regional")
    return with_mfu(plan, plan.sized(request.template), device.peak_flops)


def probe_seconds(limits: Limits) -> float:
    """The seconds that measuring may take: 2 % of the budget, from 1 s (a CPU does a few steps) to 30 s."""
    return 5.0 if limits.seconds is None else min(30.0, max(1.0, 0.02 * limits.seconds))


# Fewest bytes per parameter, in float32: the weight, its gradient, and the one moment that every optimizer keeps. Bytes
# per token of a batch: input and target as int64.
LEAST_BYTES, TOKEN_BYTES = 12, 16


def saved_plan(session: Session) -> Plan | None:
    """The plan of a resumed run; None for a new run. If plan.json is damaged, its copy is used.

    Raises UserError if both are damaged: a new plan might choose another shape, which the checkpoints would not fit.
    """
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
    """Make the plan of a new run, from measured speed if `trials` is given, and write plan.json and its copy.

    With several processes, all of them take the plan of rank 0. Raises UserError if the corpus is too short for one
    sequence, or the plan does not fit into memory.
    """
    from data.loader import Loader

    limits = session.clock.limits
    overhead_s = 0.0
    if limits.seconds is not None and limits.counts == "all":
        ending_s = 4.0 + 0.05 * limits.seconds  # a guess: evaluations, saving and report are not measured yet
        overhead_s = session.clock.counted_s() + probe_seconds(limits) + min(60.0, ending_s)
    text = text_of(corpus)
    block_size = first_request(session.config, text, device, overhead_s).template.block_size
    Loader(corpus.train, block_size, 1, 0)  # raises UserError if the corpus is too short, before anything is measured
    console = session.console
    plan = plan_here(session.config, text, device, overhead_s, trials, console.say, console.detail)
    if trials is not None:
        trials.close()  # frees the GPU memory held by the trial worker
    require_memory(plan, plan.sized(template(session.config)), device.free_memory())
    show_plan(plan, console.for_log(), limits)
    show_plan_briefly(plan, console, limits)
    content = session.world.broadcast(significant(plan.to_dict(), 10))
    session.run.checkpoints.mkdir(exist_ok=True)
    for path in (session.run.plan_copy, session.run.plan):
        write_json(path, content, checksummed=True)
    return load_plan(session.run.plan)  # the same digits that a resumed run will read


def require_memory(plan: Plan, shape: Shape, free: int) -> None:
    """Raise UserError if training takes more than `free` bytes: the system would kill the process without a message."""
    needed = LEAST_BYTES * shape.parameters() + TOKEN_BYTES * plan.batch_tokens
    if needed > free:
        layers = format_number_of(plan.n_layer, "layer")
        raise UserError(
            f"a model of {layers} of width {plan.n_embd} with optim.batch_tokens={plan.batch_tokens} takes at least"
            f" {needed / 2**30:,.1f} GiB to train and {free / 2**30:,.1f} are free; set smaller model.* sizes or batches"
            " (null: planned), or another device="
        )
