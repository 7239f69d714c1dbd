"""What an approximation leaves of a matrix, formed or seen through products, with what rounding may have done to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.kernels.norms import SpectralNorm, frobenius_norm, probed_norm, spectral_norm
from eckart.kernels.panels import PANEL
from eckart.kernels.svd import LAPACK_SIDE
from eckart.linalg.factors import image
from eckart.metric import Metric
from eckart.operator import Factors, Operator, Product, Sum, in_dtype, rows

COARSE = 5e-3  # rounding in float32 may at worst be this share of the error; beyond, the error is formed in float64


class Remainder(Protocol):
    """The difference E (m, n) of a matrix W and its approximation, in the coordinates in which its plain norm counts."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def eps(self) -> float:
        """The rounding of one operation on its numbers."""

    @property
    def scale(self) -> float:
        """The Frobenius norm of W."""

    @property
    def reach(self) -> float:
        """What rounding in products with W is relative to: its Frobenius norm, or more where it is a sum whose terms cancel."""

    @property
    def size(self) -> float:
        """The Frobenius norm of E as computed."""

    @property
    def slack(self) -> float:
        """How far rounding may have put E off in the Frobenius norm."""

    def times(self, x: Tensor) -> Tensor:
        """``E @ x`` (m, k) in float64."""

    def image(self, q: Tensor) -> Tensor:
        """``q.T @ W`` (k, n) in float64."""

    def spectral_norm(self, rng: Generator) -> SpectralNorm:
        """The spectral norm of E, enclosed."""


@dataclass(frozen=True)
class Formed:
    """``target - op`` as formed in ``dtype``."""

    target: Tensor
    op: Factors
    scale: float
    dtype: torch.dtype
    slack: float

    @classmethod
    def of(cls, target: Tensor, op: Factors, scale: float) -> Formed:
        """In float32 where that is fine for a large matrix, else in float64."""
        if min(target.shape) <= LAPACK_SIDE:
            return cls._in(torch.float64, target, op, scale)
        return cls._in(torch.float32, target, op, scale).fine_in(Metric.plain())

    @classmethod
    def _in(cls, dtype: torch.dtype, target: Tensor, op: Factors, scale: float) -> Formed:
        return cls(target, op, scale, dtype, _rounding(op, scale, torch.finfo(dtype).eps))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.op.shape

    @property
    def eps(self) -> float:
        """That of ``dtype``."""
        return torch.finfo(self.dtype).eps

    @property
    def reach(self) -> float:
        """The norm of the target."""
        return self.scale

    @cached_property
    def error(self) -> Tensor:
        """The error as a matrix."""
        return self._rows(slice(None))

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of the error."""
        return self.norm(Metric.plain())

    def norm(self, metric: Metric) -> float:
        """The norm of the error in a metric; in a full one a panel of rows at a time."""
        if metric.is_diagonal:
            return metric.norm(self.error)
        starts = range(0, len(self.target), PANEL)
        return math.hypot(*(metric.norm(self._rows(slice(start, start + PANEL))) for start in starts))

    def fine_in(self, metric: Metric) -> Formed:
        """Itself, or one in float64 where rounding could be more than ``COARSE`` of the error in the metric.

        In a full metric, whose norm costs as much as a float64 error and more, that is not tried.
        """
        if self.dtype == torch.float64:
            return self
        if metric.is_diagonal and self.slack * metric.reach <= COARSE * self.norm(metric):
            return self
        return self._in(torch.float64, self.target, self.op, self.scale)

    def weighed(self, metric: Metric, scale: float) -> Weighed:
        """The same in the coordinates of a diagonal metric, in which the norm of the target is ``scale``."""
        error = self.error * metric.right.to(self.error)  # type: ignore[union-attr]
        grain = torch.finfo(error.dtype).eps * frobenius_norm(error)
        return Weighed(metric.whiten(self.target), scale, error, self.slack * metric.reach + grain)

    def times(self, x: Tensor) -> Tensor:
        """``E @ x``."""
        return (self.error @ x.to(self.dtype)).to(torch.float64)

    def image(self, q: Tensor) -> Tensor:
        """``q.T @ target``."""
        return image(q, self.target)

    def spectral_norm(self, rng: Generator) -> SpectralNorm:
        """That of the error as formed."""
        return spectral_norm(self.error, rng)

    def _rows(self, part: slice) -> Tensor:
        w, left, right = (t.to(self.dtype) for t in (self.target[part], self.op.left[part], self.op.right))
        own = w.dtype != self.target.dtype  # then it is a copy that nobody else looks at
        return w.addmm_(left, right, alpha=-1) if own else torch.addmm(w, left, right, alpha=-1)


@dataclass(frozen=True)
class Weighed:
    """As ``Formed``, in the coordinates of a diagonal metric."""

    target: Tensor
    scale: float
    error: Tensor
    slack: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n = self.error.shape
        return m, n

    @property
    def eps(self) -> float:
        """That of the error."""
        return torch.finfo(self.error.dtype).eps

    @property
    def reach(self) -> float:
        """The norm of the target."""
        return self.scale

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of the error."""
        return frobenius_norm(self.error)

    def times(self, x: Tensor) -> Tensor:
        """``E @ x``."""
        return (self.error @ x.to(self.error)).to(torch.float64)

    def image(self, q: Tensor) -> Tensor:
        """``q.T @ target``."""
        return image(q, self.target)

    def spectral_norm(self, rng: Generator) -> SpectralNorm:
        """That of the error in these coordinates."""
        return spectral_norm(self.error, rng)


