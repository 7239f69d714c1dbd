"""Shares by how much each block matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, BudgetError, Rank, total_cost
from eckart.stats import Need

HALVINGS = 60  # of the interval in which the mean share lies, down to the resolution of a float


@dataclass(frozen=True)
class Entropic:
    """The share of its units that each block loses: ``L phi softmax(-s / temperature)`` for blocks of influence s and a mean share phi.

    None loses more than ``most``; what is capped goes to the others.

    The minimiser of ``sum_l s_l phi_l - temperature * entropy(phi)`` with the mean of phi given. A low temperature spares the blocks
    of high influence, a high one treats all alike. The mean is the least whose costs fit.

    >>> from eckart.allocate import BondSlot
    >>> slots = {f"{b}": BondSlot(size=10, unit_bytes=1, block=b, importance=s) for b, s in ((0, 0.9), (1, 0.1))}
    >>> Entropic(temperature=1.0)(slots, budget=12).ranks
    {'0': 8, '1': 4}

    Raises ``ValueError`` for a temperature that is not above 0 or a largest share that is not above 0 and at most 1.
    """

    temperature: float = 0.1
    most: float = 0.8
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INFLUENCE})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature {self.temperature:g} must be finite and above 0")
        if not 0 < self.most <= 1:
            raise ValueError(f"most {self.most:g} must be above 0 and at most 1")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Units within ``budget``; ``BudgetError`` where even the largest shares leave too many, ``ValueError`` for slots of no block."""
        bonds = {name: _of_block(name, slot) for name, slot in slots.items()}
        scores = dict(bonds.values())

        def at(mean: float) -> dict[str, Rank]:
            shares = self.shares(scores, mean)
            return {name: _kept(slot, shares[bonds[name][0]]) for name, slot in slots.items()}

        low, high = 0.0, self.most
        if total_cost(slots, at(high)) > budget:
            raise BudgetError(budget, total_cost(slots, at(high)))
        if total_cost(slots, at(low)) <= budget:
            return Allocation(at(low))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if total_cost(slots, at(middle)) <= budget else (middle, high)
        return Allocation(at(high))

    def shares(self, scores: Mapping[int, float], mean: float) -> dict[int, float]:
        """The share that each block loses.

        >>> {b: round(s, 3) for b, s in Entropic(1.0, most=0.7).shares({0: 0.0, 1: 3.0, 2: 3.0}, 0.4).items()}
        {0: 0.7, 1: 0.25, 2: 0.25}
        """
        least = min(scores.values())
        weights = {block: math.exp((least - score) / self.temperature) for block, score in scores.items()}
        capped: set[int] = set()
        while True:
            rest = mean * len(scores) - self.most * len(capped)
            total = sum(weight for block, weight in weights.items() if block not in capped)
            found = {
                block: self.most if block in capped else rest * weight / total if total else 0.0
                for block, weight in weights.items()
            }
            over = {block for block, share in found.items() if share > self.most and block not in capped}
            if not over:
                return found
            capped |= over


def _of_block(name: str, slot: AnySlot) -> tuple[int, float]:
    if slot.block is None or slot.importance is None:
        raise ValueError(f"slot {name} belongs to no block whose influence is known")
    return slot.block, slot.importance


def _units(slot: AnySlot) -> int:
    return slot.max_rank + 1


def _kept(slot: AnySlot, share: float) -> Rank:
    """The units that are left, at least one; rounded up, so that nothing goes beyond the share."""
    count = max(1, math.ceil(_units(slot) * (1 - share) - 1e-9))
    return None if count >= _units(slot) else count
