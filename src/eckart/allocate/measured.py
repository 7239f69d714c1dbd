"""Units that go where the loss, measured again for every choice, rises least."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from eckart.allocate.slots import Allocation, AnySlot, BudgetError, Rank, total_cost
from eckart.stats import Need


class Trials(Protocol):
    """A network that can be tried with fewer units somewhere."""

    def loss(self, name: str, rank: int) -> float:
        """The loss with ``rank`` units on this bond, on the others what was taken."""

    def take(self, name: str, rank: int, loss: float) -> None:
        """Do this, for all that is tried from now on; ``loss`` is what ``loss`` gave for it."""


@dataclass(frozen=True)
class GreedyByLoss:
    """Step by step, the bond gives up units that costs least loss per byte, as measured, until the budget is met.

    A step is one of ``steps`` equal parts of a bond's units, the last one as much as is wanted; one part stays. After every step only the
    bond with the lowest figure is measured again, and taken if it still has the lowest: figures of earlier rounds stand for lower bounds,
    which those of whole steps are where a bond costs the more, the less is left of it and of the others. Ties go to the first name.

    >>> class Squares:  # every unit that is gone costs its bond's figure, times how many are gone there
    ...     def loss(self, name: str, rank: int) -> float:
    ...         return sum({"a": 1.0, "b": 4.0}[n] * (8 - r) ** 2 for n, r in (self.now | {name: rank}).items())
    ...     def take(self, name: str, rank: int, loss: float) -> None:
    ...         self.now[name] = rank
    ...     now = {"a": 8, "b": 8}
    >>> from eckart.allocate import BondSlot
    >>> slots = {name: BondSlot(size=8, unit_bytes=10) for name in "ab"}
    >>> GreedyByLoss().search(slots, budget=110, start=0.0, trials=Squares()).ranks
    {'a': 4, 'b': 7}

    Raises ``ValueError`` for less than two steps.
    """

    steps: int = 8
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSS})

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps {self.steps} must be at least 2, of which one stays")

    def search(self, slots: Mapping[str, AnySlot], budget: int, start: float, trials: Trials) -> Allocation:
        """Ranks whose costs add up to at most ``budget``, ``start`` being the loss with all units; ``BudgetError`` where none do."""
        ranks: dict[str, Rank] = dict.fromkeys(slots)
        least: dict[str, Rank] = {name: min(self._widths(slot), default=None) for name, slot in slots.items()}
        if total_cost(slots, least) > budget:
            raise BudgetError(budget, total_cost(slots, least))
        now, turn, left = start, 0, total_cost(slots, ranks) - budget
        # Loss per byte, bond, when it was measured, units and loss. What was never measured comes before everything.
        queue: list[tuple[float, str, int, int, float]] = [
            (float("-inf"), name, -1, 0, 0.0) for name in sorted(slots) if least[name] is not None
        ]
        while left > 0:
            rate, name, measured, rank, loss = heapq.heappop(queue)
            slot = slots[name]
            if measured < turn:
                rank = self._next(slot, ranks[name], left)
                loss = trials.loss(name, rank)
                rate = (loss - now) / (slot.cost(ranks[name]) - slot.cost(rank))
                heapq.heappush(queue, (rate, name, turn, rank, loss))
                continue
            trials.take(name, rank, loss)
            left -= slot.cost(ranks[name]) - slot.cost(rank)
            ranks[name], now, turn = rank, loss, turn + 1
            if rank != least[name]:
                heapq.heappush(queue, (rate, name, -1, 0, 0.0))
        return Allocation(ranks)

    def _widths(self, slot: AnySlot) -> list[int]:
        """What may be left of a bond, falling."""
        return sorted({(slot.max_rank + 1) * part // self.steps for part in range(1, self.steps)} - {0}, reverse=True)

    def _next(self, slot: AnySlot, rank: Rank, left: int) -> int:
        """The units after one more step, which goes no further than it must."""
        have = slot.max_rank + 1 if rank is None else rank
        return max(next(width for width in self._widths(slot) if width < have), slot.within(slot.cost(rank) - left))
