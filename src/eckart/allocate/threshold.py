"""One threshold on the singular values of all matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eckart.allocate.slots import Allocation, AnySlot, Rank, check_budget, smallest, total_cost
from eckart.stats import Need


@dataclass(frozen=True)
class Threshold:
    """Every matrix keeps the singular values above one share t of its largest; the least t whose costs fit.

    A matrix whose values fall fast keeps few of them, one that would keep so many that nothing is saved stays dense. The values come
    from the losses: ``s_i^2 = loss_(i-1) - loss_i``.

    >>> from eckart.allocate import Slot
    >>> steep, flat = torch.tensor([85.0, 4.0, 0.0, 0.0, 0.0]), torch.tensor([36.0, 20.0, 8.0, 4.0, 0.0])
    >>> slots = {n: Slot(rows=4, columns=24, itemsize=1, losses=c) for n, c in (("steep", steep), ("flat", flat))}
    >>> Threshold()(slots, budget=100).ranks
    {'steep': 1, 'flat': 2}

    Raises ``ValueError`` for a slot without losses.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SPECTRA})

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks whose costs add up to at most ``budget``; ``BudgetError`` where none do."""
        check_budget(slots, budget)
        shares = {name: _shares(name, slot) for name, slot in slots.items()}
        levels = torch.cat([*shares.values(), torch.zeros(1, dtype=torch.float64)]).unique()
        low, high = 0, len(levels) - 1  # at the largest level every matrix keeps what it must
        while low < high:
            middle = (low + high) // 2
            fits = total_cost(slots, _at(slots, shares, float(levels[middle]))) <= budget
            low, high = (low, middle) if fits else (middle + 1, high)
        ranks = _at(slots, shares, float(levels[low]))
        return Allocation(ranks if total_cost(slots, ranks) <= budget else smallest(slots))


def _shares(name: str, slot: AnySlot) -> Tensor:
    """Singular values over the largest, falling."""
    if slot.losses is None:
        raise ValueError(f"slot {name} {slot.sides} needs losses, from which its singular values come")
    squares = (slot.losses[:-1] - slot.losses[1:]).to(torch.float64).clamp(min=0)
    top = float(squares[0]) if len(squares) else 0.0
    return (squares / top).sqrt() if top > 0 else torch.zeros_like(squares)


def _at(slots: Mapping[str, AnySlot], shares: Mapping[str, Tensor], level: float) -> dict[str, Rank]:
    found: dict[str, Rank] = {}
    for name, slot in slots.items():
        rank = max(1, int((shares[name] > level).sum()))
        found[name] = rank if rank <= slot.max_rank else None
    return found
