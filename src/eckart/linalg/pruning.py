"""Matrices with zeros of a pattern: the nearest one, and one whose other entries make up for what is left out."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.kernels.svd import EPS, LAPACK_SIDE
from eckart.kernels.symmetric import nearly_cholesky
from eckart.linalg.formed import formed_bounds
from eckart.linalg.patterns import Pattern, PerMatrix
from eckart.metric import Metric
from eckart.operator import Masked

PLAIN = Metric.plain()
ANYWHERE = PerMatrix()
BLOCK = 128  # columns whose mask is chosen at once
DAMPING = 1e-2  # share of the mean diagonal that is added to the second moment


def pruned(
    a: Tensor,
    size: int,
    pattern: Pattern = ANYWHERE,
    *,
    metric: Metric = PLAIN,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
    spectral: bool = True,
) -> Fit:
    """The entries of ``a`` (m, n) that count most, as they are, and zeros elsewhere.

    An entry counts ``a_ij^2 C_jj`` with ``C = R R^T``. In a plain or diagonal metric no matrix with zeros of this pattern and size is
    nearer. In a full one a mask is chosen as if inputs were not correlated; ``lower`` is then the least eigenvalue of C at unit diagonal
    times what is left out, which no such matrix can beat (up to a side of 1024; above nothing below is known).

    >>> fit = pruned(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), 1)
    >>> fit.op.dense().tolist(), fit.bounds[0].achieved
    ([[3.0, 0.0], [0.0, 2.0]], 1.0)

    Raises ``ValueError`` for a size that the pattern does not have.
    """
    dtype, rng = dtype or a.dtype, rng or Generator().manual_seed(0)
    check_size(a, size, pattern)
    weights = metric.weights(a.shape[1])
    op = Masked.of(a.to(dtype), pattern.mask(_scores(a, weights), size))
    lower, plain = _lowers(a, size, pattern, metric, weights)
    bounds = formed_bounds(a, op, metric, lower=lower, plain_lower=plain, rng=rng, spectral=spectral)
    return Fit(op=op, bounds=bounds, how=f"largest entries by {pattern}")


def brain_surgeon(
    a: Tensor,
    size: int,
    pattern: Pattern = ANYWHERE,
    *,
    metric: Metric = PLAIN,
    block: int = BLOCK,
    damping: float = DAMPING,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
    spectral: bool = True,
) -> Fit:
    """Zeros of a pattern in ``a`` (m, n) column by column, the columns behind making up for each error: optimal brain surgeon.

    With ``U^T U = (C + damping * mean diag C * I)^-1``, U upper triangular, the error ``e = (w_j - x_j) / U_jj`` of column j is
    taken from those behind it: ``W -= e U_j``. At the begin of each ``block`` of columns its mask is chosen, by the
    largest ``w_ij^2 / U_jj^2`` (for groups at the begin of each group). A column that no input reaches is left out. In a plain or diagonal
    metric there is nothing to make up for, and the result is that of ``pruned`` but for the blocks and the damping.

    Source: Hassibi and Stork (1993); column by column with one factor for all rows, Frantar and Alistarh, arXiv:2301.00774.

    >>> x = torch.tensor([[1.0, 1.0], [0.0, 0.1]])  # two inputs that are nearly one
    >>> metric = Metric.gram("inputs", x @ x.T)
    >>> [round(fit(torch.ones(1, 2), 1, metric=metric).bounds[0].achieved, 3) for fit in (pruned, brain_surgeon)]
    [0.1, 0.1]

    Raises ``ValueError`` for a size that the pattern does not have, a block below 1 or not of whole groups, and a damping not above 0.
    """
    dtype, rng = dtype or a.dtype, rng or Generator().manual_seed(0)
    check_size(a, size, pattern)
    check_surgery(pattern, block, damping)
    wide = a.to(torch.float64).clone()
    weights = metric.weights(a.shape[1])
    upper = _inverse_root(metric.second_moment(a.shape[1]), damping)
    dead = weights == 0
    wide[:, dead] = 0
    mask = torch.zeros_like(wide, dtype=torch.bool)
    step = pattern.chosen_at_once(block)
    for start in range(0, wide.shape[1], block):
        stop = min(start + block, wide.shape[1])
        errors = torch.zeros(len(wide), stop - start, dtype=torch.float64, device=wide.device)
        for j in range(start, stop):
            if (j - start) % step == 0:
                here = slice(j, min(j + step, stop))
                scores = wide[:, here].square() / upper.diagonal()[here].square()
                mask[:, here] = pattern.mask(scores, size, j, wide.shape[1])
            kept = torch.where(mask[:, j], wide[:, j], torch.zeros_like(wide[:, j])).to(dtype).to(torch.float64)
            errors[:, j - start] = (wide[:, j] - kept) / upper[j, j]
            wide[:, j:stop] -= errors[:, j - start, None] * upper[j, j:stop]
            wide[:, j] = kept
        wide[:, stop:] -= errors @ upper[start:stop, stop:]
    op = Masked.of(wide.to(dtype), mask)
    lower, plain = _lowers(a, size, pattern, metric, weights)
    bounds = formed_bounds(a, op, metric, lower=lower, plain_lower=plain, rng=rng, spectral=spectral)
    return Fit(op=op, bounds=bounds, how=f"optimal brain surgeon, {pattern}, blocks of {block}")


def check_size(a: Tensor, size: int, pattern: Pattern) -> None:
    """Raise ``ValueError`` for a size that the pattern does not have, and for what is no matrix."""
    if a.ndim != 2 or not a.is_floating_point():
        raise ValueError(f"a matrix of floating-point numbers is wanted, not {tuple(a.shape)} of {a.dtype}")
    most = pattern.sizes(a.shape[1])
    if not 1 <= size <= most:
        raise ValueError(f"size {size} of {pattern} on {a.shape[1]} columns: give one from 1 to {most}")


def check_surgery(pattern: Pattern, block: int, damping: float) -> None:
    """Raise ``ValueError`` for settings with which ``brain_surgeon`` does not work."""
    if block < 1 or block % pattern.chosen_at_once(block):
        raise ValueError(f"block {block} must be at least 1, and whole groups where the pattern has groups")
    if not (math.isfinite(damping) and damping > 0):
        raise ValueError(f"damping {damping:g} must be finite and above 0")


def pruned_tails(a: Tensor, pattern: Pattern, metric: Metric) -> Tensor:
    """``sum a_ij^2 C_jj`` of what masks of each size leave out (sizes + 1,): the squared error in a plain or diagonal metric."""
    return pattern.tails(_scores(a, metric.weights(a.shape[1])))


def _scores(a: Tensor, weights: Tensor) -> Tensor:
    return a.to(torch.float64).square() * weights


def _lowers(
    a: Tensor, size: int, pattern: Pattern, metric: Metric, weights: Tensor
) -> tuple[float | None, float | None]:
    """What no matrix with zeros of this pattern beats, in the metric and in the Frobenius norm."""

    def left_out(weights: Tensor) -> float:
        scores = _scores(a, weights)
        return float(scores[~pattern.mask(scores, size)].sum())

    plain = math.sqrt(left_out(torch.ones_like(weights)))
    if metric.is_diagonal:
        return math.sqrt(left_out(weights)), plain
    if len(weights) > LAPACK_SIDE:
        return None, plain
    return math.sqrt(_least_share(metric.second_moment(len(weights)), weights) * left_out(weights)), plain


def _least_share(moment: Tensor, weights: Tensor) -> float:
    """A certain s >= 0 with ``C - s diag C`` positive semidefinite: the least eigenvalue of C at unit diagonal, less its rounding."""
    there = weights > 0
    if not bool(there.any()):
        return 0.0
    lengths = weights[there].sqrt()
    unit = moment[there][:, there] / lengths / lengths[:, None]
    least = float(torch.linalg.eigvalsh(unit)[0])
    return max(0.0, least - 4 * len(unit) ** 1.5 * EPS)


def _inverse_root(moment: Tensor, damping: float) -> Tensor:
    """U upper triangular with ``U^T U = (C + damping * mean diag C * I)^-1``; an input that never arrives counts as a mean one."""
    moment = moment.clone()
    diagonal = moment.diagonal()
    mean = float(diagonal.mean())
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    # C = V V^T for V upper triangular: Cholesky's factor with rows and columns in reverse.
    factor, _ = nearly_cholesky(moment.flip(0, 1))
    upper: Tensor = torch.linalg.solve_triangular(factor.flip(0, 1), torch.eye(len(moment)).to(moment), upper=True)
    return upper
