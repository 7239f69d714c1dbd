"""The best allocation of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.curves import Curve, answer, climb, curves_within, descend, duality_gap, lead_over
from eckart.allocate.knapsack import LARGEST_COST, solve
from eckart.allocate.slots import Allocation, AnySlot
from eckart.stats import Need

UNITS = 59  # the incumbent's loss in bits


@dataclass(frozen=True)
class Exact:
    """The least possible sum of the slots' expected losses within the budget.

    This is a multiple-choice knapsack. From the answer of ``EqualMarginalLoss`` on, partial allocations grow slot by slot, and
    those go that another beats in cost and loss, as in dynamic programming (there are never more of them than different
    costs), or that cannot beat the best one known by the relaxed optimum of the slots to come, as in branch and bound.

    About ``nodes`` partial allocations are looked at, at most. Where that was enough ``gap`` is 0: no allocation is better by
    more than rounding, 2^-50 of the loss. Where it was not those of greatest bound were dropped, the answer is the best one
    found, and ``gap``, as certain as ever, is what the least of the bounds dropped leaves open.

    Raises ``ValueError`` where the dearest choices cost 2^62 or more together.

    >>> import torch
    >>> from eckart.allocate import Slot
    >>> a = Slot(rows=5, columns=10, itemsize=2, losses=torch.tensor([9.0, 3.0, 0.0, 0.0, 0.0, 0.0]))
    >>> b = Slot(rows=2, columns=20, itemsize=1, losses=torch.tensor([9.0, 2.0, 0.0]))
    >>> Exact()({"a": a, "b": b}, budget=82)  # the step that saves most a byte would lead to a loss of 3
    Allocation(ranks={'a': 2, 'b': 1}, gap=0.0)
    """

    nodes: int = 40_000_000
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENSITIVITY})

    def __post_init__(self) -> None:
        if not isinstance(self.nodes, int) or self.nodes < 0:
            raise ValueError(f"nodes {self.nodes} must be a whole number from 0 on")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks of least expected loss whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        curves = curves_within(slots, budget)
        most = sum(curve.costs[-1] for curve in curves)
        if most >= LARGEST_COST:
            raise ValueError(f"the costs of {len(slots)} slots add up to {most}: count the budget in a larger unit")
        budget = min(budget, most)
        reached = descend(curves, budget)
        at = list(reached.at)
        climb(curves, at, reached.left)
        gap = duality_gap(curves, budget, at, reached.multiplier)
        if gap > 0.0:
            at, least = _better(curves, budget, at, self.nodes)
            climb(curves, at, budget - sum(curve.costs[i] for curve, i in zip(curves, at, strict=True)))
            gap = duality_gap(curves, budget, at, reached.multiplier)
            gap = 0.0 if least is None else min(gap, lead_over(curves, at, [-least]))
        return answer(slots, curves, at, gap)


def _better(curves: Sequence[Curve], budget: int, at: Sequence[int], nodes: int) -> tuple[list[int], float | None]:
    """The best choices found, and a loss that none is below: ``None`` where they are proved to be the best.

    Losses become whole numbers: above each curve's least, in a unit that makes those at ``at`` nearly 2^59, rounded down.
    """
    lead = math.fsum(curve.losses[i] - curve.losses[-1] for curve, i in zip(curves, at, strict=True))
    exponent = UNITS - math.frexp(max(lead, *(abs(curve.losses[-1]) for curve in curves)))[1]
    points, starts, floors = [], [], []
    for curve in curves:
        # The choices before ``start`` lose more alone than all curves do at ``at``.
        start = next(i for i, loss in enumerate(curve.losses) if loss - curve.losses[-1] <= 2 * lead)
        floor = math.floor(math.ldexp(curve.losses[-1], exponent))
        points.append(
            (curve.costs[start:], [math.floor(math.ldexp(loss, exponent)) - floor for loss in curve.losses[start:]])
        )
        starts.append(start)
        floors.append(floor)
    solved = solve(points, budget, [i - start for i, start in zip(at, starts, strict=True)], nodes)
    found = [i + start for i, start in zip(solved.at, starts, strict=True)]
    if solved.least == solved.loss:
        return found, None
    # Bounds order slopes as floats do, which is less than 2^-50 of the loss they start from.
    least = solved.least - (1 << UNITS - 50) + sum(floors)
    return found, math.nextafter(math.ldexp(least, -exponent), -math.inf)
