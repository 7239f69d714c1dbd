"""Allocators that say how far they are from the best: against all allocations, in exact arithmetic, however odd the losses are.

Noise, ties, losses below 0 and over eighteen orders of magnitude: nothing here is rounded, so nothing here has a tolerance,
except where an answer that is said to be the best may be so up to rounding.
"""

from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from math import prod
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from eckart.allocate import (
    Allocator,
    EqualMarginalLoss,
    Exact,
    Greedy,
    Slot,
    Uniform,
    smallest,
    total_bytes,
    total_cost,
)
from eckart.allocate.knapsack import solve
from eckart.allocate.slots import BudgetError, Rank

BOUNDED: dict[str, Allocator] = {
    "greedy": Greedy(),
    "equal marginal loss": EqualMarginalLoss(),
    "exact": Exact(),
    "exact, cut short": Exact(nodes=0),
    "exact, few nodes": Exact(nodes=60),
}
Slots = Mapping[str, Slot]
SHAPES = [(1, 9), (3, 4), (4, 6), (5, 5), (6, 24), (7, 9), (10, 10), (12, 8)]  # max_rank 0, 1, 2, 2, 4, 3, 4, 4

falling = st.lists(st.floats(0, 1e3), min_size=13, max_size=13).map(lambda x: sorted(x, reverse=True))
noise = st.lists(st.floats(0, 1), min_size=13, max_size=13)
signed = st.lists(st.floats(-1, 1), min_size=13, max_size=13)
ties = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=13, max_size=13)
spread = st.lists(st.floats(-12, 6).map(lambda e: 10**e), min_size=13, max_size=13)


@st.composite
def problems(draw: st.DrawFn, prices: bool = False) -> tuple[dict[str, Slot], int]:
    """Up to five small slots and a budget between the least and somewhat more than everything dense."""
    slots = {}
    for name in "abcde"[: draw(st.integers(1, 5))]:
        m, n = draw(st.sampled_from(SHAPES))
        losses = draw(st.one_of(falling, noise, signed, ties, spread))
        slots[name] = Slot(
            rows=m,
            columns=n,
            itemsize=draw(st.sampled_from([1, 2])),
            losses=torch.tensor(losses, dtype=torch.float64),
            price=draw(st.integers(0, 5)) if prices else 1,
        )
    least, most = total_cost(slots, smallest(slots)), total_cost(slots, dict.fromkeys(slots))
    return slots, draw(st.integers(least, most + 3))


def choices(slot: Slot) -> list[Rank]:
    return [*range(1, slot.max_rank + 1), None]


def price(slot: Slot, rank: Rank) -> int:
    entries = slot.rows * slot.columns if rank is None else rank * (slot.rows + slot.columns)
    return slot.price * slot.itemsize * entries


def loss_at(slot: Slot, rank: Rank) -> Fraction:
    return Fraction(0) if rank is None else Fraction(slot.losses[rank].item())


def loss(slots: Slots, ranks: Mapping[str, Rank]) -> Fraction:
    return sum((loss_at(slot, ranks[name]) for name, slot in slots.items()), Fraction(0))


def best_loss(slots: Slots, budget: int) -> Fraction:
    """The least loss of all allocations within the budget, by trying every one in whole numbers."""
    points = [[(price(s, r), loss_at(s, r)) for r in choices(s)] for s in slots.values()]
    unit = max(lost.denominator for some in points for _, lost in some)  # floats: each divides the largest
    assert prod(map(len, points)) <= 5**5
    whole = [[(cost, int(lost * unit)) for cost, lost in some] for some in points]
    least = min(sum(lost for _, lost in one) for one in product(*whole) if sum(cost for cost, _ in one) <= budget)
    return Fraction(least, unit)


def rounding(slots: Slots, best: Fraction) -> Fraction:
    """What the best of all may be missed by: 2^-50 of the loss, counted from 0 or below it from every slot's least."""
    least = sum((min(loss_at(s, r) for r in choices(s)) for s in slots.values()), Fraction(0))
    largest = max(abs(min(loss_at(s, r) for r in choices(s))) for s in slots.values())
    return Fraction(1, 2**50) * max(best - least, largest)


