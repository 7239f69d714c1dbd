"""Only some blocks of a model pay: the last ones, or those of least influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from eckart.allocate.slots import Allocation, AnySlot, BudgetError, smallest, total_cost
from eckart.allocate.uniform import Uniform
from eckart.stats import Need


@dataclass(frozen=True)
class Later:
    """As many blocks from the end as it takes for none of their matrices to keep less than the share ``least``; the others stay dense.

    What lies outside of all blocks is dense as well. In the blocks that pay shares are uniform. Where not even all blocks can bring it at
    ``least``, all pay, with a smaller share.

    >>> from eckart.allocate import Slot
    >>> slots = {f"{b}": Slot(rows=8, columns=8, itemsize=1, block=b) for b in range(4)}
    >>> Later(least=0.5)(slots, budget=200).ranks
    {'0': None, '1': None, '2': 2, '3': 2}

    Raises ``ValueError`` for a share that is not from 0 to below 1.
    """

    least: float = 0.46
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.least < 1:
            raise ValueError(f"least {self.least:g} must be from 0 to below 1")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks within ``budget``; ``BudgetError`` where none are."""
        blocks = {slot.block for slot in slots.values() if slot.block is not None}
        return _paid_by(slots, budget, sorted(blocks, reverse=True), self.least)


@dataclass(frozen=True)
class LeastInfluential:
    """As ``Later``, but the blocks that turn the stream least pay first; the first and the last one only after all others.

    >>> from eckart.allocate import Slot
    >>> slots = {f"{b}": Slot(rows=8, columns=8, itemsize=1, block=b, importance=i) for b, i in enumerate((0.1, 0.9, 0.2, 0.3, 0.1))}
    >>> LeastInfluential(least=0.5)(slots, budget=264).ranks
    {'0': None, '1': None, '2': 2, '3': 2, '4': None}

    Raises ``ValueError`` for a share that is not from 0 to below 1, and for slots of blocks whose influence is not known.
    """

    least: float = 0.4
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INFLUENCE})

    def __post_init__(self) -> None:
        if not 0 <= self.least < 1:
            raise ValueError(f"least {self.least:g} must be from 0 to below 1")

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks within ``budget``; ``BudgetError`` where none are."""
        influence: dict[int, float] = {}
        for name, slot in slots.items():
            if slot.block is not None:
                if slot.importance is None:
                    raise ValueError(f"slot {name} belongs to a block whose influence is not known")
                influence[slot.block] = slot.importance
        ends = {min(influence), max(influence)} if influence else set()
        order = sorted(influence, key=lambda block: (block in ends, influence[block], -block))
        return _paid_by(slots, budget, order, self.least)


def _paid_by(slots: Mapping[str, AnySlot], budget: int, blocks: Sequence[int], least: float) -> Allocation:
    """Uniform shares in as many of ``blocks``, in this order, as it takes for no share to be below ``least``; the rest stays dense."""
    paying: dict[str, AnySlot] = {}
    rest: dict[str, AnySlot] = dict(slots)
    for block in blocks:
        here = {name: slot for name, slot in slots.items() if slot.block == block}
        paying |= here
        rest = {name: slot for name, slot in rest.items() if name not in here}
        left = budget - _dense(rest)
        if left >= max(least * _dense(paying), total_cost(paying, smallest(paying))) or block == blocks[-1]:
            break
    ranks = dict.fromkeys(slots)
    left = budget - _dense(rest)
    if left < 0 and not paying:
        raise BudgetError(budget, _dense(rest))
    try:
        return Allocation(ranks | dict(Uniform()(paying, left).ranks if paying else {}))
    except BudgetError as error:
        raise BudgetError(budget, error.smallest + _dense(rest)) from error


def _dense(slots: Mapping[str, AnySlot]) -> int:
    return sum(slot.cost(None) for slot in slots.values())
