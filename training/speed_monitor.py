"""Compare the speed of a run with its first steady minute, warn about slowdowns, and name likely reasons.

The run itself does not react: its schedule follows the budget and ends on its floor at any speed. But a user may still
be able to fix the cause. Speed is tokens per second of training and waiting for data; evaluations, checkpoints and a
suspended machine have accounts of their own and do not count.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.format import format_count, format_seconds
from device.host_monitor import HostDelta, HostSnapshot, diff, reasons

STEADY_S, STEADY_SHARE = 60.0, 0.1  # length of the reference: a minute, or in a short budget this share of it
SPANS = 12  # spans in the reference
SHORTEST_SPAN_S = 1.0  # over less time, the system's scheduler dominates the speed
UNSTEADY = 0.05  # largest relative difference between the two halves of the reference
RECENT = 3  # spans that decide whether a slowdown begins or ends, so that one hiccup does neither
SLOW, FAST_AGAIN = 0.85, 0.90  # shares of the usual speed; a gap, so that a speed near one of them is one slowdown
SLOW_EVENT, FAST_EVENT = "slow", "fast again"
MORE_WAITING = 0.05  # additional share of the time spent waiting for data that is reported as a reason


@dataclass(frozen=True)
class Span:
    """A few seconds of training: tokens per second, seconds, and the share of them spent waiting for data."""

    rate: float
    seconds: float
    waiting: float


class SpeedMonitor:
    """Follows the speed of a run, and reports each slowdown once when it begins and once when it ends."""

    def __init__(
        self,
        limit_s: float | None,
        snapshot: Callable[[], HostSnapshot],
        warn: Callable[[str], None],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        """
        Args:
            limit_s: The budget in seconds; None without a limit of hours.
            snapshot: Reads the state of the host: load, other processes, clocks, heat.
            warn: Shows a line to the user.
            write: Appends an event to metrics.jsonl.
        """
        steady_s = STEADY_S if limit_s is None else min(STEADY_S, STEADY_SHARE * limit_s)
        self._span_s = max(SHORTEST_SPAN_S, steady_s / SPANS)
        self._snapshot, self._warn, self._write = snapshot, warn, write
        # Tokens, seconds and seconds of waiting at the start of the span. The first span starts after the first step.
        self._span_start: tuple[int, float, float] | None = None
        self._spans: deque[Span] = deque(maxlen=SPANS)
        self._usual: tuple[Span, HostDelta] | None = None
        self._suspected: HostSnapshot | None = None  # the host when the speed fell
        self._lost_s: float | None = None  # seconds lost in the current slowdown; None outside of one

    def after_step(self, step: int, tokens: int, accounts: Mapping[str, float]) -> None:
        """Count a step. `tokens` are all tokens trained on so far; `accounts` is the ledger in seconds."""
        seconds, waited = accounts["train"] + accounts["data"], accounts["data"]
        if self._span_start is None:
            self._first = self._snapshot()
        else:
            first_tokens, first_s, first_waited_s = self._span_start
            span_s = seconds - first_s
            if span_s < self._span_s:
                return
            self._spans.append(Span((tokens - first_tokens) / span_s, span_s, (waited - first_waited_s) / span_s))
            self._end_span(step)
        self._span_start = (tokens, seconds, waited)

    def _end_span(self, step: int) -> None:
        """Set the reference, or begin or end a slowdown."""
        if self._usual is None:
            self._set_reference()
            return
        usual, recent = self._usual[0], list(self._spans)[-RECENT:]
        slow = [span.rate < SLOW * usual.rate for span in recent]
        if self._lost_s is not None:
            self._lost_s += recent[-1].seconds * (1 - recent[-1].rate / usual.rate)
            if (now := _typical(recent)).rate > FAST_AGAIN * usual.rate:
                self._end_slowdown(step, now)
        elif all(slow):
            self._begin_slowdown(step, _typical(recent))
        else:
            self._suspected = (self._suspected or self._snapshot()) if any(slow) else None

    def _set_reference(self) -> None:
        """Take the last spans as the usual speed, if there are enough of them and they are steady."""
        spans = list(self._spans)
        if len(spans) == SPANS:
            halves = [_typical(half).rate for half in (spans[: SPANS // 2], spans[SPANS // 2 :])]
            if abs(halves[0] / halves[1] - 1) <= UNSTEADY:
                self._usual = _typical(spans), diff(self._first, self._snapshot())

    def _begin_slowdown(self, step: int, now: Span) -> None:
        assert self._usual is not None
        usual, usual_host = self._usual
        host = self._snapshot()
        why = reasons(usual_host, diff(self._suspected or host, host))
        if now.waiting > usual.waiting + MORE_WAITING:
            why.insert(0, f"waiting for data takes {now.waiting:.0%} of the time instead of {usual.waiting:.0%}")
        recent = list(self._spans)[-RECENT:]
        self._lost_s = sum(span.seconds * max(0.0, 1 - span.rate / usual.rate) for span in recent)
        text = (
            f"slow at step {step}: {format_count(now.rate)} tokens/s instead of {format_count(usual.rate)}"
            f" ({now.rate / usual.rate - 1:+.0%}); {'; '.join(why) or 'no reason was found'};"
            " the schedule adapts"
        )
        self._warn(text)
        speeds = {"tokens_per_second": now.rate, "usual_tokens_per_second": usual.rate}
        self._write({"event": SLOW_EVENT, "step": step, **speeds, "waiting": now.waiting, "why": why, "text": text})

    def _end_slowdown(self, step: int, now: Span) -> None:
        lost_s, self._lost_s, self._suspected = self._lost_s or 0.0, None, None
        text = (
            f"fast again at step {step}: {format_count(now.rate)} tokens/s; the slowdown cost {format_seconds(lost_s)}"
        )
        self._warn(text)
        self._write({"event": FAST_EVENT, "step": step, "lost_s": lost_s, "text": text})


def _typical(spans: list[Span]) -> Span:
    """A span with the medians of rate, seconds and waiting."""
    rates, seconds, waiting = zip(*((span.rate, span.seconds, span.waiting) for span in spans), strict=True)
    return Span(statistics.median(rates), statistics.median(seconds), statistics.median(waiting))


def slowdowns(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slowdowns among the lines of metrics.jsonl, as result.json has them.

    `to_step` and `lost_s` (seconds) are None for a slowdown that lasted until its process ended.
    """
    found: list[dict[str, Any]] = []
    for record in records:
        if record.get("event") == SLOW_EVENT:
            kept = {key: record.get(key) for key in ("tokens_per_second", "usual_tokens_per_second", "why")}
            found.append({"from_step": record.get("step"), "to_step": None, **kept, "lost_s": None})
        elif record.get("event") == FAST_EVENT and found:
            found[-1] |= {"to_step": record.get("step"), "lost_s": record.get("lost_s")}
    return found
