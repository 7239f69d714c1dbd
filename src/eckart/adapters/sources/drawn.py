"""Random parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator

from eckart.adapters.draws import Draw
from eckart.adapters.pick import Pick
from eckart.adapters.seed import CORE, LEFT, MIDDLE, RIGHT, Seed, Seen
from eckart.stats import Need


@dataclass(frozen=True)
class Drawn:
    """Random parts; a side that is not drawn begins at zero.

    >>> from eckart.adapters.draws import Kaiming
    >>> sorted(Drawn(right=Kaiming()).gives)
    ['right']
    """

    left: Draw | None = None
    middle: Draw | None = None
    core: Draw | None = None
    right: Draw | None = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    @property
    def gives(self) -> frozenset[str]:
        """The parts that are drawn."""
        parts = {LEFT: self.left, MIDDLE: self.middle, CORE: self.core, RIGHT: self.right}
        return frozenset(name for name, draw in parts.items() if draw is not None)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Those parts, one after the other."""
        (m, n), draws = seen.shape, (self.right, self.core, self.middle, self.left)
        shapes: tuple[tuple[int, ...], ...] = ((rank, n), (rank, rank), (rank,), (m, rank))
        right, core, middle, left = (
            None if draw is None else draw(shape, rng) for draw, shape in zip(draws, shapes, strict=True)
        )
        return Seed(left=left, middle=middle, core=core, right=right)


@dataclass(frozen=True)
class InCommon:
    """Random sides that all adapters of a model share: drawn once in the largest shape, and cut to each."""

    left: Draw
    right: Draw
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, RIGHT})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Both sides; views of the common ones."""
        assert seen.pool is not None
        (m, n), (most, widest) = seen.shape, seen.pool.largest
        return Seed(
            right=seen.pool.cut(RIGHT, self.right, (rank, n), (rank, widest)),
            left=seen.pool.cut(LEFT, self.left, (m, rank), (most, rank)),
        )
