"""What an allocator sees of a matrix, and what it answers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from eckart.stats import Need

# A matrix's rank, or None where it stays dense.
Rank = int | None


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A matrix (m, n) of ``itemsize`` bytes an entry that may be stored dense or as factors of some rank.

    ``losses`` (min(m, n) + 1,), where an allocator needs it, is the loss expected at each rank, falling to 0; dense it is 0.
    ``price`` is what one of its bytes counts against the budget: 0 for the second user of a tied matrix; with ``itemsize`` 1,
    how often a matrix is applied where multiplications are the budget. ``ValueError`` where it is no whole number from 0 on.
    ``block`` is the block of the model that it lies in, ``None`` outside of all, and ``importance`` that block's, for allocators that
    go by it; ``kind`` is that of the bond inside of the block that the map meets ("keys", "values", "hidden").

    >>> slot = Slot(rows=4, columns=6, itemsize=2)
    >>> slot.dense_bytes, slot.max_rank, slot.cost(slot.max_rank), slot.cost(None)
    (48, 2, 40, 48)
    >>> Slot(rows=4, columns=6, itemsize=1, price=3).cost(2)
    60
    """

    rows: int
    columns: int
    itemsize: int
    losses: Tensor | None = None
    price: int = 1
    block: int | None = None
    importance: float | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.price, int) or self.price < 0:
            raise ValueError(f"price {self.price} must be a whole number from 0 on: count the budget in a smaller unit")

    @property
    def sides(self) -> str:
        """What is said of its size where something is wrong with it."""
        return f"({self.rows}, {self.columns})"

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrix entry by entry."""
        return self.rows * self.columns * self.itemsize

    @property
    def rank_bytes(self) -> int:
        """Bytes of one rank."""
        return (self.rows + self.columns) * self.itemsize

    @property
    def max_rank(self) -> int:
        """The largest rank that stores fewer bytes than the matrix; 0 where none does."""
        return max(0, (self.dense_bytes - 1) // self.rank_bytes)

    def stored(self, rank: Rank) -> int:
        """Bytes at this rank; ``None`` is dense."""
        return self.dense_bytes if rank is None else rank * self.rank_bytes

    def within(self, size: float) -> int:
        """The largest rank that takes at most ``size`` bytes, 0 where none does."""
        return min(self.max_rank, int(size / self.rank_bytes))

    def cost(self, rank: Rank) -> int:
        """What its bytes at this rank count against the budget: ``price`` times ``stored``."""
        return self.price * self.stored(rank)


@dataclass(frozen=True, kw_only=True)
class BondSlot:
    """A bond of ``size`` units that may be made narrower: ``unit_bytes`` for each that is kept, in all the maps that meet there.

    Its rank is the number of units, ``None`` all of them. ``losses`` (size + 1,) and ``price`` are those of ``Slot``. ``importance`` is
    that of the ``block`` that it lies in, for allocators that go by it.

    >>> slot = BondSlot(size=4, unit_bytes=10)
    >>> slot.dense_bytes, slot.max_rank, slot.cost(3), slot.cost(None)
    (40, 3, 30, 40)
    """

    size: int
    unit_bytes: int
    losses: Tensor | None = None
    price: int = 1
    block: int | None = None
    importance: float | None = None

    @property
    def sides(self) -> str:
        """What is said of its size where something is wrong with it."""
        return f"of {self.size} units"

    @property
    def dense_bytes(self) -> int:
        """Bytes with all units."""
        return self.size * self.unit_bytes

    @property
    def rank_bytes(self) -> int:
        """Bytes of one unit."""
        return self.unit_bytes

    @property
    def max_rank(self) -> int:
        """One unit less than all."""
        return self.size - 1

    def stored(self, rank: Rank) -> int:
        """Bytes with so many units; ``None`` is all of them."""
        return self.dense_bytes if rank is None else rank * self.unit_bytes

    def within(self, size: float) -> int:
        """The most units, but for one, that take at most ``size`` bytes."""
        return min(self.max_rank, int(size / self.unit_bytes))

    def cost(self, rank: Rank) -> int:
        """``price`` times ``stored``."""
        return self.price * self.stored(rank)


@dataclass(frozen=True, kw_only=True)
class ListedSlot:
    """A matrix of ``dense_bytes`` that may be stored in a format of sizes 1, 2, ..., which take the ``listed`` bytes, rising.

    Its rank is the number of the size, ``None`` dense. ``losses``, from size 0 on, ``price``, ``block``, ``importance`` and ``kind`` are
    those of ``Slot``.

    >>> slot = ListedSlot(dense_bytes=100, listed=(40, 70, 110))
    >>> slot.max_rank, slot.cost(2), slot.cost(None), slot.within(75)
    (2, 70, 100, 2)

    Raises ``ValueError`` where the bytes do not rise.
    """

    dense_bytes: int
    listed: tuple[int, ...]
    losses: Tensor | None = None
    price: int = 1
    block: int | None = None
    importance: float | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        if any(a >= b for a, b in pairwise(self.listed)):
            raise ValueError(f"the bytes of the sizes of a format rise, which {self.listed[:4]} do not")

    @property
    def sides(self) -> str:
        """What is said of its size where something is wrong with it."""
        return f"of {self.dense_bytes} bytes"

    @property
    def max_rank(self) -> int:
        """The largest size that takes fewer bytes than the matrix; 0 where none does."""
        return bisect_left(self.listed, self.dense_bytes)

    def stored(self, rank: Rank) -> int:
        """Bytes at this size; ``None`` is dense."""
        return self.dense_bytes if rank is None else self.listed[rank - 1]

    def within(self, size: float) -> int:
        """The largest size that takes at most ``size`` bytes, 0 where none does."""
        return min(self.max_rank, bisect_right(self.listed, size))

    def cost(self, rank: Rank) -> int:
        """``price`` times ``stored``."""
        return self.price * self.stored(rank)


AnySlot = Slot | BondSlot | ListedSlot


@dataclass(frozen=True)
class Allocation:
    """A rank for every matrix. ``gap`` bounds what the expected loss exceeds the best possible allocation's by (``None``: unknown)."""

    ranks: Mapping[str, Rank]
    gap: float | None = None


