"""Which components of a decomposition an adapter begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Pick(Protocol):
    """Numbers, from the largest on, of the components whose left and whose right vectors are taken; ``rest`` where others follow them."""

    @property
    def rest(self) -> bool:
        """Whether it lists all components, those that are picked first."""

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists, (rank,) or longer, for a matrix that has ``size`` components; ``ValueError`` where there are too few."""


@dataclass(frozen=True)
class Top:
    """The largest ones.

    >>> Top()(2, 5)[0].tolist()
    [0, 1]
    """

    rest: ClassVar[bool] = False

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists."""
        return _both(torch.arange(rank), size)


@dataclass(frozen=True)
class Bottom:
    """The smallest ones.

    >>> Bottom()(2, 5)[0].tolist()
    [3, 4]
    """

    rest: ClassVar[bool] = False

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists."""
        return _both(torch.arange(size - rank, size), size)


@dataclass(frozen=True)
class BottomFirst:
    """The smallest ones, and behind them all others, for a form that looks at these too.

    >>> BottomFirst()(2, 5)[0].tolist()
    [3, 4, 0, 1, 2]
    """

    rest: ClassVar[bool] = True

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists."""
        _check(rank, size)
        return _both(torch.arange(size).roll(rank), size)


@dataclass(frozen=True)
class Ends:
    """Half of them the largest, and half the smallest; of an odd number the middle one is large.

    >>> Ends()(3, 9)[0].tolist()
    [0, 1, 8]
    """

    rest: ClassVar[bool] = False

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists."""
        low = rank // 2
        return _both(torch.cat([torch.arange(rank - low), torch.arange(size - low, size)]), size)


@dataclass(frozen=True)
class Crossed:
    """Right vectors of the largest ones, and left vectors of as many after them.

    >>> [part.tolist() for part in Crossed()(2, 5)]
    [[2, 3], [0, 1]]
    """

    rest: ClassVar[bool] = False

    def __call__(self, rank: int, size: int) -> tuple[Tensor, Tensor]:
        """Both lists."""
        _check(2 * rank, size)
        return torch.arange(rank, 2 * rank), torch.arange(rank)


def _both(found: Tensor, size: int) -> tuple[Tensor, Tensor]:
    _check(len(found), size)
    return found, found


def _check(wanted: int, size: int) -> None:
    if wanted > size:
        raise ValueError(f"{wanted} components of a matrix that has {size}: take a lower rank")
