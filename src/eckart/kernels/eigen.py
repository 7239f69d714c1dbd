"""Eigenvectors of symmetric matrices and orthogonal-triangular factorisations, made unique and deterministic, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix, finite_square
from eckart.kernels.svd import EPS, SAFETY, fix_signs

# A squared column norm that has shrunk below this share of the last one that was computed has lost half of its digits to cancellation.
CANCELLED = math.sqrt(EPS)


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


@dataclass(frozen=True, eq=False)
class PivotedQR:
    """``a[:, pivots] = q @ r + E``, where E is zero in the first k columns and ``residual`` is its Frobenius norm.

    The diagonal of r descends and is not negative; with k the smaller side E is rounding.
    """

    q: Tensor  # (m, k) orthonormal columns
    r: Tensor  # (k, n) upper triangular
    pivots: Tensor  # (n,) a permutation of the columns, the first k in the order in which they were chosen
    residual: float


def pivoted_qr(a: Tensor, rank: int | None = None) -> PivotedQR:
    """The first ``rank`` steps (all, if not given) of Householder's factorisation with column pivoting, in float64.

    Every step takes the column that has the largest part outside of the span of those before, the first one of several
    (Businger and Golub 1965). What is left of the columns' squared norms is downdated, and computed anew where a norm has lost
    half of its digits to cancellation (Drmač and Bujanović 2008); without that, pivots are chosen by rounding errors.

    Raises ``ValueError`` for NaN or infinity, for what is no real matrix, and for a ``rank`` outside of 0 … min(m, n).

    >>> found = pivoted_qr(torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 4.0]]), rank=1)
    >>> found.pivots.tolist()[:1], found.r.round(decimals=4).abs().tolist()[0][:1], round(found.residual, 4)
    ([2], [5.0], 1.4422)
    """
    a = finite_matrix(a).to(torch.float64)
    m, n = a.shape
    rank = min(m, n) if rank is None else rank
    if not 0 <= rank <= min(m, n):
        raise ValueError(f"a {m} x {n} matrix has no {rank} pivots: give a rank from 0 to {min(m, n)}")
    # By a power of two, which rounds nothing: squares of very small or large entries would leave the range of float64.
    scale = 2.0 ** (math.frexp(float(a.abs().max()) if a.numel() else 0.0)[1] - 1)
    work = a / scale
    pivots = torch.arange(n, device=a.device)
    taus = work.new_zeros(rank)
    squares = work.square().sum(0)  # (n,) as downdated
    computed = squares.clone()  # when they were last computed
    for k in range(rank):
        _swap(k, k + int(squares[k:].argmax()), work, pivots, squares, computed)
        taus[k] = _reflect(work, k)
        rest = squares[k + 1 :]
        rest.sub_(work[k, k + 1 :].square()).clamp_(min=0)
        poor = (rest <= CANCELLED * computed[k + 1 :]).nonzero()[:, 0] + k + 1
        if len(poor):
            squares[poor] = computed[poor] = work[k + 1 :, poor].square().sum(0)
    r = work[:rank]
    q = torch.linalg.householder_product(work[:, :rank].contiguous(), taus) if rank else work[:, :0]
    signs = _signs(r)
    residual = float(torch.linalg.vector_norm(work[rank:, rank:])) * scale
    return PivotedQR(q * signs, (r * signs[:, None]).triu() * scale, pivots, residual)


def _swap(k: int, chosen: int, work: Tensor, *rows: Tensor) -> None:
    """Column ``chosen`` of ``work`` to place k and the other way round, and the entries of ``rows`` with them."""
    if chosen != k:
        order, other = [k, chosen], [chosen, k]
        work[:, order] = work[:, other]
        for row in rows:
            row[order] = row[other]


def _reflect(work: Tensor, k: int) -> float:
    """Reflect the rows from k on so that column k is zero below; the vector takes the place of the zeros. Returns its factor."""
    column = work[k:, k]
    head, length = float(column[0]), float(torch.linalg.vector_norm(column))
    if length == 0.0:
        return 0.0
    image = -math.copysign(length, head)  # away from the head, so that nothing cancels
    v = column / (head - image)
    v[0] = 1.0
    tau = (image - head) / image
    trailing = work[k:, k + 1 :]
    trailing.addr_(v, v @ trailing, alpha=-tau)
    work[k, k], work[k + 1 :, k] = image, v[1:]
    return tau


def _signs(r: Tensor) -> Tensor:
    """-1 for each row of a triangular factor whose diagonal is negative, else 1."""
    return torch.where(r.diagonal() < 0, -1.0, 1.0).to(r.dtype)
