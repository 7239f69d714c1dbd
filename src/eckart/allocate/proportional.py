"""Every block gets a ground share, and the rest is dealt by what each matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, BudgetError, Rank, spend_rest, total_cost
from eckart.stats import Need

HALVINGS = 60  # of the interval in which the mean share lies, down to the resolution of a float


@dataclass(frozen=True)
class Proportional:
    """The share that each block keeps, one for all of its matrices: the mean less ``cap``, and of the rest as much as its score buys.

    What is left of the bytes is dealt in proportion to the scores. Where a block would get more than all of it, it stays dense, and
    what is too much for it is dealt to the others. The mean is the largest whose costs fit; what rounding down leaves over buys
    single ranks, where scores are highest first. What lies outside of all blocks stays dense. Where ground shares cost more than
    there is, because no matrix can be that small, all go down together.

    >>> from eckart.allocate import BondSlot
    >>> slots = {f"{b}": BondSlot(size=100, unit_bytes=1, block=b, importance=s) for b, s in enumerate((5.0, 3.0, 2.0))}
    >>> Proportional(cap=0.1)(slots, budget=180).ranks
    {'0': 65, '1': 59, '2': 56}

    Raises ``ValueError`` for a cap that is not from 0 to 1.
    """

    cap: float = 0.1
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORWARD_SENSITIVITY})

    def __post_init__(self) -> None:
        if not 0 <= self.cap <= 1:
            raise ValueError(f"cap {self.cap:g} must be from 0 to 1")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks within ``budget``; ``BudgetError`` where none are, ``ValueError`` for a block whose score is missing or below 0."""
        scores = {slot.block: _score(name, slot) for name, slot in slots.items() if slot.block is not None}
        sizes = dict.fromkeys(scores, 0)
        for slot in slots.values():
            if slot.block is not None:
                sizes[slot.block] += slot.dense_bytes

        def at(mean: float) -> dict[str, Rank]:
            shares = self.shares(sizes, scores, mean)
            return {
                name: None if slot.block is None else _kept(slot, shares[slot.block]) for name, slot in slots.items()
            }

        dense = dict.fromkeys(slots)
        if total_cost(slots, dense) <= budget:
            return Allocation(dense)
        low, high = 0.0, 1.0
        if total_cost(slots, at(low)) > budget:
            raise BudgetError(budget, total_cost(slots, at(low)))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if total_cost(slots, at(middle)) <= budget else (low, middle)
        order = sorted(slots, key=lambda name: (-(slots[name].importance or 0.0), name))
        return Allocation(spend_rest(slots, at(low), budget, order))

    def shares(self, sizes: Mapping[int, int], scores: Mapping[int, float], mean: float) -> dict[int, float]:
        """The share that each block of these bytes keeps, where all together keep the share ``mean``.

        Scores of 0 everywhere are taken for equal ones of every byte.

        >>> {b: round(s, 3) for b, s in Proportional(0.1).shares({0: 100, 1: 100, 2: 200}, {0: 8, 1: 1, 2: 1}, 0.9).items()}
        {0: 1.0, 1: 0.9, 2: 0.85}
        """
        ground = max(0.0, mean - self.cap)
        rest = (mean - ground) * sum(sizes.values())
        found = dict.fromkeys(sizes, 1.0)
        below = sorted(sizes)
        while below:
            weights = {block: scores[block] for block in below}
            if not any(weights.values()):
                weights = {block: sizes[block] for block in below}
            total = math.fsum(weights.values())
            shares = {block: ground + rest * (weights[block] / total) / sizes[block] for block in below}
            whole = [block for block in below if shares[block] >= 1]
            if not whole:
                return found | shares
            rest -= (1 - ground) * sum(sizes[block] for block in whole)
            below = [block for block in below if block not in whole]
        return found


def _score(name: str, slot: AnySlot) -> float:
    if slot.importance is None or not 0 <= slot.importance < math.inf:
        raise ValueError(f"slot {name} belongs to a block whose score is {slot.importance}, not a number from 0 on")
    return slot.importance


def _kept(slot: AnySlot, share: float) -> Rank:
    """The largest rank within the share, at least 1."""
    return None if share >= 1 or not slot.max_rank else max(1, slot.within(share * slot.dense_bytes))
