"""Truncation where rows count as well as columns: ``||L (W - X) R||_F``, by neither an inverse of L nor one of R."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm
from eckart.kernels.panels import panels
from eckart.kernels.svd import EPS, LAPACK_SIDE, SVD, fix_signs, singular_values
from eckart.linalg.enclosure import PLAIN, Optimum, frobenius_error, measured_bounds
from eckart.linalg.factors import Basis, image, lengths
from eckart.linalg.routes import Automatic, Route
from eckart.linalg.truncation import Truncation, checked_rank
from eckart.metric import Coordinates, TwoSided
from eckart.operator import Factors


@dataclass(frozen=True)
class WeighedTruncation:
    """A matrix to be truncated in a metric with a left side.

    With ``L W R = U S V^T`` and ``A = W R R^T (L W)^T U_r``, whose image is ``L A = U_r S_r^2``, the minimiser of rank r is A times the
    solution of ``L A X = L W`` by least squares: ``L A X R = U_r U_r^T L W R``, and nothing of that rank comes nearer. So neither
    side is inverted, and either may be of deficient rank. Directions below 1e-8 of the largest singular value are not told apart.
    """

    target: Tensor
    metric: TwoSided
    accuracy: float
    route: Route = Automatic()

    def __post_init__(self) -> None:
        _ = self.whole  # which refuses what is no matrix of finite numbers

    @cached_property
    def whole(self) -> Truncation:
        """The same in the plain metric."""
        return Truncation(self.target, PLAIN, self.accuracy, self.route)

    @cached_property
    def inner(self) -> Truncation:
        """The same for ``L W``, in the metric of the columns alone."""
        return Truncation(self.metric.weigh(self.target), self.metric.columns, self.accuracy, self.route)

    @cached_property
    def plain(self) -> SVD:
        """The singular values of the target itself."""
        return singular_values(self.target)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool = True) -> Fit:
        """The best of this rank; raises ``ValueError`` for one outside 1 … min(m, n)."""
        checked_rank(rank, self.whole.shape)
        inside = min(rank, *self.inner.shape)  # of fewer weighed rows than that no more directions are to be had
        found, how = self.inner.iterated(inside, rng)
        u = self.inner.leading(inside) if found is None else fix_signs(found.u)
        op = self._stored(u, dtype)
        weighed = None if found is not None else Optimum(self.inner.whitened, self.inner.whitened)
        seen = None if found is None else self.inner.seen
        own = weighed_bound(self.target, op, self.metric, self.inner.target, weighed, seen=seen, rng=rng)
        if not spectral:
            return Fit(op=op, bounds=(own, frobenius_error(self.target, op, self.whole.size)), how=how)
        best = None if found is not None and min(self.whole.shape) > LAPACK_SIDE else Optimum(self.plain, self.plain)
        plain = measured_bounds(self.target, op, PLAIN, best, rng=rng, sizes=(self.whole.size,) * 2)
        return Fit(op=op, bounds=(own, *plain), how=how)

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """As ``Truncation.tails``."""
        return self.inner.tails(min(rank, *self.inner.shape), rng)

    def error(self, rank: int, rng: Generator) -> float:
        """As ``Truncation.error``."""
        return self.inner.error(min(rank, *self.inner.shape), rng)

    def _stored(self, u: Tensor, dtype: torch.dtype) -> Factors:
        back = self.metric.columns.through(image(u.to(torch.float64), self.inner.target).T)  # R R^T (L W)^T U
        left = torch.cat([rows @ back for rows in panels(self.target)])  # (m, r)
        weights = torch.linalg.vector_norm(self.metric.weigh(left), dim=0)  # the squared singular values
        told = (
            weights > max(self.target.shape) * EPS * weights.max()
        )  # what is left is noise, which may be large where L is zero
        sizes = torch.linalg.vector_norm(left, dim=0)
        left = torch.where(told, left / torch.where(told, sizes, torch.ones_like(sizes)), torch.zeros_like(left))
        left = (left * lengths(self._right(left), dtype)).to(dtype).contiguous()
        return Factors(left, self._right(left).to(dtype).contiguous())

    def _right(self, left: Tensor) -> Tensor:
        """The X for which ``left @ X`` is nearest to the target; whatever the columns count, it is the same."""
        return Basis.of(self.metric.weigh(left), self.inner.target).right()


def weighed_bound(
    target: Tensor,
    op: Factors,
    metric: TwoSided,
    weighed: Tensor,
    optimum: Optimum | None,
    *,
    rng: Generator,
    seen: Coordinates | None = None,
) -> Bound:
    """The bound of ``op`` in a metric with a left side; ``weighed`` is ``L @ target``, and the ``optimum`` of that.

    It is the bound of ``L @ op`` in the metric of the columns, less and more what rounding did to the products with L.
    """
    shown = Factors(metric.weigh(op.left), op.right.to(torch.float64))
    own, *_ = measured_bounds(weighed, shown, metric.columns, optimum, rng=rng, seen=seen, spectral=False)
    grain = metric.rounding(frobenius_norm(target))
    slack = grain + metric.rounding(frobenius_norm(op.left)) * frobenius_norm(op.right)
    lower = None if own.lower is None else max(0.0, own.lower - grain)
    return replace(own, norm=metric.name, lower=lower, upper=own.upper + slack)