@pytest.mark.parametrize("name", BOUNDED)
@given(problem=st.one_of(problems(), problems(prices=True)))
def test_the_gap_bounds_the_distance_from_the_best(name: str, problem: tuple[dict[str, Slot], int]) -> None:
    slots, budget = problem
    allocation = BOUNDED[name](slots, budget)
    assert set(allocation.ranks) == set(slots)
    assert all(allocation.ranks[n] in choices(s) for n, s in slots.items())
    assert sum(price(s, allocation.ranks[n]) for n, s in slots.items()) <= budget
    best, found = best_loss(slots, budget), loss(slots, allocation.ranks)
    assert found >= best
    assert allocation.gap is not None
    if isinstance(BOUNDED[name], Exact) and allocation.gap == 0:
        assert found - best <= rounding(slots, best)
    else:
        assert found - best <= Fraction(allocation.gap)


@given(problem=st.one_of(problems(), problems(prices=True)))
def test_exact_is_the_best_of_all(problem: tuple[dict[str, Slot], int]) -> None:
    slots, budget = problem
    allocation = Exact()(slots, budget)
    best = best_loss(slots, budget)
    assert allocation.gap == 0.0
    assert 0 <= loss(slots, allocation.ranks) - best <= rounding(slots, best)


@pytest.mark.parametrize("name", BOUNDED)
@given(problem=problems())
def test_what_costs_nothing_more_and_loses_nothing_is_taken(name: str, problem: tuple[dict[str, Slot], int]) -> None:
    """No single matrix has a larger choice within the budget that loses less; the exact answer's are all equal at best."""
    slots, budget = problem
    ranks = BOUNDED[name](slots, budget).ranks
    left = budget - total_cost(slots, ranks)
    for n, s in slots.items():
        larger = [r for r in choices(s) if price(s, ranks[n]) < price(s, r) <= price(s, ranks[n]) + left]
        nearest = [r for r in larger if loss_at(s, r) <= loss_at(s, ranks[n])]
        assert nearest == [], f"{n} could have rank {nearest}"


@given(problem=problems())
def test_the_relaxed_optimum_is_that_of_a_linear_program(problem: tuple[dict[str, Slot], int]) -> None:
    """The gap of equal marginal losses is its loss less the optimum of the linear relaxation, found by the simplex method."""
    slots, budget = problem
    allocation = EqualMarginalLoss()(slots, budget)
    values, costs, owner = [], [], []
    for i, s in enumerate(slots.values()):
        for r in choices(s):
            values.append(float(loss_at(s, r)))
            costs.append(price(s, r))
            owner.append(i)
    solved = linprog(
        values,
        A_ub=[costs],
        b_ub=[budget],
        A_eq=[[float(o == i) for o in owner] for i in range(len(slots))],
        b_eq=[1.0] * len(slots),
        method="highs",
    )
    grain = 1e-7 * max(1e-3, *map(abs, values))  # what HiGHS calls feasible
    assert allocation.gap == pytest.approx(float(loss(slots, allocation.ranks)) - solved.fun, abs=10 * grain)


# ---- single cases ----------------------------------------------------------------------------------------------------


def one(losses: list[float], **kwargs: int) -> Slot:
    return Slot(rows=10, columns=10, itemsize=1, losses=torch.tensor(losses, dtype=torch.float64), **kwargs)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_single_slot_takes_the_best_that_fits(name: str) -> None:
    slots = {"a": one([9.0, 5.0, 7.0, 4.0, 4.5, *[0.0] * 6])}  # ranks 1 to 4 cost 20 each, dense 100
    for budget, rank in ((20, 1), (39, 1), (59, 1), (60, 3), (99, 3), (100, None), (500, None)):
        assert BOUNDED[name](slots, budget).ranks == {"a": rank}


@pytest.mark.parametrize("name", BOUNDED)
def test_nothing_to_choose_has_no_gap(name: str) -> None:
    slots = {n: Slot(rows=1, columns=7, itemsize=2) for n in "ab"}
    allocation = BOUNDED[name](slots, 28)
    assert (allocation.ranks, allocation.gap) == ({"a": None, "b": None}, 0.0)
    with pytest.raises(BudgetError, match=r"27 bytes .* 28 bytes"):
        BOUNDED[name](slots, 27)


@pytest.mark.parametrize("name", BOUNDED)
def test_enough_for_everything_has_no_gap(name: str) -> None:
    slots = {n: one([10.0 - r for r in range(11)]) for n in "abc"}
    allocation = BOUNDED[name](slots, 300)
    assert (allocation.ranks, allocation.gap) == (dict.fromkeys("abc"), 0.0)


