"""How many directions an adapter has for the rank that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from eckart.adapters.checked import check_number


class Width(Protocol):
    """The number of directions for a rank and a weight of a shape."""

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number; ``ValueError`` where the weight has not as many, or the rank can't be had so."""


@dataclass(frozen=True)
class AsAsked:
    """As many as the rank.

    >>> AsAsked()(2, (3, 4))
    2
    """

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number."""
        if not 1 <= rank <= min(shape):
            raise ValueError(f"rank {rank} of a map of {shape[0]} x {shape[1]}: give one from 1 to {min(shape)}")
        return rank


@dataclass(frozen=True)
class Counted:
    """As many as the rank, which counts what is no direction: it may be above both sides.

    >>> Counted()(5, (3, 4))
    5
    """

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number."""
        if rank < 1:
            raise ValueError(f"{rank} of them: give at least 1")
        return rank


@dataclass(frozen=True)
class All:
    """All that the weight has, whatever the rank.

    >>> All()(2, (3, 4))
    3
    """

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number."""
        return min(shape)


@dataclass(frozen=True)
class ForEach:
    """The rank for each of several ``parts``: of experts, or of what a schedule has to choose from.

    >>> ForEach(3)(2, (3, 4))
    6

    Raises ``ValueError`` unless parts is at least 1.
    """

    parts: int

    def __post_init__(self) -> None:
        check_number("parts", self.parts, least=1)

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number."""
        return self.parts * AsAsked()(rank, shape)


@dataclass(frozen=True)
class PartOf:
    """The rank, divided by a number of ``blocks`` that are summed up.

    >>> PartOf(2)(4, (3, 4))
    2

    Raises ``ValueError`` unless blocks is at least 1.
    """

    blocks: int = 2

    def __post_init__(self) -> None:
        check_number("blocks", self.blocks, least=1)

    def __call__(self, rank: int, shape: tuple[int, int]) -> int:
        """The number."""
        if rank % self.blocks:
            raise ValueError(f"rank {rank} is no multiple of {self.blocks} blocks: give one that is")
        return AsAsked()(rank // self.blocks, shape)
