"""A ground share for every block and the rest by score."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eckart.allocate import AnySlot, BondSlot, ListedSlot, Proportional, Slot, smallest, total_cost
from eckart.allocate.slots import BudgetError, Rank
from eckart.approx import Prune
from eckart.linalg.patterns import PerRow
from eckart.stats import Need

SHAPES = ((24, 40), (16, 24), (8, 64))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, AnySlot], int, float]:
    """Up to five blocks of matrices, dense but for zeros or as factors, some budget that fits, and a cap."""
    kind = draw(st.sampled_from(["factors", "zeros"]))
    slots: dict[str, AnySlot] = {}
    for block in range(draw(st.integers(1, 5))):
        score = draw(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)))
        for i in range(draw(st.integers(1, 3))):
            rows, columns = draw(st.sampled_from(SHAPES))
            where = {"block": block, "importance": score}
            if kind == "factors":
                slots[f"{block}.{i}"] = Slot(rows=rows, columns=columns, itemsize=2, **where)  # type: ignore[arg-type]
            else:
                made = Prune(PerRow()).slot(rows, columns, 2)
                slots[f"{block}.{i}"] = ListedSlot(dense_bytes=made.dense_bytes, listed=made.listed, **where)  # type: ignore[arg-type]
    if draw(st.booleans()):
        slots["outside"] = Slot(rows=10, columns=10, itemsize=2)
    least = total_cost(
        slots, {name: smallest(slots)[name] if s.block is not None else None for name, s in slots.items()}
    )
    return slots, draw(st.integers(least, total_cost(slots, dict.fromkeys(slots)) + 9)), draw(st.floats(0, 1))


def unit(slot: AnySlot) -> int:
    """The most bytes between two of its sizes, and from the largest one to dense."""
    sizes = [slot.stored(rank) for rank in range(1, slot.max_rank + 1)] + [slot.dense_bytes]
    return max((b - a for a, b in pairwise(sizes)), default=0)


def share(slot: AnySlot, rank: Rank) -> float:
    return slot.stored(rank) / slot.dense_bytes


def split(slots: dict[str, AnySlot]) -> tuple[dict[int, int], dict[int, float]]:
    sizes: dict[int, int] = {}
    for slot in slots.values():
        if slot.block is not None:
            sizes[slot.block] = sizes.get(slot.block, 0) + slot.dense_bytes
    return sizes, {s.block: s.importance for s in slots.values() if s.block is not None and s.importance is not None}


@given(problems())
def test_the_budget_is_kept_and_used_up(problem: tuple[dict[str, AnySlot], int, float]) -> None:
    slots, budget, cap = problem
    ranks = Proportional(cap)(slots, budget).ranks
    cost = total_cost(slots, ranks)
    assert cost <= budget
    assert all(r is None or 1 <= r <= slots[n].max_rank for n, r in ranks.items())
    assert ranks.get("outside") is None
    for name, slot in slots.items():  # not one more fits
        rank = ranks[name]
        if rank is not None:
            assert cost - slot.cost(rank) + slot.cost(rank + 1 if rank < slot.max_rank else None) > budget
    everything = total_cost(slots, dict.fromkeys(slots))
    assert cost == everything or cost > budget - max(unit(slot) for slot in slots.values())


@given(problems(), st.randoms())
def test_the_order_of_slots_does_not_matter(problem: tuple[dict[str, AnySlot], int, float], random: object) -> None:
    slots, budget, cap = problem
    names = list(slots)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert (
        Proportional(cap)({name: slots[name] for name in names}, budget).ranks == Proportional(cap)(slots, budget).ranks
    )


@given(problems())
def test_other_numbers_of_the_blocks_change_nothing(problem: tuple[dict[str, AnySlot], int, float]) -> None:
    slots, _, cap = problem
    sizes, scores = split(slots)
    plain = Proportional(cap).shares(sizes, scores, 0.6)
    turned = Proportional(cap).shares({9 - b: s for b, s in sizes.items()}, {9 - b: s for b, s in scores.items()}, 0.6)
    assert {9 - b: s for b, s in turned.items()} == pytest.approx(plain, rel=1e-12)


@given(problems(), st.floats(0, 1))
def test_shares_fill_like_water(problem: tuple[dict[str, AnySlot], int, float], mean: float) -> None:
    """Mean and ground share are as asked for, and the rest of all blocks that are not full is in proportion to their scores."""
    slots, _, cap = problem
    sizes, scores = split(slots)
    shares = Proportional(cap).shares(sizes, scores, mean)
    total = sum(sizes.values())
    assert sum(sizes[b] * s for b, s in shares.items()) == pytest.approx(mean * total, rel=1e-9, abs=1e-6)
    ground = max(0.0, mean - cap)
    assert all(ground - 1e-9 <= s <= 1 for s in shares.values())
    open_ = {b: (shares[b] - ground) * sizes[b] for b in shares if shares[b] < 1}
    weights = scores if any(scores[b] for b in open_) else sizes
    for b in open_:
        for c in open_:
            assert open_[b] * weights[c] == pytest.approx(
                open_[c] * weights[b], rel=1e-6, abs=1e-6 * max(weights.values())
            )
    for b in shares:  # and what is full would have had more than all
        for c in open_:
            if shares[b] >= 1 and weights is scores and scores[c]:
                assert open_[c] / scores[c] * scores[b] >= (1 - ground) * sizes[b] - 1e-6


@given(problems(), st.floats(0, 1), st.floats(0, 1))
def test_no_block_has_less_of_more(problem: tuple[dict[str, AnySlot], int, float], one: float, other: float) -> None:
    """What makes the search for the largest mean right."""
    slots, _, cap = problem
    less, more = (Proportional(cap).shares(*split(slots), mean) for mean in sorted((one, other)))
    assert all(less[b] <= more[b] + 1e-12 for b in less)


MATRICES = {
    f"{b}.{i}": Prune(PerRow()).slot(rows, columns, 2) for b in range(4) for i, (rows, columns) in enumerate(SHAPES)
}
SCORES = (0.9, 0.2, 0.5, 0.05)
SCORED: dict[str, AnySlot] = {
    name: ListedSlot(dense_bytes=s.dense_bytes, listed=s.listed, block=int(name[0]), importance=SCORES[int(name[0])])
    for name, s in MATRICES.items()
}
DENSE = total_cost(SCORED, dict.fromkeys(SCORED))


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.72, 0.9])
@pytest.mark.parametrize("cap", [0.05, 0.1, 0.4])
def test_blocks_that_matter_keep_more(keep: float, cap: float) -> None:
    ranks = Proportional(cap)(SCORED, int(keep * DENSE)).ranks
    kept = total_cost(SCORED, ranks)
    assert kept / DENSE == pytest.approx(keep, abs=max(unit(s) for s in SCORED.values()) / DENSE)
    shares = {b: [share(s, ranks[n]) for n, s in SCORED.items() if s.block == b] for b in range(4)}
    order = sorted(range(4), key=lambda b: -SCORES[b])
    for more, less in pairwise(order):
        for a, b in zip(shares[more], shares[less], strict=True):
            assert a >= b
    grain = max(unit(s) / s.dense_bytes for s in SCORED.values())
    assert min(map(min, shares.values())) >= keep - cap - 2 * grain
    for some in shares.values():  # all matrices of a block alike
        assert max(some) - min(some) <= 2 * grain


def test_without_a_cap_all_are_alike_and_without_scores_too() -> None:
    for cap, slots in (
        (0.0, SCORED),
        (
            0.5,
            {
                n: ListedSlot(dense_bytes=s.dense_bytes, listed=s.listed, block=s.block, importance=0.0)
                for n, s in SCORED.items()
                if isinstance(s, ListedSlot)
            },
        ),
    ):
        ranks = Proportional(cap)(slots, int(0.6 * DENSE)).ranks
        found = [share(slots[n], r) for n, r in ranks.items()]
        assert max(found) - min(found) <= 2 * max(unit(s) / s.dense_bytes for s in slots.values())


def test_a_budget_that_ground_shares_overspend_is_kept() -> None:
    """One matrix can't be smaller than 0.55 of itself: with ground shares of 0.5 for the others there is not enough."""
    slots: dict[str, AnySlot] = {
        "0": ListedSlot(dense_bytes=1000, listed=(550, 800), block=0, importance=0.1),
        "1": BondSlot(size=100, unit_bytes=1, block=1, importance=5.0),
    }
    ranks = Proportional(cap=0.0)(slots, 590).ranks
    assert ranks == {"0": 1, "1": 40}
    with pytest.raises(BudgetError) as error:
        Proportional()(slots, 550)
    assert error.value.smallest == 551
    assert Proportional()(slots, 551).ranks == {"0": 1, "1": 1}


def test_what_lies_outside_stays_dense_and_is_paid_for() -> None:
    slots = SCORED | {"head": Slot(rows=20, columns=20, itemsize=2)}
    assert Proportional()(slots, int(0.6 * DENSE) + 800).ranks == Proportional()(SCORED, int(0.6 * DENSE)).ranks | {
        "head": None
    }
    least = total_cost(SCORED, smallest(SCORED)) + 800
    with pytest.raises(BudgetError) as error:
        Proportional()(slots, least - 1)
    assert error.value.smallest == least


def test_scores_that_say_nothing_are_refused() -> None:
    for score in (None, -1.0, math.nan, math.inf):
        slot = BondSlot(size=10, unit_bytes=1, block=0, importance=score)
        with pytest.raises(ValueError, match="slot x belongs to a block whose score is"):
            Proportional()({"x": slot}, 5)
    for cap in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="cap"):
            Proportional(cap=cap)
    assert Proportional().needs == {Need.FORWARD_SENSITIVITY}
    assert Proportional()({}, 0).ranks == {}
