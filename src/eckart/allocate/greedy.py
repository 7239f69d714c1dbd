"""The greedy walk: always the next rank that saves most for its price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.curves import answer, climb, curves_within, descend, duality_gap
from eckart.allocate.slots import Allocation, AnySlot
from eckart.stats import Need


@dataclass(frozen=True)
class Greedy:
    """From rank 1 everywhere, again and again the single step that saves most a unit of cost and still fits.

    A step leads to the next rank that is no worse, or to staying dense. Where losses are convex over cost it ends within one
    step of the best; it does not look over a flat stretch to the fall behind, as ``EqualMarginalLoss`` does. ``gap`` is the
    same certain bound, from the Lagrangian dual.

    >>> import torch
    >>> steep, late = torch.tensor([9.0, 6.0, 4.0, 3.0, 2.0]), torch.tensor([9.0, 8.0, 8.0, 0.5, 0.0])
    >>> from eckart.allocate import Slot
    >>> slots = {n: Slot(rows=4, columns=24, itemsize=1, losses=c) for n, c in (("a", steep), ("b", late))}
    >>> Greedy()(slots, budget=112).ranks
    {'a': 3, 'b': 1}
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENSITIVITY})

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks of little expected loss whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        curves = curves_within(slots, budget)
        at = [0] * len(curves)
        climb(curves, at, budget - sum(curve.costs[0] for curve in curves))
        return answer(slots, curves, at, duality_gap(curves, budget, at, descend(curves, budget).multiplier))
