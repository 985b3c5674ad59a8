"""More budget for an existing run: the option budget.extend, what it adds to each limit, and its record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.format import format_count, format_seconds
from common.json_io import mapping
from common.safe_read import is_amount
from common.units import parse_count, parse_duration

UNITS = ("hours", "flops", "tokens", "steps")
NAMED = re.compile(r"(.*?) ?((?:hour|flop|token|step)s?)", re.I)
EXAMPLES = {"hours": "1h", "flops": "1e15flops", "tokens": "10Btokens", "steps": "100steps"}


@dataclass(frozen=True)
class Extension:
    """What is added to the limits of a run after its start, each in its own unit; 0: nothing."""

    hours: float = 0.0
    flops: float = 0.0
    tokens: float = 0.0
    steps: int = 0

    def __str__(self) -> str:
        return " and ".join(amount_in_words(unit, amount) for unit, amount in self.to_dict().items())

    def exceeds(self, other: Extension) -> bool:
        """Whether it adds more than `other` to at least one limit."""
        return any(getattr(self, unit) > getattr(other, unit) for unit in UNITS)

    def to_dict(self) -> dict[str, float]:
        """Return what it adds, by unit."""
        return {unit: getattr(self, unit) for unit in UNITS if getattr(self, unit)}

    @property
    def as_options(self) -> str:
        """The options that give this extension, as on the command line."""
        units = self.to_dict()
        hours = f"budget.extend_hours={as_duration(units.pop('hours'))}" if self.hours and len(units) > 1 else ""
        others = (
            f"budget.extend={as_duration(amount) if unit == 'hours' else plain(amount) + unit}"
            for unit, amount in units.items()
        )
        return " ".join(filter(None, [hours, *others]))


NOTHING = Extension()


def recorded_extension(record: Mapping[str, Any]) -> Extension:
    """Return the extension in ledger.json or result.json; earlier versions recorded hours alone."""
    amounts = mapping(record.get("extended")) or {"hours": record.get("extended_hours")}
    known = {unit: amounts[unit] for unit in UNITS if is_amount(amounts.get(unit))}
    return Extension(**known)


def parse_extension(text: str, limited: Sequence[str]) -> Extension:
    """Return what budget.extend=`text` adds to a run with limits in the units `limited`.

    A number without a unit is in the unit of the only limit. Raises UserError in one line for anything else.
    """
    words, given = text.strip(), f"budget.extend={text}"
    allowed = " or ".join(f"budget.extend={EXAMPLES[unit]}" for unit in limited or UNITS)
    named = NAMED.fullmatch(words)
    if named:
        words, unit = named[1], named[2].lower().removesuffix("s") + "s"
    elif words[-1:] in ("d", "h", "m", "s"):
        unit = "hours"
    elif len(limited) == 1:
        unit = limited[0]
    else:
        raise UserError(f"{given}: the run has several limits, so name the unit: {allowed}")
    try:
        amount = parse_duration(words) if unit == "hours" else parse_count(words)
    except ValueError:
        raise UserError(f"{given} is not an amount of budget; write e.g. {allowed}") from None
    if unit not in limited:
        raise UserError(f"{given} adds {unit}, but budget.{unit} is not set; write e.g. {allowed}")
    if amount < 0 or (unit == "steps" and amount % 1):
        raise UserError(
            f"{given} must add {'at least 0' if amount < 0 else 'a whole number of steps'}; write e.g. {allowed}"
        )
    added: dict[str, Any] = {unit: int(amount) if unit == "steps" else amount}
    return Extension(**added)


def amount_in_words(unit: str, amount: float) -> str:
    """Return an amount of budget in words, e.g. "100 steps", "25.6k tokens", "1e+15 FLOPs", "30m00s"."""
    if unit == "hours":
        return format_seconds(3600 * amount)
    if unit == "steps":
        return f"{amount:,.0f} steps"
    return f"{amount:.3g} FLOPs" if unit == "flops" else f"{format_count(amount)} tokens"


def plain(amount: float) -> str:
    """Return an amount as it is typed: whole numbers below 1e16 without a point or exponent, others in full."""
    return f"{amount:.0f}" if amount == int(amount) and abs(amount) < 1e16 else repr(float(amount)).replace("+", "")


def as_duration(hours: float) -> str:
    """Return hours as they are typed, in the largest unit that gives a whole number: "2h", "90m", "45s"; "0.123h" in none."""
    for letter, per_hour in (("h", 1), ("m", 60), ("s", 3600)):
        text = f"{round(hours * per_hour)}{letter}"
        if parse_duration(text) == hours:
            return text
    return f"{plain(hours)}h"
