"""Truncations of matrices near the ends of float64's range, measured in a power of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.operator import Factors

LEAST, MOST = 1e-120, 1e120  # entries between which squares, and sums of them, are numbers in float64
# What may be lost of a factor, as a share of its largest entry. Every upper bound holds a slack of 2^-53 of the factors or more for
# rounding in float64, with more than this to spare; also for what the smallest entries of a matrix lose by the unit, 2^-1075 of it.
LOST = 2.0**-200


class Analysed(Protocol):
    """A matrix from which truncations of any rank can be taken."""

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """Squared errors in the metric after 0, 1, … directions, ``rank`` of them at least; in one unit, which may be any."""

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        """The truncation to this rank, with a bound in the spectral norm if wanted."""


@dataclass(frozen=True)
class Measured:
    """A matrix ``A = 2^exponent B``, by an analysis ``inner`` of B.

    Truncations of A are those of B times the unit, and so are their errors. Half the exponent goes to either factor, where it changes
    no digit of them. Bounds change none either, unless they come out below 2.2e-308, where floats have few digits: there ``lower``
    and ``scale`` are rounded down and ``upper`` up.

    >>> from eckart.linalg.truncation import Truncation
    >>> from eckart.metric import Metric
    >>> b = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    >>> prepared = Measured(Truncation(b, Metric.plain(), 0.0), -600)
    >>> fit = prepared.fit(1, dtype=torch.float64, rng=Generator(), spectral=False)
    >>> [round(math.ldexp(side.norm().item(), 300), 6) for side in (fit.op.left, fit.op.right)]
    [2.0, 2.0]
    >>> round(math.ldexp(fit.bounds[0].achieved, 600), 6)
    2.236068
    """

    inner: Analysed
    exponent: int

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """As ``Truncation.tails``, of B: in units of ``4^exponent``, because those of A are no numbers."""
        return self.inner.tails(rank, rng)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        """As ``Truncation.fit``, of A: factors (m, r) and (r, n) in ``dtype``.

        Raises ``ValueError`` where that is too narrow for them, and for a norm or an error of A that no number in float64 is near.
        """
        fit = self.inner.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
        assert isinstance(fit.op, Factors)
        half = self.exponent // 2
        left, right = _times_power(fit.op.left, half), _times_power(fit.op.right, self.exponent - half)
        if not (_same(left, fit.op.left, half) and _same(right, fit.op.right, self.exponent - half)):
            m, n = fit.op.shape
            raise ValueError(f"the factors of this {m} x {n} matrix leave the range of {dtype}: give a wider dtype")
        bounds = tuple(_times(bound, self.exponent) for bound in fit.bounds)
        return replace(fit, op=Factors(left, right), bounds=bounds)


def measured(a: Tensor, analyse: Callable[[Tensor], Analysed]) -> Analysed:
    """The analysis of a matrix (m, n); of one in float64 whose squares are no numbers, that of the matrix in a unit of its own.

    >>> from eckart.linalg.truncation import Truncation
    >>> from eckart.metric import Metric
    >>> w = torch.tensor([[3.0, 0.0], [0.0, -5.0]], dtype=torch.float64)
    >>> far = measured(w * 2.0**-900, lambda b: Truncation(b, Metric.plain(), 0.0))
    >>> far.exponent, far.inner.target.tolist()
    (-898, [[0.75, 0.0], [0.0, -1.25]])
    >>> measured(w, lambda b: Truncation(b, Metric.plain(), 0.0)).target is w
    True
    """
    exponent = _far(a)
    return Measured(analyse(_times_power(a, -exponent)), exponent) if exponent != 0 else analyse(a)


def _far(a: Tensor) -> int:
    """The exponent of the largest entry where squares are no numbers; else 0."""
    if a.dtype != torch.float64 or not a.numel():
        return 0
    size = float(a.abs().max())
    if not 0 < size < math.inf or LEAST < size < MOST:
        return 0
    return math.frexp(size)[1] - 1


def _times_power(a: Tensor, exponent: int) -> Tensor:
    """``2^exponent a`` in the dtype of ``a``."""
    half = exponent // 2  # the power itself may be no number
    return (a.to(torch.float64) * 2.0**half).mul_(2.0 ** (exponent - half)).to(a.dtype)


def _same(scaled: Tensor, factor: Tensor, exponent: int) -> bool:
    """Whether ``scaled`` is ``2^exponent factor`` but for what no bound notices."""
    factor = factor.to(torch.float64)
    lost = _times_power(scaled.to(torch.float64), -exponent) - factor
    return bool(lost.abs().max() <= LOST * factor.abs().max())


def _times(bound: Bound, exponent: int) -> Bound:
    """A bound of B as one of A, whose figures are still true where not every digit of them can be kept."""
    try:
        scale = _down(bound.scale, exponent)
        lower = None if bound.lower is None else _down(bound.lower, exponent)
        achieved, upper = math.ldexp(bound.achieved, exponent), _up(bound.upper, exponent)
        beyond = scale == 0 and bound.scale > 0
    except OverflowError:
        beyond = True
    if beyond:
        raise ValueError(
            f"the {bound.norm} norm of this matrix, or of the error, is beyond the numbers of float64: "
            "multiply the matrix by a power of two"
        )
    return replace(bound, lower=lower, achieved=achieved, upper=upper, scale=scale)


def _down(x: float, exponent: int) -> float:
    found = math.ldexp(x, exponent)
    return math.nextafter(found, 0.0) if math.ldexp(found, -exponent) > x else found


def _up(x: float, exponent: int) -> float:
    found = math.ldexp(x, exponent)
    return math.nextafter(found, math.inf) if math.ldexp(found, -exponent) < x else found
