"""Score a finished model on any text: `python evaluate.py checkpoint=outputs/NAME data.path=my.jsonl.zst`.

The same figures as at the end of training: loss, perplexity, bits per byte, accuracy, whole and by source. Under torchrun
every process scores its share of the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from cli.launch import launch, leave
from common.format import format_count
from common.json_io import significant
from config import EvaluateConfig
from data.eval_windows import EvalRange
from data.readers import read_documents, source_id
from data.tokenizer import Tokenizer
from device.distributed import join_world, leave_world, local_device
from run.report.console import Console


def main(config: EvaluateConfig) -> None:
    from device.device import open_device

    wanted, name = config.device, local_device(config.device.name)
    world = join_world(name)
    # MFU is not wanted here, so neither is measuring the peak
    device = open_device(name, wanted.threads, wanted.precision, 1.0)
    figures = score(config, device)
    leave_world(world)
    if world.rank == 0:
        print(json.dumps(significant(figures, 10), indent=1)) if config.output == "json" else show_figures(figures)


def score(config: EvaluateConfig, device: Any) -> dict[str, Any]:
    """The figures, with what they were measured on."""
    from evals.language_model import evaluate
    from run.load_model import load_model

    assert config.checkpoint is not None
    finished = load_model(config.checkpoint, device.torch_device)
    block_size = finished.model.shape.block_size
    left_out: dict[str, int] = {}
    tokens, source_ids, sources = read_tokens(config, finished.tokenizer, left_out)
    windows = EvalRange.from_tokens(tokens, source_ids, sources, block_size, eot=finished.tokenizer.eot)
    figures = evaluate(
        finished.model,
        windows,
        finished.tokenizer.token_bytes,
        sources,
        config.micro_batch,
        device.torch_device,
        device.autocast,
    )
    return {"checkpoint": config.checkpoint, "data": config.data.path, "left_out": left_out, **figures}


def read_tokens(
    config: EvaluateConfig, tokenizer: Tokenizer, left_out: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Token ids of the text, each document ended by end-of-text as in training, the source of each, and their names;
    documents that are none are counted in `left_out`, by reason."""
    parts: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    sources: dict[str, int] = {}
    count = 0
    data = config.data
    assert data.path is not None
    documents: Iterable[Any] = read_documents(data.path, data.text_key, data.bad_documents, left_out)
    for document in documents:
        ids = np.append(tokenizer.encode(document.text), tokenizer.dtype.type(tokenizer.eot))
        parts.append(ids)
        owners.append(np.full(len(ids), source_id(sources, document.source), dtype=np.int32))
        count += len(ids)
        if config.tokens is not None and count >= config.tokens:
            break
    return np.concatenate(parts)[: config.tokens], np.concatenate(owners)[: config.tokens], list(sources)


def show_figures(figures: dict[str, Any]) -> None:
    def row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
        return (
            name,
            format_count(part["tokens"]),
            shown(part["loss"], "{:.4f}"),
            shown(part["perplexity"], "{:.2f}"),
            shown(part["bits_per_byte"], "{:.4f}"),
            shown(part["accuracy"], "{:.2%}"),
        )

    columns = ["source", "tokens", "loss", "perplexity", "bits per byte", "accuracy"]
    rows = [row(name, part) for name, part in figures["by_source"].items()]
    console = Console()
    console.table(f"{figures['checkpoint']} on {figures['data']}", columns, [*rows, row("all", figures)])
    if figures["left_out"]:
        console.say(f"left out: {', '.join(f'{n:,} {what} documents' for what, n in figures['left_out'].items())}")


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


if __name__ == "__main__":
    launch(main, "evaluate")
    leave()
