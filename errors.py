"""The two kinds of failure that stint tells apart. Anything else that is raised is a bug and shows its traceback."""

from __future__ import annotations


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
