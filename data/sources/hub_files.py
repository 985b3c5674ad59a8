"""The file system of the Hugging Face Hub, with a count of the bytes downloaded and requests of bounded size.

`datasets` opens hf:// addresses through fsspec; `register` makes fsspec use this file system instead of huggingface_hub's.
"""

from __future__ import annotations

from typing import Any

import fsspec
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_file_system import HfFileSystemFile, HfFileSystemStreamFile

from common.monotonic import now

# Bytes per request. pyarrow asks for a whole row group, of which nothing would be counted until all of it is there. A
# request should take between half a second and two: the progress moves, and the time to the first byte does not matter.
LEAST_PIECE, MOST_PIECE = 1 << 20, 64 << 20
SHORT_S, LONG_S = 0.5, 2.0


class Downloaded:
    """The bytes of data files that this process has downloaded from the Hub, and how many to ask for in the next request.

    One thread reads at a time.
    """

    total = 0
    piece = LEAST_PIECE


class CountingFileSystem(HfFileSystem):
    """The file system of huggingface_hub, whose files count in `Downloaded` what they fetch."""

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, revision: str | None = None, **options: Any
    ) -> HfFileSystemFile | HfFileSystemStreamFile:
        if block_size == 0:
            return _CountingStream(self, path, mode=mode, revision=revision, block_size=0, **options)
        sized = {} if block_size is None else {"block_size": block_size}
        return _CountingFile(self, path, mode=mode, revision=revision, **sized, **options)


class _CountingFile(HfFileSystemFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        content = bytearray()
        while start < end:
            began, asked = now(), min(Downloaded.piece, end - start)
            piece = super()._fetch_range(start, start + asked)
            if len(piece) != asked:
                raise ConnectionError(f"{self.path}: the server sent {len(piece):,} bytes instead of {asked:,}")
            Downloaded.total += asked
            Downloaded.piece = _next_piece(Downloaded.piece, now() - began)
            content += piece
            start += asked
        return bytes(content)


class _CountingStream(HfFileSystemStreamFile):
    def read(self, length: int = -1) -> bytes:
        content: bytes = super().read(length)
        Downloaded.total += len(content)
        return content


def _next_piece(piece: int, seconds: float) -> int:
    """Return the size of the next request after one of up to `piece` bytes has taken `seconds`."""
    if seconds < SHORT_S:
        return min(2 * piece, MOST_PIECE)
    return max(piece // 2, LEAST_PIECE) if seconds > LONG_S else piece


def register() -> None:
    """Let fsspec open hf:// addresses with `CountingFileSystem`."""
    fsspec.register_implementation("hf", CountingFileSystem, clobber=True)
