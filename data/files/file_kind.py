"""Recognizes content that is not UTF-8 text by its first bytes, so that a misnamed file is refused by what it is."""

from __future__ import annotations

import re

HEAD_BYTES = 4096  # how much of a file is examined
# Text in UTF-8 has no NUL, or very few of them. ASCII characters in UTF-16 have one in every second byte.
MOST_NULS = 0.1
CONVERT = "convert it to UTF-8, e.g. iconv -f {0} -t UTF-8 FILE > NEW"
RENAME = "add {0} to its name, or decompress it"
CONTENT = "give a file of text"

# What the content is, how to fix it, and its first bytes. Where letters alone could begin a text, more bytes follow.
SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), kind, advice)
    for pattern, kind, advice in (
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32 text", CONVERT.format("UTF-32")),
        (rb"\xff\xfe|\xfe\xff", "UTF-16 text", CONVERT.format("UTF-16")),
        (rb"\x28\xb5\x2f\xfd", "compressed with zstd", RENAME.format(".zst")),
        (rb"\x1f\x8b", "compressed with gzip", RENAME.format(".gz")),
        (rb"\xfd7zXZ\0", "compressed with xz", RENAME.format(".xz")),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "compressed with bzip2", RENAME.format(".bz2")),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive or an office document", "name an archive .zip; export a document as .txt"),
        (rb"PAR1[\x00-\x1f]", "a parquet file", "name it .parquet"),
        (rb"ARROW1\0", "an Arrow file", "name it .arrow"),
        (rb"\xff\xff\xff\xff..\0\0", "an Arrow stream", "name it .arrow"),
        (rb"%PDF-\d", "a PDF document", "export it as .txt"),
        (rb"\xd0\xcf\x11\xe0", "an office document", "export it as .txt"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a", "an archive", "unpack it"),
        (rb".{257}ustar", "a tar archive", "unpack it"),
        (rb"SQLite format 3\0", "an SQLite database", "export it as .csv"),
        (rb"\x89HDF|\x93NUMPY|\x80[\x02-\x05].*\.$", "binary data", CONTENT),
        (rb"\x89PNG|\xff\xd8\xff|\x7fELF", "binary data", CONTENT),
    )
)  # fmt: skip


def kind_of(head: bytes) -> tuple[str, str] | None:
    """Return what a file with these first bytes is and how to fix it; None for what may be UTF-8 text."""
    for pattern, kind, advice in SIGNATURES:
        if pattern.match(head):
            return kind, advice
    head = head[:HEAD_BYTES]
    if head.count(0) <= MOST_NULS * len(head):
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > 10 * min(even, odd) and max(even, odd) > len(head) // 4:
        name = "UTF-16LE" if odd > even else "UTF-16BE"
        return "UTF-16 text", CONVERT.format(name)
    return "binary data (it holds NUL bytes)", CONTENT
