"""What the planner is asked and what it answers: plain dataclasses, shared by the planner's parts."""

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

ASPECT = (40.0, 100.0)  # n_embd / n_layer; Hoffmann et al. 2022, Table A9: 40..99, median 64


MAX_EPOCHS = 16.0  # beyond, a repeated token is worth less than two thirds of a new one


@dataclass(frozen=True)
class Request:
    """What the plan is for. `template` carries the architecture, block size and vocabulary; None sizes are free.

    flops_per_second: sustained rate to assume where a shape was not measured, at devices.REFERENCE_WIDTH; half_width: how
    thin models fall behind it, see devices.width_factor (0: not at all). overhead_s: of the hours, what is not training
    (set-up, compilation, final evaluation). settled_batch: tokens per step that the rules gave before, and that measured
    speeds belong to, whatever the optimizer. aspect: least and largest n_embd / n_layer. max_epochs: more repetitions of
    the corpus than that are refused. memory: bytes of a device that is not at hand. table_flops: compute by
    which each width gets its table for pairs of tokens; None: the template's stands. block_by_compute: whether
    its norm, activation and the like follow from the compute. notes: what the plan is to repeat.
    The other None fields are the user's to fix and ours to choose.
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
    aspect: tuple[float, float] = ASPECT
    max_epochs: float = MAX_EPOCHS
    memory: float | None = None
    table_flops: float | None = None
    block_by_compute: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alternative:
    """A candidate, what it would have reached and why it lost. `worse`: expected loss, relative to the choice; step_s,
    seconds, and peak_memory, bytes: as its trial had them, where there was one."""

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
    """What to train.

    parameters_law: N as the law counts it. optimum: the law's own answer (N, D) for this many FLOPs; bracket: the least
    and the largest N of all laws for them; interval: its 80 % interval where the law has one; flat: the sizes whose
    expected loss is within 1 % of the best. predicted_loss with its 80 % interval: from a law of one's own runs only.
    curve: (N as the law counts it, expected loss relative to the best) of every candidate at the chosen one's FLOP/s.
    source: where each choice is from, in one word. step_s, seconds of a training step, and peak_memory, its bytes:
    measured. compiled: whether the speed is that of the compiled model, and regional: block by block; compile_s and
    compile_speedup: what compilation costs and brings; compile_cache: how a trial of it found the compiler's, cold or warm.
    block: the knobs of the shape that the compute may decide (budget.rules.block_for); none in plans of earlier versions.
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

    @property
    def compiling(self) -> str:
        """How the model is compiled, as in device.compile."""
        return "regional" if self.regional else "on" if self.compiled else "off"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Plan:
        """The plan that `to_dict` described, also after a way through JSON."""
        pairs = ("learning_rate_spread", "predicted_loss_interval", "bracket", "interval", "flat")
        tuples = {name: tuple(content[name]) if content[name] is not None else None for name in pairs}
        alternatives = [Alternative(**row) for row in content["alternatives"]]
        curve = [(size, worse) for size, worse in content["curve"]]
        return Plan(**{**content, **tuples, "alternatives": alternatives, "curve": curve})

    def sized(self, template: Shape) -> Shape:
        """The template with the plan's sizes."""
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bigram_rows")
        return replace(template, **{name: getattr(self, name) for name in names}, **self.block)


def load_plan(path: Path) -> Plan:
    """The plan that a run wrote down when it began. Raises UserError for a damaged file, or one of another version."""
    try:
        return Plan.from_dict(verify_checksum(load_json(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or of another version ({type(error).__name__}: {error}); restore it from a copy, or set"
            " the run aside and start again with fresh=true"
        ) from error


@dataclass(frozen=True)
class Choice:
    """What a plan is made around: `ranked`, the shapes by expected loss, the chosen one first; the chosen
    one's batch, optimizer, steps and `epochs` of the corpus, where its size is known; `speed` gives the tokens per second of each
    shape, or None."""

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
