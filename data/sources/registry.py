"""The table of corpus sources by the value of `data.source`. A new corpus is one entry here."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import UserError
from data.sources.base import DataSpec, Source
from data.sources.files import SlimPajamaSource, TextSource
from data.sources.stdlib import StdlibSource


def make_source(spec: DataSpec) -> Source:
    """Return the source that `spec` names. Raises UserError with every problem of `spec`, one line each."""
    problems = []
    if spec.source not in SOURCES:
        problems.append(f"unknown data.source={spec.source!r}; allowed: {', '.join(sorted(SOURCES))}")
    if not 0 < spec.validation_fraction < 1:
        problems.append(
            f"data.validation_fraction={spec.validation_fraction} must be between 0 and 1, both excluded, e.g. 0.01"
        )
    if spec.bad_documents not in ("refuse", "skip"):
        problems.append(f"unknown data.bad_documents={spec.bad_documents!r}; allowed: refuse, skip")
    if spec.max_bytes is not None and spec.max_bytes < 1:
        problems.append(f"data.max_bytes={spec.max_bytes} is not a positive number of bytes; null means all")
    if spec.workers is not None and spec.workers < 1:
        problems.append(f"data.workers={spec.workers} is not a positive number of threads; null means all cores")
    if spec.source == "text" and not spec.path:
        problems.append("data.source=text needs data.path=FILE, FOLDER or GLOB")
    if problems:
        raise UserError(*problems)
    return SOURCES[spec.source](spec)


def _slimpajama(spec: DataSpec) -> Source:
    if spec.path:
        return SlimPajamaSource(spec)
    from data.sources.hub import HubSource

    return HubSource(spec)


SOURCES: dict[str, Callable[[DataSpec], Source]] = {
    "stdlib": StdlibSource,
    "slimpajama": _slimpajama,
    "text": TextSource,
}
