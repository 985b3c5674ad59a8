"""A loss that has left for good, told from a spike that training survives."""

from __future__ import annotations

ABOVE = 1.0  # nats per token above a guess: no noise of a batch and no bad initialisation is that bad
LASTING = 32  # steps in a row; a spike that is survived is over sooner


class Spike:
    """Told of every step's loss. A model that once did better than guessing and then, for LASTING steps in a row, does
    worse by more than ABOVE has forgotten everything: the rest of the budget would be thrown after it."""

    def __init__(self, guess: float, loss: float | None) -> None:
        """`guess`: nats per token of a model that knows nothing, ln of the vocabulary; `loss`: where the run stands."""
        self._guess = guess
        self._learned = loss is not None and loss < guess
        self._above = 0

    def lasts(self, loss: float) -> bool:
        """Whether, with this step's loss, the model is lost."""
        self._learned = self._learned or loss < self._guess
        self._above = self._above + 1 if self._learned and loss > self._guess + ABOVE else 0
        return self._above >= LASTING

    @property
    def calm(self) -> bool:
        """Whether these weights are worth going back to."""
        return not self._above
