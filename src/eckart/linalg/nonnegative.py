"""Two factors of which the right one has no negative entry."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.linalg.certified import bounds_of
from eckart.linalg.selected import refuse_no_matrix
from eckart.operator import Factors

SWEEPS = 500  # at the most
STALLED = 1e-6  # a sweep that lowers the error by less than this share of it is the last one
# How far from zero the positive vector is that a start is built on: the farther, the less alike are the rows.
MARGINS = (0.3, 0.1, 0.03, 0.01, 0.003)
PROJECTIONS = 1000  # of that vector, to and fro
FLOOR = 1e-12  # of the largest entry: what is 0 would stay so, wanted or not


def semi_nmf(
    a: Tensor,
    rank: int,
    *,
    sweeps: int = SWEEPS,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """``F @ G`` near ``a`` (m, n) with F (m, r) free and no entry of G (r, n) below 0, whose rows have length 1 (Ding, Li and Jordan 2010).

    Sweeps of ``swept`` lower the error ``||A - F G||_F`` from ``begun`` on, whose error is at most that of the best matrix of rank
    r - 1. They end once one gains less than a millionth. Only the span of G counts for the error, so that ``lower``, which no
    matrix of rank r can beat, is that of the truncated singular value decomposition: what is asked of G costs no more
    than what ``achieved`` is above it. F is solved for G as it is stored.

    >>> a = torch.tensor([[1.0, 2.0, 0.0], [-3.0, -6.0, 0.0], [1.0, 2.0, 2.0]])
    >>> fit = semi_nmf(a, 2)
    >>> bool(torch.allclose(fit.op.dense(), a, atol=1e-5)), bool((fit.op.right >= 0).all())
    (True, True)

    Raises ``ValueError`` for a rank that is not from 1 to the smaller side, and for what is no matrix of finite floating-point numbers.
    """
    refuse_no_matrix(a)
    if not 1 <= rank <= min(a.shape):
        raise ValueError(f"rank {rank} of a matrix of {a.shape[0]} x {a.shape[1]}: give one from 1 to {min(a.shape)}")
    dtype = dtype or a.dtype
    wide = a.to(torch.float64)
    # Of a tall matrix the triangle of its QR factorisation has the same errors, and no more rows than columns.
    core = torch.linalg.qr(wide, mode="r").R if a.shape[0] > a.shape[1] else wide
    right, done = begun(core, rank), 0
    before = error_of(core, right)
    for done in range(1, sweeps + 1):  # noqa: B007
        right = swept(core, right)
        now = error_of(core, right)
        if before - now <= STALLED * before:
            break
        before = now
    right = right / torch.linalg.vector_norm(right, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    stored = right.to(dtype)
    op = Factors(free_factor(wide, stored.to(torch.float64)).to(dtype), stored)
    how = f"{done} multiplicative sweeps from right singular vectors made positive"
    return Fit(op=op, bounds=bounds_of(a, op, rng=rng), how=how)


def free_factor(a: Tensor, right: Tensor) -> Tensor:
    """The F (m, r) that is best for a G (r, n): ``A G^T (G G^T)^-1``, by least squares.

    >>> free_factor(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]])).round(decimals=6).tolist()
    [[2.0]]
    """
    return torch.linalg.lstsq(right.T, a.T, driver="gelsd").solution.T


def error_of(a: Tensor, right: Tensor) -> float:
    """``||A - F G||_F`` with the best F."""
    return float(torch.linalg.vector_norm(a - free_factor(a, right) @ right))


def swept(a: Tensor, right: Tensor) -> Tensor:
    """The next G (r, n) after the best F for this one: with ``H = G^T``, and + and - for the positive parts of a matrix and its negative,

    ``H * sqrt(((A^T F)+ + H (F^T F)-) / ((A^T F)- + H (F^T F)+))``,

    which raises the error for no A and no G without negative entries. What falls to 0 could never rise, and is kept just above it.

    >>> swept(torch.eye(2), torch.tensor([[1.0, 1.0]])).tolist()
    [[1.0, 1.0]]
    """
    left = free_factor(a, right)
    crossed, square, h = a.T @ left, left.T @ left, right.T
    above = crossed.clamp(min=0) + h @ (-square).clamp(min=0)
    below = (-crossed).clamp(min=0) + h @ square.clamp(min=0)
    moved = h * torch.where(below > 0, above / below, 1.0).sqrt()
    return moved.clamp(min=FLOOR * float(moved.max())).T


def begun(a: Tensor, rank: int) -> Tensor:
    """A nonnegative G (r, n) whose span holds the r - 1 leading right singular vectors v of ``a``: rows ``v + c p``, and p.

    p is a positive vector near the span of r of them. Where there is one within it, that span is G's, and nothing is lost.

    >>> begun(torch.diag(torch.tensor([2.0, 1.0])), 1).shape
    torch.Size([1, 2])
    """
    vectors = torch.linalg.svd(a.to(torch.float64), full_matrices=False).Vh[:rank].T
    found = [_positive(vectors, margin) for margin in MARGINS]
    positive = next((vector for vector, is_inside in found if is_inside), found[0][0])
    leading = vectors[:, : rank - 1]
    shifts = 1.1 * torch.where(positive[:, None] > 0, -leading / positive[:, None], 0.0).amax(0).clamp(min=0)
    return torch.cat([leading + positive[:, None] * shifts, positive[:, None]], 1).clamp(min=0).T


def _positive(vectors: Tensor, margin: float) -> tuple[Tensor, bool]:
    """A vector (n,) near the span of orthonormal columns (n, r) whose entries are at least ``margin`` of what they are in the mean of all
    unit vectors in there, and whether it is inside: by projections to and fro.
    """
    least = margin * torch.linalg.vector_norm(vectors, dim=1) / vectors.shape[1] ** 0.5
    found = least
    for _ in range(PROJECTIONS):
        inside = vectors @ (vectors.T @ found)
        length = float(torch.linalg.vector_norm(inside))
        if length == 0:
            break
        inside = inside / length
        if bool((inside >= 0.9 * least).all()):
            return inside, True
        found = inside.maximum(least)
    return found, False
