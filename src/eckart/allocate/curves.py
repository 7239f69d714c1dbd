"""The choices of a matrix as points (cost, loss), their lower convex hulls, and what follows from these for all together.

The sum of losses within a budget is a multiple-choice knapsack. Its linear relaxation and its Lagrangian dual have one and the
same value, and that value is found by sorting: the steps of all hulls, steepest first, are taken until the budget is used up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

from eckart.allocate.slots import Allocation, AnySlot, Rank, check_budget

# What rounding may do to fl(loss + multiplier · cost), relative to |loss| + multiplier · cost: three operations, and some room.
ROUNDING = 2.0**-51


@dataclass(frozen=True)
class Curve:
    """A slot's choices in the order of their costs, without those that a cheaper one beats: losses never rise.

    >>> import torch
    >>> losses = torch.tensor([9.0, 4.0, 5.0, 1.0, 0.0, 0.0])
    >>> from eckart.allocate import Slot
    >>> Curve.of("w", Slot(rows=20, columns=5, itemsize=2, losses=losses))
    Curve(costs=(50, 150, 200), losses=(4.0, 1.0, 0.0), ranks=(1, 3, None))
    """

    costs: tuple[int, ...]
    losses: tuple[float, ...]
    ranks: tuple[Rank, ...]

    @staticmethod
    def of(name: str, slot: AnySlot) -> Curve:
        """The curve of a slot; ``ValueError`` where its losses are missing, too few or not finite."""
        points: list[tuple[int, float, Rank]] = []
        known = _losses(name, slot)
        for rank in (*range(1, slot.max_rank + 1), None):
            loss = 0.0 if rank is None else known[rank]
            if not points or loss <= points[-1][1]:
                points.append((slot.cost(rank), loss, rank))
        costs, losses, ranks = zip(*points, strict=True)
        return Curve(costs, losses, ranks)


def _losses(name: str, slot: AnySlot) -> list[float]:
    if slot.max_rank == 0:
        return []
    if slot.losses is None or slot.losses.ndim != 1 or len(slot.losses) <= slot.max_rank:
        given = "none" if slot.losses is None else f"a tensor of shape {tuple(slot.losses.shape)}"
        raise ValueError(f"slot {name} {slot.sides} needs losses of ranks 0 to {slot.max_rank}, not {given}")
    losses: list[float] = slot.losses.tolist()
    if not all(map(math.isfinite, losses[1 : slot.max_rank + 1])):
        raise ValueError(f"slot {name} {slot.sides} has losses that are not finite: mend its statistics")
    return losses


def curves_within(slots: Mapping[str, AnySlot], budget: int) -> list[Curve]:
    """The curves in the order of their names; ``BudgetError`` where not even the cheapest choices fit."""
    check_budget(slots, budget)
    return [Curve.of(name, slots[name]) for name in sorted(slots)]


def answer(slots: Mapping[str, AnySlot], curves: Sequence[Curve], at: Sequence[int], gap: float) -> Allocation:
    """The allocation with curve i, in the order of names, at its choice ``at[i]``."""
    ranks = {name: curve.ranks[i] for name, curve, i in zip(sorted(slots), curves, at, strict=True)}
    return Allocation({name: ranks[name] for name in slots}, gap)


# ---- the relaxed problem ---------------------------------------------------------------------------------------------


def hull(costs: Sequence[int], losses: Sequence[float]) -> list[int]:
    """Indices of the vertices of the lower convex hull up to the least loss; costs may not fall and losses may not rise.

    >>> hull([1, 2, 3, 4, 9], [8.0, 7.0, 2.0, 1.0, 1.0])
    [0, 2, 3]
    """
    kept: list[int] = []
    for i, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        if kept and loss >= losses[kept[-1]]:
            continue
        if kept and cost == costs[kept[-1]]:
            kept.pop()
        while len(kept) >= 2:
            a, b = kept[-2:]
            if (losses[a] - loss) * (costs[b] - costs[a]) < (losses[a] - losses[b]) * (cost - costs[a]):
                break
            kept.pop()
        kept.append(i)
    return kept


class Step(NamedTuple):
    """From one vertex of a curve's hull to the next: ``extra`` cost, ``gain`` less loss."""

    curve: int
    start: int
    end: int
    extra: int
    gain: float