def test_a_fall_behind_a_flat_stretch_is_seen_by_all_but_the_greedy() -> None:
    slots = {"a": one([9.0, 4.0, 3.0, 2.0, 1.0, *[0.0] * 6]), "b": one([9.0, 8.0, 8.0, 8.0, 0.5, *[0.0] * 6])}
    found = {name: allocator(slots, 100).ranks for name, allocator in BOUNDED.items()}
    assert found.pop("greedy") == {"a": 4, "b": 1}
    assert list(found.values()) == [{"a": 1, "b": 4}] * len(found)


def test_exact_finds_what_the_steepest_step_hides() -> None:
    """30 to spare: 18 of them for 2 are the steepest step, and leave too little for the 30 that are worth 3."""
    a = Slot(
        rows=5, columns=10, itemsize=2, losses=torch.tensor([9.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    )  # costs 30, 60, 90, 100
    b = Slot(rows=2, columns=20, itemsize=1, losses=torch.tensor([9.0, 2.0, 0.0]))  # costs 22, 40
    slots, budget = {"a": a, "b": b}, 30 + 22 + 30
    marginal = EqualMarginalLoss()(slots, budget)
    assert marginal.ranks == {"a": 1, "b": None}
    assert marginal.gap == pytest.approx(
        3 - (5 - 2 - 12 / 30 * 3), rel=1e-12
    )  # what is left pays 12 of 30 of the next step
    assert Exact()(slots, budget).ranks == {"a": 2, "b": 1}
    assert Exact()(slots, budget).gap == 0.0


def many(count: int, ranks: int, seed: int) -> dict[str, Slot]:
    """Slots that fall like powers of different exponents, with some noise, of sizes with no common divisor."""
    random = Random(seed)
    slots = {}
    for i in range(count):
        m, n = 2 * ranks + random.randint(0, 40), 2 * ranks + random.randint(0, 90)
        rng = torch.Generator().manual_seed(seed + i)
        squares = torch.arange(1, m + 1, dtype=torch.float64).pow(-random.uniform(0.3, 2.5))
        squares *= 0.5 + torch.rand(m, generator=rng, dtype=torch.float64)
        losses = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        slots[f"w{i}"] = Slot(rows=m, columns=n, itemsize=2, losses=losses)
    return slots


def test_exact_proves_the_best_of_many_choices() -> None:
    """200 slots of 500 choices and more: no worse than the heuristic, and the proof's bound lies within its gap."""
    slots = many(200, 500, seed=3)
    budget = int(0.3 * total_bytes(slots, dict.fromkeys(slots)))
    exact, marginal = Exact()(slots, budget), EqualMarginalLoss()(slots, budget)
    assert min(slot.max_rank for slot in slots.values()) >= 500
    assert exact.gap == 0.0
    assert total_bytes(slots, exact.ranks) <= budget
    lead = loss(slots, marginal.ranks) - loss(slots, exact.ranks)
    assert 0 <= lead <= Fraction(marginal.gap)
    assert lead > 0  # of this problem: there was something to find


def test_fewer_nodes_leave_a_gap_that_bounds_the_best() -> None:
    slots = many(40, 60, seed=5)
    budget = int(0.3 * total_bytes(slots, dict.fromkeys(slots)))
    best = loss(slots, Exact()(slots, budget).ranks)
    allocations = [Exact(nodes=n)(slots, budget) for n in (0, 1_000, 10_000)]
    assert all(a.gap > 0 for a in allocations[:2])
    for a in allocations:
        found = loss(slots, a.ranks)
        assert best <= found <= best + Fraction(a.gap)
    assert allocations[0].gap <= EqualMarginalLoss()(slots, budget).gap


def test_ties_do_not_multiply() -> None:
    """Sixty equal slots have more equal allocations than could be tried one by one."""
    losses = [2.0 ** (10 - r) for r in range(10)] + [0.0]
    slots = {f"w{i}": one(losses) for i in range(60)}
    for budget in (60 * 20 + 50, 60 * 45 + 13, 60 * 70):
        assert Exact()(slots, budget).gap == 0.0


@st.composite
def knapsacks(draw: st.DrawFn) -> tuple[list[tuple[list[int], list[int]]], int, list[int]]:
    """Curves of whole numbers, also with equal costs and equal losses; a budget, and choices within it to start from."""
    largest = draw(st.sampled_from([3, 50, 2**57]))
    curves = []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 5))
        costs = sorted(draw(st.lists(st.integers(0, 30), min_size=count, max_size=count)))
        losses = sorted(draw(st.lists(st.integers(0, largest), min_size=count, max_size=count)), reverse=True)
        curves.append((costs, losses))
    start = [draw(st.integers(0, len(costs) - 1)) for costs, _ in curves]
    spent = sum(costs[i] for (costs, _), i in zip(curves, start, strict=True))
    return curves, spent + draw(st.integers(0, 40)), start


