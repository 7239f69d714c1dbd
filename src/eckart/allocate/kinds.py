"""Shares by what a map is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, ListedSlot, Rank, Slot, check_budget, spend_rest, total_cost
from eckart.stats import Need

HALVINGS = 60  # of the interval in which the share lies, down to the resolution of a float
KEYS, VALUES = "keys", "values"  # the bonds that the maps of attention meet


@dataclass(frozen=True)
class ValuesFirst:
    """What gives and takes values keeps ``ratio`` times the share of its bytes that queries and keys keep.

    With a the ratio that is ``2 s a / (1 + a)`` and ``2 s / (1 + a)``, and s for all other maps; the largest s that fits.

    Where a share comes to all of a matrix that factors can save, it stays dense, and the others get what that leaves.

    >>> slots = {kind: Slot(rows=16, columns=16, itemsize=1, kind=kind) for kind in ("keys", "values")}
    >>> ValuesFirst(ratio=3.0)(slots, budget=256).ranks
    {'keys': 2, 'values': 6}

    Raises ``ValueError`` for a ratio that is not above 0.
    """

    ratio: float = 3.0
    needs: ClassVar[frozenset[Need]] = frozenset({Need.KINDS})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(f"ratio {self.ratio:g} must be finite and above 0")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        check_budget(slots, budget)
        low, high = 0.0, 1 + self.ratio + 1 / self.ratio  # at the higher one everything is dense
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if total_cost(slots, self._at(slots, middle)) <= budget else (low, middle)
        return Allocation(spend_rest(slots, self._at(slots, low), budget, sorted(slots)))

    def _at(self, slots: Mapping[str, AnySlot], share: float) -> dict[str, Rank]:
        factors = {KEYS: 2 / (1 + self.ratio), VALUES: 2 * self.ratio / (1 + self.ratio)}
        found: dict[str, Rank] = {}
        for name, slot in slots.items():
            factor = factors.get(slot.kind or "", 1.0) if isinstance(slot, Slot | ListedSlot) else 1.0
            size = share * factor * slot.dense_bytes
            found[name] = None if size >= slot.dense_bytes or not slot.max_rank else max(1, slot.within(size))
        return found
