"""The standard library of the running Python as a corpus: sources, help topics and docstrings.

About 30 MB of text that need no download and no account. The text is the same for every process of one Python: docstrings
with memory addresses are left out.
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
from data.sources.base import DataSpec, Overview, Part


class StdlibSource:
    """The running Python's standard library: sources, help topics, docstrings of C modules."""

    in_bytes = False  # the sizes of two parts are estimates

    def __init__(self, spec: DataSpec) -> None:
        self.identity = identity()
        self.consumed = 0

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def parts(self) -> list[Part]:
        size = sum(path.stat().st_size for path in source_files())
        # Sizes for the ETA only: topics and docstrings have 0.5 and 0.6 MB in CPython 3.11.
        return [Part("source", size), Part("topic", 500_000), Part("docstring", 600_000)]

    def overview(self) -> Overview:
        return Overview()

    def documents(self, part: Part) -> Iterator[Document]:
        texts = {"source": self._sources, "topic": topics, "docstring": docstrings}[part.name]
        self.consumed = 0
        for text in texts():
            yield Document(text, part.name, None)

    def _sources(self) -> Iterator[str]:
        for path in source_files():
            text = read_source(path)
            self.consumed += path.stat().st_size
            if text is not None:
                yield text


OUTSIDE = {"site-packages", "dist-packages", "__pycache__"}
# Prefixes of modules that are not imported: readline writes to the terminal, the others test the interpreter.
NOT_IMPORTED = ("readline", "_test", "_xx", "xx", "_ctypes_test")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def root() -> Path:
    """Return the folder of the standard library, also in a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


def source_files() -> list[Path]:
    """Return all .py files of the standard library, sorted. Folders of installed packages are not searched."""
    base, found = root(), list[Path]()
    for folder, inside, names in os.walk(base):
        inside[:] = [name for name in inside if name not in OUTSIDE]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(base).as_posix())


def native_modules() -> list[str]:
    """Return the names of the modules implemented in C: built in, or in lib-dynload."""
    dynamic = {path.name.split(".")[0] for path in (root() / "lib-dynload").glob("*.so")}
    return sorted(name for name in dynamic | set(sys.builtin_module_names) if not name.startswith(NOT_IMPORTED))


def identity() -> dict[str, object]:
    """Return the identity of the standard library: its version, and a hash of the names and sizes of its files."""
    listing = hashlib.sha256()
    base, files = root(), source_files()
    for path in files:
        listing.update(f"{path.relative_to(base).as_posix()} {path.stat().st_size}\n".encode())
    listing.update(" ".join(native_modules()).encode())
    return {"python": sys.version.split()[0], "files": len(files), "listing": listing.hexdigest()}


def read_source(path: Path) -> str | None:
    """Return a source file, decoded as it declares; None for the few test files that cannot be decoded on purpose."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, ValueError, LookupError):
        return None


def topics() -> Iterator[str]:
    """Yield the topics of the language reference that `help()` shows, one per document."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield texts[name]


def docstrings() -> Iterator[str]:
    """Yield one document per C module: its docstring and those of its members, which are in no .py file."""
    for name in native_modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        # An extension without its library (tkinter without Tcl) may fail with any exception; it is left out.
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
