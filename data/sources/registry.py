"""The table of corpus sources by the value of `data.source`. A new corpus is one entry here."""

from __future__ import annotations

from collections.abc import Callable

from data.sources.base import DataSpec, Source
from data.sources.files import TextSource
from data.sources.stdlib import StdlibSource


def make_source(spec: DataSpec) -> Source:
    """Return the source that `spec` names. Its options were checked where they are declared (config.py, cli/validate.py)."""
    return SOURCES[spec.source](spec)


def _hub(spec: DataSpec) -> Source:
    from data.sources.hub import HubSource

    return HubSource(spec)


def _slimpajama(spec: DataSpec) -> Source:
    return TextSource(spec) if spec.path else _hub(spec)


SOURCES: dict[str, Callable[[DataSpec], Source]] = {
    "stdlib": StdlibSource,
    "slimpajama": _slimpajama,
    "hub": _hub,
    "text": TextSource,
}
