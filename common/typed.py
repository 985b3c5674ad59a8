"""Text as people type it on a command line: escapes, and names that are nearly right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

FROM_FILE = "FILE:"  # at the start of a text: the rest is the path of a file that holds the text
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def unescaped(text: str) -> str:
    r"""Return `text` with \n and \t as a line end and a tab, and \\ as a backslash; other backslashes stay."""
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], text)


def closest(value: Any, allowed: Iterable[Any]) -> str:
    """The end of an error message: "; did you mean X?" if one of `allowed` resembles `value`, else an empty string.

    A name that differs only in case is preferred."""
    names = [str(each) for each in allowed]
    same = [name for name in names if name.casefold() == str(value).casefold()]
    near = same or difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
