"""Equal marginal loss per byte: the budget goes where the next byte saves most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.curves import answer, climb, curves_within, descend, duality_gap
from eckart.allocate.slots import Allocation, AnySlot
from eckart.stats import Need


@dataclass(frozen=True)
class EqualMarginalLoss:
    """Minimises the sum of the slots' expected losses within the budget, by the Lagrangian of that problem.

    Each matrix may take the points (cost, loss) of its ranks and of staying dense; along the lower convex hull of those
    points every step saves less a byte than the one before. Taking the steps of all matrices in the order of what they save a
    byte solves the relaxed problem and its Lagrangian dual at once, and the slope of the first step that does not fit is the
    optimal multiplier: no search for it is needed. What is left then buys the best single points that still fit. ``gap`` is
    the lead of the dual's value, a certain bound on what any allocation could be better.

    Source: Sinha and Zoltners (1979), the linear relaxation of the multiple-choice knapsack.

    >>> import torch
    >>> steep, flat = torch.tensor([9.0, 1.0, 0.5, 0.0, 0.0]), torch.tensor([4.0, 3.5, 3.0, 2.5, 0.0])
    >>> from eckart.allocate import Slot
    >>> slots = {n: Slot(rows=4, columns=12, itemsize=1, losses=c) for n, c in (("a", steep), ("b", flat))}
    >>> EqualMarginalLoss()(slots, budget=48).ranks
    {'a': 2, 'b': 1}
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENSITIVITY})

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks of little expected loss whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        curves = curves_within(slots, budget)
        reached = descend(curves, budget)
        at = list(reached.at)
        climb(curves, at, reached.left)
        return answer(slots, curves, at, duality_gap(curves, budget, at, reached.multiplier))
