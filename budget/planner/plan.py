"""The planner's input and output as plain dataclasses: Request, Choice and Plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from budget.clock import Limits
from budget.laws.published import Law
from common.checksum import verify_checksum
from common.errors import UserError
from common.safe_read import load_json
from model.config import Shape

ASPECT = (40.0, 100.0)  # n_embd / n_layer; Hoffmann et al. 2022, Table A9: 40 to 99, median 64
MAX_EPOCHS = 16.0  # beyond, the tokens are worth less than two thirds of as many new ones (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Request:
    """A budget, and everything the user fixed. Fields that are None are chosen by the plan, unless noted otherwise.

    template: the architecture, context length and vocabulary; its sizes are ignored.
    flops_per_second: the sustained FLOP/s to assume for shapes without a measurement, at specs.REFERENCE_WIDTH.
    half_width: how much slower narrower models run, see specs.width_factor; 0 means not at all.
    overhead_s: seconds of the budget that do not train (set-up, compilation, final evaluation).
    measured_batch: the tokens per step at which the speeds were measured. It fixes the plan's batch, whatever the
    optimizer.
    corpus_tokens: the training tokens of one epoch of the corpus, or of the most repeated source of a mix; None where they
    are unknown.
    corpus_source: where that number is from: prepared | known | estimate | fixed | unknown.
    most_repeated: the name of that source of a mix; None for one corpus.
    aspect: the smallest and largest n_embd / n_layer.
    max_epochs: a plan with more epochs over the corpus is refused.
    memory: the bytes of an absent device, which a shape has to fit into; None for no check.
    table_flops: the compute that decides the size of each width's hashed bigram embedding; None keeps the template's.
    block_by_compute: whether the compute decided the template's norm, activation and so on (hyperparameters.block_for).
    notes: notes to pass on to the plan.
    """

    limits: Limits
    template: Shape
    law: Law
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    flops_per_second: float | None = None
    half_width: float = 0.0
    overhead_s: float = 0.0
    batch_tokens: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    beta2: float | None = None
    dropout: float | None = None
    optimizer: str | None = None
    measured_batch: int | None = None
    corpus_tokens: float | None = None
    corpus_source: str = "unknown"
    most_repeated: str | None = None
    aspect: tuple[float, float] = ASPECT
    max_epochs: float = MAX_EPOCHS
    memory: float | None = None
    table_flops: float | None = None
    block_by_compute: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alternative:
    """A shape that came close, and why it lost.

    parameters_law: N as the law counts it. worse: the relative difference of its expected loss to the chosen shape's.
    step_s: seconds per step; peak_memory: bytes; both from its trial, None without one.
    """

    n_layer: int
    n_head: int
    n_embd: int
    parameters: int
    parameters_law: int
    tokens: int
    tokens_per_second: float | None
    worse: float
    reason: str
    step_s: float | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class Plan:
    """What to train, and how well the law supports it. The field names are the keys of plan.json.

    parameters, parameters_law: all parameters, and N as the law counts it (block matrices + one vocabulary matrix).
    flops, flops_6nd: training FLOPs with attention (budget/flops.py), and 6ND.
    learning_rate_spread: the lowest and the highest rate of the published rules.
    standing (historical name): the support for the law at this compute: measured | confirmed | extrapolated (published.support).
    optimum: the law's own N and D for these FLOPs.
    bracket (historical name): the range of all laws, that is the smallest and the largest N that they give for these FLOPs.
    interval: the 80 % interval of the law's N; None where the law states no uncertainty.
    flat (historical name): the near-optimal range, that is the sizes whose expected loss is within 1 % of the best.
    predicted_loss, predicted_loss_interval: nats per token, with the 80 % interval; only from a law of the user's own
    runs.
    curve: (N, expected loss relative to the best) by size, at the chosen shape's FLOP/s.
    source: where each choice comes from, in one word.
    mfu: model FLOPs utilization, 0 to 1. step_s: seconds per step; peak_memory: bytes; both measured.
    compiled, regional: whether the speed is that of the compiled model, and whether it is compiled block by block.
    compile_s, compile_speedup: the seconds that compilation takes, and the factor that it gains.
    compile_cache: the state of the compiler's cache before the trial, cold | warm.
    block: the shape's options that the compute may decide (hyperparameters.block_for); empty in plans of earlier
    versions.
    corpus_tokens: the training tokens of the corpus; None where they are unknown, and in plans of earlier versions.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bigram_rows: int
    parameters: int
    parameters_law: int
    tokens: int
    flops: float
    flops_6nd: float
    steps: int
    batch_tokens: int
    learning_rate: float
    learning_rate_spread: tuple[float, float]
    weight_decay: float
    warmup: float
    beta2: float
    dropout: float
    optimizer: str
    hours: float | None
    tokens_per_second: float | None
    epochs: float | None
    predicted_loss: float | None
    predicted_loss_interval: tuple[float, float] | None
    law: str
    standing: str
    optimum: dict[str, float]
    bracket: tuple[float, float]
    interval: tuple[float, float] | None
    flat: tuple[float, float]
    alternatives: list[Alternative]
    curve: list[tuple[float, float]]
    source: dict[str, str]
    notes: list[str] = field(default_factory=list)
    mfu: float | None = None
    step_s: float | None = None
    micro_batch: int | None = None
    peak_memory: int | None = None
    compiled: bool = False
    compile_s: float | None = None
    compile_speedup: float | None = None
    regional: bool = False
    compile_cache: str | None = None
    block: dict[str, Any] = field(default_factory=dict)
    corpus_tokens: float | None = None

    @property
    def compiling(self) -> str:
        """The value of device.compile that the plan stands for: off | on | regional."""
        return "regional" if self.regional else "on" if self.compiled else "off"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Plan:
        """Return the plan from the result of `to_dict`, also after a round trip through JSON."""
        pairs = ("learning_rate_spread", "predicted_loss_interval", "bracket", "interval", "flat")
        tuples = {name: tuple(content[name]) if content[name] is not None else None for name in pairs}
        alternatives = [Alternative(**row) for row in content["alternatives"]]
        curve = [(size, worse) for size, worse in content["curve"]]
        return Plan(**{**content, **tuples, "alternatives": alternatives, "curve": curve})

    def sized(self, template: Shape) -> Shape:
        """Return the template with the plan's sizes and block options."""
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bigram_rows")
        return replace(template, **{name: getattr(self, name) for name in names}, **self.block)


def load_plan(path: Path) -> Plan:
    """Read the plan.json of a run. Raises UserError for a file that is damaged or from another version."""
    try:
        return Plan.from_dict(verify_checksum(load_json(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or from another version ({type(error).__name__}: {error}); restore it from a copy, or set"
            " this run aside and start a new one with fresh=true"
        ) from error


@dataclass(frozen=True)
class Choice:
    """The chosen shape with its batch, optimizer and steps.

    ranked: all candidates by expected loss, the chosen one first. speed: the tokens per second of a shape, None where
    it is unknown. epochs: passes over the corpus, None where its size is unknown.
    """

    ranked: list[Shape]
    speed: Callable[[Shape], float | None]
    batch_tokens: int
    optimizer: str
    steps: int
    epochs: float | None

    @property
    def shape(self) -> Shape:
        return self.ranked[0]

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens
