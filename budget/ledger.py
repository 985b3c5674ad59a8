"""The ledger on disk: a heartbeat writes the accounts of a running process, and a resumed run reads them back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from budget.clock import ACCOUNTS, HEARTBEAT_S, BudgetClock
from common.checksum import add_checksum, verify_checksum
from common.json_io import write_text
from common.monotonic import timestamp
from common.safe_read import is_amount, load_json


class Heartbeat:
    """Write the ledger to disk once a second from a thread, so that a kill in any phase loses at most a second."""

    def __init__(self, clock: BudgetClock, path: Path, warn: Callable[[str], None]) -> None:
        self.clock, self.path, self.warn = clock, path, warn
        self._stop = threading.Event()
        self._write_lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="ledger", daemon=True)

    def start(self) -> None:
        """Write the first ledger and start the thread."""
        self.write(clean=False)
        self._thread.start()

    def _beat(self) -> None:
        warned, reported_s = False, self.clock.standstill_s
        while not self._wait():
            if self.clock.standstill_s > reported_s:
                suspended_s, reported_s = self.clock.standstill_s - reported_s, self.clock.standstill_s
                self.warn(
                    f"the process was suspended, or had no CPU time, for {suspended_s:.1f} s; this counts towards the budget"
                )
            try:
                self.write(clean=False)
            except Exception as error:  # no failure may end this thread
                if not warned:
                    self.warn(
                        f"the ledger cannot be written ({error}); if killed now, the run forgets time it has spent"
                    )
                warned = True

    def _wait(self) -> bool:
        """Wait for the next beat; return whether the heartbeat was stopped.

        Only during this wait does an unread clock mean a suspension: while the ledger is written, a slow disk may
        block this thread and the main one together.
        """
        self.clock.watched = True
        ended = self._stop.wait(HEARTBEAT_S)
        self.clock.accounts()
        self.clock.watched = False
        return ended

    def write(self, clean: bool) -> None:
        """Write the ledger; `clean` marks it as the final one."""
        with self._write_lock:
            content = {
                "schema": 1,
                "ledger_s": {name: round(seconds, 4) for name, seconds in self.clock.accounts().items()},
                "standstill_s": round(self.clock.standstill_s, 4),
                "prepare_s": round(self.clock.prepare_s, 4),
                "extended_hours": self.clock.limits.added.hours,
                "extended": self.clock.limits.added.to_dict(),
                "clean": clean,
                "updated": timestamp(),
            }
            # Not synced: the heartbeat would wait for a slow disk, and a kill loses nothing without it.
            write_text(self.path, json.dumps(add_checksum(content), indent=1), durable=False)

    def close(self) -> None:
        """Stop the thread and write the final ledger, marked as clean."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self.write(clean=True)
        except OSError as error:
            self.warn(f"the final ledger could not be written ({error}); the one before it counts")


def read_ledger(path: Path) -> dict | None:
    """Return the ledger that an earlier process left; None where it is missing, damaged or incomplete."""
    try:
        content = verify_checksum(load_json(path))
        valid = all(is_amount(content["ledger_s"][name]) for name in ACCOUNTS)
        amounts = {name: content.get(name) for name in ("extended_hours", "standstill_s")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    known = {name: value if is_amount(value) else 0.0 for name, value in amounts.items()}
    return {**content, **known, "clean": content.get("clean") is True} if valid else None
