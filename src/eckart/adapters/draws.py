"""Distributions that random starts are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number


class Draw(Protocol):
    """Draws a tensor of a shape, in float64, from a generator."""

    def __call__(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """The tensor."""


@dataclass(frozen=True)
class Kaiming:
    """Uniform between ``+-sqrt(6 / ((1 + slope^2) fan_in))``, the fan-in being the last dimension (He et al. 2015).

    >>> drawn = Kaiming(slope=5**0.5)((1000, 4), torch.Generator().manual_seed(0))
    >>> bool(drawn.abs().max() <= 0.5), round(float(drawn.abs().max()), 2)
    (True, 0.5)

    Raises ``ValueError`` unless slope is finite.
    """

    slope: float = math.sqrt(5)

    def __post_init__(self) -> None:
        check_number("slope", self.slope)

    def __call__(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """The tensor."""
        bound = math.sqrt(6 / ((1 + self.slope**2) * shape[-1]))
        return (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) * bound


@dataclass(frozen=True)
class Gaussian:
    """Normal with mean 0 and this standard deviation.

    >>> drawn = Gaussian(0.02)((100, 100), torch.Generator().manual_seed(0))
    >>> round(float(drawn.std()), 3)
    0.02

    Raises ``ValueError`` unless deviation is 0 or more.
    """

    deviation: float = 1.0

    def __post_init__(self) -> None:
        check_number("deviation", self.deviation, least=0)

    def __call__(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """The tensor."""
        return torch.randn(shape, generator=rng, dtype=torch.float64) * self.deviation


@dataclass(frozen=True)
class SparseRows:
    """In each row ``floor(share * n)`` entries, and one at least, at random places, normal with deviation 1 / rows; the others are zero.

    >>> drawn = SparseRows(0.25)((3, 8), torch.Generator().manual_seed(0))
    >>> (drawn != 0).sum(1).tolist()
    [2, 2, 2]

    Raises ``ValueError`` unless share is above 0 and at most 1.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, most=1)

    def __call__(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """The tensor."""
        rows, columns = shape
        count = max(1, int(self.share * columns))
        places = torch.rand(rows, columns, generator=rng, dtype=torch.float64).argsort(1)[:, :count]
        values = torch.randn(rows, count, generator=rng, dtype=torch.float64) / rows
        return torch.zeros(rows, columns, dtype=torch.float64).scatter_(1, places, values)


@dataclass(frozen=True)
class Level:
    """Every entry has this value.

    >>> Level(0.1)((2,), torch.Generator()).tolist()
    [0.1, 0.1]

    Raises ``ValueError`` unless value is finite.
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def __call__(self, shape: tuple[int, ...], rng: Generator) -> Tensor:
        """The tensor."""
        return torch.full(shape, self.value, dtype=torch.float64)
