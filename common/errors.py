"""The two kinds of failure that are reported in one line. Any other exception is a bug and shows its traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.redaction import redacted
from common.safe_read import strip_escapes

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or an exhausted quota
GPU_TAKEN = "CUDA-capable device(s) is/are busy or unavailable"  # the message of cudaErrorDevicesUnavailable
LONGEST_LINE = 2000  # characters; values in a message can be as long as a file


class UserError(Exception):
    """A mistake of the user: exit status 2 and one line per mistake, before anything is spent.

    Each message says what is wrong, the value, what is allowed, and the option or command that fixes it.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class MachineError(Exception):
    """A fault of the machine (disk full, out of memory, network): exit status 1 and one line.

    The message says what failed, what was kept, and how to continue.
    """


@contextmanager
def reported() -> Iterator[None]:
    """Print UserError and MachineError as one line each on standard error, and exit with their status.

    The same holds for CUDA's error that another process has the GPU, which a script meets at its first use of the GPU.
    """
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
        hint = "a GPU in exclusive mode takes one process only, and trials are a second one: add probe=false"
        print(
            f"error: {GPU_TAKEN}; end the other process that uses the GPU, then run the command again; {hint}",
            file=sys.stderr,
        )
        sys.exit(1)
    except BrokenPipeError:  # the reader of our standard output is gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _line(message: str) -> str:
    """Return the message as one printable line without secrets and escape sequences.

    Messages contain values, file names and keys from records. Line ends are shown as \\n; a very long line loses its
    middle.
    """
    message = redacted(strip_escapes(message))
    if len(message) > LONGEST_LINE:
        message = f"{message[: LONGEST_LINE // 2]} ... {message[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
