"""Ranks that differ from map to map, as many together as one rank for all would make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.allocate import Allocator, BondSlot, Greedy


@dataclass(frozen=True)
class Redistribute:
    """Directions go where they explain most: of all maps' ``shares`` together the largest, up to ``most`` times the rank for one map.

    A map whose shares are all too small gets none.

    >>> shares = {"a": torch.tensor([0.6, 0.3, 0.1]), "b": torch.tensor([0.4, 0.35, 0.25])}
    >>> Redistribute()(shares, 2)
    {'a': 2, 'b': 2}

    Raises ``ValueError`` for a ``most`` below 1.
    """

    allocate: Allocator = Greedy()
    most: float = 2.0

    def __post_init__(self) -> None:
        if not self.most >= 1:
            raise ValueError(f"a map has at most {self.most:g} times the rank: give 1 or more")

    def cap(self, rank: int) -> int | None:
        """The most directions that a map gets, ``None`` where it may get all."""
        return None if math.isinf(self.most) else math.floor(self.most * rank)

    def __call__(self, shares: Mapping[str, Tensor], rank: int) -> dict[str, int]:
        """Ranks by name that add up to ``rank`` for each, for descending shares of what there is to explain."""
        slots = {name: _slot(found[: self.cap(rank)]) for name, found in shares.items()}
        budget = sum(min(rank, slot.size - 1) + 1 for slot in slots.values())
        ranks = self.allocate(slots, min(budget, sum(slot.size for slot in slots.values()))).ranks
        return {name: (slots[name].size if units is None else units) - 1 for name, units in ranks.items()}


def _slot(shares: Tensor) -> BondSlot:
    """Units that are one more than directions, since an allocator leaves nothing without any."""
    wide = shares.to(torch.float64).clamp(min=0)
    left = torch.cat([wide.flip(0).cumsum(0).flip(0), wide.new_zeros(1)])  # what so many directions do not explain
    return BondSlot(size=len(left), unit_bytes=1, losses=torch.cat([left[:1], left]))
