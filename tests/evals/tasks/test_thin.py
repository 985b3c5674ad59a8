"""Some items of a task: evenly spaced, of every group, and the same ones each time."""

from __future__ import annotations

from collections import Counter

import pytest

from evals.tasks.task import Item, TaskOptions, thin


def items_of(**sizes: int) -> list[Item]:
    return [Item(f"{group}{i}", group=group) for group, size in sizes.items() for i in range(size)]


def test_items_are_evenly_spaced_and_keep_their_order() -> None:
    chosen = thin([Item(str(i)) for i in range(1000)], 10)
    assert [int(item.id) for item in chosen] == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10, 57, 110, 111, 500])
def test_exactly_that_many_different_items_are_chosen(count: int) -> None:
    items = items_of(a=100, b=10, c=1)
    chosen = thin(items, count)
    assert len({item.id for item in chosen}) == len(chosen) == min(count, len(items))
    assert chosen == sorted(chosen, key=items.index)
    assert len({item.group for item in chosen}) == min(count, 3)


def test_groups_keep_their_shares() -> None:
    assert Counter(item.group for item in thin(items_of(a=300, b=300, c=300), 100)) == {"a": 33, "b": 33, "c": 34}
    chosen = Counter(item.group for item in thin(items_of(a=600, b=300, c=100), 100))
    assert all(abs(chosen[group] - share) <= 1 for group, share in {"a": 60, "b": 30, "c": 10}.items())


def test_items_of_one_group_may_be_anywhere() -> None:
    mixed = [Item(str(i), group="ab"[i % 2]) for i in range(100)]
    assert Counter(item.group for item in thin(mixed, 10)) == {"a": 5, "b": 5}


def test_options_of_the_command_line_become_those_of_a_task() -> None:
    assert TaskOptions.of({"kind": "generate", "stop": ["\n"]}) == TaskOptions("generate", stop=("\n",))
    assert TaskOptions.of({"kind": "generate"}) == TaskOptions("generate")
