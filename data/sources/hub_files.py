"""The files of the Hugging Face Hub, with a count of the bytes downloaded and requests of bounded size.

`datasets` opens hf:// addresses through fsspec; `register` puts this file system in the place of huggingface_hub's.
"""

from __future__ import annotations

from typing import Any

import fsspec
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_file_system import HfFileSystemFile, HfFileSystemStreamFile

# Bytes per request at most. pyarrow asks for a whole row group, of which nothing would be counted until all of it is there.
PIECE_BYTES = 16 << 20


class Downloaded:
    """The bytes of data files that this process has downloaded from the Hub. One thread reads at a time."""

    total = 0


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
        pieces = []
        for first in range(start, end, PIECE_BYTES):
            pieces.append(super()._fetch_range(first, min(first + PIECE_BYTES, end)))
            Downloaded.total += len(pieces[-1])
        return b"".join(pieces)


class _CountingStream(HfFileSystemStreamFile):
    def read(self, length: int = -1) -> bytes:
        content: bytes = super().read(length)
        Downloaded.total += len(content)
        return content


def register() -> None:
    """Let fsspec open hf:// addresses with `CountingFileSystem`."""
    fsspec.register_implementation("hf", CountingFileSystem, clobber=True)
