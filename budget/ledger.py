"""The accounts of a budget on disk: a heartbeat writes them while a run lives, and a resumed run reads them back."""

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
    """Writes the ledger to disk once a second from a thread, so that no kill in any phase resets what was spent."""

    def __init__(self, clock: BudgetClock, path: Path, warn: Callable[[str], None]) -> None:
        self.clock, self.path, self.warn = clock, path, warn
        self._stop = threading.Event()
        self._write_lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="ledger", daemon=True)

    def start(self) -> None:
        self.write(clean=False)
        self._thread.start()

    def _beat(self) -> None:
        warned, said_s = False, self.clock.standstill_s
        while not self._wait():
            if self.clock.standstill_s > said_s:
                stood_s, said_s = self.clock.standstill_s - said_s, self.clock.standstill_s
                self.warn(
                    f"the process stood still for {stood_s:.1f} s (suspended, or without a processor); they count"
                )
            try:
                self.write(clean=False)
            except Exception as error:  # of whatever kind: who keeps the ledger must not die of it
                if not warned:
                    self.warn(f"the ledger cannot be written ({error}); a kill now would forget time that was spent")
                warned = True

    def _wait(self) -> bool:
        """Until the next beat; whether it was the last. Only meanwhile is a clock that nobody looks at a standstill: while
        the ledger is written, a slow disk may hold up this thread and the main one together."""
        self.clock.watched = True
        ended = self._stop.wait(HEARTBEAT_S)
        self.clock.accounts()
        self.clock.watched = False
        return ended

    def write(self, clean: bool) -> None:
        with self._write_lock:
            content = {
                "schema": 1,
                "ledger_s": {name: round(seconds, 4) for name, seconds in self.clock.accounts().items()},
                "standstill_s": round(self.clock.standstill_s, 4),
                "prepare_s": round(self.clock.prepare_s, 4),
                "extended_hours": self.clock.limits.extend_hours,
                "clean": clean,
                "updated": timestamp(),
            }
            # Not flushed to the disk: a beat every few seconds would wait for it, and a kill loses nothing by that.
            write_text(self.path, json.dumps(add_checksum(content), indent=1), durable=False)

    def close(self) -> None:
        """Stop beating and write the final ledger, marked as complete."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self.write(clean=True)
        except OSError as error:
            self.warn(f"the last ledger could not be written ({error}); the one before it counts")


def read_ledger(path: Path) -> dict | None:
    """The ledger that an earlier process left, or None where there is none that can be read."""
    try:
        content = verify_checksum(load_json(path))
        valid = all(is_amount(content["ledger_s"][name]) for name in ACCOUNTS)
        amounts = {name: content.get(name) for name in ("extended_hours", "standstill_s")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    known = {name: value if is_amount(value) else 0.0 for name, value in amounts.items()}
    return {**content, **known, "clean": content.get("clean") is True} if valid else None
