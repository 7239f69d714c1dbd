"""The same share of its bytes for every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, Rank, check_budget, spend_rest, total_cost
from eckart.stats import Need


@dataclass(frozen=True)
class Uniform:
    """Every matrix keeps the same share s of its bytes, rank ``floor(s m n / (m + n))``, the largest s that fits.

    What rounding down left over then buys single ranks, where the next one was nearest first, until no other fits.

    >>> from eckart.allocate import Slot
    >>> slots = {"a": Slot(rows=8, columns=8, itemsize=4), "b": Slot(rows=8, columns=24, itemsize=4)}
    >>> Uniform()(slots, budget=512).ranks
    {'a': 2, 'b': 3}
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks of equal share whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        check_budget(slots, budget)
        low, high = 0.0, 1.0
        for _ in range(60):  # halving the interval of a step function down to the resolution of a float
            middle = (low + high) / 2
            if total_cost(slots, _at_share(slots, middle)) <= budget:
                low = middle
            else:
                high = middle
        ranks = _at_share(slots, low)
        nearest = sorted(slots, key=lambda name: (_share_of_next(slots[name], ranks[name]), name))
        return Allocation(spend_rest(slots, ranks, budget, nearest))


def _at_share(slots: Mapping[str, AnySlot], share: float) -> dict[str, Rank]:
    ranks: dict[str, Rank] = {}
    for name, slot in slots.items():
        ranks[name] = max(1, slot.within(share * slot.dense_bytes)) if slot.max_rank else None
    return ranks


def _share_of_next(slot: AnySlot, rank: Rank) -> float:
    return 1.0 if rank is None or rank == slot.max_rank else slot.stored(rank + 1) / slot.dense_bytes
