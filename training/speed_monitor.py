"""Whether a run has become slow: its speed against its first steady minute, and what can be known of the reason.

Nothing is done about it: schedules follow the budget and land on their floor at any speed. But whoever pays for the device
should hear of it while it can still be mended. Tokens per second of training and waiting for data are compared, so that
evaluations, checkpoints and a suspended machine, which have accounts of their own, are no slowness.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.format import format_count, format_seconds
from device.host_monitor import HostDelta, HostSnapshot, diff, reasons

STEADY_S, STEADY_SHARE = 60.0, 0.1  # what speed is held against: a minute, in a short budget a tenth of it
SPANS = 12  # that the steady minute is cut into
SHORTEST_SPAN_S = 1.0  # speeds over less than that say more about the system's scheduler than about the machine
UNSTEADY = 0.05  # the two halves of the steady minute differ by no more
RECENT = 3  # spans that are all slow, or whose median is fast again: one hiccup is neither
SLOW, FAST_AGAIN = 0.85, 0.90  # of the steady speed; apart, so that a speed in between is not a new episode each time
SLOW_EVENT, FAST_EVENT = "slow", "fast again"
MORE_WAITING = 0.05  # of the time: more waiting for data than usual is worth a word from here on


@dataclass(frozen=True)
class Span:
    """A few seconds of training: tokens per second, seconds, and the share of them spent waiting for data."""

    rate: float
    seconds: float
    waiting: float


class SpeedWatch:
    """Told of every step; an episode of slowness is said and written down once when it begins and once when it ends."""

    def __init__(
        self,
        limit_s: float | None,
        see: Callable[[], HostSnapshot],
        warn: Callable[[str], None],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        """limit_s: the budget, seconds. see: looks at the machine. warn: shows a line. write: keeps an event."""
        steady_s = STEADY_S if limit_s is None else min(STEADY_S, STEADY_SHARE * limit_s)
        self._span_s = max(SHORTEST_SPAN_S, steady_s / SPANS)
        self._see, self._warn, self._write = see, warn, write
        # Tokens, seconds and seconds of waiting when the span began: with the first step, which is not measured itself.
        self._begun: tuple[int, float, float] | None = None
        self._spans: deque[Span] = deque(maxlen=SPANS)
        self._usual: tuple[Span, HostDelta] | None = None
        self._suspected: HostSnapshot | None = None  # the machine when the speed fell
        self._lost_s: float | None = None  # in the episode that goes on; None while there is none

    def after_step(self, step: int, tokens: int, accounts: Mapping[str, float]) -> None:
        """`tokens` trained so far; `accounts` of the ledger, seconds."""
        seconds, waited = accounts["train"] + accounts["data"], accounts["data"]
        if self._begun is None:
            self._first = self._see()
        else:
            took = seconds - self._begun[1]
            if took < self._span_s:
                return
            self._spans.append(Span((tokens - self._begun[0]) / took, took, (waited - self._begun[2]) / took))
            self._judge(step)
        self._begun = (tokens, seconds, waited)

    def _judge(self, step: int) -> None:
        if self._usual is None:
            self._settle()
            return
        usual, recent = self._usual[0], list(self._spans)[-RECENT:]
        slow = [span.rate < SLOW * usual.rate for span in recent]
        if self._lost_s is not None:
            self._lost_s += recent[-1].seconds * (1 - recent[-1].rate / usual.rate)
            if (now := _typical(recent)).rate > FAST_AGAIN * usual.rate:
                self._end(step, now)
        elif all(slow):
            self._begin(step, _typical(recent))
        else:
            self._suspected = (self._suspected or self._see()) if any(slow) else None

    def _settle(self) -> None:
        """Take the first steady minute as what is usual."""
        spans = list(self._spans)
        if len(spans) == SPANS:
            halves = [_typical(half).rate for half in (spans[: SPANS // 2], spans[SPANS // 2 :])]
            if abs(halves[0] / halves[1] - 1) <= UNSTEADY:
                self._usual = _typical(spans), diff(self._first, self._see())

    def _begin(self, step: int, now: Span) -> None:
        assert self._usual is not None
        usual, surroundings = self._usual
        moment = self._see()
        why = reasons(surroundings, diff(self._suspected or moment, moment))
        if now.waiting > usual.waiting + MORE_WAITING:
            why.insert(0, f"waiting for data takes {now.waiting:.0%} of the time instead of {usual.waiting:.0%}")
        recent = list(self._spans)[-RECENT:]
        self._lost_s = sum(span.seconds * max(0.0, 1 - span.rate / usual.rate) for span in recent)
        text = (
            f"slow at step {step}: {format_count(now.rate)} tokens/s instead of {format_count(usual.rate)}"
            f" ({now.rate / usual.rate - 1:+.0%}); {'; '.join(why) or 'nothing is seen that explains it'};"
            " the schedule follows"
        )
        self._warn(text)
        speeds = {"tokens_per_second": now.rate, "usual_tokens_per_second": usual.rate}
        self._write({"event": SLOW_EVENT, "step": step, **speeds, "waiting": now.waiting, "why": why, "text": text})

    def _end(self, step: int, now: Span) -> None:
        lost_s, self._lost_s, self._suspected = self._lost_s or 0.0, None, None
        text = f"fast again at step {step}: {format_count(now.rate)} tokens/s; slowness cost {format_seconds(lost_s)}"
        self._warn(text)
        self._write({"event": FAST_EVENT, "step": step, "lost_s": lost_s, "text": text})


def _typical(spans: list[Span]) -> Span:
    """The median of each figure."""
    rates, seconds, waiting = zip(*((span.rate, span.seconds, span.waiting) for span in spans), strict=True)
    return Span(statistics.median(rates), statistics.median(seconds), statistics.median(waiting))


def slowdowns(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The episodes among the lines of metrics.jsonl, as result.json keeps them; `to_step` and `lost_s` are None for one
    that lasted to the end of its process."""
    spells: list[dict[str, Any]] = []
    for record in records:
        if record.get("event") == SLOW_EVENT:
            kept = {key: record.get(key) for key in ("tokens_per_second", "usual_tokens_per_second", "why")}
            spells.append({"from_step": record.get("step"), "to_step": None, **kept, "lost_s": None})
        elif record.get("event") == FAST_EVENT and spells:
            spells[-1] |= {"to_step": record.get("step"), "lost_s": record.get("lost_s")}
    return spells
