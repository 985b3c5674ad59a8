"""The two kinds of failure that stint tells apart. Anything else that is raised is a bug and shows its traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.redaction import redacted
from common.safe_read import strip_escapes

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # what the system says of a disk, or a quota, that is full
GPU_TAKEN = "CUDA-capable device(s) is/are busy or unavailable"  # cudaErrorDevicesUnavailable, in CUDA's words
LONGEST_LINE = 2000  # characters; our own words are a few hundred, and the values in them may be as long as a file


class UserError(Exception):
    """A mistake of the user's: exit status 2, one line per mistake, before anything is spent.

    Each message says what is wrong, the value, what is allowed, and the key or command that mends it.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class MachineError(Exception):
    """A fault of the machine (disk full, out of memory, network): exit status 1, one line.

    The message says what failed, what was kept and how to go on.
    """


@contextmanager
def reported() -> Iterator[None]:
    """Turn the two kinds of failure into one line each on standard error and their exit status; so too a GPU that another
    process has, which any script meets where it first asks for the GPU."""
    try:
        yield
    except UserError as error:
        for message in error.messages:
            print(f"error: {_line(message)}", file=sys.stderr)
        sys.exit(2)
    except MachineError as error:
        print(f"error: {_line(str(error))}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if GPU_TAKEN not in str(error):
            raise
        hint = "trials are one: where a GPU takes one process only (exclusive mode), add probe=false"
        print(
            f"error: {GPU_TAKEN}; end the other process that has the GPU, then type the same command; {hint}",
            file=sys.stderr,
        )
        sys.exit(1)
    except BrokenPipeError:  # `| head` closed our standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _line(message: str) -> str:
    """One line that a terminal shows as it is and a job's log may keep: values, names of files and keys of records are in
    it. Secrets and escape sequences are left out, as is the middle of a very long line; ends of lines are spelled out."""
    message = redacted(strip_escapes(message))
    if len(message) > LONGEST_LINE:
        message = f"{message[: LONGEST_LINE // 2]} ... {message[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
