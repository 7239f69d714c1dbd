"""The exact singular value decomposition in float64, with a bound on what rounding may have done to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix
from eckart.kernels.panels import panels
from eckart.kernels.symmetric import add_gram

# Up to this smaller side LAPACK decomposes the matrix itself; above, the float64 Gram matrix is several times
# faster and its squared rounding error, 1e-16 of the energy, is far below what a float32 factor can express.
LAPACK_SIDE = 1024

# Backward errors of LAPACK grow like a modest multiple of the dimension; measured ones stay below 1 % of this.
SAFETY = 16.0
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class SVD:
    """``u @ diag(s) @ v.T`` with descending ``s``, and how wrong rounding may have made it.

    ``slack`` bounds the Euclidean distance between ``s`` and the true singular values (0 on the Gram route);
    ``slack_sq`` bounds what the sum of any of the squares may be wrong by (0 on the LAPACK route).
    """

    u: Tensor  # (m, k) orthonormal columns
    s: Tensor  # (k,)
    slack: float
    slack_sq: float
    v: Tensor | None = (
        None  # (n, k) in place of ``u``, which then has no columns, of a tall matrix known by ``A.T @ A``
    )

    def tails(self) -> Tensor:
        """Energy left after rank r: ``sum(s[r:]**2)`` for r = 0 … k, shape (k + 1,), float64.

        >>> svd(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).tails().round(decimals=9).tolist()
        [14.0, 5.0, 1.0, 0.0]
        """
        squares = torch.cat([self.s.square(), self.s.new_zeros(1)])
        return squares.flip(0).cumsum(0).flip(0)

    def tail_floor(self, rank: int) -> float:
        """A certain lower bound on the Frobenius error of every matrix of this rank (Eckart–Young, rounding deducted)."""
        energy = float(self.s[rank:].square().sum())
        return max(0.0, math.sqrt(max(0.0, energy - self.slack_sq)) - self.slack)

    def value_floor(self, index: int) -> float:
        """A certain lower bound on the singular value with this zero-based index; 0 past the end."""
        if index >= len(self.s):
            return 0.0
        value = float(self.s[index])
        return max(0.0, math.sqrt(max(0.0, value**2 - self.slack_sq)) - self.slack)


def gram_svd(gram: Tensor, rounding: float, *, vectors: bool = True) -> SVD:
    """The decomposition of a matrix A known by ``gram = A @ A.T`` (m, m), float64, of which the lower triangle is read.

    ``rounding`` bounds, in the Frobenius norm, what forming the product did to it.

    >>> f = gram_svd(torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64)), 0.0)
    >>> f.s.tolist(), f.u.tolist()
    ([3.0, 2.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    if not bool(torch.isfinite(gram).all()):
        raise ValueError(f"the {len(gram)} x {len(gram)} Gram matrix holds NaN or infinity")
    # Hoffman–Wielandt bounds the eigenvalue errors in the Euclidean norm; the root turns that into one of their sum.
    own = SAFETY * EPS * len(gram) * float(torch.linalg.vector_norm(gram))
    slack_sq = math.sqrt(len(gram)) * (rounding + own)
    if vectors:
        energies, u = torch.linalg.eigh(gram)
        u = fix_signs(u.flip(1))
    else:
        energies, u = torch.linalg.eigvalsh(gram), gram.new_zeros(len(gram), 0)
    return SVD(u=u, s=energies.flip(0).clamp(min=0).sqrt(), slack=0.0, slack_sq=slack_sq)


def fix_signs(u: Tensor) -> Tensor:
    """Flip columns so that the entry of largest magnitude is positive (the first one where several tie).

    >>> fix_signs(torch.tensor([[0.6, 0.8], [-0.8, 0.6]])).tolist()
    [[-0.6..., 0.8...], [0.8..., 0.6...]]
    """
    if u.shape[0] == 0:
        return u
    pivot = u.gather(0, u.abs().argmax(0, keepdim=True))  # (1, k)
    return u * torch.where(pivot < 0, -1.0, 1.0).to(u.dtype)


def svd(a: Tensor, lapack_side: int | None = None) -> SVD:
    """Left singular vectors and singular values of ``a`` (m, n), computed in float64, signs fixed.

    The smaller side decides: up to ``lapack_side`` (1024) LAPACK's divide and conquer on the tall orientation, above it
    the eigenvectors of the float64 Gram matrix of the smaller side. Both are deterministic.

    >>> f = svd(torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]))
    >>> f.s.round(decimals=9).tolist(), f.u.abs().round(decimals=9).tolist()
    ([2.0, 1.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    Raises ``ValueError`` if ``a`` is not a matrix or holds NaN or infinity.
    """
    a = finite_matrix(a)
    m, n = a.shape
    if min(m, n) == 0:
        return _empty(a)
    if min(m, n) <= (LAPACK_SIDE if lapack_side is None else lapack_side):
        a = a.to(torch.float64)
        u, s = _lapack(a)
        return SVD(u=fix_signs(u), s=s, slack=_rounding(a), slack_sq=0.0)
    found = _by_gram(a)
    if m <= n:
        return found
    return replace(found, u=fix_signs(torch.linalg.qr(a.to(torch.float64) @ found.u).Q))


def singular_values(a: Tensor, lapack_side: int | None = None) -> SVD:
    """As ``svd`` without vectors (``u`` has no columns), about a third of its time.

    >>> singular_values(torch.eye(3)).s.round(decimals=9).tolist()
    [1.0, 1.0, 1.0]
    """
    a = finite_matrix(a)
    m, n = a.shape
    if min(m, n) == 0:
        return _empty(a)
    none = _empty(a).u
    if min(m, n) <= (LAPACK_SIDE if lapack_side is None else lapack_side):
        a = a.to(torch.float64)
        s = torch.linalg.svdvals(a if m >= n else a.T)
        return SVD(u=none, s=s, slack=_rounding(a), slack_sq=0.0)
    return replace(_by_gram(a, vectors=False), u=none)


def smaller_gram(a: Tensor) -> Tensor:
    """``a @ a.T`` of a wide or square matrix, ``a.T @ a`` of a tall one, in float64, with a panel of ``a`` in float64 at a time.

    >>> smaller_gram(torch.tensor([[3.0], [4.0]])).tolist(), smaller_gram(torch.tensor([[3.0, 4.0]])).tolist()
    ([[25.0]], [[25.0]])
    """
    a = a if a.shape[0] > a.shape[1] else a.T
    return add_gram(torch.zeros(a.shape[1], a.shape[1], dtype=torch.float64, device=a.device), panels(a))


def _empty(a: Tensor) -> SVD:
    none = a.new_zeros(len(a), 0, dtype=torch.float64)
    return SVD(u=none, s=none.new_zeros(0), slack=0.0, slack_sq=0.0)


def _lapack(a: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape[0] >= a.shape[1]:
        u, s, _ = torch.linalg.svd(a, full_matrices=False)
        return u, s
    _, s, uh = torch.linalg.svd(a.T, full_matrices=False)  # the tall orientation is twice as fast
    return uh.T, s


def _rounding(a: Tensor) -> float:
    return SAFETY * EPS * max(a.shape) * float(torch.linalg.vector_norm(a))


def _by_gram(a: Tensor, *, vectors: bool = True) -> SVD:
    gram = smaller_gram(a)
    # Every entry is the sum of max(m, n) products; the trace is the energy of the matrix.
    return gram_svd(gram, max(a.shape) * EPS * float(gram.trace()), vectors=vectors)
