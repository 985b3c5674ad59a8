"""The cost and the gain of torch.compile, and whether a budget is long enough for it to pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COMPILE_RETURN = 2.0  # compilation pays when it saves at least this many times what it costs


@dataclass(frozen=True)
class CompileOption:
    """A way to compile the model, with its expected or measured cost and gain.

    how: as in device.compile, "on" (the whole model) or "regional" (block by block). cost_s: seconds of compilation.
    speedup: a factor. asked: the user asked for it, so it need not pay. cache: the state of the compiler's cache
    before the trial, "cold" or "warm".
    """

    how: str
    cost_s: float
    speedup: float
    asked: bool = False
    cache: str | None = None

    def pays(self, seconds: float | None) -> bool:
        """Return whether compilation is worth its cost for `seconds` of training.

        Without a limit of time (None) it is not chosen: the gain is open, and two compiled runs may differ in their
        last bits.
        """
        if self.asked:
            return True
        return seconds is not None and seconds * (1 - 1 / self.speedup) > COMPILE_RETURN * self.cost_s


def first_that_pays(ways: Sequence[CompileOption], seconds: float | None) -> CompileOption | None:
    """Return the first option that pays, None where none does; `ways` is ordered by preference."""
    return next((way for way in ways if way.pays(seconds)), None)
