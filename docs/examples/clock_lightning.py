"""A deadline for Lightning: `PYTHONPATH=. python docs/examples/clock_lightning.py 0.01 outputs/clock-lightning`.

The arguments are the budget in hours and a folder. Killed and started again, it goes on with the budget that is left.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from toy_model import ByteModel, Steps, validation_batches

from budget.clock import BudgetClock, Limits, StepCost
from budget.ledger import Heartbeat, read_ledger
from model.optim.lr_schedule import learning_rate_scale

COST = StepCost(tokens=1, flops=1.0)  # read only if the limits are in tokens or FLOPs


class Budget(Callback):
    """Stops training in time for a last validation, and sets the learning rate by the share of the budget spent.

    The validation that Lightning runs before training (num_sanity_val_steps=-1) measures how long the last one takes.
    The peak learning rate is the one that the optimizers were made with.
    """

    def __init__(self, hours: float, folder: Path) -> None:
        self.clock = BudgetClock(Limits(hours=hours))  # it started with the process, before the imports
        if earlier := read_ledger(folder / "ledger.json"):
            self.clock.carry(earlier["ledger_s"], earlier["clean"])
        self.heartbeat = Heartbeat(self.clock, folder / "ledger.json", print)  # writes the ledger once a second
        self.heartbeat.start()
        self.training, self.validation, self.step = ExitStack(), ExitStack(), ExitStack()
        self.validation_began = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_began = self.clock.awake_s()
        self.validation.enter_context(self.clock.charge("eval"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation.close()
        seconds = self.clock.awake_s() - self.validation_began
        self.clock.reserve_s = max(self.clock.reserve_s, 3 * seconds + 3.0)  # and three seconds for the last checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training.enter_context(self.clock.charge("train"))  # with the time between steps
        self.stop_if_spent(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training.close()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        progress = self.clock.advance(max(1, self.steps_left(trainer)))
        scale = learning_rate_scale(progress, "linear", warmup=0.1, floor=0.0, decay=0.2)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak_lr", group["lr"]) * scale
        self.step.enter_context(self.clock.step())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step.close()
        self.stop_if_spent(trainer)

    def steps_left(self, trainer: Trainer) -> int:
        return self.clock.steps_left(trainer.global_step, 0, 0.0, COST)[0]

    def stop_if_spent(self, trainer: Trainer) -> None:
        if not self.steps_left(trainer):
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.heartbeat.close()

    def state_dict(self) -> dict[str, Any]:  # in every checkpoint of Lightning
        return {"progress": self.clock.progress, "reserve_s": self.clock.reserve_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clock.progress = state_dict["progress"]
        self.clock.reserve_s = state_dict["reserve_s"]  # a resumed run does not validate before training


class LightningByteModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = ByteModel()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model(*batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.model(*batch), batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(hours: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(hours, folder)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=-1,
        callbacks=[budget, ModelCheckpoint(folder, save_last=True, every_n_train_steps=50, save_top_k=0)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, last = LightningByteModel(), folder / "last.ckpt"
    batches = DataLoader(Steps(), batch_size=None, shuffle=False)
    trainer.fit(
        model, batches, DataLoader(validation_batches(), batch_size=None), ckpt_path=last if last.exists() else None
    )
    figures = {
        "loss": float(trainer.callback_metrics["val_loss"]),
        "steps": trainer.global_step,
        "progress": budget.clock.progress,
        "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        "seconds": budget.clock.spent_s(),
        "overshoot_s": budget.clock.overshoot_s(),
    }
    (folder / "result.json").write_text(json.dumps(figures))
    print(
        f"{figures['steps']} steps, {figures['loss']:.3f} nats per byte, {-figures['overshoot_s']:.1f} s before the deadline"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
