"""The best approximation of given rank, in any metric of the form ``||E R||_F``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.approx.recheck import measured_bounds
from eckart.fit import Fit
from eckart.linalg import SVD, singular_values
from eckart.metric import Metric
from eckart.operator import Factors


@dataclass(frozen=True)
class LowRank:
    """Truncation in a metric: with ``W R = U S V^T`` the minimiser of ``||(W - X) R||_F`` of rank r is ``U_r U_r^T W``.

    That form needs neither an inverse nor a Cholesky factor of ``R R^T`` and is exact for a rank-deficient one
    (truncating ``W R`` and undoing R gives the same matrix wherever R can be undone).

    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> fit = LowRank().prepare(w, Metric.plain()).fit(2, dtype=torch.float32, rng=Generator().manual_seed(0))
    >>> [round(abs(x), 5) for x in fit.op.dense().diag().tolist()], round(fit.bounds[0].achieved, 6)
    ([3.0, 2.0, 0.0], 1.0)
    """

    exact: ClassVar[bool] = True

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error in the metric for rank 0, 1, …, min(m, n): the tails of the squared singular values of ``W R``.

        >>> LowRank().curve(torch.diag(torch.tensor([3.0, 2.0, 1.0])), Metric.plain()).round(decimals=9).tolist()
        [14.0, 5.0, 1.0, 0.0]
        """
        tails = metric.singular_values(target).tails()
        return torch.cat([tails, tails.new_zeros(min(target.shape) + 1 - len(tails))])

    def prepare(self, target: Tensor, metric: Metric) -> Truncation:
        """Decompose ``target`` (m, n) once, in float64."""
        whitened = metric.svd(target)
        plain = whitened if metric.right is None else singular_values(target)
        return Truncation(target, metric, whitened, plain)


@dataclass(frozen=True)
class Truncation:
    """A matrix with the singular value decomposition of its whitened form."""

    target: Tensor
    metric: Metric
    whitened: SVD  # of target @ R
    plain: SVD  # of target; values only, unless the metric is the plain one

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator) -> Fit:
        """The optimum of this rank, its factors rounded to ``dtype``, and its bounds measured after that rounding.

        The left factor is rounded first and the right one solved for it, which takes back most of the first
        rounding; the minimiser for a given left factor is the same in every metric.

        Raises ``ValueError`` for a rank outside 1 … min(m, n).
        """
        m, n = self.target.shape
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank {rank} of a {m} x {n} matrix: give one from 1 to {min(m, n)}")
        w = self.target.to(torch.float64)
        u = _orthonormal(self.whitened.u, rank)  # (m, r)
        left = (u * _lengths(u.T @ w, dtype)).to(dtype)
        right = _solve(left.to(torch.float64), w).to(dtype)
        op = Factors(left.contiguous(), right.contiguous())
        return Fit(op=op, bounds=measured_bounds(w, op, self.metric, self.whitened, self.plain, rank, rng=rng))


def _lengths(right: Tensor, dtype: torch.dtype) -> Tensor:
    """How long each column of the left factor is made, for an orthonormal one whose partner is ``right`` (r, n).

    Both factors get rows and columns of equal length, so that neither leaves the range of a narrow dtype. A direction in
    which the matrix is no larger than the rounding of ``dtype`` is not shortened further: what rounding leaves there would
    have to be met by an enormous row.
    """
    sizes = torch.linalg.vector_norm(right, dim=1)
    grain = torch.finfo(dtype).eps * torch.linalg.vector_norm(right) / max(1, min(right.shape)) ** 0.5
    sizes = sizes.clamp(min=float(grain))
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes)).sqrt()


def _solve(left: Tensor, w: Tensor) -> Tensor:
    """The least-squares solution X of ``left @ X = w``, by QR of the columns at unit length.

    ``torch.linalg.lstsq`` is avoided: its pivoted driver gives other bits from call to call.
    """
    lengths = torch.linalg.vector_norm(left, dim=0)
    unit = left / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    q, r = torch.linalg.qr(unit)
    if float(r.diagonal().abs().min()) < 1e-6:  # columns that rounding made dependent
        solution = torch.linalg.pinv(unit) @ w
    else:
        solution = torch.linalg.solve_triangular(r, q.T @ w, upper=True)
    return solution / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None]


def _orthonormal(u: Tensor, rank: int) -> Tensor:
    """The first ``rank`` columns, completed where a rank-deficient metric leaves fewer."""
    if u.shape[1] >= rank:
        return u[:, :rank]
    basis = torch.cat([u, torch.eye(u.shape[0], dtype=u.dtype, device=u.device)], dim=1)
    return torch.linalg.qr(basis).Q[:, :rank]
