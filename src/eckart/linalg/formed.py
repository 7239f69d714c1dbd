"""Bounds of approximations that are no two factors: the error is formed, in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.kernels.norms import frobenius_norm, spectral_norm
from eckart.kernels.svd import EPS
from eckart.metric import Metric
from eckart.operator import Operator, in_dtype

PLAIN = Metric.plain()


def formed_bounds(
    target: Tensor,
    op: Operator,
    metric: Metric,
    *,
    lower: float | None,
    plain_lower: float | None = None,
    rng: Generator,
    spectral: bool,
) -> tuple[Bound, ...]:
    """How far ``op`` is from ``target`` (m, n): in the metric, in the Frobenius norm if that is another, and in the spectral one.

    ``lower`` is what no matrix of the same format can beat in the metric, and ``plain_lower`` in the Frobenius norm; what
    rounding may have done to them is taken off here.

    >>> from eckart.operator import Dense
    >>> w = torch.eye(2)
    >>> [round(b.achieved, 6) for b in formed_bounds(w, Dense(0.5 * w), PLAIN, lower=None, rng=Generator(), spectral=True)]
    [0.707107, 0.5]
    """
    wide = target.to(torch.float64)
    error = wide - in_dtype(op, torch.float64).dense()
    scale, size = frobenius_norm(wide), frobenius_norm(error)
    slack = rounding_of(target, size)
    found = [] if metric.is_plain else [_in_metric(wide, error, metric, lower, slack)]
    best = lower if metric.is_plain else plain_lower
    found.append(_enclosed("frobenius", best, size, slack, scale))
    if spectral:
        norm, whole = spectral_norm(error, rng), spectral_norm(wide, rng)
        delta = {"upper": norm.delta} if norm.delta else None
        upper = max(norm.upper, norm.value) + slack
        found.append(
            Bound(norm="spectral", lower=None, achieved=norm.value, upper=upper, scale=whole.value, delta=delta)
        )
    return tuple(found)


def rounding_of(target: Tensor, size: float) -> float:
    """What rounding may do to an error of this size that is formed in float64: the operator is sums of as many products as a row has."""
    return EPS * (size + target.shape[1] * (frobenius_norm(target) + size))


def widened(bound: Bound, slack: float) -> Bound:
    """The same error, known but for ``slack``."""
    lower = None if bound.lower is None else max(0.0, bound.lower - slack)
    return replace(bound, lower=lower, upper=bound.upper + slack)


def _in_metric(target: Tensor, error: Tensor, metric: Metric, lower: float | None, slack: float) -> Bound:
    achieved = metric.norm(error)
    more = slack * metric.reach + metric.slack(frobenius_norm(error), achieved)
    return _enclosed(metric.name, lower, achieved, more, metric.norm(target))


def _enclosed(norm: str, lower: float | None, achieved: float, slack: float, scale: float) -> Bound:
    below = None if lower is None else max(0.0, min(lower - slack, achieved))
    return Bound(norm=norm, lower=below, achieved=achieved, upper=achieved + slack, scale=scale)
