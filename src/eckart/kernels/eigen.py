"""Eigenvectors of symmetric matrices and orthogonal-triangular factorisations, made unique and deterministic, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix, finite_square
from eckart.kernels.svd import EPS, SAFETY, fix_signs


@dataclass(frozen=True, eq=False)
class SymmetricEigen:
    """Descending eigenvalues of a symmetric matrix, their vectors, and how wrong rounding may have made them.

    ``slack`` bounds how far each value is from the true one of its rank (a modest multiple of LAPACK's backward error, as
    in ``SVD``). ``residuals`` are measured: within ``residuals[i]`` of ``values[i]`` there certainly is an eigenvalue
    (``||A v - l v||`` of a unit vector, Weinstein 1934), the rounding of the measurement included.
    """

    values: Tensor  # (k,)
    vectors: Tensor  # (n, k) orthonormal columns, signs fixed
    residuals: Tensor  # (k,)
    slack: float


def symmetric_eigen(a: Tensor, count: int | None = None) -> SymmetricEigen:
    """The ``count`` largest eigenvalues (all, if not given) of a symmetric ``a`` (n, n) and their vectors, in float64.

    Only the lower triangle is read. LAPACK computes all pairs in any case; ``count`` says how many are kept and measured.

    Raises ``ValueError`` for NaN or infinity, for what is not square, and for a ``count`` outside of 0 … n.

    >>> found = symmetric_eigen(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), count=1)
    >>> found.values.round(decimals=9).tolist(), found.vectors.round(decimals=4).tolist()
    ([3.0], [[0.7071], [0.7071]])
    """
    a = finite_square(a).to(torch.float64)
    n = len(a)
    count = n if count is None else count
    if not 0 <= count <= n:
        raise ValueError(f"a {n} x {n} matrix has no {count} eigenvalues: give a count from 0 to {n}")
    values, vectors = torch.linalg.eigh(a)
    values, vectors = values.flip(0)[:count], fix_signs(vectors.flip(1)[:, :count])
    whole = a.tril() + a.tril(-1).T
    size = float(torch.linalg.vector_norm(whole))
    lengths = torch.linalg.vector_norm(vectors, dim=0)
    off = torch.linalg.vector_norm(whole @ vectors - vectors * values, dim=0) / lengths
    # Every entry of the difference is a sum of n products and one more.
    return SymmetricEigen(values, vectors, off + (n + 2) * EPS * size, SAFETY * EPS * n * size)


def qr(a: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, r)`` with ``a = q @ r``, q (m, k) with orthonormal columns, r (k, n) upper triangular, k the smaller side; float64.

    The diagonal of r is not negative, which makes both unique where the first k columns of ``a`` are independent.
    Householder's method, so q is orthonormal whatever ``a`` is.

    Raises ``ValueError`` if ``a`` is not a real matrix or holds NaN or infinity.

    >>> q, r = qr(torch.tensor([[-3.0, 1.0], [-4.0, 1.0]]))
    >>> q.round(decimals=4).tolist(), r.round(decimals=4).tolist()
    ([[-0.6, 0.8], [-0.8, -0.6]], [[5.0, -1.4], [0.0, 0.2]])
    """
    q, r = torch.linalg.qr(finite_matrix(a).to(torch.float64))
    signs = _signs(r)
    return q * signs, (r * signs[:, None]).triu()  # no zeros of negative sign below


def _signs(r: Tensor) -> Tensor:
    """-1 for each row of a triangular factor whose diagonal is negative, else 1."""
    return torch.where(r.diagonal() < 0, -1.0, 1.0).to(r.dtype)
