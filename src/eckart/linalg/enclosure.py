"""Bounds of a low-rank approximation, measured on its factors as stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.kernels.norms import SpectralNorm, frobenius_norm
from eckart.kernels.svd import EPS, SAFETY, SVD
from eckart.linalg.factors import Basis, image
from eckart.linalg.remainder import COARSE, Formed, Implicit, Remainder
from eckart.metric import Coordinates, Metric
from eckart.operator import Factors, Operator

PLAIN = Metric.plain()


@dataclass(frozen=True)
class Optimum:
    """What exact decompositions say of the best possible errors: of ``target @ R``, and of ``target`` (values suffice).

    The latter may be missing where the metric is not the plain one: without the spectral norm nothing is said of it.
    """

    whitened: SVD
    plain: SVD | None


@dataclass(frozen=True)
class _Floors:
    """Lower bounds on the error of every matrix of the rank, and the largest singular value of the target."""

    tail: float  # Frobenius norm
    value: float  # spectral norm
    top: float
    delta: float  # the probability that ``tail`` fails


def measured_bounds(
    target: Tensor,
    op: Factors,
    metric: Metric,
    optimum: Optimum | None,
    *,
    rng: Generator,
    sizes: tuple[float, float] | None = None,
    seen: Coordinates | None = None,
    spectral: bool = True,
) -> tuple[Bound, ...]:
    """The error of ``op`` in the metric, in the Frobenius norm (if that is another) and, unless not wanted, in the spectral norm.

    With an ``optimum`` the energy that it leaves after the rank of ``op`` is what no operator of that rank can beat, for
    certain. Without one ``lower`` comes from the approximation itself (``_posterior``): then it holds but for a stated probability.
    Of the least possible error in a plain norm that is not the metric nothing is said, unless the spectral norm is wanted as well.
    ``sizes``, the norms of the target in the metric and in the Frobenius norm, and the target as ``seen`` by a full metric are computed
    where they are not given. The error is formed in float32 where the rounding of that can't be more than 0.5 % of it, else in float64; its
    bound widens ``upper``.
    """
    if optimum is None and not metric.is_diagonal:
        own = _in_coordinates(target, op, metric, seen or metric.coordinates(target), rng)
        return own, *(measured_bounds(target, op, PLAIN, None, rng=rng) if spectral else (frobenius_error(target, op),))
    size, scale = sizes or (metric.norm(target), frobenius_norm(target))
    plainly = Formed.of(target, op, scale)
    basis = _basis(target, op, plainly) if optimum is None else None
    plain = None if optimum is None else optimum.plain
    if metric.is_plain:
        return _plain_bounds(plainly, op, plain, basis, rng, spectral=spectral)
    inside = plainly.fine_in(metric)
    if optimum is not None:
        floors = _exact(optimum.whitened, op.rank)
    else:
        assert basis is not None
        weighed = inside.weighed(metric, size)
        floors = _posterior(weighed, metric.whiten(op.right), basis.in_metric(metric), weighed.spectral_norm(rng))
    own = _frobenius(metric, inside, size, floors, plainly.size + plainly.slack)
    if not spectral:
        return own, _as_seen(PLAIN.name, plainly, None)
    return own, *_plain_bounds(plainly, op, plain, basis, rng, spectral=True)


def frobenius_error(target: Tensor, op: Factors, size: float | None = None) -> Bound:
    """The Frobenius norm of the error; of the least possible one nothing is said. ``size`` is the norm of the target, if known.

    >>> frobenius_error(torch.eye(2), Factors(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))).achieved
    1.0
    """
    return _as_seen(PLAIN.name, Formed.of(target, op, frobenius_norm(target) if size is None else size), None)


def _plain_bounds(
    plainly: Formed, op: Factors, optimum: SVD | None, basis: Basis | None, rng: Generator, *, spectral: bool
) -> tuple[Bound, ...]:
    """The bounds in the plain norms, by an ``optimum`` or by the ``basis`` of the left factor."""
    enclosed = plainly.spectral_norm(rng) if spectral or optimum is None else None
    if optimum is not None:
        floors = _exact(optimum, op.rank)
    else:
        assert basis is not None
        assert enclosed is not None
        floors = _posterior(plainly, op.right, basis, enclosed)
    own = _frobenius(PLAIN, plainly, plainly.scale, floors, plainly.size)
    return (own, _spectral(plainly, enclosed, floors)) if spectral and enclosed is not None else (own,)


def _in_coordinates(target: Tensor, op: Factors, metric: Metric, seen: Coordinates, rng: Generator) -> Bound:
    """The bound in a full metric, of which no root is known.

    With Q an orthonormal basis of the left factor, ``E = (1 - Q Q^T) W + Q M``, M being what the right factor misses within the span: so
    ``||E R||^2`` is the sum of that of M and of the energy that Q leaves of the coordinates A, ``||(1 - Q Q^T) A||^2``; what any
    matrix of the rank leaves follows from A as well (``_posterior``).
    """
    basis = Basis.of(op.left, target)
    miss = basis.image - basis.coordinates @ op.right.to(torch.float64)
    within = metric.norm(miss)
    off = metric.slack(frobenius_norm(miss), within) + len(target) * EPS * frobenius_norm(target) * metric.reach
    inner = image(basis.q, seen.matrix)
    rest = Formed.of(seen.matrix, Factors(basis.q, inner), seen.size)
    unit = torch.eye(op.rank, dtype=torch.float64, device=inner.device)
    floors = _posterior(rest, inner, Basis(basis.q, unit, inner), rest.spectral_norm(rng))
    lower = math.sqrt(max(0.0, max(0.0, floors.tail - seen.slack) ** 2 - seen.doubt))
    achieved = max(math.hypot(rest.size, within), lower)
    upper = math.sqrt((rest.size + rest.slack + seen.slack) ** 2 + (within + off) ** 2 + seen.doubt)
    return Bound(
        norm=metric.name,
        lower=lower,
        achieved=achieved,
        upper=max(achieved, upper),
        scale=seen.size,
        delta={"lower": floors.delta} if floors.delta else None,
    )


def implicit_bounds(
    target: Operator, op: Factors, metric: Metric, basis: Basis, *, rng: Generator, spectral: bool
) -> tuple[Bound, ...]:
    """``measured_bounds`` without an optimum for an operator that is never formed, in a plain or diagonal metric.

    ``basis`` is that of the left factor of ``op``. All products are in float64.
    """
    plainly = Implicit(target, op)
    own: tuple[Bound, ...] = ()
    if not metric.is_plain:
        inside = Implicit(target, op, metric.right)
        floors = _posterior(inside, metric.whiten(op.right), basis.in_metric(metric), inside.spectral_norm(rng))
        own = (_as_seen(metric.name, inside, floors),)
        if not spectral:
            return (*own, _as_seen(PLAIN.name, plainly, None))
    enclosed = plainly.spectral_norm(rng)
    plain = _posterior(plainly, op.right, basis, enclosed)
    seen = (*own, _as_seen(PLAIN.name, plainly, plain))
    return (*seen, _spectral(plainly, enclosed, plain)) if spectral else seen


def _basis(target: Tensor, op: Factors, residual: Formed) -> Basis:
    """By products in float32 where the bounds are not wider for it by more than rounding may make them in general.

    Who gives a matrix in float64 wants it seen in float64.
    """
    if residual.dtype == torch.float32 and target.dtype != torch.float64:
        rough = Basis.rough(op.left, target, residual.scale)
        if 4 * rough.grain * residual.scale <= COARSE * residual.size**2:
            return rough
    return Basis.of(op.left, target)


def _exact(found: SVD, rank: int) -> _Floors:
    top = float(found.s[0]) if len(found.s) else 0.0
    return _Floors(found.tail_floor(rank), found.value_floor(rank), top, 0.0)


def _frobenius(metric: Metric, residual: Formed, scale: float, floors: _Floors, size: float) -> Bound:
    """The bound in a metric; ``size`` is at least the Frobenius norm of the error where the metric is not the plain one."""
    norm = residual.norm(metric)
    achieved = max(norm, floors.tail)  # rounding alone could put a perfect fit below what is possible
    return Bound(
        norm=metric.name,
        lower=floors.tail,
        achieved=achieved,
        upper=achieved + residual.slack * metric.reach + metric.slack(size, norm),
        scale=scale,
        delta={"lower": floors.delta} if floors.delta else None,
    )


def _as_seen(name: str, remainder: Remainder, floors: _Floors | None) -> Bound:
    lower = None if floors is None else floors.tail
    achieved = remainder.size if lower is None else max(remainder.size, lower)
    return Bound(
        norm=name,
        lower=lower,
        achieved=achieved,
        upper=achieved + remainder.slack,
        scale=remainder.scale,
        delta={"lower": floors.delta} if floors is not None and floors.delta else None,
    )


def _spectral(remainder: Remainder, enclosed: SpectralNorm, floors: _Floors) -> Bound:
    achieved = max(enclosed.value - remainder.slack, floors.value)
    return Bound(
        norm="spectral",
        lower=floors.value,
        achieved=achieved,
        upper=max(achieved, enclosed.upper) + remainder.slack,
        scale=floors.top,
        delta={"upper": enclosed.delta} if enclosed.delta else None,
    )


def _posterior(residual: Remainder, right: Tensor, basis: Basis, enclosed: SpectralNorm) -> _Floors:
    """What an approximation ``L @ right`` itself tells of the best possible error, if only its left factor is good.

    With orthonormal Q spanning L, ``B = Q.T @ W`` and ``N = W - Q @ B``, in the bases Q and its complement ``W @ W.T`` is
    ``[[B B^T, C^T], [C, N N^T]]`` with ``norm(C) = norm(N B^T)``. For every s > 0 it is at most the block diagonal matrix of
    ``B B^T + C^T C / s`` and ``N N^T + s``. So with v the square of the spectral norm of N, and b_i the eigenvalues of ``B B^T``,
    the r largest eigenvalues of ``W W^T`` add up to at most ``sum(max(b_i, v + s)) + norm(C, "fro")**2 / s``; the least of that
    over s, taken from the energy of W, is left for the error of any matrix of rank r. All but v, known with a
    probability, is deterministic. The (r + 1)st singular value is at least that of W seen through Q and a few more directions.
    """
    size, slack, right = residual.size, residual.slack, right.to(torch.float64)
    grain = SAFETY * EPS * max(residual.shape) * residual.reach + basis.grain
    length = float(torch.linalg.vector_norm(basis.image))
    miss = basis.image - basis.coordinates @ right  # what rounding of the right factor left within the span
    beside = float(torch.linalg.vector_norm(miss))
    top_of_rest = (enclosed.upper + slack + beside + grain) ** 2
    cross = residual.times(basis.image.T) - basis.q @ (miss @ basis.image.T)
    rounding = (max(residual.shape) * residual.eps * size + slack + grain) * length
    coupling = (float(torch.linalg.vector_norm(cross)) + rounding) ** 2
    kept = torch.linalg.eigvalsh(basis.image @ basis.image.T).clamp(min=0)  # (r,)
    largest = max(float(kept.max()), 1e-200)  # of a zero matrix any scale will do
    steps = largest * torch.logspace(0, -12, 49, dtype=torch.float64, device=kept.device)
    more = (top_of_rest + steps[:, None] - kept).clamp(min=0).sum(1) + coupling / steps
    rest = max(0.0, size - slack) ** 2 - beside**2  # norm(N, "fro")**2
    energy = rest - float(more.min()) - 2 * grain * (length + size)
    top, value = _through(residual, basis, enclosed.directions)
    return _Floors(math.sqrt(max(energy, 0.0)), max(value - grain, 0.0), top, enclosed.delta)


def _through(residual: Remainder, basis: Basis, directions: Tensor) -> tuple[float, float]:
    """The first and the (r + 1)st singular value of W seen through ``basis`` and ``directions`` (k, m)."""
    # Not more than there are dimensions left; the rest would have nowhere to go but back into the basis.
    beyond = directions[: len(basis.q) - basis.q.shape[1]].T.to(torch.float64)
    for _ in range(3):  # once is not enough where a direction lies almost within the basis
        beyond = torch.linalg.qr(beyond - basis.q @ (basis.q.T @ beyond)).Q
    seen = torch.cat([basis.image, residual.image(beyond)])
    values = torch.linalg.eigvalsh(seen @ seen.T).flip(0).clamp(min=0)
    rank = len(basis.image)
    grain = SAFETY * EPS * len(values) * float(values.sum())
    value = math.sqrt(max(0.0, float(values[rank]) - grain)) if len(values) > rank else 0.0
    return math.sqrt(float(values[0])), value
