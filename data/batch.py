"""A batch: what the loader hands over and the loss consumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Array = TypeVar("Array")  # numpy.ndarray on the host, torch.Tensor on the device


@dataclass(frozen=True)
class Batch(Generic[Array]):
    """B sequences of T tokens each.

    What an objective needs besides (a weight for each target, logits of a teacher) becomes a further field; `parts`
    and the copy to the device are the two places that carry the fields along.

    Attributes:
        inputs: Token ids, int64 (B, T).
        targets: The token after each input, int64 (B, T); -1 is not counted in the loss.
        starts: Where documents start, int32 (documents + 1,), see `model.attention.document_starts`; None where
            attention does not need it.
    """

    inputs: Array
    targets: Array
    starts: Array | None = None

    def parts(self, micro_batch: int) -> Iterator[Batch[Array]]:
        """Consecutive parts of at most `micro_batch` sequences, without `starts`, which count from a part's beginning."""
        for first in range(0, len(self.inputs), micro_batch):  # type: ignore[arg-type]
            rows = slice(first, first + micro_batch)
            yield Batch(self.inputs[rows], self.targets[rows])  # type: ignore[index]
