"""Changes of basis on a bond, and the groups of them that leave a network's function as it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

TOLERANCE = 1e-9  # how far a matrix in float64 may be from being orthogonal, or from what else it has to be


class Change(Protocol):
    """A change of basis M of a bond of some size: what is written there becomes ``M x``, and what reads it takes ``M^-1`` first."""

    @property
    def size(self) -> int:
        """How many directions it mixes."""

    def written(self, x: Tensor) -> Tensor:
        """``M x`` for the axis that comes first."""

    def read(self, x: Tensor) -> Tensor:
        """``M^-T x``: what the axis that comes first of a reader becomes."""

    def inverse(self) -> Change:
        """The way back."""


@dataclass(frozen=True)
class Matrix:
    """Any invertible matrix (k, k).

    >>> turn = Matrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    >>> turn.written(torch.tensor([2.0, 3.0])).tolist(), turn.inverse().written(torch.tensor([-3.0, 2.0])).tolist()
    ([-3.0, 2.0], [2.0, 3.0])

    Raises ``ValueError`` for what is no square matrix, or singular.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"a change of basis is a square matrix, not one of shape {tuple(self.matrix.shape)}")
        if not bool(torch.isfinite(self._contragredient).all()):
            raise ValueError("a change of basis must be invertible: this matrix is singular")

    @property
    def size(self) -> int:
        """Rows and columns."""
        return len(self.matrix)

    @cached_property
    def _contragredient(self) -> Tensor:
        inverse, singular = torch.linalg.inv_ex(self.matrix.to(torch.float64))
        return torch.full_like(inverse, torch.nan) if int(singular) else inverse.T

    def written(self, x: Tensor) -> Tensor:
        """``M x``."""
        return _product(self.matrix, x)

    def read(self, x: Tensor) -> Tensor:
        """``M^-T x``."""
        return _product(self._contragredient, x)

    def inverse(self) -> Matrix:
        """``M^-1``."""
        return Matrix(self._contragredient.T)


@dataclass(frozen=True)
class Order:
    """A permutation: entry i becomes what entry ``order[i]`` was.

    >>> Order(torch.tensor([2, 0, 1])).written(torch.tensor([10.0, 20.0, 30.0])).tolist()
    [30.0, 10.0, 20.0]

    Raises ``ValueError`` for what is no permutation.
    """

    order: Tensor

    def __post_init__(self) -> None:
        if self.order.ndim != 1 or not torch.equal(self.order.sort().values, torch.arange(len(self.order))):
            raise ValueError("an order holds every index from 0 on once")

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self.order)

    def written(self, x: Tensor) -> Tensor:
        """The entries in their new order."""
        return x[self.order]

    def read(self, x: Tensor) -> Tensor:
        """The same: a permutation is orthogonal."""
        return x[self.order]

    def inverse(self) -> Order:
        """The order that undoes it."""
        return Order(self.order.argsort())


@dataclass(frozen=True)
class Scales:
    """Each direction by a factor that is not zero.

    >>> Scales(torch.tensor([2.0, -4.0])).read(torch.ones(2)).tolist()
    [0.5, -0.25]

    Raises ``ValueError`` for a factor that is zero or not finite.
    """

    factors: Tensor

    def __post_init__(self) -> None:
        if self.factors.ndim != 1 or not bool((torch.isfinite(self.factors) & (self.factors != 0)).all()):
            raise ValueError("scales are a vector of finite factors, none of them zero")

    @property
    def size(self) -> int:
        """How many factors there are."""
        return len(self.factors)

    def written(self, x: Tensor) -> Tensor:
        """Each entry times its factor."""
        return x * _column(self.factors, x)

    def read(self, x: Tensor) -> Tensor:
        """Each entry divided by its factor."""
        return x / _column(self.factors, x)

    def inverse(self) -> Scales:
        """The reciprocal factors."""
        return Scales(1 / self.factors)


class Symmetry(Protocol):
    """A group of changes."""

    def __str__(self) -> str:
        """What belongs to it, in a few words."""

    def refuses(self, change: Change) -> str | None:
        """Why a change does not belong to it; ``None`` if it does."""


