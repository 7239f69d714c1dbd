"""The same share everywhere, and nothing more: what is of one size stays of one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, BudgetError, Rank, total_cost
from eckart.stats import Need


@dataclass(frozen=True)
class Level:
    """Every slot keeps the same share of its ranks or units, rounded down to a multiple; the largest share that fits.

    What rounding leaves over is not spent: slots of one size keep one number, as a configuration with one width for all blocks needs it.

    >>> from eckart.allocate import BondSlot
    >>> slots = {"a": BondSlot(size=96, unit_bytes=2), "b": BondSlot(size=96, unit_bytes=2)}
    >>> Level(multiple=8)(slots, budget=300).ranks
    {'a': 72, 'b': 72}

    Raises ``ValueError`` for a multiple below 1.
    """

    multiple: int = 1
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple {self.multiple} must be at least 1")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks of equal share whose costs add up to at most ``budget``; ``BudgetError`` where not even the smallest do."""
        counts = {name: self._counts(slot) for name, slot in slots.items()}
        shares = {share(slots[name], count) for name, some in counts.items() for count in some}
        ranks: dict[str, Rank] = {}
        for level in sorted(shares | {0.0}, reverse=True):
            ranks = {name: _at(slot, counts[name], level) for name, slot in slots.items()}
            if total_cost(slots, ranks) <= budget:
                return Allocation(ranks)
        raise BudgetError(budget, total_cost(slots, ranks))

    def _counts(self, slot: AnySlot) -> list[Rank]:
        return [*range(self.multiple, slot.max_rank + 1, self.multiple), None]


def _at(slot: AnySlot, counts: list[Rank], level: float) -> Rank:
    return max(counts[:1] + [c for c in counts if share(slot, c) <= level], key=lambda count: share(slot, count))


def share(slot: AnySlot, rank: Rank) -> float:
    """The share of a slot's bytes that a rank keeps.

    >>> from eckart.allocate import BondSlot
    >>> share(BondSlot(size=8, unit_bytes=6), 2)
    0.25
    """
    return 1.0 if rank is None else slot.stored(rank) / slot.dense_bytes
