"""A plain PyTorch loop with a deadline: `PYTHONPATH=. python docs/examples/clock_pytorch.py 0.01 outputs/clock`.

The arguments are the budget in hours and a folder. Killed and started again, it goes on with the budget that is left.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from toy_model import ByteModel, training_batch, validation_loss

from budget.clock import BudgetClock, Limits, StepCost
from budget.ledger import Heartbeat, read_ledger
from model.optim.lr_schedule import learning_rate_scale

PEAK_RATE = 3e-3  # learning rate
SAVE_EVERY = 50  # steps


def main(hours: float, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result, checkpoint, ledger = folder / "result.json", folder / "checkpoint.pt", folder / "ledger.json"
    if result.exists():
        print(f"finished already: {result.read_text()}")
        return
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters())
    step = 0

    clock = BudgetClock(Limits(hours=hours))  # it started with the process, before the imports
    if earlier := read_ledger(ledger):  # what earlier processes have spent, also if they were killed
        clock.carry(earlier["ledger_s"], earlier["clean"])
    heartbeat = Heartbeat(clock, ledger, print)  # writes the ledger once a second
    heartbeat.start()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, clock.progress = saved["step"], saved["progress"]
        print(f"resuming at step {step} with {clock.seconds_left():.1f} s left")

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "progress": clock.progress}, folder / "new.pt")
        (folder / "new.pt").replace(checkpoint)

    began = clock.awake_s()
    with clock.charge("eval"):
        validation_loss(model)
        save()
    clock.reserve_s = 2 * (clock.awake_s() - began) + 1.0  # for the end of the run
    with clock.charge("train"):
        while (left := clock.steps_left(step, tokens=0, flops=0.0, cost=StepCost(tokens=1, flops=1.0)))[0]:
            progress = clock.advance(left[0])  # from 0 to exactly 1 in the last step
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * learning_rate_scale(progress, "linear", warmup=0.1, floor=0.0, decay=0.2)
            with clock.step():  # on a GPU, read the loss of the previous step here, so that the clock waits for it
                loss = model(*training_batch(step))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0:
                with clock.charge("checkpoint"):
                    save()
    with clock.charge("eval"):
        figures = {"loss": validation_loss(model), "steps": step, "progress": clock.progress}
        save()
    figures |= {"learning_rate": optimizer.param_groups[0]["lr"], "stopped_by": left[1]}
    figures |= {"seconds": clock.spent_s(), "overshoot_s": clock.overshoot_s(), "ledger_s": clock.accounts()}
    result.write_text(json.dumps(figures))
    heartbeat.close()
    print(f"{step} steps, {figures['loss']:.3f} nats per byte, {-figures['overshoot_s']:.1f} s before the deadline")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
