"""Files inside .zip archives, listed and read in bounded memory.

Nothing is extracted to disk, so the names in an archive, absolute or with "..", are only names.
"""

from __future__ import annotations

import functools
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from data.documents import Reading

ARCHIVE = ".zip"
# The list of files at the end of an archive is read as a whole; each file takes about 100 bytes of it, and 600 in memory.
DIRECTORY_BYTES = 32 << 20
READ_BYTES = 1 << 16
# zipfile does not bound the output of bzip2 and LZMA: 4 KiB of bzip2 can expand to 4 GB at once.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x01 | 0x20 | 0x40  # flags of encrypted and patched members


class _LimitedReader(io.BufferedReader):
    """A file of which no more than DIRECTORY_BYTES are read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of files is larger than {DIRECTORY_BYTES >> 20} MiB")
        return super().read(size)


# Listing the members again for each of them would take quadratic time; archives are read one after the other.
@functools.lru_cache(maxsize=1)
def _opened(path: Path, size: int, mtime_ns: int) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(_LimitedReader(io.FileIO(path)))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .zip file ({error}); download it again") from error
    if sum(info.compress_size for info in archive.infolist()) > size:
        raise UserError(f"{path}: its members overlap: a decompression bomb, not text; remove the file")
    return archive


def _archive(path: Path) -> zipfile.ZipFile:
    about = path.stat()
    return _opened(path, about.st_size, about.st_mtime_ns)


def members(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield the name and compressed size of each file in an archive, and whether it can be read, sorted by name.

    Raises UserError for a corrupt archive.
    """
    unique = {info.filename: info for info in _archive(path).infolist() if not info.is_dir()}
    for name, info in sorted(unique.items()):
        regular = not stat.S_ISLNK(info.external_attr >> 16)
        readable = regular and info.compress_type in METHODS and not info.flag_bits & ENCRYPTED
        yield name, info.compress_size, readable


def read_member(path: Path, reading: Reading) -> Iterator[bytes]:
    """Yield the bytes of the member `reading.member`. Raises UserError for a corrupt one, which includes a wrong CRC.

    A member yields at most the size that the archive's list gives, by which `read_chunks` in decompress.py can refuse a bomb.
    """
    try:
        archive = _archive(path)
        info = archive.getinfo(reading.member)
        n_out = 0
        with archive.open(info) as file:
            while chunk := file.read(READ_BYTES):
                n_out += len(chunk)
                reading.consumed = info.compress_size * n_out // max(1, info.file_size)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, NotImplementedError, OSError) as error:
        reason = str(error) or "truncated"
        raise UserError(f"{path}: {reading.member} in it cannot be read ({reason}); download it again") from error


def display_name(path: Path, member: str) -> str:
    """Return the name of a file, or of a member of an archive, for messages."""
    return f"{path}/{member}" if member else str(path)
