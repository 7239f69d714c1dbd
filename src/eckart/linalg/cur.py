"""Approximation of a matrix by its own columns, or by its own columns and rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm
from eckart.kernels.selection import Candidates, Rule
from eckart.kernels.svd import EPS
from eckart.linalg.certified import PLAIN, bounds_of
from eckart.linalg.factors import image
from eckart.linalg.selected import (
    BOUNDS,
    BY_DEIM,
    COLUMNS,
    ROWS,
    Span,
    refuse_narrower,
    refuse_no_matrix,
    refuse_other_width,
    refuse_overflow,
    selected,
    stream,
)
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Product


def interpolative(
    a: Tensor,
    rank: int,
    rule: Rule = BY_DEIM,
    *,
    metric: Metric = PLAIN,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """The interpolative decomposition: ``rank`` columns of ``a`` (m, n), and how all others are made of them.

    ``a ≈ C X`` with ``C = a[:, J]`` (m, r), copied, and the X (r, n) of least squares, ``X[:, J] = I``, so that the chosen columns
    are met exactly. The minimiser of ``||(a - C X) R||_F`` for given columns is the same for every R. Columns are chosen from
    ``a @ R`` where R is diagonal, else from ``a``, the chosen ones in order of choice.

    Directions in which the columns (at unit length) are no more independent than the rounding of ``dtype`` are left out:
    what rounding would do to their large coefficients is more than what they add. Factors are in ``dtype``, by default that
    of ``a``. What is random depends on the seed of ``rng`` (0 where none is given), not on its state.

    With ``StrongRRQR(f=f)`` the spectral error is at most ``sqrt(1 + f**2 r (n - r))`` times the (r + 1)st singular value (Gu and
    Eisenstat 1996; Cheng, Gimbutas, Martinsson and Rokhlin 2005).

    >>> a = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    >>> fit = interpolative(a, 2)
    >>> bool(torch.allclose(fit.op.dense(), a, atol=1e-6)), fit.bounds[0].achieved < 1e-6
    (True, True)

    Raises ``ValueError`` for a rank outside 1 … min(m, n), a ``dtype`` that can't hold the entries of ``a``, a metric of another
    width, and for what is no matrix of floating-point numbers or holds NaN or infinity.
    """
    dtype = dtype or a.dtype
    _refuse(a, metric, dtype)
    m, n = a.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} of a {m} x {n} matrix: give one from 1 to {min(m, n)}")
    seen, _ = _candidates(a, metric)
    indices = selected(seen, rank, rule, stream(rng, COLUMNS), "columns")
    left = a[:, indices].to(dtype).contiguous()
    span = Span.of(left)
    kept = span.s > max(_grain(dtype), span.noise)
    coefficients = span.weights[:, kept] / span.s[kept] @ image(span.u[:, kept], a)
    coefficients[:, indices] = torch.eye(rank, dtype=torch.float64, device=a.device)
    op = Factors(left, refuse_overflow(coefficients.to(dtype), "the matrix of coefficients"))
    return Fit(
        op=op,
        bounds=bounds_of(a, op, metric, rng=stream(rng, BOUNDS)),
        how=f"columns by {rule}, {int(kept.sum())} of {rank} independent",
    )


def cur(
    a: Tensor,
    rank: int,
    *,
    columns: Rule = BY_DEIM,
    rows: Rule = BY_DEIM,
    row_count: int | None = None,
    metric: Metric = PLAIN,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """The CUR decomposition: ``rank`` columns and ``row_count`` rows (by default as many) of ``a`` (m, n) around a small core.

    ``a ≈ C U R`` with ``C = a[:, J]`` (m, c) and ``R = a[I]`` (r, n), copied, and the core (c, r) that makes
    ``||(a - C U R) M||_F`` least for the M of the metric: ``U = C^+ (a M) (R M)^+``. Columns are chosen from ``a @ M`` where
    M is diagonal, else from ``a``; rows always from ``a @ M``, of which they are rows. Both are in order of choice.

    The core is formed in the bases of the singular vectors of C and of R M, both with columns at unit length, where each of its
    entries is ``g / (s t)`` and counts on its own. It is left out where s and t are small enough for the rounding of
    ``dtype`` to do more to it than it adds: a core of three factors in one type can't tell apart more. Errors below the root of
    the type's precision, about 3e-4 of the matrix in float32 and 6e-2 in bfloat16, are therefore out of reach where the chosen
    columns and rows are that dependent; give a wider ``dtype``, by default that of ``a``. What is random depends on the seed of ``rng``
    (0 where none is given), not on its state.

    Before the core is rounded the spectral error with ``DEIM()`` is at most ``(p + q)`` times the (k + 1)st singular value, p and q
    being the norms of the inverses of the interpolated singular vectors (Sorensen and Embree 2016, theorem 4.1).

    >>> a = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
    >>> fit = cur(a, 2)
    >>> fit.op.shape, bool(torch.allclose(fit.op.dense(), a, atol=1e-5)), fit.bounds[0].achieved < 1e-5
    ((3, 3), True, True)

    Raises ``ValueError`` for a number of columns outside 1 … n or of rows outside 1 … m, or above what a rule can choose, a
    ``dtype`` that can't hold the entries of ``a`` or the core, a metric of another width, and for what is no matrix of
    floating-point numbers or holds NaN or infinity.
    """
    dtype = dtype or a.dtype
    _refuse(a, metric, dtype)
    seen, turned = _candidates(a, metric)
    j = selected(seen, rank, columns, stream(rng, COLUMNS), "columns")
    i = selected(turned, rank if row_count is None else row_count, rows, stream(rng, ROWS), "rows")
    left, right = a[:, j].to(dtype).contiguous(), a[i].to(dtype).contiguous()
    core, share = _core(a, left, right, metric, _grain(dtype))
    core = refuse_overflow(core.to(dtype), "the core")
    op = Product((Dense(left), Dense(core), Dense(right)))
    return Fit(
        op=op,
        bounds=_bounds(a, (left, core, right), metric, stream(rng, BOUNDS)),
        how=f"columns by {columns}, rows by {rows}, {100 * share:.3g} % of the core kept",
    )


def _refuse(a: Tensor, metric: Metric, dtype: torch.dtype) -> None:
    refuse_no_matrix(a)
    refuse_narrower(a, dtype)
    refuse_other_width(a, metric)


def _candidates(a: Tensor, metric: Metric) -> tuple[Candidates, Candidates]:
    """The columns and the rows to choose from; they share one decomposition unless the metric mixes columns."""
    seen = Candidates(a if metric.is_plain else metric.whiten(a))
    return (seen if metric.is_diagonal else Candidates(a)), seen.T


def _grain(dtype: torch.dtype) -> float:
    """What rounding does to a coefficient: below this a direction adds less than the rounding of its coefficients takes."""
    return torch.finfo(dtype).eps


def _core(a: Tensor, left: Tensor, right: Tensor, metric: Metric, grain: float) -> tuple[Tensor, float]:
    """The core in float64, and which share of its entries was kept; ``grain`` is what its rounding does to one."""
    columns, rows = Span.of(left), Span.of(metric.whiten(right).T)
    inner = columns.u.T @ metric.times(a, rows.u)
    sizes = columns.s[:, None] * rows.s
    kept = (sizes > grain) & (columns.s > columns.noise)[:, None] & (rows.s > rows.noise)
    inner = torch.where(kept, inner / torch.where(kept, sizes, torch.ones_like(sizes)), torch.zeros_like(inner))
    return columns.weights @ inner @ rows.weights.T, float(kept.to(torch.float64).mean())


def _bounds(a: Tensor, factors: tuple[Tensor, Tensor, Tensor], metric: Metric, rng: Generator) -> tuple[Bound, ...]:
    """Those of the product of three factors, of which the two on the narrower side are multiplied out in float64."""
    left, core, right = (t.to(torch.float64) for t in factors)
    c, r = core.shape
    op = Factors(left, core @ right) if c <= r else Factors(left @ core, right)
    sizes = frobenius_norm(left) * frobenius_norm(core) * frobenius_norm(right)
    rounding = max(c, r) * EPS * sizes
    first, *others = bounds_of(a, op, metric, rng=rng)
    return (_widened(first, rounding * metric.reach), *(_widened(bound, rounding) for bound in others))


def _widened(bound: Bound, by: float) -> Bound:
    return replace(bound, upper=bound.upper + by)
