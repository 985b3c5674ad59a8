"""What torch.compile costs and gains on a device, and whether a budget is long enough to earn it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COMPILE_RETURN = 2.0  # compilation pays when it saves at least this many times what it costs


@dataclass(frozen=True)
class CompileOption:
    """A way to torch.compile: `how` as in device.compile, on (the whole model) | regional (block by block); what it is
    expected to cost, seconds, and to bring, a factor; `asked`: by the user, so that it need not pay; `cache`: how a trial
    found the compiler's."""

    how: str
    cost_s: float
    speedup: float
    asked: bool = False
    cache: str | None = None

    def pays(self, seconds: float | None) -> bool:
        """Whether it is worth it for so many seconds of training; None, no limit of time, is a question of taste, and
        two compiled runs may differ in their last bits."""
        if self.asked:
            return True
        return seconds is not None and seconds * (1 - 1 / self.speedup) > COMPILE_RETURN * self.cost_s


def first_that_pays(ways: Sequence[CompileOption], seconds: float | None) -> CompileOption | None:
    """Of several ways to compile, the one that comes first of those that pay; None: leave it."""
    return next((way for way in ways if way.pays(seconds)), None)
