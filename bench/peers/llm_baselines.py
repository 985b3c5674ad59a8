"""llm-baselines (github.com/epfml/llm-baselines): the user's checkout, on a CPU."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.checkout import CheckoutPeer, flags, seconds_in, write_tokens
from bench.peers.peer import SIZES, TUNED_BATCH, TUNED_RATE, WINDOW, PeerRun, scaled_rates

if TYPE_CHECKING:
    from data.shards import Corpus

ITERATION = re.compile(r"^Train: Iter=\d+ .* iter_dt=([\d.e+-]+)s", re.MULTILINE)
DATA_SEED = 1337  # its default
# Its own defaults (src/config/base.py), except for the device, the sizes (24 layers of width 768 and 512 tokens there), the
# evaluation, which is limited to one batch, and the log, which has every iteration for its seconds.
SHIPPED = {
    "device": "cpu",
    "model": "llama",
    "opt": "adamw",
    "scheduler": "cos",
    "iterations": 15000,
    "warmup_steps": 3000,
    "lr": 1e-3,
    "batch_size": 50,
    **SIZES,
    "sequence_length": WINDOW,
    "eval_batches": 1,
    "log_interval": 1,
}
WARMUP = 3000 / 15000  # of the iterations, as shipped
# Batch size, learning rate and share of the warm-up are nanoGPT's tuned ones. The learning rate was also the best of four here
# (bench/results/tune_llm_baselines.json).
TUNED = {"batch_size": TUNED_BATCH, "lr": TUNED_RATE}
TUNED_WARMUP = 0.05
LEAST_WARMUP = 2  # torch's OneCycleLR divides by the steps minus one


class LlmBaselines(CheckoutPeer):
    """The peer llm-baselines. Each process ends with its first checkpoint, before the last evaluation."""

    name: ClassVar[str] = "llm_baselines"
    title: ClassVar[str] = "llm-baselines"
    given: ClassVar[str] = "LLM_BASELINES"
    note: ClassVar[str] = (
        "Its own Llama with AdamW. `tuned` has the batch size that was best for nanoGPT and the best of four learning rates."
    )

    rates: ClassVar[dict[str, dict[str, Any]]] = scaled_rates({"lr": TUNED_RATE}, 0.25, 0.5, 2.0)

    @staticmethod
    def is_at(path: Path) -> bool:
        return (path / "src" / "main.py").is_file() and (path / "src" / "config" / "base.py").is_file()

    def write_data(self, corpus: Corpus, place: Path) -> None:
        """Write train.bin and val.bin where the peer looks for them, and vocabulary.json for `vocabulary`."""
        write_tokens((corpus.train, corpus.val), place / "src" / "data" / "datasets" / "slimpajama6B")
        (place / "vocabulary.json").write_text(json.dumps({"vocab_size": corpus.tokenizer.n_vocab}))

    def settings(self, form: str, amount: float) -> dict[str, Any]:
        """The peer ends a run at the horizon of the schedule, so `latest_ckpt_interval` is used to end it elsewhere."""
        share = TUNED_WARMUP if form == "tuned" else WARMUP
        horizon = {"iterations": amount, "warmup_steps": max(LEAST_WARMUP, int(share * amount))}
        return {
            **SHIPPED,
            **(TUNED if form == "tuned" else {}),
            **({} if form == "shipped" else horizon),
            "eval_interval": amount,
            "latest_ckpt_interval": amount,
        }

    @staticmethod
    def iteration_seconds(log: str) -> tuple[float, ...]:
        return seconds_in(log, ITERATION, 1.0)

    def ran(self, seconds: float, each: tuple[float, ...], settings: dict[str, Any]) -> PeerRun:
        return PeerRun(seconds, len(each), len(each) * settings["sequence_length"] * settings["batch_size"], each)

    def train_arguments(self, place: Path, name: str, seed: int, settings: dict[str, Any]) -> list[str]:
        shutil.rmtree(place / name, ignore_errors=True)  # else it would resume from an earlier checkpoint
        own = {"seed": seed, "data_seed": DATA_SEED + seed, "results_base_folder": name}
        return flags(settings | vocabulary(place) | own)

    def loss_arguments(self, place: Path, name: str, settings: dict[str, Any], windows: Path) -> list[str]:
        checkpoint = next((place / name).rglob("main.pt"))  # in a folder that is named after all settings
        return [str(checkpoint), str(windows), *flags(settings | vocabulary(place))]


def vocabulary(place: Path) -> dict[str, Any]:
    """The option for the size of the vocabulary, which `write_data` has written."""
    option: dict[str, Any] = json.loads((place / "vocabulary.json").read_text())
    return option
