"""The truncated SVD of what is known to be of low rank, by its factors: the matrix itself is never formed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.svd import EPS, SAFETY, SVD, fix_signs, svd
from eckart.linalg.factors import completed, stored
from eckart.linalg.remainder import magnitude
from eckart.linalg.truncation import checked_rank
from eckart.metric import Metric
from eckart.operator import Factors, Operator, Product, Sum, in_dtype


def low_rank_form(op: Operator) -> Factors | None:
    """Two factors in float64 whose product is ``op``, where that follows from how it is composed; else ``None``.

    Factors, sums of what is of low rank, and products in which one factor is: ``A (L R) B = (A L) (R B)``.

    >>> from eckart.operator import Dense
    >>> update = Factors(torch.ones(3, 1), torch.ones(1, 4))
    >>> low_rank_form(Sum((update, Product((Dense(torch.eye(3)), update))))).rank
    2
    >>> low_rank_form(Sum((update, Dense(torch.ones(3, 4))))) is None
    True
    """
    match op:
        case Factors():
            return in_dtype(op, torch.float64)
        case Sum():
            terms = [low_rank_form(term) for term in op.terms]
            found = [term for term in terms if term is not None]
            if len(found) < len(terms):
                return None
            return Factors(torch.cat([t.left for t in found], dim=1), torch.cat([t.right for t in found]))
        case Product():
            forms = [low_rank_form(factor) for factor in op.factors]
            ranks = {i: form.rank for i, form in enumerate(forms) if form is not None}
            if not ranks:
                return None
            at = min(ranks, key=ranks.__getitem__)  # the narrowest one
            left, right = forms[at].left, forms[at].right  # type: ignore[union-attr]
            for factor in reversed(op.factors[:at]):
                left = in_dtype(factor, torch.float64) @ left
            for factor in op.factors[at + 1 :]:
                right = (in_dtype(factor, torch.float64).T @ right.T).T
            return Factors(left, right)
        case _:
            return None


@dataclass(frozen=True)
class FactoredTruncation:
    """A product of factors to be truncated: thin QR of both, and the SVD of the small core between.

    With ``L = Q_L R_L`` and ``(R M)^T = Q_R R_R`` in a metric of root M, ``L R M = Q_L (R_L R_R^T) Q_R^T``, whose core is as wide
    as the factors are. Everything is exact and certain, in time that does not know how large the matrix is by area.
    """

    target: Factors  # in float64
    metric: Metric

    @cached_property
    def optimum(self) -> tuple[SVD, SVD]:
        """The decompositions in the metric, and in the plain one without vectors."""
        whitened = self._inside(self.target)
        return whitened, whitened if self.metric.is_plain else _decomposed(self.target)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool = True) -> Fit:
        """The best approximation of this rank, which may be above that of the target."""
        checked_rank(rank, self.target.shape)
        u = completed(self.optimum[0].u[:, :rank], rank)
        op, _ = stored(u, self.target, dtype)
        bounds = self._bounds(op)
        how = f"exact, by the factors: their rank is {self.target.rank}"
        return Fit(op=op, bounds=bounds if spectral else bounds[:-1], how=how)

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """As ``Truncation.tails``; exact."""
        return self.optimum[0].tails()

    def _inside(self, op: Factors) -> SVD:
        """The decomposition in the metric, with what rounding the right factor's product with the root may have done."""
        found = _decomposed(Factors(op.left, self.metric.whiten(op.right)))
        return replace(found, slack=found.slack + self.metric.slack(magnitude(op), 0.0))

    def _bounds(self, op: Factors) -> tuple[Bound, ...]:
        wide = in_dtype(op, torch.float64)
        left = torch.cat([self.target.left, -wide.left], dim=1)
        right = torch.cat([self.target.right, wide.right])
        inside, plainly = self.optimum
        rest = _decomposed(Factors(left, right))
        bounds = [_enclosed("frobenius", plainly, rest, op.rank)]
        if not self.metric.is_plain:
            own = self._inside(Factors(left, right))
            bounds.insert(0, _enclosed(self.metric.name, inside, own, op.rank))
        top, floor = float(rest.s[0]), plainly.value_floor(op.rank)
        achieved = max(top, floor)
        scale = float(plainly.s[0])
        spectral = Bound(norm="spectral", lower=floor, achieved=achieved, upper=achieved + rest.slack, scale=scale)
        return (*bounds, spectral)


def _enclosed(name: str, whole: SVD, rest: SVD, rank: int) -> Bound:
    floor = whole.tail_floor(rank)
    achieved = max(float(rest.tails()[0].sqrt()), floor)
    return Bound(
        norm=name, lower=floor, achieved=achieved, upper=achieved + rest.slack, scale=float(whole.tails()[0].sqrt())
    )


def _decomposed(op: Factors) -> SVD:
    """The SVD of a product through its factors; what rounding may have done is relative to them, not to the product."""
    q, left = torch.linalg.qr(op.left)
    other = torch.linalg.qr(op.right.T).R
    core = svd(left @ other.T)
    slack = SAFETY * EPS * sum(op.shape) * magnitude(op)
    return SVD(u=fix_signs(q @ core.u), s=core.s, slack=core.slack + slack, slack_sq=core.slack_sq)