class Allocator(Protocol):
    """Chooses ranks within a budget: of bytes, or of what bytes count where slots have prices."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the slots must bring."""

    def __call__(self, slots: Mapping[str, AnySlot], budget: int) -> Allocation:
        """Ranks whose costs add up to at most ``budget``; raises ``BudgetError`` where none do."""


class BudgetError(ValueError):
    """No choice of ranks is small enough; ``smallest`` is the least number of bytes that is possible."""

    def __init__(self, budget: int, least: int) -> None:
        super().__init__(f"a budget of {budget} bytes is below the smallest possible, {least} bytes")
        self.smallest = least


def total_bytes(slots: Mapping[str, AnySlot], ranks: Mapping[str, Rank]) -> int:
    """Bytes of all matrices at these ranks, whatever their price."""
    return sum(slot.stored(ranks[name]) for name, slot in slots.items())


def total_cost(slots: Mapping[str, AnySlot], ranks: Mapping[str, Rank]) -> int:
    """What all matrices at these ranks count against the budget."""
    return sum(slot.cost(ranks[name]) for name, slot in slots.items())


def smallest(slots: Mapping[str, AnySlot]) -> dict[str, Rank]:
    """The choice of fewest bytes: rank 1, or dense where even that saves nothing.

    >>> smallest({"a": Slot(rows=4, columns=6, itemsize=2), "bias-like": Slot(rows=1, columns=6, itemsize=2)})
    {'a': 1, 'bias-like': None}
    """
    return {name: 1 if slot.max_rank else None for name, slot in slots.items()}


def spend_rest(slots: Mapping[str, AnySlot], ranks: dict[str, Rank], budget: int, order: list[str]) -> dict[str, Rank]:
    """Add single ranks, going round ``order`` again and again, until not one more fits into ``budget``."""
    left = budget - total_cost(slots, ranks)
    grew = True
    while grew:
        grew = False
        for name in order:
            rank, slot = ranks[name], slots[name]
            if rank is None:
                continue
            larger: Rank = rank + 1 if rank < slot.max_rank else None
            extra = slot.cost(larger) - slot.cost(rank)
            if extra <= left:
                ranks[name] = larger
                left -= extra
                grew = True
    return ranks


def check_budget(slots: Mapping[str, AnySlot], budget: int) -> None:
    """Raise ``BudgetError`` if not even the smallest choice fits."""
    least = total_cost(slots, smallest(slots))
    if least > budget:
        raise BudgetError(budget, least)
