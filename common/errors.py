"""The two kinds of failure that are reported in one line. Any other exception is a bug and shows its traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from common.redaction import redacted
from common.safe_read import strip_escapes

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or an exhausted quota
LOST_OUTPUT = (*FULL_DISK, errno.EIO)  # EIO: the terminal is gone
GPU_TAKEN = "CUDA-capable device(s) is/are busy or unavailable"  # the message of cudaErrorDevicesUnavailable
LONGEST_LINE = 2000  # characters; values in a message can be as long as a file
MOST_PROBLEMS = 10  # problems of one kind that are shown


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


def refuse(problems: Sequence[str], more: str = "more", *advice: str) -> None:
    """Raise UserError if there are problems: a line for each of the first MOST_PROBLEMS, "... and N `more`", and the advice."""
    if problems:
        n_more = len(problems) - MOST_PROBLEMS
        raise UserError(*problems[:MOST_PROBLEMS], *([f"... and {n_more:,} {more}"] if n_more > 0 else []), *advice)


@contextmanager
def reported() -> Iterator[None]:
    """Print UserError and MachineError as one line each on standard error, and exit with their status.

    The same holds for CUDA's error that another process has the GPU, which a script meets at its first use of the GPU, and
    for a standard output that cannot be written. Where its reader is gone (`| head`), the exit is silent and the status is
    that of SIGPIPE, 141.
    """
    open_closed_streams()
    try:
        try:
            yield
        finally:
            if sys.exc_info()[0] in (None, SystemExit):
                sys.stdout.flush()  # here, and not at the interpreter's exit, which would print a traceback
    except UserError as error:
        for message in error.messages:
            _say(_line(message))
        sys.exit(2)
    except MachineError as error:
        _say(_line(str(error)))
        sys.exit(1)
    except RuntimeError as error:
        if GPU_TAKEN not in str(error):
            raise
        hint = "a GPU in exclusive mode takes one process only, and trials are a second one: add probe=false"
        _say(f"{GPU_TAKEN}; end the other process that uses the GPU, then run the command again; {hint}")
        sys.exit(1)
    except BrokenPipeError:
        discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in LOST_OUTPUT or error.filename is not None:
            raise
        discard_output()
        _say(
            f"output cannot be written ({error.strerror}); free some space, or redirect standard output to another disk"
        )
        sys.exit(1)


def discard_output() -> None:
    """Send what is printed from now on, and what is still buffered, to the null device.

    Otherwise Python would write the buffer again at exit, fail, and print a traceback.
    """
    with suppress(OSError):  # standard output may not be a file
        number = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def open_closed_streams() -> None:
    """Open the null device in place of standard streams that were closed before the start, as by `>&-`.

    Python has None for them, and the next file to be opened would get their number, and with it the output of libraries
    and of child processes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _say(message: str) -> None:
    with suppress(OSError):  # a full disk must not hide the exit status
        print(f"error: {message}", file=sys.stderr, flush=True)


def _line(message: str) -> str:
    """Return the message as one printable line without secrets and escape sequences.

    Messages contain values, file names and keys from records. Line ends are shown as \\n; a very long line loses its
    middle.
    """
    message = redacted(strip_escapes(message))
    if len(message) > LONGEST_LINE:
        message = f"{message[: LONGEST_LINE // 2]} ... {message[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
