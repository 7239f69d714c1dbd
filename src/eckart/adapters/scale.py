"""The factor in front of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from eckart.adapters.checked import check_number


class Scale(Protocol):
    """The factor for a rank."""

    def __call__(self, rank: int) -> float:
        """The factor."""


@dataclass(frozen=True)
class OverRank:
    """``alpha / r``.

    >>> OverRank(16.0)(8)
    2.0

    Raises ``ValueError`` unless alpha is above 0.
    """

    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)

    def __call__(self, rank: int) -> float:
        """The factor."""
        return self.alpha / rank


@dataclass(frozen=True)
class OverRoot:
    """``alpha / sqrt(r)``, with which updates neither fade nor grow with the rank (Kalajdzievski 2023).

    >>> OverRoot(16.0)(16)
    4.0

    Raises ``ValueError`` unless alpha is above 0.
    """

    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)

    def __call__(self, rank: int) -> float:
        """The factor."""
        return self.alpha / math.sqrt(rank)


@dataclass(frozen=True)
class Constant:
    """The same factor at every rank.

    >>> Constant()(8)
    1.0

    Raises ``ValueError`` unless value is above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, above=0)

    def __call__(self, rank: int) -> float:
        """The factor."""
        return self.value