@dataclass(frozen=True)
class Fixed:
    """None but the identity, and why."""

    reason: str

    def __str__(self) -> str:
        return f"fixed: {self.reason}"

    def refuses(self, change: Change) -> str | None:
        """Always."""
        return self.reason


@dataclass(frozen=True)
class Invertible:
    """Any invertible matrix: nothing but linear maps meet there."""

    def __str__(self) -> str:
        return "any invertible matrix"

    def refuses(self, change: Change) -> str | None:
        """Nothing."""
        return None


@dataclass(frozen=True)
class Orthogonal:
    """What keeps lengths, as a norm measures them; with ``mean`` also the mean, which a LayerNorm takes away first."""

    mean: bool = False

    def __str__(self) -> str:
        return "rotations" + (" that keep the all-ones direction" if self.mean else "")

    def refuses(self, change: Change) -> str | None:
        """What is not orthogonal, or moves the mean."""
        one = torch.eye(change.size, dtype=torch.float64)
        turned = change.written(one)
        if float((turned.T @ turned - one).abs().max()) > TOLERANCE:
            return "the norms that read it measure its length, which this changes"
        if self.mean and float((turned.sum(1) - 1).abs().max()) > TOLERANCE:
            return "LayerNorm subtracts the mean, and this turns the all-ones direction elsewhere"
        return None


@dataclass(frozen=True)
class Permutation:
    """Any order of units behind an elementwise nonlinearity; with ``positive`` also factors above zero, which it passes on."""

    positive: bool = False

    def __str__(self) -> str:
        return "permutations" + (" and positive scales" if self.positive else "")

    def refuses(self, change: Change) -> str | None:
        """What mixes units, or scales what is not homogeneous."""
        if isinstance(change, Order):
            return None
        if isinstance(change, Scales):
            if not self.positive:
                return "the nonlinearity behind it is not homogeneous"
            return None if bool((change.factors > 0).all()) else "the nonlinearity passes on positive factors only"
        return "a nonlinearity acts on each unit by itself"


@dataclass(frozen=True)
class Diagonal:
    """Factors that are not zero, channel by channel, and why nothing else."""

    reason: str

    def __str__(self) -> str:
        return "scales other than zero"

    def refuses(self, change: Change) -> str | None:
        """What is no scale."""
        return None if isinstance(change, Scales) else self.reason


@dataclass(frozen=True)
class Pairs:
    """The basis of keys and queries under rotary positions: entries i and i + rotary / 2 turn together, as position tells them.

    In each of these planes one rotation and one factor; of the ``rest``, which positions leave alone, any invertible matrix.
    """

    rotary: int
    rest: int

    def __str__(self) -> str:
        beside = ", any invertible matrix for the rest" if self.rest else ""
        return f"a rotation and scale for each of {self.rotary // 2} rotary pairs{beside}"

    def refuses(self, change: Change) -> str | None:
        """What mixes pairs, or does not commute with the rotation of one."""
        m = change.written(torch.eye(change.size, dtype=torch.float64))
        half = self.rotary // 2
        first, second, rest = slice(0, half), slice(half, self.rotary), slice(self.rotary, None)
        grain = TOLERANCE * float(m.abs().max())
        if float(m[rest, : self.rotary].abs().sum() + m[: self.rotary, rest].abs().sum()) > grain:
            return "positions turn the rotary entries and leave the others alone: they do not mix"
        quarters = [m[a, b] for a in (first, second) for b in (first, second)]
        if any(float((q - q.diagonal().diag()).abs().max()) > grain for q in quarters if q.numel()):
            return "each rotary pair has a frequency of its own: pairs do not mix"
        a, b, c, d = (q.diagonal() for q in quarters)
        if half and float(torch.maximum((a - d).abs(), (b + c).abs()).max()) > grain:
            return "within a rotary pair only a rotation and one factor commute with what positions do"
        return None


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    wide = torch.promote_types(matrix.dtype, x.dtype)
    return (matrix.to(wide) @ x.to(wide).reshape(len(x), -1)).reshape(x.shape)


def _column(factors: Tensor, x: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (x.ndim - 1))