@dataclass(frozen=True)
class Implicit:
    """``(target - op) diag(weights)`` of an operator that is never formed: all of it by products in float64.

    >>> from eckart.operator import Sum
    >>> w = Factors(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]))
    >>> rest = Implicit(w, Factors(w.left[:, :1] * 0.5, w.right))
    >>> rest.size, rest.scale
    (2.5, 5.0)
    """

    target: Operator
    op: Factors
    weights: Tensor | None = None  # (n,)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.op.shape

    @property
    def eps(self) -> float:
        """That of float64."""
        return torch.finfo(torch.float64).eps

    @cached_property
    def _wide(self) -> Operator:
        return in_dtype(self.target, torch.float64)

    @cached_property
    def _factors(self) -> Factors:
        return in_dtype(self.op, torch.float64)

    @cached_property
    def scale(self) -> float:
        """The Frobenius norm of the target."""
        return norm_of(self._wide, self.weights)

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of the error."""
        parts = zip(_panels(self._wide), self._factors.left.split(PANEL), strict=True)
        errors = (self._weighed(panel - left @ self._factors.right) for panel, left in parts)
        return math.hypot(*(float(torch.linalg.vector_norm(error)) for error in errors))

    @cached_property
    def slack(self) -> float:
        """That of the difference, and of the products with the target: relative to what its parts are before they cancel."""
        op = Factors(self._factors.left, self._weighed(self._factors.right))
        return _rounding(op, self.scale, self.eps) + sum(self.shape) * self.eps * self.reach

    @cached_property
    def reach(self) -> float:
        """The sum of the norms of what the target is composed of."""
        return magnitude(self._wide) * (1.0 if self.weights is None else float(self.weights.abs().max()))

    def times(self, x: Tensor) -> Tensor:
        """``E @ x``."""
        x = x if self.weights is None else self.weights[:, None] * x
        return self._wide @ x - self._factors @ x

    def image(self, q: Tensor) -> Tensor:
        """``q.T @ target``."""
        return self._weighed((self._wide.T @ q).T)

    def spectral_norm(self, rng: Generator) -> SpectralNorm:
        """By probes, whatever the size."""

        def back(y: Tensor) -> Tensor:
            return self._weighed((self._wide.T @ y.T).T - (y @ self._factors.left) @ self._factors.right)

        device = self._factors.left.device
        return probed_norm(lambda x: self.times(x.T).T, back, self.shape, torch.float64, rng, device)

    def _weighed(self, matrix: Tensor) -> Tensor:
        return matrix if self.weights is None else matrix * self.weights


def norm_of(op: Operator, weights: Tensor | None = None) -> float:
    """The Frobenius norm of ``op diag(weights)``, a panel of rows at a time in float64.

    >>> norm_of(Factors(torch.tensor([[3.0], [4.0]]), torch.ones(1, 1)))
    5.0
    """
    seen = _panels(in_dtype(op, torch.float64))
    return math.hypot(*(float(torch.linalg.vector_norm(p if weights is None else p * weights)) for p in seen))


def magnitude(op: Operator) -> float:
    """What rounding in products with ``op`` is relative to: at least its Frobenius norm, and more where its parts cancel.

    >>> from eckart.operator import Dense, Sum
    >>> magnitude(Sum((Dense(torch.eye(4)), Dense(-torch.eye(4)))))
    4.0
    """
    match op:
        case Factors():
            return frobenius_norm(op.left) * frobenius_norm(op.right)
        case Sum():
            return sum(map(magnitude, op.terms))
        case Product():
            return math.prod(map(magnitude, op.factors))
        case _:
            return norm_of(op)


def _panels(op: Operator) -> Iterator[Tensor]:
    return (rows(op, start, start + PANEL).to(torch.float64) for start in range(0, op.shape[0], PANEL))


def _rounding(op: Factors, scale: float, eps: float) -> float:
    # The sum of r products in each entry, its difference from w, and the conversion of what was wider.
    return (op.rank + 3) * eps / 2 * (frobenius_norm(op.left) * frobenius_norm(op.right) + scale)
