"""The settings of cramming (Geiping & Goldstein 2022, arXiv:2212.14034), run in stint.

cramming trains masked language models, whose loss is not comparable with that of next-token prediction, so its checkout is
not run. Instead, its architecture `crammed-bert` and training `bert-o4` (github.com/JonasGeiping/cramming) are reproduced as
far as stint has options for them, in the sizes of the other peers. The differences:

- The gate of the feed-forward layer is SiLU instead of GELU. Positions are learned instead of scaled sinusoidal. The norm of
  the embeddings has no weights. Norms have no biases, and an epsilon of 1e-5 instead of 1e-12. Projections into the residual
  stream are initialised with less than 0.02.
- cramming's learning rate starts at a quarter of the peak, here at 0. Both peak at 3/4 of the budget and decay to 0.
- cramming's batch grows to 8192 sequences of 128 tokens over the first 60 % of a day. Here the batch is constant and smaller.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.common import result_of
from bench.peers.peer import SIZES, TUNED_BATCH, WINDOW, Peer, PeerRun, scaled_rates
from bench.peers.stint_run import finished_run, run_stint

if TYPE_CHECKING:
    from data.shards import Corpus

RECIPE = {
    "model": "classic",
    **{f"model.{key}": value for key, value in SIZES.items()},
    "model.block_size": WINDOW,
    "model.activation": "swiglu",
    "model.ffn_hidden": 2
    * SIZES["n_embd"],  # after the gate; cramming's intermed_size of 4 widths counts gate and value
    "model.embed_norm": True,
    "model.bias": False,
    "model.dropout": 0.0,
    "optim": "adamw",
    "optim.learning_rate": 1e-3,
    "optim.beta1": 0.9,
    "optim.beta2": 0.98,
    "optim.eps": 1e-12,
    "optim.weight_decay": 0.01,
    "optim.grad_clip": 0.5,
    "optim.batch_tokens": TUNED_BATCH * WINDOW,
    "schedule": "linear",
    "schedule.warmup": 0.75,
    "probe": False,  # trials would measure nothing that is not given here
}
TUNED = {"optim.learning_rate": 8e-3}  # twice that found for nanoGPT (bench/results/tune_cramming.json)
BATCH = 64


@dataclass(frozen=True)
class Cramming(Peer):
    """cramming's settings in stint. `corpus`: the folder that stint's own runs use as well.

    The schedule follows the clock, so there is no form `shipped` with another horizon."""

    corpus: str

    name: ClassVar[str] = "cramming"
    title: ClassVar[str] = "cramming"
    given: ClassVar[str] = "cramming"
    note: ClassVar[str] = (
        "cramming trains masked language models, whose loss cannot be compared. Its settings run in stint instead, as far as"
        " stint has options for them. `tuned` has the best of five learning rates."
    )
    forms: ClassVar[tuple[str, ...]] = ("matched", "tuned")
    rates: ClassVar[dict[str, dict[str, Any]]] = scaled_rates(TUNED, 0.125, 0.25, 0.5, 2.0)

    def write_data(self, corpus: Corpus, place: Path) -> None:
        """Write nothing, because it reads stint's corpus."""

    def amount_within(self, place: Path, form: str, seconds: float) -> float:
        """The amount is a time, so it is `seconds`."""
        return seconds

    def settings(self, form: str, amount: float) -> dict[str, Any]:
        """The options of train.py for a run of `amount` seconds."""
        return self.recipe(form) | {"budget.hours": round(amount / 3600, 8)}

    def settings_for(self, form: str, iterations: int) -> dict[str, Any]:
        recipe = self.recipe(form)
        return recipe | {"budget.tokens": iterations * recipe["optim.batch_tokens"]}

    @staticmethod
    def recipe(form: str) -> dict[str, Any]:
        return RECIPE | (TUNED if form == "tuned" else {})

    def run(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> PeerRun:
        arguments = [f"{key}={value}" for key, value in settings.items()]
        result = result_of(run_stint(place, self.corpus, name, seed, arguments))
        spent = result["spent"]  # the time to find the prepared corpus is not included here, but is for stint
        each = spent["tokens"] / spent["steps"] / result["throughput"]["tokens_per_second"]
        return PeerRun(spent["hours"] * 3600, spent["steps"], spent["tokens"], (each,) * spent["steps"])

    def loss(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> float:
        import torch

        from evals.scoring import score_tokens
        from run.load_model import load_model

        model = load_model(str(finished_run(place, name)), torch.device("cpu")).model
        with np.load(windows) as held:
            x, y = held["x"], held["y"]
        nats = 0.0
        with torch.inference_mode():
            for first in range(0, len(x), BATCH):
                xs, ys = x[first : first + BATCH], y[first : first + BATCH]
                nats += score_tokens(model, xs, ys, "cpu", nullcontext).nats.sum()
        return nats / int((y != -1).sum())
