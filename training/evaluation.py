"""Evaluation during and at the end of a run, samples of text, and the time that is reserved for the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from run.report.format_figures import formatted
from training.context import Session, Trainer, axes, expected_s
from training.divergence import require_finite_loss
from training.micro_batching import attempts
from training.task_evaluation import FINAL, interim_scores

if TYPE_CHECKING:
    from data.eval_windows import EvalRange

EXIT_S = 0.3  # seconds from the last written file to the end of the process
RESERVE_MARGIN = 1.15  # factor on the measured time of the end
# Samples of the finished model for the report; sample.py writes text after any other prompt.
SAMPLE_PROMPTS = ("def ", "import ", "The ")
SAMPLE_TOKENS, SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 64, 0.8, 50


def update_reserve(session: Session, trainer: Trainer) -> None:
    """Set the clock's reserve (seconds) from the measured times of the parts of the end."""
    evaluation_s = trainer.final.n_windows * trainer.window_s + sum(task.answers_s(FINAL) for task in trainer.tasks)
    ending_s = 3 * trainer.save_s + evaluation_s + trainer.samples_s
    session.clock.reserve_s = RESERVE_MARGIN * ending_s + closing_s(session, trainer)


def closing_s(session: Session, trainer: Trainer) -> float:
    """The part of the reserve for what follows on the answers of the tasks: their figures, dashboard, report and exit."""
    wandb = session.config.wandb
    dashboard_s = wandb.timeout_s if wandb.mode == "online" else 0.0
    figures_s = sum(task.figures_s for task in trainer.tasks)
    return RESERVE_MARGIN * (figures_s + trainer.report_s + dashboard_s) + EXIT_S


def evaluate(session: Session, trainer: Trainer, windows: EvalRange) -> dict[str, Any]:
    """Score the model on windows of the validation split. Returns the figures of `evals.language_model.evaluate`.

    Raises Interrupted between two batches after a stopping signal.
    """
    from evals.language_model import evaluate as score

    corpus, device = trainer.corpus, trainer.device
    # Several processes may score different numbers of batches, so they cannot agree on a signal between two of them.
    stop = session.signals.check if session.world.size == 1 else None
    token_bytes, sources = corpus.tokenizer.token_bytes, corpus.val.sources
    figures: dict[str, Any] = {}
    for attempt in attempts(session, trainer):
        with attempt:
            micro = trainer.micro_batch
            figures = score(
                trainer.model, windows, token_bytes, sources, micro, device.torch_device, device.autocast, stop
            )
    return figures


def write_sample(session: Session, trainer: Trainer, prompt: str, tokens: int = SAMPLE_TOKENS) -> dict[str, str]:
    """Let the model continue `prompt` by at most `tokens` tokens. Returns {"prompt": ..., "text": ...}."""
    from model.generate import generate

    tokenizer = trainer.corpus.tokenizer
    ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
    written = generate(
        trainer.model,
        ids,
        tokens,
        temperature=SAMPLE_TEMPERATURE,
        top_k=SAMPLE_TOP_K,
        seed=session.config.seed,
        eot=tokenizer.eot,
        n_vocab=tokenizer.n_vocab,
        stop=lambda written: session.signals.received is not None,
    )
    return {"prompt": prompt, "text": tokenizer.decode(written, after=ids[1:])}


def interim_evaluation(session: Session, trainer: Trainer) -> None:
    """Score the model during the run, log the point, and update the reserve by the time that this took.

    Raises Diverged if the loss is not finite.
    """
    with session.clock.charge("eval"):
        began = session.clock.awake_s()
        figures = evaluate(session, trainer, trainer.interim)
        seconds = session.clock.awake_s() - began
        require_finite_loss(trainer, figures)
        scores = interim_scores(session, trainer)
    trainer.window_s = expected_s(trainer.window_s, seconds / trainer.interim.n_windows)
    update_reserve(session, trainer)
    point = {
        **axes(session, trainer),
        **{f"val_{name}": figures[name] for name in ("loss", "bits_per_byte", "accuracy")},
        **scores,
        "ledger_s": session.clock.accounts(),
    }
    trainer.metrics.write(point)
    session.dashboard.log(point)
    trainer.validation_loss = figures["loss"]
    bits_per_byte = formatted(figures["bits_per_byte"], "{:.4f}".format)
    session.console.detail(
        f"step {trainer.state.step}: validation loss {figures['loss']:.4f}, {bits_per_byte} bits per byte on"
        f" {figures['tokens']:,} tokens"
    )
