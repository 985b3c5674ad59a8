"""What bench.against asks of a peer: a trainer that stint is compared with."""

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
# The sizes that nanoGPT's README gives for a CPU, with a batch (sequences) and learning rate that serve it well: of eight
# neighbours one layer of this width was 0.013 nats better, and all others worse (bench/results/tune_nanogpt.json, a seed each).
SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 128}
WINDOW, TUNED_BATCH, TUNED_RATE = 64, 24, 4e-3


@dataclass(frozen=True)
class PeerRun:
    """A run of a peer. `seconds`: of the whole process; `each`: of every iteration, as its log has them, if it has."""

    seconds: float
    iterations: int
    tokens: int
    each: tuple[float, ...] = ()


class Peer(ABC):
    """A trainer that stint is compared with.

    Attributes:
        name: Part of the result's file name.
        title: In prose.
        given: What `--peer` takes, as a result says how to get it again.
        note: What a reader of the result has to know; may be empty.
        forms: Of its settings, the headline last.
        window: Context of its model, tokens.
        rates: Changes of the tuned form's learning rate alone, by their names, for bench.tune_peer.
        neighbours: Other changes of the tuned form.
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
        """The corpus under the working folder `place` as the peer reads it."""

    @abstractmethod
    def amount_within(self, place: Path, form: str, seconds: float) -> float:
        """How much fits into `seconds`, start and all, in the unit that `settings` takes."""

    @abstractmethod
    def settings(self, form: str, amount: float) -> dict[str, Any]:
        """Its options, by its own names, for a run of that length."""

    def settings_for(self, form: str, iterations: int) -> dict[str, Any]:
        """The same for a run of so many iterations, whatever the unit of `settings`."""
        return self.settings(form, iterations)

    @abstractmethod
    def run(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        """Trains, and leaves the model in place/name. Ends the program where the peer fails."""

    @abstractmethod
    def loss(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> float:
        """Nats per token of that model on windows that `write_windows` wrote."""


def scaled_rates(settings: dict[str, float], *factors: float) -> dict[str, dict[str, Any]]:
    """`rates` of a peer whose learning rate is in these settings."""
    return {f"learning rate x {by:g}": {key: by * value for key, value in settings.items()} for by in factors}


def write_windows(windows: EvalRange, path: Path) -> None:
    """An .npz that peers are scored on: inputs x and targets y, -1 for none, int64 (windows, tokens)."""
    x, y, _ = windows.windows(0, windows.n_windows)
    np.savez(path, x=x, y=y)
