"""Which blocks of a network are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from eckart.stats import Need


class Depth(Protocol):
    """Chooses blocks to leave out."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known."""

    def dropped(self, count: int, influence: Sequence[float]) -> list[int]:
        """The indices of ``count`` blocks, rising; ``influence`` has a figure for each block where it was asked for."""


@dataclass(frozen=True)
class LastBlocks:
    """The last ones.

    >>> LastBlocks().dropped(2, [0.0] * 6)
    [4, 5]
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def dropped(self, count: int, influence: Sequence[float]) -> list[int]:
        """As many as are asked for, from the end."""
        return list(range(len(influence) - count, len(influence)))


@dataclass(frozen=True)
class LeastInfluence:
    """Those that turn the stream least, all at once: the lowest ``1 - mean cos(x, block(x))``. Ties go to the later block.

    >>> LeastInfluence().dropped(2, [0.5, 0.1, 0.3, 0.1, 0.2])
    [1, 3]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.INFLUENCE})

    def dropped(self, count: int, influence: Sequence[float]) -> list[int]:
        """By influence."""
        return sorted(sorted(range(len(influence)), key=lambda block: (influence[block], -block))[:count])
