"""Trials from the run's side: start the worker process, ask it what training steps of a shape cost, end it in time."""

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
START_S = 10.0  # seconds to wait for the worker's libraries, after the run has loaded its own


class TrialProcess:
    """A worker process, `python -m training.trial_worker`, that loads its libraries while the run continues.

    Attributes:
        reason: Why the worker is not ready, after `wait` returned False.
    """

    def __init__(self, device: str) -> None:
        """Start the worker; `device` as in `device.device.find_device`."""
        self._device = device
        self._start()

    def _start(self) -> None:
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self._answers: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.trial_worker", self._device],  # no shell
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
        answers.put("")  # the process has ended

    def wait(self) -> bool:
        """Wait until the worker has loaded its libraries. Returns False if it failed to."""
        if not self._ready and not self._failed:
            try:
                self._ready = self._answer(START_S) is not None
            except EOFError as error:
                self.reason = str(error)
            self._failed = not self._ready
        return self._ready

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Send a request and return the answer, or None if none came within `seconds`.

        Raises EOFError, with the reason, if the process died.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _answer raises with the reason
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
        messages = self._errors.read().strip().splitlines()
        if status < 0:
            raise EOFError(signal.Signals(-status).name)
        raise EOFError(messages[-1] if messages else f"exit status {status}")

    def restart(self) -> None:
        """Start a new worker after the old one died."""
        self.close()
        self._start()

    def close(self) -> None:
        """Kill the worker and every process that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a request that the worker never read
                pipe.close() if pipe is not None else None
        self._errors.close()


@contextmanager
def trial_process(device: str, wanted: bool, warn: Callable[[str], None]) -> Iterator[TrialProcess | None]:
    """A worker for trials, killed when the block is left; None if it is not `wanted` or cannot be started."""
    process = None
    if wanted:
        try:
            process = TrialProcess(device)
        except OSError as error:
            warn(f"no process for trials can be started ({error}); the plan assumes a speed")
    try:
        yield process
    finally:
        if process is not None:
            process.close()


class DeviceTrialClient:
    """Measures shapes on this machine's device, for `seconds` in total from when the worker is ready."""

    def __init__(
        self,
        process: TrialProcess,
        device: Device,
        optimizer: OptimSettings,
        micro_batch: int | None,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            optimizer: The optimizer's settings; with the name "auto", each trial uses the planner's choice.
            micro_batch: Sequences per forward pass if the user has set them; None to search for the most that fit.
            seconds: For all trials together.
            say: Shows a line to the user.
        """
        self._process, self._device, self._optimizer, self._micro_batch = process, device, optimizer, micro_batch
        self._seconds, self._say = seconds, say
        self._deadline: float | None = None
        # The largest micro-batch that fitted, and the upper end of its search.
        self._fitting: dict[Shape, tuple[int, int]] = {}
        self._over = False

    def seconds_left(self) -> float:
        """Seconds left for trials; 0 after a failure that ends them."""
        if self._over:
            return 0.0
        return self._seconds if self._deadline is None else self._deadline - now()

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        """The tokens of a micro-batch; see `TrialClient` in budget/planner/trial_search.py."""
        sequences = max(1, batch_tokens // shape.block_size)
        known_size, first, _ = self._micro_batches(shape, sequences)
        return shape.block_size * min(known_size or first, sequences)

    def _micro_batches(self, shape: Shape, sequences: int) -> tuple[int, int, int]:
        """Three micro-batches, in sequences: the known one (0 if not known yet), the first to try, and the most to try."""
        guess = self._device.micro_batch(shape, sequences)
        # On a CPU the guess is what fits the caches, not the memory, and larger ones are slower.
        most = guess if self._device.torch_device.type == "cpu" else sequences
        known, tried = self._fitting.get(shape, (0, 0))
        known_size = self._micro_batch or (min(known, most) if known < tried or tried >= most else 0)
        return known_size, max(known, guess), most

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        """Run a trial; see `TrialClient` in budget/planner/trial_search.py."""
        sequences = max(1, batch_tokens // shape.block_size)
        known_size, first, most = self._micro_batches(shape, sequences)
        if known_size:
            found = self._ask(shape, sequences, known_size, seconds, compiled)
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
            killed = str(error) == "SIGKILL"  # the system kills processes that use too much memory
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
        """Start a new worker. Returns False if that fails."""
        try:
            self._process.restart()
        except OSError as error:
            self._say(f"no process for further trials can be started ({error})")
            return False
        return True
