"""Evaluations during and at the end of a run, and the time that is reserved for the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from run.report.format_figures import formatted
from training.context import Session, Trainer, axes
from training.divergence import require_finite_loss
from training.micro_batching import attempts

if TYPE_CHECKING:
    from data.eval_windows import EvalRange

EXIT_S = 0.3  # from the last file written to the end of the process


RESERVE_MARGIN = 1.15  # on what the end was measured to take


def update_reserve(session: Session, trainer: Trainer) -> None:
    """Set the reserve from what the parts of the end were measured to take."""
    wandb = session.config.wandb
    dashboard_s = wandb.timeout_s if wandb.mode == "online" else 0.0
    evaluation_s = trainer.final.n_windows * trainer.window_s
    ending_s = 3 * trainer.save_s + evaluation_s + trainer.samples_s + trainer.report_s + dashboard_s
    session.clock.reserve_s = RESERVE_MARGIN * ending_s + EXIT_S


# What the finished model writes for the report; sample.py writes any other text.
SAMPLE_PROMPTS = ("def ", "import ", "The ")


SAMPLE_TOKENS, SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 64, 0.8, 50


def evaluate(session: Session, trainer: Trainer, windows: EvalRange) -> dict[str, Any]:
    """Score the model on a fixed range of the validation split; a stopping signal ends it between batches."""
    from evals.language_model import evaluate as score

    corpus, device, stop = trainer.corpus, trainer.device, session.signals.check
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
    """Text that the model writes after `prompt`, at most `tokens` long."""
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
        stop=lambda: session.signals.received is not None,
    )
    return {"prompt": prompt, "text": tokenizer.decode(written)}


def interim_evaluation(session: Session, trainer: Trainer) -> None:
    """Score the model on the way; what that takes now says more about the end than the rehearsal did. Raises Diverged where
    its loss is no number."""
    with session.clock.charge("eval"):
        began = session.clock.awake_s()
        figures = evaluate(session, trainer, trainer.interim)
        seconds = session.clock.awake_s() - began
    require_finite_loss(trainer, figures)
    trainer.window_s = expected_s(trainer.window_s, seconds / trainer.interim.n_windows)
    update_reserve(session, trainer)
    point = {
        **axes(session, trainer),
        **{f"val_{name}": figures[name] for name in ("loss", "bits_per_byte", "accuracy")},
        "ledger_s": session.clock.accounts(),
    }
    trainer.metrics.write(point)
    session.dashboard.log(point)
    trainer.validation_loss = figures["loss"]
    session.console.detail(
        f"step {trainer.state.step}: validation loss {figures['loss']:.4f}, {formatted(figures['bits_per_byte'], '{:.4f}'.format)}"
        f" bits per byte on {figures['tokens']:,} tokens"
    )


def expected_s(before: float, seconds: float) -> float:
    """What to expect of something that just took so many seconds: no less than that, while a slow spell that is over is
    forgotten by halves, as time kept for it would be lost to training."""
    return max(seconds, (before + seconds) / 2)
