"""The truncated singular value decomposition: the best approximation of given rank, or one that is as good to a given accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm
from eckart.kernels.randomized import Subspace, leading_subspace
from eckart.kernels.svd import LAPACK_SIDE, fix_signs, singular_values
from eckart.linalg.enclosure import PLAIN, Optimum, measured_bounds
from eckart.linalg.factors import image, stored
from eckart.metric import Metric

ACCURACY = 2e-3  # the error may exceed the smallest possible one by this share, where that saves time
LARGEST_SHARE = 3  # above a third of the smaller side an exact decomposition is as fast
_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Truncation:
    """A matrix to be truncated: decomposed when it is first needed, once for all ranks where that is done exactly."""

    target: Tensor
    metric: Metric
    accuracy: float

    def __post_init__(self) -> None:
        if self.target.ndim != 2 or not self.target.is_floating_point():
            kind = f"a tensor of shape {tuple(self.target.shape)} in {self.target.dtype}"
            raise ValueError(f"a matrix of floating-point numbers is wanted, not {kind}")
        # The norm, which is wanted later, is several times faster than a look at each entry.
        if not math.isfinite(self.size) and not bool(torch.isfinite(self.target).all()):
            m, n = self.target.shape
            raise ValueError(f"the {m} x {n} matrix holds NaN or infinity")

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of the target."""
        return frobenius_norm(self.target)

    @cached_property
    def sizes(self) -> tuple[float, float]:
        """The norms of the target in the metric and in the Frobenius norm."""
        return self.size if self.metric.is_plain else self.metric.norm(self.target), self.size

    @cached_property
    def optimum(self) -> Optimum:
        """Exact decompositions: of ``target @ R`` with vectors, of ``target`` without, unless the metric is the plain one."""
        plain = None if self.metric.is_plain else singular_values(self.target)  # before there are vectors to be held
        whitened = self.metric.svd(self.target)
        return Optimum(whitened, plain or whitened)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator) -> Fit:
        """The projection on the leading left singular vectors of ``target @ R``, its factors rounded to ``dtype``.

        Bounds are measured after the rounding. Raises ``ValueError`` for a rank outside 1 … min(m, n).
        """
        m, n = self.target.shape
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank {rank} of a {m} x {n} matrix: give one from 1 to {min(m, n)}")
        found, how = self._iterated(rank, rng)
        if found is None:
            u = _completed(self._leading(rank), rank)  # (m, r)
            uw = image(u, self.target)
        else:
            u = fix_signs(found.u)
            uw = found.image if self.metric.is_plain else image(u.to(torch.float64), self.target)
        op, basis = stored(u, self.target, uw, dtype)
        optimum = self.optimum if found is None else None
        bounds = measured_bounds(self.target, op, self.metric, optimum, rng=rng, basis=basis, sizes=self.sizes)
        return Fit(op=op, bounds=bounds, how=how)

    def error(self, rank: int, rng: Generator) -> float:
        """The error in the metric that ``fit`` will come to, but for the rounding of its factors."""
        found, _ = self._iterated(rank, rng)
        if found is None:
            return float(self.optimum.whitened.tails()[min(rank, len(self.optimum.whitened.s))].sqrt())
        return math.sqrt(max(self.sizes[0] ** 2 - float(found.s.square().sum()), 0.0))

    def _leading(self, rank: int) -> Tensor:
        """The leading left singular vectors of ``target @ R``; as many as its rank at the most."""
        found = self.optimum.whitened
        if found.v is None:
            return found.u[:, :rank]
        # For values near zero any orthonormal completion serves.
        return fix_signs(torch.linalg.qr(self.metric.times(self.target, found.v[:, :rank])).Q)

    def _iterated(self, rank: int, rng: Generator) -> tuple[Subspace | None, str]:
        """The leading subspace by iteration where that is the faster way, and why this way was taken."""
        side = min(self.target.shape)
        if side <= LAPACK_SIDE:
            return None, f"exact, by LAPACK: the smaller side is {side}"
        if self.accuracy == 0:
            return None, "exact, by a float64 Gram matrix: no error above the smallest possible is allowed"
        if not self.metric.is_diagonal:
            return None, f"exact, by a float64 Gram matrix in the {self.metric.name} metric"
        if LARGEST_SHARE * rank > side:
            return None, f"exact, by a float64 Gram matrix: rank {rank} is more than a third of {side}"
        a = self.target if self.metric.right is None else self.target * self.metric.right.to(torch.float32)
        # Independent of what the bounds are probed with, and of how often ``rng`` was used before.
        start = Generator().manual_seed((rng.initial_seed() + _ODD) % 2**63)
        energy = self.size**2 if self.metric.is_plain else None
        found = leading_subspace(a, rank, accuracy=self.accuracy, rng=start, energy=energy)
        if found is None:
            return None, "exact, by a float64 Gram matrix: subspace iteration did not get there"
        return found, f"{found.steps} steps of subspace iteration, {100 * found.excess:.2g} % above the optimum"


def truncated_svd(
    a: Tensor,
    rank: int,
    *,
    metric: Metric = PLAIN,
    accuracy: float = ACCURACY,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """Factors of rank ``rank`` whose error in ``metric`` is within ``1 + accuracy`` of the smallest possible, and its bounds.

    With ``W R = U S V^T`` the minimiser of ``||(W - X) R||_F`` of rank r is ``U_r U_r^T W``. That form needs neither an
    inverse nor a Cholesky factor of ``R R^T`` and is exact for a rank-deficient one. Matrices whose smaller side is up to
    1024 are decomposed by LAPACK, larger ones by subspace iteration or, where ``accuracy`` is 0, the rank above a third of the
    side or the metric a full one, by a Gram matrix in float64; ``Fit.how`` says which and why. Factors are in ``dtype``, by
    default that of ``a``. The result depends on the seed of ``rng`` (0 where none is given), not on its state.

    >>> fit = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
    >>> [round(abs(x), 5) for x in fit.op.dense().diag().tolist()], round(fit.bounds[0].achieved, 6)
    ([3.0, 2.0, 0.0], 1.0)

    Raises ``ValueError`` for a rank outside 1 … min(m, n), for what is no matrix of floating-point numbers or holds NaN or
    infinity, and for a negative ``accuracy``.
    """
    if accuracy < 0:
        raise ValueError(f"the accuracy is a share of the smallest error and not below 0: {accuracy:g}")
    rng = rng or Generator().manual_seed(0)
    return Truncation(a, metric, accuracy).fit(rank, dtype=dtype or a.dtype, rng=rng)


def _completed(u: Tensor, rank: int) -> Tensor:
    """The first ``rank`` columns, completed where a rank-deficient metric leaves fewer."""
    if u.shape[1] >= rank:
        return u
    basis = torch.cat([u, torch.eye(u.shape[0], dtype=u.dtype, device=u.device)], dim=1)
    return torch.linalg.qr(basis).Q[:, :rank]