def steps(curves: Iterable[tuple[Sequence[int], Sequence[float]]]) -> list[Step]:
    """The steps along the hulls of curves (costs, losses), steepest first; those of one curve stay in their order."""
    found = [
        Step(number, a, b, costs[b] - costs[a], losses[a] - losses[b])
        for number, (costs, losses) in enumerate(curves)
        for a, b in pairwise(hull(costs, losses))
    ]
    return sorted(found, key=lambda step: (-step.gain / step.extra, step.curve, step.start))


@dataclass(frozen=True)
class Descent:
    """Where taking the steps of all hulls leads; ``multiplier`` is the optimal Lagrange multiplier of the relaxed problem.

    ``at`` and ``left`` are the choices and the budget that is left after every step that still fitted.
    """

    at: tuple[int, ...]
    left: int
    multiplier: float


def descend(curves: Sequence[Curve], budget: int) -> Descent:
    """Take the steps of all hulls, steepest first, leaving out a curve from its first step on that does not fit.

    The first step of all that does not fit solves the relaxed problem in part, and its slope is the multiplier.
    """
    ordered = steps((curve.costs, curve.losses) for curve in curves)
    at = [0] * len(curves)
    left = budget - sum(curve.costs[0] for curve in curves)
    stuck: set[int] = set()
    multiplier = 0.0
    for step in ordered:
        if step.curve in stuck or step.extra > left:
            multiplier = max(multiplier, step.gain / step.extra)
            stuck.add(step.curve)
            continue
        at[step.curve] = step.end
        left -= step.extra
    return Descent(tuple(at), left, multiplier)


def duality_gap(curves: Sequence[Curve], budget: int, at: Sequence[int], multiplier: float) -> float:
    """At most so much is the loss at ``at`` above the least within the budget: the bound is certain, rounding included.

    For every multiplier u ≥ 0 the least loss is at least ``Σ min_j (loss_ij + u cost_ij) − u budget`` (weak duality).
    """
    terms = [multiplier * budget, ROUNDING * multiplier * budget]
    for curve in curves:
        if multiplier == 0.0:
            terms.append(-curve.losses[-1])
            continue
        least = min(loss + multiplier * cost for cost, loss in zip(curve.costs, curve.losses, strict=True))
        terms += [-least, ROUNDING * (abs(least) + 2 * max(0.0, -curve.losses[-1]))]
    return lead_over(curves, at, terms)


def lead_over(curves: Sequence[Curve], at: Sequence[int], terms: Sequence[float]) -> float:
    """The losses at ``at`` plus ``terms``, rounded up; 0 where that is negative."""
    gap = math.fsum([*(curve.losses[i] for curve, i in zip(curves, at, strict=True)), *terms])
    return math.nextafter(gap, math.inf) if gap > 0 else 0.0


# ---- single steps ----------------------------------------------------------------------------------------------------


def climb(curves: Sequence[Curve], at: list[int], left: int) -> None:
    """Move single curves in place to the next choice or to the last, whichever saves most a unit of cost, until none fits.

    Of equal savings the first curve's comes first, and of its two the next choice.
    """
    waiting = [offer for number, curve in enumerate(curves) for offer in _offers(curve, number, at[number])]
    heapify(waiting)
    while waiting:
        _, number, end, start = heappop(waiting)
        curve = curves[number]
        extra = curve.costs[end] - curve.costs[start]
        if start != at[number] or extra > left:  # what does not fit now never will
            continue
        at[number] = end
        left -= extra
        for offer in _offers(curve, number, end):
            heappush(waiting, offer)


def _offers(curve: Curve, number: int, start: int) -> Iterator[tuple[float, int, int, int]]:
    """The next choice and the last: minus what they save a unit of cost, the curve's number, where they end and start."""
    for end in sorted({start + 1, len(curve.costs) - 1}):
        if start < end < len(curve.costs):
            extra = curve.costs[end] - curve.costs[start]
            gain = curve.losses[start] - curve.losses[end]
            yield -gain / extra if extra else -math.inf, number, end, start
