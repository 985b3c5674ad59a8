"""Text that every Python has with it: sources, help topics and docstrings of its standard library.

About 30 MB, no download, no account. Deterministic for one Python: what depends on the process (memory addresses,
the order of hashes) is left out.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import os
import re
import sys
import sysconfig
import tokenize
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.documents import Document
from data.sources import stdlib
from data.sources.base import DataSpec, Part


class StdlibSource:
    """The running Python's standard library: sources, help topics, docstrings of C modules."""

    def __init__(self, spec: DataSpec) -> None:
        self.identity = stdlib.identity()
        self.consumed = 0

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Part]:
        size = sum(path.stat().st_size for path in stdlib.source_files())
        # Topics and docstrings: 0.5 and 0.6 MB in CPython 3.11; for the ETA only.
        return [Part("source", size), Part("topic", 500_000), Part("docstring", 600_000)]

    def documents(self, part: Part) -> Iterator[Document]:
        texts = {"source": self._sources, "topic": stdlib.topics, "docstring": stdlib.docstrings}[part.name]
        self.consumed = 0
        for text in texts():
            yield Document(text, part.name, None)

    def _sources(self) -> Iterator[str]:
        for path in stdlib.source_files():
            text = stdlib.read_source(path)
            self.consumed += path.stat().st_size
            if text is not None:
                yield text


OUTSIDE = {"site-packages", "dist-packages", "__pycache__"}


# Imported for their docstrings, these would do more than that: readline writes to the terminal, the modules with
# these prefixes exist to test the interpreter.
NOT_IMPORTED = ("readline", "_test", "_xx", "xx", "_ctypes_test")


ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def root() -> Path:
    """The folder of the running Python's standard library, also from within a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


def source_files() -> list[Path]:
    """All .py files of the standard library, sorted; installed packages are not part of it, and not even looked through."""
    base, found = root(), list[Path]()
    for folder, inside, names in os.walk(base):
        inside[:] = [name for name in inside if name not in OUTSIDE]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(base).as_posix())


def native_modules() -> list[str]:
    """Names of the modules implemented in C: built in, or in lib-dynload."""
    dynamic = {path.name.split(".")[0] for path in (root() / "lib-dynload").glob("*.so")}
    return sorted(name for name in dynamic | set(sys.builtin_module_names) if not name.startswith(NOT_IMPORTED))


def identity() -> dict[str, object]:
    """What tells one standard library from another: the version, and a hash over the names and sizes of its files."""
    listing = hashlib.sha256()
    base, files = root(), source_files()
    for path in files:
        listing.update(f"{path.relative_to(base).as_posix()} {path.stat().st_size}\n".encode())
    listing.update(" ".join(native_modules()).encode())
    return {"python": sys.version.split()[0], "files": len(files), "listing": listing.hexdigest()}


def read_source(path: Path) -> str | None:
    """A source file by its own declared encoding; None for the few that are meant to be undecodable (tests)."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, ValueError, LookupError):
        return None


def topics() -> Iterator[str]:
    """The language reference as `help()` shows it, one topic a document."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield texts[name]


def docstrings() -> Iterator[str]:
    """One document a C module: its docstring and those of its members, whose sources are not among the .py files."""
    for name in native_modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        # An extension without its library (tkinter without Tcl) may fail in any way; its docstrings are left out.
        except Exception:  # nosec B112
            continue
        text = _module_text(name, module)
        if text:
            yield text


def _module_text(name: str, module: types.ModuleType) -> str:
    out = io.StringIO()
    _write(out, name, module)
    for member, value in sorted(vars(module).items()):
        if inspect.isroutine(value):
            _write(out, f"{name}.{member}", value)
        elif inspect.isclass(value) and value.__module__ in (name, name.lstrip("_")):
            _write(out, f"{name}.{member}", value)
            for attribute, method in sorted(vars(value).items()):
                if not attribute.startswith("__"):
                    _write(out, f"{name}.{member}.{attribute}", method)
    return out.getvalue()


def _write(out: io.StringIO, title: str, value: object) -> None:
    doc = inspect.getdoc(value) if inspect.isroutine(value) or isinstance(value, type | types.ModuleType) else None
    if doc and not ADDRESS.search(doc):
        out.write(f"{title}\n{doc}\n\n")
