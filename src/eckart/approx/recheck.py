"""Bounds of an approximation, measured on its factors as stored."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.linalg import SVD, spectral_norm
from eckart.linalg.svd import EPS, SAFETY
from eckart.metric import Metric
from eckart.operator import Operator


def measured_bounds(
    target: Tensor, op: Operator, metric: Metric, whitened: SVD, plain: SVD, rank: int, *, rng: Generator
) -> tuple[Bound, ...]:
    """The error of ``op`` in the metric, in the Frobenius norm (if that is another) and in the spectral norm.

    ``whitened`` and ``plain`` are the decompositions of ``target @ R`` and of ``target``: the energy that they leave after
    ``rank`` is what no operator of that rank can beat. The error itself is formed in float64; its own rounding
    widens ``upper``.
    """
    factors = {name: tensor.to(torch.float64) for name, tensor in op.tensors().items()}
    error = target.to(torch.float64) - type(op)(**factors).dense()
    bounds = [_frobenius(metric.name, metric, target, error, whitened, rank)]
    if metric.right is not None:
        bounds.append(_frobenius("frobenius", Metric.plain(), target, error, plain, rank))
    enclosed = spectral_norm(error, rng)
    floor = plain.value_floor(rank)
    achieved = max(enclosed.value, floor)
    slack = _slack(target)
    bounds.append(
        Bound(
            norm="spectral",
            lower=floor,
            achieved=achieved,
            upper=max(achieved, enclosed.upper) + slack,
            scale=float(plain.s[0]) if len(plain.s) else 0.0,
            delta={"upper": enclosed.delta} if enclosed.delta else None,
        )
    )
    return tuple(bounds)


def _frobenius(name: str, metric: Metric, target: Tensor, error: Tensor, optimum: SVD, rank: int) -> Bound:
    scale = metric.norm(target)
    floor = optimum.tail_floor(rank)
    achieved = max(metric.norm(error), floor)  # rounding alone could put a perfect fit below what is possible
    slack = _slack(target) * metric.reach + metric.rounding(error)
    return Bound(norm=name, lower=floor, achieved=achieved, upper=achieved + slack, scale=scale)


def _slack(target: Tensor) -> float:
    return SAFETY * EPS * max(target.shape) * float(torch.linalg.vector_norm(target.to(torch.float64)))
