"""budget.extend: amounts with and without a unit, their record, and what they do to progress."""

from __future__ import annotations

from typing import Any

import pytest

from budget.clock import BudgetClock, Limits
from budget.extension import Extension, as_duration, parse_extension, plain, recorded_extension
from common.errors import UserError
from config import BudgetConfig, extension_of


@pytest.mark.parametrize(
    ("text", "limited", "expected"),
    [
        ("100", ["steps"], Extension(steps=100)),
        ("100steps", ["steps"], Extension(steps=100)),
        ("1 step", ["steps", "hours"], Extension(steps=1)),
        ("0.5", ["hours"], Extension(hours=0.5)),
        ("1h", ["hours", "steps"], Extension(hours=1)),
        ("90m", ["hours", "tokens"], Extension(hours=1.5)),
        ("1h30m", ["hours"], Extension(hours=1.5)),
        ("2hours", ["hours"], Extension(hours=2)),
        ("1e9tokens", ["tokens"], Extension(tokens=1e9)),
        ("10Btokens", ["tokens", "flops"], Extension(tokens=1e10)),
        ("500M", ["tokens"], Extension(tokens=5e8)),
        ("1e+15", ["flops"], Extension(flops=1e15)),
        ("1e15flops", ["flops"], Extension(flops=1e15)),
        ("0", ["steps"], Extension()),
    ],
)
def test_an_amount_is_in_its_unit_or_in_that_of_the_only_limit(
    text: str, limited: list[str], expected: Extension
) -> None:
    assert parse_extension(text, limited) == expected


@pytest.mark.parametrize(
    ("text", "limited", "parts"),
    [
        ("100", ["hours", "steps"], ["several limits", "budget.extend=1h or budget.extend=100steps"]),
        ("1h", ["steps"], ["adds hours, but budget.hours is not set", "budget.extend=100steps"]),
        ("100steps", ["tokens"], ["adds steps, but budget.steps is not set"]),
        ("1.5", ["steps"], ["a whole number"]),
        ("-5", ["tokens"], ["at least 0"]),
        ("-5", ["steps"], ["at least 0"]),
        ("-1h", ["hours"], ["at least 0"]),
        ("many", ["steps"], ["not an amount"]),
        ("steps", ["steps"], ["not an amount"]),
        ("nan", ["hours"], ["not an amount"]),
        ("1e999tokens", ["tokens"], ["not an amount"]),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, limited: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_extension(text, limited)
    (message,) = caught.value.messages
    assert message.startswith(f"budget.extend={text}")
    assert all(part in message for part in parts), message


def test_the_extension_of_the_options() -> None:
    assert extension_of(BudgetConfig(hours=1, extend_hours=2)) == Extension(hours=2)
    assert extension_of(BudgetConfig(hours=1, steps=9, extend="5steps", extend_hours=2)) == Extension(2, 0, 0, 5)
    with pytest.raises(UserError, match="give one of them"):
        extension_of(BudgetConfig(hours=1, extend="1h", extend_hours=2))
    with pytest.raises(UserError, match=r"makes budget\.hours 2e\+06; allowed: \(0, 1e\+06\]"):
        extension_of(BudgetConfig(hours=1e6, extend="1000000h"))


@pytest.mark.parametrize(
    "extension", [Extension(steps=100), Extension(hours=0.1), Extension(tokens=123456789012), Extension(flops=1.5e18)]
)
def test_an_extension_survives_its_record_and_its_options(extension: Extension) -> None:
    assert recorded_extension({"extended": extension.to_dict()}) == extension
    (unit,) = extension.to_dict()
    _, _, text = extension.as_options.partition("=")
    assert parse_extension(text, [unit]) == extension
    assert not extension.exceeds(extension)
    assert extension.exceeds(Extension())


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, Extension()),
        ({"extended_hours": 2.0}, Extension(hours=2)),  # of earlier versions
        ({"extended_hours": "2", "extended": [3]}, Extension()),
        ({"extended": {"steps": -1, "tokens": "x", "other": 3}}, Extension()),
    ],
)
def test_invalid_records_count_as_nothing(record: dict[str, Any], expected: Extension) -> None:
    assert recorded_extension(record) == expected


def test_hours_are_written_as_durations() -> None:
    hours = (2.0, 1 / 60, 45 / 3600, 1.5, 0.1234567, 0.0)
    assert [as_duration(each) for each in hours] == ["2h", "1m", "45s", "90m", "0.1234567h", "0h"]
    assert str(Extension(hours=1 / 60, steps=3)) == "1m00s and 3 steps"


def test_amounts_are_written_as_they_are_typed() -> None:
    assert [plain(amount) for amount in (100, 0.1, 1e15, 1.5e18)] == ["100", "0.1", "1000000000000000", "1.5e18"]


@pytest.mark.parametrize(
    ("limits", "before", "progress"),
    [
        (Limits(steps=400), {"steps": 300}, 0.75),
        (Limits(tokens=1200), {"tokens": 600}, 0.5),
        (Limits(flops=4e9), {"flops": 3e9}, 0.75),
        # The run ended at its 300 steps after a quarter of its hours: more hours change nothing, more steps do.
        (Limits(steps=300, hours=200 / 3600), {"steps": 300, "hours": 100 / 3600}, 1.0),
        (Limits(steps=600, hours=100 / 3600), {"steps": 300, "hours": 100 / 3600}, 0.5),
        # With many more steps, the hours become the tightest limit.
        (Limits(steps=30_000, hours=100 / 3600), {"steps": 300, "hours": 100 / 3600}, 0.25),
    ],
)
def test_progress_is_scaled_by_the_tightest_limit(limits: Limits, before: dict[str, float], progress: float) -> None:
    clock = BudgetClock(limits, clock=lambda: 125.0, started=100.0, progress=1.0)
    clock.rescale(before, step=300, tokens=600, flops=3e9)
    assert clock.progress == pytest.approx(progress)


def test_progress_goes_on_from_where_it_is() -> None:
    clock = BudgetClock(Limits(steps=400), clock=lambda: 100.0, started=100.0, progress=0.4)
    clock.rescale({"steps": 200}, step=80, tokens=0, flops=0.0)
    assert clock.progress == pytest.approx(0.2)
