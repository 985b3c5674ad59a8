"""Answers in free text: a prompt is continued under the options of a task."""

from __future__ import annotations

from evals.scoring import Scorer
from evals.tasks.task import Generated, TaskOptions
from model.generate import generate


def continue_prompt(prompt: str, scorer: Scorer, options: TaskOptions) -> Generated:
    """Continue `prompt` by at most task.max_new_tokens tokens, up to the first of task.stop."""
    tokenizer = scorer.tokenizer
    ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
    with scorer.autocast():
        written = generate(
            scorer.model,
            ids,
            options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            eot=tokenizer.eot,
            n_vocab=tokenizer.n_vocab,
        )
    return Generated(tokenizer.decode(written, after=ids[1:]), len(written))
