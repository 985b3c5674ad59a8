"""nanoGPT (github.com/karpathy/nanoGPT): the user's checkout, on a CPU."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.checkout import CheckoutPeer, flags, seconds_in, write_tokens
from bench.peers.peer import SIZES, TUNED_BATCH, TUNED_RATE, PeerRun, scaled_rates

if TYPE_CHECKING:
    from data.shards import Corpus

ITERATION = re.compile(r"iter \d+: loss [\d.]+, time ([\d.]+)ms")
# The settings that its README gives for a CPU, including the horizon of 2000 iterations.
SHIPPED = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 1,
    "block_size": 64,
    "batch_size": 12,
    **SIZES,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "gradient_accumulation_steps": 1,
    "lr_decay_iters": 2000,
}
TUNED_RATES = {"learning_rate": TUNED_RATE, "min_lr": TUNED_RATE / 10}
TUNED = {"batch_size": TUNED_BATCH, **TUNED_RATES}


class NanoGPT(CheckoutPeer):
    """The peer nanoGPT."""

    name: ClassVar[str] = "nanogpt"
    title: ClassVar[str] = "nanoGPT"
    given: ClassVar[str] = "CHECKOUT"
    rates: ClassVar[dict[str, dict[str, Any]]] = scaled_rates(TUNED_RATES, 0.5, 2.0)
    neighbours: ClassVar[dict[str, dict[str, Any]]] = {
        "batch x 0.5": {"batch_size": TUNED_BATCH // 2},
        "batch x 2": {"batch_size": TUNED_BATCH * 2},
        "1 x 128": {"n_layer": 1},
        "2 x 128": {"n_layer": 2},
        "4 x 64": {"n_embd": 64},
        "1 x 64": {"n_layer": 1, "n_embd": 64},
    }

    @staticmethod
    def is_at(path: Path) -> bool:
        return (path / "train.py").is_file() and (path / "configurator.py").is_file()

    def write_data(self, corpus: Corpus, place: Path) -> None:
        """Write train.bin, val.bin and meta.pkl to data/stint."""
        folder = place / "data" / "stint"
        write_tokens((corpus.train, corpus.val), folder)
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.tokenizer.n_vocab}))

    def settings(self, form: str, amount: float) -> dict[str, Any]:
        settings = SHIPPED | (TUNED if form == "tuned" else {})
        horizon = {} if form == "shipped" else {"lr_decay_iters": amount}
        return settings | horizon | {"max_iters": amount, "eval_interval": amount, "dataset": "stint"}

    @staticmethod
    def iteration_seconds(log: str) -> tuple[float, ...]:
        return seconds_in(log, ITERATION, 1e-3)

    def ran(self, seconds: float, each: tuple[float, ...], settings: dict[str, Any]) -> PeerRun:
        # nanoGPT runs one more iteration than max_iters, but does not save its result.
        tokens = settings["max_iters"] * settings["block_size"] * settings["batch_size"]
        return PeerRun(seconds, settings["max_iters"], tokens, each)

    def train_arguments(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> list[str]:
        return [str(seed), *flags(settings | {"out_dir": name})]

    def loss_arguments(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> list[str]:
        return [str(place / name / "ckpt.pt"), str(windows)]
