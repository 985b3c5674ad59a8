"""The overlap of an answer with a reference: the Dice coefficient of character bigrams, and ROUGE."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

ROUGE = ("rouge1", "rouge2", "rougeL")
# rouge-score keeps the letters a-z and digits only. Below this share of a text's letters and digits, it compares little of it.
LEAST_KEPT = 0.9
MOST_CELLS = 1 << 24  # pairs of words of two texts, which rouge-score holds in a table for rougeL (128 MiB)
KEPT, COUNTED = re.compile("[a-z0-9]"), re.compile(r"[^\W_]")


def bigram_dice(answer: str, reference: str) -> float:
    """Return 2 |A ∩ B| / (|A| + |B|), where A and B are the sets of pairs of adjacent characters of the two texts.

    It is 0 if one of them has no pair. The competition's scorer is the same (github.com/coji/llm-competition-evaluation).
    """
    first, second = _bigrams(answer), _bigrams(reference)
    return 2 * len(first & second) / (len(first) + len(second)) if first and second else 0.0


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if the texts are equal, white space at their ends not counted, else 0."""
    return float(answer.strip() == reference.strip())


def rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float] | str:
    """Return the means of rouge1, rouge2 and rougeL (F) over pairs of answer and reference, or a line that says why not.

    They are those of the package rouge-score without stemming (Lin 2004, "ROUGE: A Package for Automatic Evaluation of
    Summaries").
    """
    if reason := _why_not(pairs):
        return f"not computed: {reason}"
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return "not computed: install the package rouge-score"
    scorer = RougeScorer(ROUGE)
    scores = [scorer.score(reference, answer) for answer, reference in pairs]
    return {name: math.fsum(each[name].fmeasure for each in scores) / len(scores) for name in ROUGE}


def _bigrams(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(len(text) - 1)}


def _why_not(pairs: Sequence[tuple[str, str]]) -> str | None:
    if not pairs:
        return "no item has a reference"
    references = "".join(reference for _, reference in pairs).lower()
    counted = len(COUNTED.findall(references))
    kept = len(KEPT.findall(references)) / counted if counted else 0.0
    if kept < LEAST_KEPT:
        return f"rouge-score keeps a-z and 0-9 only, {kept:.0%} of the letters and digits of the references"
    if any(len(answer.split()) * len(reference.split()) > MOST_CELLS for answer, reference in pairs):
        return f"a text is too long (more than {MOST_CELLS:,} pairs of words with its reference)"
    return None
