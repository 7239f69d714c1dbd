"""The polar decomposition: exact by singular vectors, or its orthogonal factor from matrix products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix

# So many steps at the end are never taken in bfloat16: the first repairs what its rounding did to the lengths, the second squares
# what is left of that.
FINE_STEPS = 2


def polar(a: Tensor) -> tuple[Tensor, Tensor]:
    """``(u, p)`` with ``a = u @ p``, p symmetric positive semidefinite; through the singular vectors, in float64.

    With ``a = U S V^T`` of shape (m, n) these are ``u = U V^T`` (m, n) and ``p = V S V^T`` (n, n). A tall u has orthonormal
    columns, a wide one orthonormal rows; of all such matrices it is the nearest to ``a`` (Fan and Hoffman 1955). p is
    ``(a^T a)^(1/2)`` and always unique, u where ``a`` has full rank. Where it has not, the singular vectors that LAPACK
    gives to the zero values complete u: orthonormal to rounding and the same in every run, but one choice of many.

    Raises ``ValueError`` if ``a`` is not a real matrix or holds NaN or infinity.

    >>> u, p = polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]]))
    >>> u.round(decimals=9).abs().tolist(), p.round(decimals=9).abs().tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 2.0]])
    """
    a = finite_matrix(a).to(torch.float64)
    if a.shape[0] >= a.shape[1]:
        left, s, right = torch.linalg.svd(a, full_matrices=False)
    else:  # LAPACK is twice as fast on the tall orientation
        turned, s, left = torch.linalg.svd(a.T, full_matrices=False)
        left, right = left.T, turned.T
    p = (right.T * s) @ right
    return left @ right, (p + p.T) / 2


@dataclass(frozen=True)
class OddPolynomial:
    """``linear x + cubic x^3 + quintic x^5``, which acts on the singular values of a matrix by products alone.

    >>> CUBIC(0.5), CUBIC(1.0)
    (0.6875, 1.0)
    """

    linear: float
    cubic: float
    quintic: float = 0.0

    def __call__(self, x: float) -> float:
        """The value at a number."""
        square = x * x
        return x * (self.linear + square * (self.cubic + square * self.quintic))

    def image(self, low: float, high: float, steps: int = 1) -> tuple[float, float]:
        """The least and the largest value that numbers of [low, high] take after so many steps.

        Attained, not only enclosed: a continuous function maps an interval onto an interval, whose ends are values at the
        ends or where the derivative is zero.

        >>> tuple(round(x, 3) for x in CUBIC.image(0.1, 1.0, steps=6))
        (0.845, 1.0)

        Raises ``ValueError`` if ``low > high`` or ``steps < 0``.
        """
        if low > high or steps < 0:
            raise ValueError(f"[{low}, {high}] after {steps} steps: an interval and no negative number is wanted")
        for _ in range(steps):
            turns = [x for x in self._turning_points() if low < x < high]
            values = [self(x) for x in (low, high, *turns)]
            low, high = min(values), max(values)
        return low, high

    def _turning_points(self) -> list[float]:
        """Where ``linear + 3 cubic x^2 + 5 quintic x^4`` is zero."""
        if self.quintic:
            half = 1.5 * self.cubic
            inside = half * half - 5 * self.quintic * self.linear
            if inside < 0:
                return []
            squares = [(-half + sign * math.sqrt(inside)) / (5 * self.quintic) for sign in (1, -1)]
        else:
            squares = [-self.linear / (3 * self.cubic)] if self.cubic else []
        return [sign * math.sqrt(square) for square in squares if square > 0 for sign in (1, -1)]


# The Newton-Schulz iteration (Schulz 1933; Higham 2008, eq. 8.20): every value of (0, sqrt(3)) goes to 1, in the end quadratically.
CUBIC = OddPolynomial(1.5, -0.5)
# The next one of the same family (Kovarik 1970): to 1 from (0, sqrt(7 / 3)), in the end cubically, for one more product a step.
QUINTIC = OddPolynomial(15 / 8, -10 / 8, 3 / 8)
# Fastest where values are small (Jordan et al. 2024): 3.4 times a step. It does NOT converge to 1: values end anywhere in a band
# around it, [0.681, 1.135] after five steps from [0.01, 1], and go on moving in it; `image` tells the band.
BAND = OddPolynomial(3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, eq=False)
class OrthogonalFactor:
    """``u`` (m, n), nearly the orthogonal factor, and how near its columns (rows, where wide) are to orthonormal.

    ``residual`` is the Frobenius norm of ``u^T u - I`` (``u u^T - I``), in the precision of the products. ``scale`` is what
    the matrix was divided by: never below its spectral norm, never above its Frobenius norm but for rounding.
    """

    u: Tensor
    residual: float
    scale: float


def newton_schulz(
    a: Tensor, steps: int, polynomial: OddPolynomial = CUBIC, *, products: torch.dtype | None = None
) -> OrthogonalFactor:
    """The orthogonal factor of the polar decomposition of ``a`` (m, n) by an odd polynomial iteration: products only.

    ``x <- x (linear I + cubic G + quintic G^2)`` with ``G = x^T x``, so that every step applies the polynomial to all singular
    values and leaves the vectors alone; a wide matrix goes through its transpose. It starts from ``a`` divided by
    ``||a^T a||_F^(1/2)``, which is at least the spectral norm and less than what the Frobenius norm would give: all values
    start in [0, 1]. A value of zero stays zero: of a matrix without full rank comes a partial isometry, and ``residual`` says
    so. What rounding made of a zero grows by ``linear`` a step, so a hundred steps give it a direction of its own.

    ``CUBIC`` and ``QUINTIC`` converge to the exact factor; ``BAND`` does not, by design, and its ``residual`` stays of order one.

    Runs in float32, for float64 input in float64. ``products=torch.bfloat16`` rounds the operands of the products to
    bfloat16 in all but the last two steps: the result is as orthonormal as without, but it belongs to a matrix that is up
    to about 2^-8 of the norm away, so directions weaker than that are not to be trusted.

    Raises ``ValueError`` for NaN or infinity, for what is no real matrix, for ``steps < 0`` and for other dtypes of products.

    >>> found = newton_schulz(torch.tensor([[3.0, 0.0], [0.0, -1.0], [0.0, 0.0]]), steps=8)
    >>> found.u.round(decimals=4).tolist(), found.residual < 1e-6
    ([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]], True)
    """
    a = finite_matrix(a)
    if steps < 0:
        raise ValueError(f"{steps} steps cannot be taken: give none or more")
    if products not in (None, torch.bfloat16):
        raise ValueError(
            f"products in {products} are not offered: give torch.bfloat16, or nothing for those of the input"
        )
    x = a.to(torch.float64 if a.dtype == torch.float64 else torch.float32)
    x = x if x.shape[0] >= x.shape[1] else x.T
    if not bool(x.any()):
        return OrthogonalFactor(torch.zeros_like(x).reshape(a.shape), math.sqrt(x.shape[1]), 0.0)
    # Entries of size one first: squares of very small or large ones are beyond the range of the dtype.
    largest = float(x.abs().max())
    x = x / largest
    # What rounding may have taken from the norm of the Gram matrix is given back, so that the bound holds.
    bound = math.sqrt(float(torch.linalg.vector_norm(x.T @ x, dtype=torch.float64)))
    bound *= 1 + x.shape[0] * torch.finfo(x.dtype).eps
    x = x / bound
    for left in range(steps, 0, -1):
        x = _step(x, polynomial, products if left > FINE_STEPS else None)
    residual = x.T @ x
    residual.diagonal().sub_(1)
    size = float(torch.linalg.vector_norm(residual, dtype=torch.float64))
    return OrthogonalFactor(x if x.shape == a.shape else x.T, size, largest * bound)


def _step(x: Tensor, polynomial: OddPolynomial, products: torch.dtype | None) -> Tensor:
    """One step; sums are added up in the dtype of ``x``, only the operands of products are rounded to ``products``."""
    gram = _product(x.T, x, products)
    inner = polynomial.cubic * gram
    if polynomial.quintic:
        inner += polynomial.quintic * _product(gram, gram, products)
    return polynomial.linear * x + _product(x, inner, products)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype | None) -> Tensor:
    return a @ b if dtype is None else (a.to(dtype) @ b.to(dtype)).to(a.dtype)
