"""Answers in free text: the prompt of an item is continued, and the continuation ended, under the options of a task."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

from evals.scoring import Scorer, TooLong
from evals.tasks.task import Generated, Item, TaskOptions
from model.generate import generate

# A period within "3.14" ends no sentence, so ASCII marks count only before white space or at the end of the text. The marks of
# Chinese and Japanese need none behind them. Closing quotes and brackets belong to their sentence.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|\Z)|[。！？][」』”’）]*|(?=\n)")
PARTIAL_CHARACTER = "\ufffd"  # bytes that are not a whole character are decoded as this


def continue_prompt(
    item: Item, scorer: Scorer, options: TaskOptions, stop: Callable[[], None] = lambda: None
) -> Generated:
    """Return the model's answer to the prompt of `item`, of at most task.max_new_tokens tokens, ended by `shorten`.

    Each token is drawn given the last block_size tokens. If prompt and answer together are longer, this window moves over the
    beginning of the prompt; `Generated.cut` counts the tokens of the prompt that it has left at the end of the answer. The
    answer depends on the item and the options alone: the seed is derived from task.seed and the item's id.

    `stop` is called before each token; it may raise an exception. Raises TooLong as `encode_prompt` does.
    """
    tokenizer, block_size = scorer.tokenizer, scorer.model.shape.block_size
    prompt = encode_prompt(item, scorer)
    shown = prompt[-block_size:]
    before = [token for token in shown if token != tokenizer.eot]

    def text_of(written: Sequence[int]) -> str:
        return tokenizer.decode(written, after=before).rstrip(PARTIAL_CHARACTER)

    def is_complete(written: Sequence[int]) -> bool:
        stop()
        return bool(options.stop or options.length) and _end(text_of(written), options, may_go_on=True) is not None

    with scorer.autocast():
        written = generate(
            scorer.model,
            shown,
            options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            seed=item_seed(options.seed, item.id),
            eot=tokenizer.eot,
            n_vocab=tokenizer.n_vocab,
            stop=is_complete,
        )
    text = shorten(text_of(written), options, incomplete=len(written) == options.max_new_tokens)
    left = len(prompt) + max(len(written) - 1, 0) - block_size
    return Generated(text, len(written), min(max(left, 0), len(prompt)))


def encode_prompt(item: Item, scorer: Scorer) -> list[int]:
    """Return the tokens of an item's prompt, with end-of-text first as `Scorer.prefix` has it for contexts.

    Raises TooLong if they are more than block_size and `Scorer.too_long` is `refuse`.
    """
    assert item.prompt is not None
    tokens = [int(token) for token in scorer.tokenizer.encode(item.prompt)]
    if not tokens or scorer.prefix == "always":
        tokens = [scorer.tokenizer.eot, *tokens]
    window = scorer.model.shape.block_size
    if len(tokens) > window and scorer.too_long == "refuse":
        raise TooLong(
            f"the prompt's {len(tokens)} tokens are more than the {window} of the model's window; set"
            " task.too_long=cut to cut prompts from the left",
            "cut",
        )
    return tokens


def item_seed(seed: int, item: str) -> int:
    """Return the seed of an item's answer, 0 to 2^64 - 1, which no other item affects."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item}".encode()).digest()[:8])


def shorten(text: str, options: TaskOptions, incomplete: bool) -> str:
    """Return the part of a continuation that is the answer.

    It ends before the first of the texts task.stop, or with the first sentence that reaches task.length characters (white space
    at the beginning not counted), where that comes earlier. If task.max_new_tokens ended the continuation (`incomplete`) beyond
    task.length, but within a sentence, that sentence is left out, unless it is the only one.
    """
    end = _end(text, options, may_go_on=False)
    if end is None and incomplete and options.length and len(text.lstrip()) > options.length:
        end = max((end for end in _sentence_ends(text)), default=None)
    return text[:end]


def _end(text: str, options: TaskOptions, may_go_on: bool) -> int | None:
    """Return the number of characters of the answer, or None if nothing ends it yet.

    Behind the last character of a text that may go on, there may be more that belongs to its sentence, or that makes "3." a
    number; it ends none.
    """
    ends = [text.find(each) for each in options.stop if each in text]
    if options.length:
        least = len(text) - len(text.lstrip()) + options.length
        last = len(text) - may_go_on
        ends += [end for end in _sentence_ends(text) if least <= end <= last][:1]
    return min(ends, default=None)


def _sentence_ends(text: str) -> Iterator[int]:
    """Yield the number of characters up to the end of each sentence, in order."""
    for found in SENTENCE_END.finditer(text):
        if text[: found.end()].strip():
            yield found.end()
