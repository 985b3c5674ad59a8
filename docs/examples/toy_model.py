"""A small byte-level model and real text for the examples: the topics of Python's language reference."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

TEXT = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()), dtype=torch.long)
VALIDATION = len(TEXT) // 20  # bytes at the end of the text
CONTEXT, BATCH = 64, 16  # bytes, sequences


def windows(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 (len(starts), CONTEXT) each, of the windows that begin at `starts`."""
    tokens = TEXT[starts[:, None] + torch.arange(CONTEXT + 1)]
    return tokens[:, :-1], tokens[:, 1:]


def training_batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step; it depends on the step alone, so a resumed run goes on with the next one."""
    generator = torch.Generator().manual_seed(step)
    return windows(torch.randint(len(TEXT) - VALIDATION - CONTEXT, (BATCH,), generator=generator))


def validation_batches() -> list[tuple[Tensor, Tensor]]:
    starts = torch.arange(len(TEXT) - VALIDATION, len(TEXT) - CONTEXT - 1, CONTEXT)
    return [windows(part) for part in starts.split(BATCH)]


class Steps(Dataset):
    """An endless stream of training batches, as long as any budget."""

    def __len__(self) -> int:
        return 1_000_000_000

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return training_batch(step)


class ByteModel(nn.Module):
    """Predicts the next byte with a recurrent network."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.network = nn.GRU(width, width, batch_first=True)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss in nats per byte, a scalar; `inputs` and `labels` are (batch, CONTEXT)."""
        logits = self.head(self.network(self.embedding(inputs))[0])  # (batch, CONTEXT, 256)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def validation_loss(model: nn.Module) -> float:
    batches = validation_batches()
    return sum(float(model(inputs, labels)) for inputs, labels in batches) / len(batches)
