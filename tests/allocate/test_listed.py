"""Slots of formats that come in a list of sizes: with every allocator, against all allocations there are; influence of blocks."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eckart.allocate import (
    Allocator,
    BondSlot,
    Entropic,
    EqualMarginalLoss,
    Exact,
    Greedy,
    Later,
    LeastInfluential,
    Level,
    ListedSlot,
    Slot,
    Threshold,
    Uniform,
    smallest,
    total_bytes,
    total_cost,
)
from eckart.allocate.slots import AnySlot, BudgetError, Rank

ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": Uniform(),
    "greedy": Greedy(),
    "equal marginal loss": EqualMarginalLoss(),
    "exact": Exact(),
    "level": Level(),
    "threshold": Threshold(),
    "later": Later(least=0.0),
    "least influential": LeastInfluential(least=0.0),
    "entropic": Entropic(most=1.0),
}


@st.composite
def listed(draw: st.DrawFn) -> ListedSlot:
    """A slot with a few sizes, some of them larger than the matrix, and losses that fall."""
    steps = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    falls = draw(st.lists(st.floats(0, 10), min_size=len(steps) + 1, max_size=len(steps) + 1))
    return ListedSlot(
        dense_bytes=draw(st.integers(5, 80)),
        listed=tuple(sum(steps[: i + 1]) for i in range(len(steps))),
        losses=torch.tensor([sum(falls[i:]) for i in range(len(falls))], dtype=torch.float64),
        price=draw(st.integers(1, 3)),
        block=draw(st.integers(0, 3)),
        importance=draw(st.sampled_from([0.1, 0.4, 0.9])),
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, AnySlot], int]:
    slots: dict[str, AnySlot] = {name: draw(listed()) for name in "abc"[: draw(st.integers(1, 3))]}
    if draw(st.booleans()):
        losses = torch.tensor([9.0, 4.0, 1.0, 0.0])
        slots["plain"] = Slot(rows=3, columns=20, itemsize=1, losses=losses, block=1, importance=0.4)
    influence = {slot.block: slot.importance for slot in slots.values()}
    slots = {name: replace(slot, importance=influence[slot.block]) for name, slot in slots.items()}
    most = sum(slot.cost(None) for slot in slots.values())
    return slots, draw(st.integers(0, most + 5))


def every(slots: Mapping[str, AnySlot]) -> list[dict[str, Rank]]:
    """All choices of sizes that take fewer bytes than the matrix, or of leaving it."""
    choices = [[*range(1, slot.max_rank + 1), None] for slot in slots.values()]
    return [dict(zip(slots, ranks, strict=True)) for ranks in product(*choices)]


def allocated(
    allocator: Allocator, slots: Mapping[str, AnySlot], budget: int
) -> tuple[Mapping[str, Rank], BudgetError | None]:
    try:
        return allocator(slots, budget).ranks, None
    except BudgetError as error:
        return {}, error


def loss(slots: Mapping[str, AnySlot], ranks: Mapping[str, Rank]) -> float:
    return sum(0.0 if ranks[name] is None else float(slot.losses[ranks[name]]) for name, slot in slots.items())  # type: ignore[index]


# ---- one slot -------------------------------------------------------------------------------------------------------


@given(slot=listed(), size=st.floats(0, 200))
def test_a_listed_slot_counts_what_saves_something(slot: ListedSlot, size: float) -> None:
    saving = [rank for rank in range(1, len(slot.listed) + 1) if slot.listed[rank - 1] < slot.dense_bytes]
    assert slot.max_rank == len(saving)
    assert slot.within(size) == max((rank for rank in saving if slot.listed[rank - 1] <= size), default=0)
    for rank in saving:
        assert slot.stored(rank) == slot.listed[rank - 1]
        assert slot.cost(rank) == slot.price * slot.listed[rank - 1]
    assert (slot.stored(None), slot.cost(None)) == (slot.dense_bytes, slot.price * slot.dense_bytes)
    assert slot.sides == f"of {slot.dense_bytes} bytes"


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5, 4), (2, 1)])
def test_sizes_must_rise(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the bytes of the sizes of a format rise, which"):
        ListedSlot(dense_bytes=9, listed=sizes)
    assert ListedSlot(dense_bytes=9, listed=(9,)).max_rank == 0


# ---- every allocator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ALLOCATORS)
@given(problem=problems())
def test_what_is_allocated_fits_or_nothing_does(key: str, problem: tuple[dict[str, AnySlot], int]) -> None:
    slots, budget = problem
    least = min(total_cost(slots, ranks) for ranks in every(slots))
    assert total_cost(slots, smallest(slots)) == least
    ranks, refused = allocated(ALLOCATORS[key], slots, budget)
    if refused is not None:
        assert refused.smallest > budget
        assert refused.smallest >= least
        assert budget < least or key in ("level", "entropic")  # which keep blocks or slots alike
        return
    assert dict(ranks) in every(slots)
    assert total_cost(slots, ranks) <= budget
    assert total_bytes(slots, ranks) == sum(slot.stored(ranks[name]) for name, slot in slots.items())
    if budget >= sum(slot.cost(None) for slot in slots.values()):
        if key in ("exact", "equal marginal loss", "greedy"):  # where nothing is lost, a smaller size may do
            assert loss(slots, ranks) == 0
        elif key != "threshold":
            assert set(ranks.values()) == {None}


@given(problem=problems())
def test_exact_sizes_are_the_best_of_all(problem: tuple[dict[str, AnySlot], int]) -> None:
    slots, budget = problem
    fitting = [ranks for ranks in every(slots) if total_cost(slots, ranks) <= budget]
    if not fitting:
        return
    best = min(loss(slots, ranks) for ranks in fitting)
    found = Exact()(slots, budget)
    assert loss(slots, found.ranks) == pytest.approx(best, abs=1e-12)
    bounded = EqualMarginalLoss()(slots, budget)
    assert bounded.gap is not None
    assert loss(slots, bounded.ranks) - bounded.gap <= best + 1e-12


# ---- blocks of least influence --------------------------------------------------------------------------------------


def blocks(influence: tuple[float, ...]) -> dict[str, AnySlot]:
    """Two matrices a block, one of them of listed sizes, and one outside of all blocks."""
    slots: dict[str, AnySlot] = {"outside": Slot(rows=10, columns=10, itemsize=1)}
    for block, turned in enumerate(influence):
        slots[f"{block}.a"] = Slot(rows=20, columns=20, itemsize=1, block=block, importance=turned)
        sizes = tuple(range(30, 400, 10))
        slots[f"{block}.b"] = ListedSlot(dense_bytes=300, listed=sizes, block=block, importance=turned)
    return slots


@pytest.mark.parametrize("influence", permutations((0.1, 0.2, 0.3, 0.4)))
@pytest.mark.parametrize("budget", [2800, 2500, 2000, 1600, 1200])
def test_blocks_of_least_influence_pay_first_and_the_ends_last(influence: tuple[float, ...], budget: int) -> None:
    """As few as keep half of their bytes, in this order; all at less where even all do not."""
    slots = blocks(influence)
    order = [*sorted((1, 2), key=lambda b: influence[b]), *sorted((0, 3), key=lambda b: influence[b])]
    ranks = LeastInfluential(least=0.5)(slots, budget).ranks
    assert total_cost(slots, ranks) <= budget
    assert ranks["outside"] is None
    enough = [count for count in range(1, 5) if budget - 100 - 700 * (4 - count) >= 0.5 * 700 * count]
    paying = order[: min(enough, default=4)]
    for block in range(4):
        held = [ranks[f"{block}.a"], ranks[f"{block}.b"]]
        assert (held == [None, None]) == (block not in paying)
    some = {name: slot for name, slot in slots.items() if slot.block in paying}
    rest = budget - 100 - 700 * (4 - len(paying))
    assert {name: ranks[name] for name in some} == Uniform()(some, rest).ranks


def test_of_equal_influence_the_later_block_pays() -> None:
    ranks = LeastInfluential(least=0.5)(blocks((0.5, 0.5, 0.5, 0.5)), 2800).ranks
    assert ranks["2.a"] is not None
    assert ranks["1.a"] is ranks["0.a"] is ranks["3.a"] is None
    ranks = LeastInfluential(least=0.5)(blocks((0.5, 0.5)), 1400).ranks  # nothing but ends
    assert ranks["1.a"] is not None
    assert ranks["0.a"] is None


def test_where_no_block_may_keep_so_little_all_pay_more() -> None:
    slots = blocks((0.1, 0.2, 0.3))
    ranks = LeastInfluential(least=0.9)(slots, 800).ranks
    assert None not in [rank for name, rank in ranks.items() if name != "outside"]
    least = total_cost(
        slots, smallest({name: slot for name, slot in slots.items() if name != "outside"}) | {"outside": None}
    )
    LeastInfluential()(slots, least)
    with pytest.raises(BudgetError) as error:
        LeastInfluential()(slots, least - 1)
    assert error.value.smallest == least


def test_influence_must_be_known_and_the_share_be_one() -> None:
    with pytest.raises(ValueError, match="slot x belongs to a block whose influence is not known"):
        LeastInfluential()({"x": ListedSlot(dense_bytes=9, listed=(3,), block=0)}, 5)
    for least in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="must be from 0 to below 1"):
            LeastInfluential(least=least)
        with pytest.raises(ValueError, match="must be from 0 to below 1"):
            Later(least=least)
    assert LeastInfluential()({"x": Slot(rows=2, columns=2, itemsize=1)}, 9).ranks == {"x": None}
    with pytest.raises(BudgetError):
        LeastInfluential()({"x": Slot(rows=2, columns=2, itemsize=1)}, 3)


# ---- entropic shares of matrices ------------------------------------------------------------------------------------


def test_entropic_shares_spare_blocks_of_influence_whatever_the_format() -> None:
    sizes = tuple(range(40, 400, 4))
    for make in (
        lambda b, s: Slot(rows=20, columns=20, itemsize=1, block=b, importance=s),
        lambda b, s: ListedSlot(dense_bytes=400, listed=sizes, block=b, importance=s),
        lambda b, s: BondSlot(size=100, unit_bytes=4, block=b, importance=s),
    ):
        slots = {f"{b}": make(b, s) for b, s in enumerate((0.9, 0.1, 0.5))}
        for budget in (600, 800, 1000, 1150):
            ranks = Entropic(0.3)(slots, budget).ranks
            kept = [slot.max_rank + 1 if ranks[name] is None else ranks[name] for name, slot in slots.items()]
            assert total_cost(slots, ranks) <= budget
            assert kept[0] >= kept[2] >= kept[1]  # type: ignore[operator]
            assert kept[0] > kept[1]  # type: ignore[operator]
            # One more unit of the block that loses most would not fit, but for what rounding up takes in the others.
            assert total_cost(slots, ranks) > budget - 2 * 3 * 40


def test_entropic_shares_of_sizes_are_counted_from_those_that_save() -> None:
    slot = ListedSlot(dense_bytes=100, listed=(10, 20, 30, 40, 200), block=0, importance=1.0)
    assert [Entropic(most=1.0)({"x": slot}, budget).ranks["x"] for budget in (100, 99, 39, 10)] == [None, 4, 3, 1]
    whole = ListedSlot(dense_bytes=5, listed=(10,), block=0, importance=1.0)
    assert Entropic()({"x": whole}, 5).ranks == {"x": None}
