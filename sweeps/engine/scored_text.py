"""Whether the results of several runs can be compared: the text they were scored on, and their tokenizers.

Loss, perplexity and accuracy are per token, so they can be compared between runs with one tokenizer only. Bits per byte can
be compared between tokenizers, on the same text. None of them can be compared between different texts. Scores of a task can be
compared between all models that were scored on the same items.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from common.json_io import mapping
from config import METRICS

BITS_PER_BYTE = "bits_per_byte"
TOKENIZER = "data.tokenizer"
NOT_TEXT = (TOKENIZER, "data.cache_dir", "data.workers")  # options of data that leave the text as it is

Results = Sequence[Mapping[str, Any]]


def changes_text(option: str) -> bool:
    """Whether an option of the command line may change the text of a corpus."""
    return option == "data" or (option.startswith("data.") and option not in NOT_TEXT)


def changes_tokenizer(option: str) -> bool:
    """Whether an option may change the tokenizer. One that is trained on the text changes with it."""
    return option == TOKENIZER or changes_text(option)


def text_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options among `options` that may change the text."""
    return {key: value for key, value in options.items() if changes_text(key)}


def is_task(metric: str) -> bool:
    """Whether a metric is the score of a task in eval.tasks."""
    return metric not in METRICS


def metric_of(result: Mapping[str, Any], metric: str) -> float | None:
    """The value of a metric in result.json: the score of a task, or a figure of the final evaluation; None without it."""
    if is_task(metric):
        return mapping(mapping(result.get("tasks")).get(metric)).get("score")
    return mapping(result.get("eval")).get(metric)


def items_of(results: Results, task: str) -> list[Hashable]:
    """What identifies the items of a task that each result was scored on, or on some of which it was."""
    return [mapping(mapping(result.get("tasks")).get(task)).get("fingerprint") for result in results]


def metric_for(results: Results, metric: str) -> str:
    """The metric by which runs can be ranked: `metric`, or bits per byte if it is per token and their tokenizers differ.

    `results` are the contents of result.json. Two trained tokenizers may have one name, so their fingerprints decide if all
    results have them.
    """
    return BITS_PER_BYTE if len(set(tokenizers_of(results))) > 1 and not is_task(metric) else metric


def tokenizers_of(results: Results) -> list[Hashable]:
    """What identifies the tokenizer of each result: its fingerprint, or its name if results of earlier versions lack it."""
    fingerprints = _entries(results, "tokenizer_fingerprint")
    return fingerprints if all(fingerprints) else _entries(results, "tokenizer")


def texts_of(results: Results, options: Sequence[Mapping[str, str]]) -> list[Hashable]:
    """What identifies the validation text of each result; equal for results that were scored on the same text.

    That is the fingerprint of the validation documents. A corpus prepared by an earlier version lacks it, and is identified
    by its files, options and bytes. Results of earlier versions have neither, and are told apart by `options`, the options
    of each run on the command line and, with one tokenizer, by the fingerprint of their tokens.
    """
    for key in ("text_fingerprint", "text_source"):
        if all(values := _entries(results, key)):
            return values
    tokens = (
        _entries(results, "fingerprint") if len(set(_entries(results, "tokenizer"))) == 1 else [None] * len(results)
    )
    return [(*sorted(text_options(each).items()), token) for each, token in zip(options, tokens, strict=True)]


def _entries(results: Results, key: str) -> list[Hashable]:
    return [mapping(result.get("data")).get(key) for result in results]
