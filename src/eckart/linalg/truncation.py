"""The truncation of a matrix in memory: exact, or as good as the best to a given accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm
from eckart.kernels.randomized import InMemory, Subspace
from eckart.kernels.svd import SVD, fix_signs, singular_values
from eckart.linalg.enclosure import Optimum, measured_bounds
from eckart.linalg.factors import completed, stored
from eckart.linalg.projected import Projected, frobenius_bound
from eckart.linalg.routes import Automatic, Route
from eckart.metric import Coordinates, Metric

_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Truncation:
    """A matrix to be truncated: decomposed when it is first needed, once for all ranks where that is done exactly."""

    target: Tensor
    metric: Metric
    accuracy: float
    route: Route = Automatic()

    def __post_init__(self) -> None:
        if self.target.ndim != 2 or not self.target.is_floating_point():
            kind = f"a tensor of shape {tuple(self.target.shape)} in {self.target.dtype}"
            raise ValueError(f"a matrix of floating-point numbers is wanted, not {kind}")
        # The norm, which is wanted later, is several times faster than a look at each entry.
        if not math.isfinite(self.size) and not bool(torch.isfinite(self.target).all()):
            m, n = self.target.shape
            raise ValueError(f"the {m} x {n} matrix holds NaN or infinity")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the target."""
        m, n = self.target.shape
        return m, n

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of the target."""
        return frobenius_norm(self.target)

    @cached_property
    def norm(self) -> float:
        """The norm of the target in the metric, where it is iterated on."""
        if self.metric.is_plain:
            return self.size
        return self.metric.norm(self.target) if self.seen is None else self.seen.size

    @cached_property
    def seen(self) -> Coordinates | None:
        """The target as a full metric sees it; other metrics need no other coordinates."""
        return None if self.metric.is_diagonal else self.metric.coordinates(self.target)

    @cached_property
    def plain(self) -> SVD:
        """The singular values of the target itself."""
        return self.whitened if self.metric.is_plain else singular_values(self.target)

    @cached_property
    def whitened(self) -> SVD:
        """The exact decomposition of ``target @ R``."""
        return self.metric.svd(self.target, self.route.lapack_side)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool = True) -> Fit:
        """The projection on the leading left singular vectors of ``target @ R``, its factors rounded to ``dtype``.

        Bounds are measured after the rounding, ``spectral`` ones as well if wanted. Raises ``ValueError`` for a rank outside
        1 … min(m, n).
        """
        checked_rank(rank, self.shape)
        found, how = self.iterated(rank, rng)
        optimum: Optimum | None = None
        if found is None:
            plain = self.plain if spectral or self.metric.is_plain else None  # before there are vectors to be held
            optimum = Optimum(self.whitened, plain)
            op = stored(self.leading(rank), self.target, dtype)[0]
        elif self.metric.is_plain:
            projected = Projected.on(found, self.target, self.size, dtype)
            if not spectral:
                own = frobenius_bound(projected, found, self.target, self.size)
                return Fit(op=projected.op, bounds=(own,), how=how)
            op = projected.op
        else:
            op = stored(fix_signs(found.u), self.target, dtype)[0]
        bounds = measured_bounds(
            self.target,
            op,
            self.metric,
            optimum,
            rng=rng,
            sizes=(self.norm if found is not None else float(self.whitened.s.norm()), self.size),
            seen=None if found is None else self.seen,
            spectral=spectral,
        )
        return Fit(op=op, bounds=bounds, how=how)

    def tails(self, rank: int, rng: Generator) -> Tensor:
        """Squared errors in the metric after 0, 1, … directions: for ``rank`` of them at least, for all where that is exact."""
        found, _ = self.iterated(rank, rng)
        if found is None:
            return self.whitened.tails()
        return energies_left(self.norm**2, found)

    def error(self, rank: int, rng: Generator) -> float:
        """The error in the metric that ``fit`` will come to, but for the rounding of its factors."""
        tails = self.tails(rank, rng)
        return float(tails[min(rank, len(tails) - 1)].sqrt())

    def leading(self, rank: int) -> Tensor:
        """The leading left singular vectors (m, r) of ``target @ R``, by its exact decomposition."""
        found = self.whitened
        if found.v is None:
            return completed(found.u[:, :rank], rank)
        # For values near zero any orthonormal completion serves.
        return completed(fix_signs(torch.linalg.qr(self.metric.times(self.target, found.v[:, :rank])).Q), rank)

    def iterated(self, rank: int, rng: Generator) -> tuple[Subspace | None, str]:
        """The leading subspace by iteration where that is the faster way, and why this way was taken."""
        why = self.route.exact(self.shape, rank, self.metric, self.accuracy)
        if why is not None:
            return None, why
        if self.seen is not None:
            a = self.seen.matrix
        else:
            a = self.target if self.metric.right is None else self.target * self.metric.right.to(torch.float32)
        return self.route.leading(InMemory(a), rank, energy=self.norm**2, accuracy=self.accuracy, rng=seeded(rng))


def energies_left(energy: float, found: Subspace) -> Tensor:
    """What 0, 1, … of the directions found leave of ``energy``."""
    squares = found.s.to(torch.float64).square().cumsum(0)
    return torch.cat([squares.new_zeros(1), squares]).neg_().add_(energy).clamp_(min=0)


def seeded(rng: Generator) -> Generator:
    """A generator for where an iteration starts: independent of what bounds are probed with, and of how often ``rng`` was used.

    >>> seeded(Generator().manual_seed(1)).initial_seed() == seeded(Generator().manual_seed(2)).initial_seed()
    False
    """
    return Generator().manual_seed((rng.initial_seed() + _ODD) % 2**63)


def checked_rank(rank: int, shape: tuple[int, int]) -> None:
    """Raise ``ValueError`` for a rank that no matrix of this shape has."""
    m, n = shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} of a {m} x {n} matrix: give one from 1 to {min(m, n)}")
