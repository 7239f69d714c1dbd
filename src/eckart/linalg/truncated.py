"""The truncated singular value decomposition of whatever multiplies, by rank, energy, error or bytes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.linalg.certified import PLAIN
from eckart.linalg.factored import FactoredTruncation, low_rank_form
from eckart.linalg.implicit import ImplicitTruncation
from eckart.linalg.measured import Analysed, measured
from eckart.linalg.routes import Automatic, Route
from eckart.linalg.truncation import Truncation
from eckart.linalg.weighed import WeighedTruncation
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Operator, in_dtype

ACCURACY = 2e-3  # the error may exceed the smallest possible one by this share, where that saves time
FIRST_GUESS = 16  # the rank at which the search for one that is good enough begins
SMALL = 256  # the smaller side up to which nothing is iterated for


def truncated_svd(
    a: Tensor | Operator,
    rank: int | None = None,
    *,
    energy: float | None = None,
    error: float | None = None,
    bytes: int | None = None,
    metric: Metric | TwoSided = PLAIN,
    accuracy: float = ACCURACY,
    route: Route | None = None,
    dtype: torch.dtype | None = None,
    spectral: bool = False,
    rng: Generator | None = None,
) -> Fit:
    """Two factors whose error in ``metric`` is within ``1 + accuracy`` of the smallest possible for their rank, and its bounds.

    With ``W R = U S V^T`` the minimiser of ``||(W - X) R||_F`` of rank r is ``U_r U_r^T W``. That form needs neither an
    inverse nor a Cholesky factor of ``R R^T`` and is exact for a rank-deficient one. In a ``TwoSided`` metric, ``||L (W - X) R||_F``, the
    minimiser is of another form (``linalg/weighed.py``), as free of inverses; operators are formed for it.

    One size is to be given: the ``rank``; the share ``energy`` of ``||W R||_F^2`` that is to be kept; the ``error`` that is allowed
    as a share of ``||W R||_F``; or the ``bytes`` that both factors may take. For ``energy`` and ``error`` the smallest rank is looked
    for, and what was asked for holds of the factors as rounded to ``dtype`` (that of ``a`` where none is given).

    ``a`` is a matrix (m, n) or an operator. What is of low rank by the way it is composed (factors, their sums and products) is
    decomposed by its factors. Of other operators only products with a few columns and panels of rows are taken, unless an exact
    way is the better one or the metric a full one, for which they are formed. The ``route`` is chosen by itself: LAPACK up to a
    smaller side of 256; above it subspace iteration, or an exact decomposition where ``accuracy`` is 0 or the rank above a third of the
    side (a sixth in a full metric): by LAPACK up to a side of 1024, by a Gram matrix in float64 above, whose eigenvectors are taken in
    float32 where an ``accuracy`` is given and they can be certified to have it. With ``spectral`` it is LAPACK up to 1024 always, and
    float64. ``Fit.how`` says which and why. The result depends on the seed of ``rng`` (0 where none is given), not on its state.

    Bounds are those in the metric and in the Frobenius norm, the latter without ``lower`` where the metric is another. With ``spectral``
    there is one in the spectral norm as well, every one has its ``lower``, and that comes near the optimum also where the result was
    iterated for in the plain metric: else it is certain but loose there. That takes as long again as a large matrix itself, or several
    times as long.

    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> fit = truncated_svd(w, 2)
    >>> [round(abs(x), 5) for x in fit.op.dense().diag().tolist()], round(fit.bounds[0].achieved, 6)
    ([3.0, 2.0, 0.0], 1.0)
    >>> [truncated_svd(w, **size).op.rank for size in ({"energy": 0.9}, {"error": 0.6}, {"bytes": 30})]
    [2, 1, 1]

    Raises ``ValueError`` for a size that is impossible or not given once, for what is no matrix of floating-point numbers or
    holds NaN or infinity, for a negative ``accuracy``, for an ``error`` that factors in ``dtype`` cannot come down to, for a ``dtype``
    whose range the factors leave, and for a norm beyond the numbers of float64.
    """
    if not accuracy >= 0:
        raise ValueError(f"the accuracy is a share of the smallest error and not below 0: {accuracy:g}")
    rng = rng or Generator().manual_seed(0)
    dtype = dtype or _dtype_of(a)
    prepared = analysed(a, metric, accuracy, route or (Automatic() if spectral else Automatic(SMALL, single=True)))
    match rank, energy, error, bytes:
        case int(), None, None, None:
            return prepared.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
        case None, (float() | int()), None, None:
            if not 0 < energy <= 1:
                raise ValueError(f"the energy to be kept is a share above 0 and up to 1: {energy:g}")
            return _within(prepared, 1 - energy, a.shape, dtype, rng, spectral)
        case None, None, (float() | int()), None:
            if not 0 <= error < 1:
                raise ValueError(f"the error allowed is a share of the norm from 0 to below 1: {error:g}")
            return _within(prepared, error**2, a.shape, dtype, rng, spectral)
        case None, None, None, int():
            rank = _affordable(bytes, a.shape, dtype)
            return prepared.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
        case _:
            raise ValueError("one size is to be given, and once: rank, energy, error or bytes, each as a number")


def analysed(a: Tensor | Operator, metric: Metric | TwoSided, accuracy: float, route: Route) -> Analysed:
    """The way in which a matrix or an operator is decomposed; nothing is decomposed yet."""
    if isinstance(a, Dense):
        a = a.matrix
    if isinstance(metric, TwoSided):
        formed = a if isinstance(a, Tensor) else in_dtype(a, torch.float64).dense()
        return measured(formed, lambda matrix: WeighedTruncation(matrix, metric, accuracy, route))
    if isinstance(a, Tensor):
        return measured(a, lambda matrix: Truncation(matrix, metric, accuracy, route))
    factors = low_rank_form(a)
    if factors is not None and 0 < factors.rank < min(a.shape):
        return FactoredTruncation(factors, metric)
    return ImplicitTruncation(a, metric, accuracy, route)


def _affordable(size: int, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    one = sum(shape) * dtype.itemsize
    if size < one:
        raise ValueError(f"{size:,} bytes hold no factors of a {shape[0]} x {shape[1]} matrix: rank 1 takes {one:,}")
    return min(size // one, *shape)


def _within(
    prepared: Analysed, share: float, shape: tuple[int, ...], dtype: torch.dtype, rng: Generator, spectral: bool
) -> Fit:
    """The fit of least rank that leaves at most ``share`` of the energy, as rounded."""
    rank, most = _least_rank(prepared, share, min(shape), rng), min(shape)
    step = 1
    while True:
        fit = prepared.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
        own = fit.bounds[0]
        # A full rank has nothing to leave out: what remains there is the rounding of the factors. Of what the metric does not see
        # nothing is to be kept.
        if own.upper <= share**0.5 * own.scale or (rank == most and share == 0) or own.scale == 0:
            return fit
        if rank == most:
            raise ValueError(
                f"factors in {dtype} leave {own.upper / own.scale:.2g} of the norm at any rank, "
                f"more than the {share**0.5:.2g} allowed: give a wider dtype"
            )
        rank, step = min(rank + step, most), 2 * step


def _least_rank(prepared: Analysed, share: float, most: int, rng: Generator) -> int:
    guess = min(FIRST_GUESS, most)
    while True:
        tails = prepared.tails(guess, rng)
        good = (tails <= share * tails[0]).nonzero()
        if len(good):
            return max(1, int(good[0]))
        if guess == most or len(tails) > guess + 1:
            return most
        guess = min(2 * guess, most)


def _dtype_of(a: Tensor | Operator) -> torch.dtype:
    if isinstance(a, Tensor):
        return a.dtype
    floating = [t.dtype for t in a.tensors().values() if t.is_floating_point()]
    return max(floating, key=lambda dtype: dtype.itemsize, default=torch.float32)
