"""A batch of token sequences, as the loader returns it and objectives consume it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Array = TypeVar("Array")  # numpy.ndarray on the host, torch.Tensor on the device


@dataclass(frozen=True)
class Batch(Generic[Array]):
    """B sequences of T tokens each.

    Further inputs of an objective (a weight for each target, logits of a teacher) become further fields.
    `parts` and `Device.batch` copy the fields. `warm_up` (training/compile.py) and `Loader.batch` also build batches.

    Attributes:
        inputs: Token ids, int64 (B, T).
        targets: The token after each input, int64 (B, T); -1 is ignored in the loss.
        starts: Offsets at which documents start, int32 (documents + 1,), see `model.attention.document_starts`; None if
            attention does not need them.
    """

    inputs: Array
    targets: Array
    starts: Array | None = None

    def parts(self, micro_batch: int) -> Iterator[Batch[Array]]:
        """Yield consecutive parts of at most `micro_batch` sequences.

        The parts have no `starts`, because these are offsets from the start of a part.
        """
        for first in range(0, len(self.inputs), micro_batch):  # type: ignore[arg-type]
            rows = slice(first, first + micro_batch)
            yield Batch(self.inputs[rows], self.targets[rows])  # type: ignore[index]
