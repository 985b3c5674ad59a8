"""What a corpus' manifest records about the text that was read and that was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.json_io import listing, mapping, number
from data.files.find_files import describe_not_read
from data.sources.base import Overview

BY_HASH = "hash of documents"
LISTED = 20  # names of files that are not read, in the manifest; a folder may hold thousands
LEFT_OUT = {
    "bad": "bad_documents_skipped",
    "duplicate": "duplicates_dropped",
    "empty": "empty_documents_dropped",
}


def read_record(overview: Overview) -> dict[str, Any]:
    """Return what the manifest records under "read"."""
    return {
        "validation_from": overview.validation or BY_HASH,
        "files": overview.files,
        "not_read": list(overview.not_read[:LISTED]),
        "files_not_read": overview.files_not_read,
    }


def left_out(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return how many documents of the source are not in the corpus, by reason; reasons with 0 are omitted."""
    return {reason: n for reason, name in LEFT_OUT.items() if (n := manifest.get(name))}


def corpus_record(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of both splits and what was read, for result.json; of a data set on the Hub also name and commit.

    For a mix, this is done for each of its sources. A corpus that was prepared by an earlier version does not say what was
    read.
    """
    if "mix" in manifest:
        return {"sources": {name: corpus_record(source) for name, source in manifest["mix"].items()}}
    origin = mapping(manifest.get("origin"))
    from_hub = {name: origin[name] for name in ("repo", "revision") if origin.get(name)}
    splits = {
        name: {column: split.get(column) for column in ("documents", "tokens", "bytes")}
        for name, split in manifest["splits"].items()
    }
    return {**from_hub, "splits": splits, **mapping(manifest.get("read")), "left_out": left_out(manifest)}


def read_notes(read: Mapping[str, Any]) -> list[str]:
    """Return the notes on "read" of a manifest: where the validation split comes from, and the files that are not read."""
    notes = []
    origin = read.get("validation_from", BY_HASH)
    if origin != BY_HASH:
        notes.append(f"validation split: {origin}")
    names = [str(name) for name in listing(read.get("not_read"))]
    if line := describe_not_read(names, int(number(read.get("files_not_read"), len(names)))):
        notes.append(line)
    return notes
