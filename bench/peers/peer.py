"""The interface of a peer, a trainer that stint is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from data.eval_windows import EvalRange
    from data.shards import Corpus

FORMS = ("shipped", "matched", "tuned")
# The sizes that nanoGPT's README gives for a CPU, with a tuned batch size (in sequences) and learning rate: see
# bench/results/tune_nanogpt.json.
SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 128}
WINDOW, TUNED_BATCH, TUNED_RATE = 64, 24, 4e-3


@dataclass(frozen=True)
class PeerRun:
    """A run of a peer. `seconds`: of the whole process; `each`: of every iteration, if its log has them."""

    seconds: float
    iterations: int
    tokens: int
    each: tuple[float, ...] = ()


class Peer(ABC):
    """A trainer that stint is compared with.

    Attributes:
        name: Part of the result's file name.
        title: Its name in text.
        given: The value of `--peer` in the command that a result records.
        note: A remark for readers of the result; may be empty.
        forms: The forms of its settings; the last one is the main comparison.
        window: Context length of its model in tokens.
        rates: Changes of the tuned form's learning rate, by name, for bench.peers.tune_peer.
        neighbours: Other changes of the tuned form, by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    given: ClassVar[str]
    note: ClassVar[str] = ""
    forms: ClassVar[tuple[str, ...]] = FORMS
    window: ClassVar[int] = WINDOW
    rates: ClassVar[dict[str, dict[str, Any]]]
    neighbours: ClassVar[dict[str, dict[str, Any]]] = {}

    @abstractmethod
    def write_data(self, corpus: Corpus, place: Path) -> None:
        """Write the corpus to the working folder `place` in the peer's format."""

    @abstractmethod
    def amount_within(self, place: Path, form: str, seconds: float) -> float:
        """The `amount` of a run that takes `seconds`, start-up included, in the unit of `settings`."""

    @abstractmethod
    def settings(self, form: str, amount: float) -> dict[str, Any]:
        """The peer's options, with its own names, for a run of length `amount`."""

    def settings_for(self, form: str, iterations: int) -> dict[str, Any]:
        """As `settings`, for a run of `iterations`, whatever the unit of `amount`."""
        return self.settings(form, iterations)

    @abstractmethod
    def run(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        """Train and write the model to place/name. Exits if the peer fails."""

    @abstractmethod
    def loss(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> float:
        """The loss of that model in nats per token on the windows that `write_windows` wrote."""


def scaled_rates(settings: dict[str, float], *factors: float) -> dict[str, dict[str, Any]]:
    """`rates` of a peer: the learning rates in `settings` times each factor."""
    return {
        f"learning rate x {factor:g}": {key: factor * value for key, value in settings.items()} for factor in factors
    }


def write_windows(windows: EvalRange, path: Path) -> None:
    """Write the .npz on which peers are scored: inputs x and targets y, int64 (windows, tokens); a target of -1 is ignored."""
    x, y, _ = windows.windows(0, windows.n_windows)
    np.savez(path, x=x, y=y)
