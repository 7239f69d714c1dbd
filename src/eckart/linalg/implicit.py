"""The truncated SVD of an operator that is seen through its products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.kernels.randomized import Subspace
from eckart.kernels.svd import fix_signs
from eckart.linalg.enclosure import implicit_bounds
from eckart.linalg.factors import stored
from eckart.linalg.remainder import magnitude, norm_of
from eckart.linalg.routes import Route
from eckart.linalg.truncation import Truncation, checked_rank, energies_left, seeded
from eckart.metric import Metric
from eckart.operator import Operator, device_of, in_dtype

CANCELLATION = 100.0  # how many times larger than their sum the parts of an operator may be in float32


@dataclass(frozen=True)
class Through:
    """The products of ``op diag(weights)`` by the operator's own, computed in ``dtype`` at the least."""

    op: Operator
    weights: Tensor | None
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.op.shape

    @property
    def device(self) -> torch.device:
        """Where the operator's tensors lie."""
        return device_of(self.op)

    @property
    def narrows(self) -> bool:
        """Never."""
        return False

    @property
    def wide(self) -> bool:
        """Not beyond the ``dtype`` in which it computes anyway."""
        return False

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        """``op @ (weights * x)``."""
        wide = x.to(torch.promote_types(x.dtype, self.dtype))
        found = in_dtype(self.op, wide.dtype) @ (
            wide if self.weights is None else self.weights.to(wide)[:, None] * wide
        )
        return found.to(x.dtype)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        """``weights * (op.T @ y)``."""
        wide = y.to(torch.promote_types(y.dtype, self.dtype))
        found = in_dtype(self.op, wide.dtype).T @ wide
        return (found if self.weights is None else self.weights.to(found)[:, None] * found).to(y.dtype)


@dataclass(frozen=True)
class ImplicitTruncation:
    """An operator to be truncated: iterated on by products alone, or formed where only an exact way leads there."""

    target: Operator
    metric: Metric
    accuracy: float
    route: Route

    def __post_init__(self) -> None:
        if not math.isfinite(self.size):
            m, n = self.target.shape
            raise ValueError(f"the {m} x {n} operator holds NaN or infinity, or is too large for float64")

    @cached_property
    def size(self) -> float:
        """The norm of the target in the metric where that is a plain or diagonal one, else its Frobenius norm."""
        return norm_of(self.target, self.metric.right if self.metric.is_diagonal else None)

    @cached_property
    def _formed(self) -> Truncation:
        # In float64: what a narrower type would round while it is formed no bound knows of.
        return Truncation(in_dtype(self.target, torch.float64).dense(), self.metric, self.accuracy, self.route)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool = True) -> Fit:
        """As ``Truncation.fit``; ``how`` says so where the matrix had to be formed."""
        checked_rank(rank, self.target.shape)
        found, how = self._iterated(rank, rng)
        if found is None:
            fit = self._formed.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
            return Fit(op=fit.op, bounds=fit.bounds, how=f"{fit.how}; the operator was formed for it")
        op, basis = stored(fix_signs(found.u), self.target, dtype)
        bounds = implicit_bounds(self.target, op, self.metric, basis, rng=rng, spectral=spectral)
        return Fit(op=op, bounds=bounds, how=how)

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """As ``Truncation.tails``."""
        found, _ = self._iterated(rank, rng)
        return self._formed.tails(rank, rng) if found is None else energies_left(self.size**2, found)

    def _iterated(self, rank: int, rng: Generator) -> tuple[Subspace | None, str]:
        exact = self.route.exact(self.target.shape, rank, self.metric, self.accuracy) is not None
        if exact or not self.metric.is_diagonal:  # a full metric sees it through products with all columns
            return None, "formed"  # why, the matrix says that is formed
        # Rounding is relative to the parts: where these cancel, float32 would leave little that is true.
        cancels = magnitude(self.target) > CANCELLATION * norm_of(self.target)
        a = Through(self.target, self.metric.right, torch.float64 if cancels else torch.float32)
        return self.route.leading(a, rank, energy=self.size**2, accuracy=self.accuracy, rng=seeded(rng))
