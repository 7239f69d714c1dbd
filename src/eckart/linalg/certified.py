"""Bounds of approximations, whoever made them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.kernels.svd import LAPACK_SIDE, singular_values
from eckart.linalg.enclosure import Optimum, measured_bounds
from eckart.linalg.truncation import Truncation
from eckart.linalg.weighed import weighed_bound
from eckart.metric import Metric, TwoSided
from eckart.operator import Factors

PLAIN = Metric.plain()
NEAR = 1e-2  # how near the best approximation is looked for: its error is only to be enclosed, not to be reached


def bounds_of(
    target: Tensor, op: Factors, metric: Metric | TwoSided = PLAIN, *, rng: Generator | None = None
) -> tuple[Bound, ...]:
    """How far ``op`` is from ``target`` (m, n), and how near any matrix of its rank could come, in ``metric`` and the plain norms.

    Up to a smaller side of 1024, and in full and two-sided metrics, the target is decomposed for it and ``lower`` is certain. Else the
    leading subspace is iterated for, as ``truncated_svd`` does, and ``lower`` holds but for a stated probability.

    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> kept = Factors(w[:, 1:2].contiguous(), torch.tensor([[0.0, 1.0, 0.0]]))  # the second direction alone
    >>> [round(x, 5) for x in (lambda b: (b.lower, b.achieved))(bounds_of(w, kept)[0])]
    [2.23607, 3.16228]
    """
    rng = rng or Generator().manual_seed(0)
    if isinstance(metric, TwoSided):
        weighed = metric.weigh(target)
        best = metric.columns.singular_values(weighed)
        own = weighed_bound(target, op, metric, weighed, Optimum(best, best), rng=rng)
        return (own, *bounds_of(target, op, rng=rng))
    if min(target.shape) <= LAPACK_SIDE or not metric.is_diagonal:
        whitened = metric.singular_values(target)
        optimum = Optimum(whitened, whitened if metric.is_plain else singular_values(target))
        return measured_bounds(target, op, metric, optimum, rng=rng)
    found = measured_bounds(target, op, metric, None, rng=rng)
    if op.rank >= min(target.shape):
        return found
    near = Truncation(target, metric, NEAR).fit(op.rank, dtype=torch.float32, rng=rng)
    return tuple(_raised(bound, other) for bound, other in zip(found, near.bounds, strict=True))


def _raised(bound: Bound, other: Bound) -> Bound:
    """``bound`` with the ``lower`` of another approximation of the same rank, where that is higher: it speaks of all of them."""
    assert bound.lower is not None
    assert other.lower is not None
    if other.lower <= bound.lower:
        return bound
    delta = {name: p for name, p in (bound.delta or {}).items() if name != "lower"}
    delta |= {name: p for name, p in (other.delta or {}).items() if name == "lower"}
    achieved = max(bound.achieved, other.lower)
    return replace(bound, lower=other.lower, achieved=achieved, upper=max(bound.upper, achieved), delta=delta or None)
