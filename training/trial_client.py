"""The run's side of the trials: asks a process of its own what shapes cost, and ends it in time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from budget.planner.hyperparameters import optimizer_for
from budget.planner.trial_search import TooLarge, Trial, TrialFailed, largest_fitting
from common.monotonic import now
from model.config import Shape
from model.optim.settings import AUTO, OptimSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.device import Device

ROOT = Path(__file__).parents[1]
START_S = 10.0  # to load libraries beyond the time that the run itself takes for them


class TrialProcess:
    """`python -m training.trial_worker`, started at once: its imports overlap with whatever the run does next."""

    def __init__(self, device: str) -> None:
        """`device` as in find_machine."""
        self._device = device
        self._start()

    def _start(self) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self._answers: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.trial_worker", self._device],  # a checked name, and no shell
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is the run's to handle
        )
        self._ready = self._failed = False
        self.reason = "it did not start in time"
        threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True).start()

    @staticmethod
    def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")  # it has ended

    def wait(self) -> bool:
        """Until it has loaded its libraries; whether it ever did."""
        if not self._ready and not self._failed:
            try:
                self._ready = self._answer(START_S) is not None
            except EOFError as error:
                self.reason = str(error)
            self._failed = not self._ready
        return self._ready

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer, or None when there was none in time. Raises EOFError, with the reason, when the process died."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        try:
            line = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if line:
            return dict(json.loads(line))
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        raise EOFError(signal.Signals(-status).name if status < 0 else said[-1] if said else f"exit status {status}")

    def restart(self) -> None:
        """Begin anew after it died."""
        self.close()
        self._start()

    def close(self) -> None:
        """End it and all that it started, whatever they are doing."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what could not be written any more
                pipe.close() if pipe is not None else None
        self._errors.close()


@contextmanager
def trial_process(device: str, wanted: bool, warn: Callable[[str], None]) -> Iterator[TrialProcess | None]:
    """A process for trials, ended when the block is left; None where none is wanted, or none can be started."""
    process = None
    if wanted:
        try:
            process = TrialProcess(device)
        except OSError as error:
            warn(f"no process for trials can be started ({error}); the plan rests on an assumed speed")
    try:
        yield process
    finally:
        if process is not None:
            process.close()


class DeviceTrialClient:
    """Measures shapes on this machine's device within `seconds` in all, counted from when the process is ready."""

    def __init__(
        self,
        process: TrialProcess,
        device: Device,
        optimizer: OptimSettings,
        micro_batch: int | None,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """`micro_batch`: sequences at once where the user fixed them; None looks for the largest that fit."""
        self._process, self._device, self._optimizer, self._micro_batch = process, device, optimizer, micro_batch
        self._seconds, self._say = seconds, say
        self._deadline: float | None = None
        self._fitting: dict[Shape, tuple[int, int]] = {}  # largest micro-batch that fitted, and the largest tried for
        self._over = False

    def seconds_left(self) -> float:
        if self._over:
            return 0.0
        return self._seconds if self._deadline is None else self._deadline - now()

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        """See budget.measured.Prober."""
        sequences = max(1, batch_tokens // shape.block_size)
        settled, first, _ = self._micro_batches(shape, sequences)
        return shape.block_size * min(settled or first, sequences)

    def _micro_batches(self, shape: Shape, sequences: int) -> tuple[int, int, int]:
        """Sequences at once: those that are settled, 0 where they are not; then, those to begin with and the most to try."""
        guess = self._device.micro_batch(shape, sequences)
        # On a CPU the guess is what its caches like, not what its memory holds.
        most = guess if self._device.torch_device.type == "cpu" else sequences
        known, tried = self._fitting.get(shape, (0, 0))
        settled = self._micro_batch or (min(known, most) if known < tried or tried >= most else 0)
        return settled, max(known, guess), most

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        """See budget.measured.Prober."""
        sequences = max(1, batch_tokens // shape.block_size)
        settled, first, most = self._micro_batches(shape, sequences)
        if settled:
            found = self._ask(shape, sequences, settled, seconds, compiled)
        else:
            found = largest_fitting(lambda micro: self._ask(shape, sequences, micro, seconds, compiled), first, most)
            if found:
                self._fitting[shape] = (found[0].micro_batch, most)
        return found[0] if found else None

    def _ask(
        self, shape: Shape, sequences: int, micro_batch: int, seconds: float, compiled: str
    ) -> tuple[Trial, int] | None:
        if not self._process.wait() and not self._over:
            self._over = True
            self._say(f"no trials: {self._process.reason}")
        if self._deadline is None:
            self._deadline = now() + self._seconds
        if self.seconds_left() <= 0:
            return None
        device = {**vars(self._device), "torch_device": str(self._device.torch_device)}
        trial = {
            "sequences": sequences,
            "micro_batch": micro_batch,
            "seconds": seconds,
            "compiled": compiled,
        }
        try:
            optimizer = self._optimizer
            if optimizer.name == AUTO:
                optimizer = replace(optimizer, name=optimizer_for(shape, sequences * shape.block_size))
            request = {"device": device, "shape": asdict(shape), "optimizer": asdict(optimizer), "trial": trial}
            found = self._process.ask(request, self.seconds_left())
        except EOFError as error:
            killed = str(error) == "SIGKILL"  # the system's last word when memory runs out
            self._over = not (killed and self._restart())
            if killed:
                raise TooLarge from None
            raise TrialFailed(str(error)) from None
        if found is None:
            self._over = True
            return None
        if "too_large" in found:
            raise TooLarge
        if "error" in found:
            raise TrialFailed(found["error"])
        available, peak = int(found.pop("available_memory")), int(found.pop("peak_memory"))
        figures = {
            "micro_batch": min(micro_batch, sequences),
            "peak_memory": peak,
            "optimizer": optimizer.name,
            **found,
        }
        return Trial(**figures), available

    def _restart(self) -> bool:
        """Whether there is a process again after it died."""
        try:
            self._process.restart()
        except OSError as error:
            self._say(f"no process for further trials can be started ({error})")
            return False
        return True
