"""Shares by what a map is for, and blocks that pay in the order of their influence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eckart.allocate import BondSlot, ListedSlot, Slot, ValuesFirst, smallest, total_cost
from eckart.allocate.slots import AnySlot, BudgetError

KINDS = (None, "keys", "values", "hidden")


def matrices(side: int) -> dict[str, AnySlot]:
    return {f"{i}{kind}": Slot(rows=side, columns=side, itemsize=2, kind=kind) for kind in KINDS for i in range(2)}


@given(st.integers(20, 400), st.floats(0.05, 0.9), st.sampled_from([1.5, 3.0, 10.0]))
def test_values_keep_their_multiple_of_keys(side: int, keep: float, ratio: float) -> None:
    slots = matrices(side)
    total = sum(slot.dense_bytes for slot in slots.values())
    ranks = ValuesFirst(ratio)(slots, max(int(keep * total), total_cost(slots, smallest(slots)))).ranks
    keys, values = ranks["0keys"], ranks["0values"]
    if keys is not None and values is not None:
        # Rounding down takes less than one rank of each, and what is left over adds at most one.
        assert abs(values - ratio * keys) <= 2 * ratio + 2
    assert ranks["0hidden"] is None or ranks["0None"] is None or abs(ranks["0hidden"] - ranks["0None"]) <= 1


@given(st.integers(4, 60), st.floats(0.01, 1.0), st.sampled_from([0.2, 1.0, 3.0]))
def test_the_budget_is_kept_and_nothing_more_fits(side: int, keep: float, ratio: float) -> None:
    slots = matrices(side)
    budget = int(keep * sum(slot.dense_bytes for slot in slots.values()))
    if budget < total_cost(slots, smallest(slots)):
        with pytest.raises(BudgetError):
            ValuesFirst(ratio)(slots, budget)
        return
    ranks = ValuesFirst(ratio)(slots, budget).ranks
    spent = total_cost(slots, ranks)
    assert spent <= budget
    for name, slot in slots.items():
        rank = ranks[name]
        if rank is not None:
            larger = rank + 1 if rank < slot.max_rank else None
            assert spent - slot.cost(rank) + slot.cost(larger) > budget


def test_everything_stays_where_everything_fits() -> None:
    slots = matrices(16) | {"bond": BondSlot(size=5, unit_bytes=3), "codes": ListedSlot(dense_bytes=10, listed=(4,))}
    ranks = ValuesFirst()(slots, sum(slot.dense_bytes for slot in slots.values())).ranks
    assert set(ranks.values()) == {None}


def test_a_format_of_sizes_takes_part() -> None:
    sizes = tuple(range(10, 110, 10))
    slots = {kind: ListedSlot(dense_bytes=105, listed=sizes, kind=kind) for kind in ("keys", "values")}
    assert ValuesFirst(ratio=3.0)(slots, 80).ranks == {"keys": 2, "values": 6}


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ratio_is_above_nothing(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        ValuesFirst(ratio)
