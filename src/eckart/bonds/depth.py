"""Which blocks of a network are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from eckart.stats import Need


@dataclass(frozen=True)
class Blocks:
    """What a choice of blocks may go by: the ``influence`` of each, 0 where that was not asked for, and the ``loss`` without some."""

    influence: Sequence[float]
    loss: Callable[[frozenset[int]], float]


class Depth(Protocol):
    """Chooses blocks to leave out."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known."""

    def dropped(self, count: int, blocks: Blocks) -> list[int]:
        """The indices of ``count`` blocks, or of as many as may go."""


@dataclass(frozen=True)
class LastBlocks:
    """The last ones.

    >>> LastBlocks().dropped(2, Blocks([0.0] * 6, len))
    [4, 5]
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def dropped(self, count: int, blocks: Blocks) -> list[int]:
        """As many as are asked for, from the end."""
        return list(range(len(blocks.influence) - count, len(blocks.influence)))


@dataclass(frozen=True)
class LeastInfluence:
    """Those that turn the stream least, all at once: the lowest ``1 - mean cos(x, block(x))``. Ties go to the later block.

    >>> LeastInfluence().dropped(2, Blocks([0.5, 0.1, 0.3, 0.1, 0.2], len))
    [1, 3]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.INFLUENCE})

    def dropped(self, count: int, blocks: Blocks) -> list[int]:
        """By influence, rising."""
        influence = blocks.influence
        return sorted(sorted(range(len(influence)), key=lambda block: (influence[block], -block))[:count])


@dataclass(frozen=True)
class LeastLoss:
    """One after the other, each time the block without which the loss is least, as long as that is at most ``1 + tolerance`` times the
    least loss so far. Ties go to the later block.

    >>> LeastLoss().dropped(3, Blocks([0.0] * 4, lambda gone: 2.0 - (2 in gone) + 5.0 * (len(gone) > 1)))
    [2]

    Raises ``ValueError`` for a tolerance below 0.
    """

    tolerance: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSS})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance {self.tolerance:g} must be finite and not below 0")

    def dropped(self, count: int, blocks: Blocks) -> list[int]:
        """In the order in which they go."""
        gone: list[int] = []
        best = blocks.loss(frozenset())
        while len(gone) < count:
            tried = {b: blocks.loss(frozenset({*gone, b})) for b in range(len(blocks.influence)) if b not in gone}
            block = min(tried, key=lambda b: (tried[b], -b))
            if tried[block] > best * (1 + self.tolerance):
                break
            gone.append(block)
            best = min(best, tried[block])
        return gone
