"""A deadline for transformers' Trainer: `PYTHONPATH=. python docs/examples/clock_transformers.py 0.01 outputs/clock-hf`.

The arguments are the budget in hours and a folder. Killed and started again, it goes on with the budget that is left.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from toy_model import ByteModel, Steps, validation_batches
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from budget.clock import BudgetClock, Limits, StepCost
from budget.ledger import Heartbeat, read_ledger
from model.optim.lr_schedule import learning_rate_scale

COST = StepCost(tokens=1, flops=1.0)  # read only if the limits are in tokens or FLOPs


class Budget(TrainerCallback):
    """Stops training in time for a last evaluation, and sets the learning rate by the share of the budget spent.

    Use it with `lr_scheduler_type="constant"` and `max_steps` larger than any budget. The peak
    learning rate is `learning_rate`.
    """

    def __init__(self, hours: float, folder: Path) -> None:
        self.clock = BudgetClock(Limits(hours=hours))  # it started with the process, before the imports
        if earlier := read_ledger(folder / "ledger.json"):
            self.clock.carry(earlier["ledger_s"], earlier["clean"])
        self.heartbeat = Heartbeat(self.clock, folder / "ledger.json", print)  # writes the ledger once a second
        self.heartbeat.start()
        self.training, self.step, self.learning_rate = ExitStack(), ExitStack(), 0.0

    def measure_reserve(self, trainer: Trainer) -> None:
        """Evaluate once, and keep three times as long, and three seconds for the last checkpoint, for the end of the run."""
        began = self.clock.awake_s()
        with self.clock.charge("eval"):
            trainer.evaluate()
        self.clock.reserve_s = 3 * (self.clock.awake_s() - began) + 3.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = self.file_of(args, state)
        if saved.exists():
            self.clock.progress = json.loads(saved.read_text())["progress"]
        self.training.enter_context(self.clock.charge("train"))  # with the time between steps
        control.should_training_stop = not self.steps_left(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.training.close()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        progress = self.clock.advance(max(1, self.steps_left(state)))
        scale = learning_rate_scale(progress, "linear", warmup=0.1, floor=0.0, decay=0.2)
        self.learning_rate = args.learning_rate * scale
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = self.learning_rate
        self.step.enter_context(self.clock.step())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step.close()
        control.should_training_stop = not self.steps_left(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.file_of(args, state).write_text(json.dumps({"progress": self.clock.progress}))

    def steps_left(self, state: TrainerState) -> int:
        return self.clock.steps_left(state.global_step, 0, 0.0, COST)[0]

    @staticmethod
    def file_of(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "clock.json"


class ByteTrainer(Trainer):
    """Feeds the example's ready-made batches. Only the callback is needed with a Trainer of your own."""

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=None, collate_fn=as_inputs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(validation_batches(), batch_size=None, collate_fn=as_inputs)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any) -> Any:
        loss = model(**inputs)
        return (loss, {"loss": loss}) if return_outputs else loss


def as_inputs(batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"inputs": batch[0], "labels": batch[1]}


def main(hours: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(hours, folder)
    args = TrainingArguments(
        output_dir=str(folder),
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_steps=1_000_000_000,
        save_steps=50,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        prediction_loss_only=True,
        label_names=["labels"],
        ignore_data_skip=True,  # batches are numbered from 0 again after a resume; a real data set would skip ahead
    )
    trainer = ByteTrainer(ByteModel(), args, train_dataset=Steps(), eval_dataset=Steps(), callbacks=[budget])
    budget.measure_reserve(trainer)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    trainer.save_model()
    figures = {
        "loss": trainer.evaluate()["eval_loss"],
        "steps": trainer.state.global_step,
        "progress": budget.clock.progress,
        "learning_rate": budget.learning_rate,
        "seconds": budget.clock.spent_s(),
        "overshoot_s": budget.clock.overshoot_s(),
    }
    (folder / "result.json").write_text(json.dumps(figures))
    budget.heartbeat.close()
    print(
        f"{figures['steps']} steps, {figures['loss']:.3f} nats per byte, {-figures['overshoot_s']:.1f} s before the deadline"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