@given(knapsacks(), st.sampled_from([0, 10, 50, 10**6]))
def test_a_knapsack_of_whole_numbers(
    problem: tuple[list[tuple[list[int], list[int]]], int, list[int]], nodes: int
) -> None:
    curves, budget, start = problem
    solved = solve(curves, budget, start, nodes)
    all_of_them = product(*(zip(*points, strict=True) for points in curves))
    best = min(sum(lost for _, lost in some) for some in all_of_them if sum(cost for cost, _ in some) <= budget)
    assert sum(costs[i] for (costs, _), i in zip(curves, solved.at, strict=True)) <= budget
    assert solved.loss == sum(losses[i] for (_, losses), i in zip(curves, solved.at, strict=True))
    grain = solved.loss >> 50  # slopes are compared as floats
    assert solved.least - grain <= best <= solved.loss
    if nodes == 10**6:
        assert solved.loss == solved.least


# ---- prices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BOUNDED, "uniform"])
@given(problem=problems(), price=st.integers(1, 7))
def test_one_price_for_all_is_another_unit(name: str, problem: tuple[dict[str, Slot], int], price: int) -> None:
    slots, budget = problem
    priced = {
        n: Slot(rows=s.rows, columns=s.columns, itemsize=s.itemsize, losses=s.losses, price=price)
        for n, s in slots.items()
    }
    allocator = (BOUNDED | {"uniform": Uniform()})[name]
    assert allocator(priced, price * budget + price - 1).ranks == allocator(slots, budget).ranks


@pytest.mark.parametrize("name", [*BOUNDED, "uniform"])
def test_what_is_free_stays_whole(name: str) -> None:
    """The second user of a tied matrix: its bytes are counted already."""
    losses = [10.0 - r for r in range(11)]
    slots = {"first": one(losses), "second": one(losses, price=0)}
    ranks = (BOUNDED | {"uniform": Uniform()})[name](slots, 65).ranks
    assert ranks == {"first": 3, "second": None}
    assert (total_cost(slots, ranks), total_bytes(slots, ranks)) == (60, 160)


@pytest.mark.parametrize("name", BOUNDED)
def test_dear_bytes_are_bought_last(name: str) -> None:
    losses = [10.0 - r for r in range(11)]
    slots = {"dear": one(losses, price=3), "cheap": one(losses)}
    assert BOUNDED[name](slots, 60 + 20 + 60).ranks == {"dear": 1, "cheap": 4}


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (None, r"slot b \(10, 10\) needs losses of ranks 0 to 4, not none"),
        (torch.ones(4), r"ranks 0 to 4, not a tensor of shape \(4,\)"),
        (torch.ones(2, 11), r"not a tensor of shape \(2, 11\)"),
        (torch.tensor([1.0, 1.0, torch.nan, 0.0, 0.0]), "slot b .* not finite"),
        (torch.tensor([1.0, torch.inf, 1.0, 0.0, 0.0]), "slot b .* not finite"),
    ],
)
def test_losses_that_say_nothing_are_refused(name: str, losses: torch.Tensor | None, said: str) -> None:
    slots = {"a": one([1.0] * 11), "b": Slot(rows=10, columns=10, itemsize=1, losses=losses)}
    with pytest.raises(ValueError, match=said):
        BOUNDED[name](slots, 100)


@pytest.mark.parametrize("wrong", [-1, 0.5])
def test_a_price_is_a_whole_number(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"price {wrong} must be a whole number"):
        Slot(rows=2, columns=2, itemsize=1, price=wrong)


@pytest.mark.parametrize("wrong", [-1, 0.5])
def test_nodes_are_a_whole_number(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"nodes {wrong} must be a whole number"):
        Exact(nodes=wrong)


def test_costs_that_no_longer_add_up_are_refused() -> None:
    slots = {n: Slot(rows=10, columns=10, itemsize=1, losses=torch.ones(11), price=2**55) for n in "ab"}
    with pytest.raises(ValueError, match="larger unit"):
        Exact()(slots, 2**62)
    assert Exact()({"a": slots["a"]}, 2**61 + 1).gap == 0.0
