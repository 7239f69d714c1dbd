"""Rules that choose some of a matrix's columns: a way to choose, on what it is shown of the columns.

What the literature calls a selection rule is a pair here, and any pair may be formed:

=====================================  =====================================================================
``DEIM()``                             discrete empirical interpolation of leading singular vectors
``PivotedQR()``                        QR with column pivoting
``PivotedQR(LeadingVectors())``        Q-DEIM (Drmač and Gugercin 2016)
``StrongRRQR()``                       strong rank-revealing QR
``Largest()``                          the columns of largest norm
``Largest(LeadingVectors())``          the largest leverage scores
``Sampled()``                          by squared norms (Frieze, Kannan and Vempala 2004)
``Sampled(LeadingVectors())``          by leverage scores (Drineas, Mahoney and Muthukrishnan 2008)
``Sampled(RidgeVectors())``            by ridge leverage scores (Cohen, Musco and Musco 2017)
``Sampled(power=-2)``                  by inverted squared norms
``Sampled(power=0)``                   evenly
=====================================  =====================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.kernels.pivoting import interpolation_points, pivoted_qr, strong_pivots
from eckart.kernels.svd import fix_signs, svd

# The logarithm that stands for a norm of zero: below that of any other, and not infinite, so that zeros are drawn in random order.
_LOG_OF_ZERO = -1e4


@dataclass(frozen=True)
class Candidates:
    """The columns of a matrix (m, n) to choose from, and the singular vectors of the matrix, computed once if anyone asks.

    ``transposed`` are the candidates among its rows, where there are such: they share the decomposition.

    >>> both = Candidates(torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]))
    >>> both.vectors(1).abs().round(decimals=9).tolist(), both.T.vectors(1).abs().round(decimals=9).tolist()
    ([[0.0, 1.0]], [[1.0, 0.0, 0.0]])
    """

    matrix: Tensor  # (m, n)
    transposed: Candidates | None = None

    @cached_property
    def T(self) -> Candidates:
        """The rows as candidates."""
        return self.transposed or Candidates(self.matrix.T, self)

    @property
    def values(self) -> Tensor:
        """The singular values (min(m, n),), descending, float64."""
        return self._decomposed[1]

    def vectors(self, rank: int) -> Tensor:
        """The leading ``rank`` right singular vectors as rows (rank, n), float64, signs fixed; no more than min(m, n)."""
        return self._decomposed[2][:, :rank].T

    @property
    def noise(self) -> float:
        """What the square of a singular value may be that is nothing but rounding."""
        return self._decomposed[3]

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Left vectors, values, right vectors and the noise."""
        if self.transposed is not None:
            left, values, right, noise = self.transposed._decomposed
            return right, values, left, noise
        found = svd(self.matrix)
        # Orthogonal as they stand where the values are well above rounding; for the others any completion serves.
        right = torch.linalg.qr(self.matrix.to(torch.float64).T @ found.u).Q
        return found.u, found.s, fix_signs(right), found.slack**2 + found.slack_sq


class View(Protocol):
    """What a rule is shown of the columns: a matrix (k, n) with one column for each, for a choice of ``count`` of them."""

    def __call__(self, candidates: Candidates, count: int) -> Tensor:
        """That matrix."""


class Rule(Protocol):
    """A way to choose ``count`` columns of a matrix (k, n) of what it is to be shown, without repetition.

    It gives indices (count,) in order of choice.
    """

    @property
    def on(self) -> View:
        """What it is to be shown."""

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices."""


def chosen(candidates: Candidates, count: int, rule: Rule, rng: Generator) -> Tensor:
    """``count`` columns by the rule, which is given what it is to be shown.

    >>> chosen(Candidates(torch.tensor([[1.0, 4.0, 2.0]])), 2, Largest(), Generator()).tolist()
    [1, 2]
    """
    return rule(rule.on(candidates, count), count, rng)


def _refuse_no_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise ValueError(f"{rank} leading singular vectors: give at least 1, or None for as many as columns are wanted")


@dataclass(frozen=True)
class Entries:
    """The columns themselves, (m, n)."""

    def __call__(self, candidates: Candidates, count: int) -> Tensor:
        """What it shows, one column for each candidate."""
        return candidates.matrix


@dataclass(frozen=True)
class LeadingVectors:
    """The ``rank`` leading right singular vectors as rows, by default as many as columns are wanted.

    The squared lengths of the columns are the leverage scores, which add up to the rank.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        _refuse_no_rank(self.rank)

    def __call__(self, candidates: Candidates, count: int) -> Tensor:
        """What it shows, one column for each candidate."""
        return candidates.vectors(count if self.rank is None else self.rank)


@dataclass(frozen=True)
class RidgeVectors:
    """All right singular vectors as rows, each times ``s / sqrt(s**2 + ridge)`` for its singular value s.

    The squared lengths of the columns a_i are the ridge leverage scores ``a_i^T (A A^T + ridge)^-1 a_i``. The ridge is what the
    best approximation of ``rank`` leaves, divided by the rank: ``||A - A_k||_F**2 / k`` (Cohen, Musco and Musco 2017);
    the rank is by default the number of columns wanted. Where nothing is left, what rounding leaves takes its place.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        _refuse_no_rank(self.rank)

    def __call__(self, candidates: Candidates, count: int) -> Tensor:
        """What it shows, one column for each candidate."""
        rank = count if self.rank is None else self.rank
        squares = candidates.values.square()
        ridge = max(float(squares[rank:].sum()), candidates.noise) / rank
        kept = squares / (squares + ridge) if ridge > 0 else squares
        return kept.sqrt()[:, None] * candidates.vectors(len(squares))


@dataclass(frozen=True)
class DEIM:
    """The points by which the rows of what is shown are best interpolated, one row after another: ``interpolation_points``.

    Of k vectors no more than k points. With ``LeadingVectors`` columns and rows so chosen give
    ``||A - C U R||_2 <= (1 / s_min(V[p]) + 1 / s_min(U[q])) s_{k+1}`` (Sorensen and Embree 2016).

    >>> DEIM()(torch.tensor([[0.6, 0.8, 0.0], [0.8, -0.6, 0.1]]), 2, Generator()).tolist()
    [1, 0]
    """

    on: View = LeadingVectors()

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        return interpolation_points(_checked(shown, count), count)


@dataclass(frozen=True)
class PivotedQR:
    """The pivots of QR with column pivoting: ``pivoted_qr``.

    >>> PivotedQR()(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 0.5]]), 2, Generator()).tolist()
    [0, 2]
    """

    on: View = Entries()

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        return pivoted_qr(_checked(shown, count), count).order[:count]


@dataclass(frozen=True)
class StrongRRQR:
    """The pivots of strong rank-revealing QR with the parameter ``f`` > 1: ``strong_pivots``.

    >>> StrongRRQR()(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 0.5]]), 2, Generator()).tolist()
    [0, 2]
    """

    on: View = Entries()
    f: float = 2.0

    def __post_init__(self) -> None:
        if not self.f > 1:
            raise ValueError(f"strong rank-revealing QR with f = {self.f:g}: give a number above 1, such as 2")

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        return strong_pivots(_checked(shown, count), count, self.f)


@dataclass(frozen=True)
class Largest:
    """The columns of largest norm, the first of several equals.

    >>> Largest()(torch.tensor([[1.0, -4.0, 2.0]]), 2, Generator()).tolist()
    [1, 2]
    """

    on: View = Entries()

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        return _lengths(_checked(shown, count)).argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True)
class Sampled:
    """Columns drawn one after another without replacement, each with a probability proportional to ``norm ** power``.

    A power of 2 draws by squared norms, which are the leverage scores of singular vectors; 0 draws evenly, a negative one
    prefers small columns. Columns of zeros come last, with a negative power first. All draws are made at once, from one
    exponential variable for each column (Efraimidis and Spirakis 2006).

    >>> Sampled()(torch.tensor([[1.0, 0.0, 2.0]]), 2, Generator().manual_seed(0)).sort().values.tolist()
    [0, 2]
    """

    on: View = Entries()
    power: float = 2.0

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        lengths = _lengths(_checked(shown, count))
        logs = torch.where(lengths > 0, lengths.log(), torch.full_like(lengths, _LOG_OF_ZERO))
        uniform = torch.rand(len(lengths), generator=rng, dtype=torch.float64).to(lengths.device)
        waiting = -torch.log1p(-uniform)
        keys = self.power * logs - waiting.clamp(min=torch.finfo(torch.float64).tiny).log()
        return keys.argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True)
class Rarest:
    """Columns drawn without replacement with probabilities proportional to ``1 / (p + floor)``, p being their shares of all squares.

    Small columns are the likelier ones; where the floor is above most shares, all are nearly alike.

    >>> Rarest(floor=1e-9)(torch.tensor([[1.0, 100.0, 2.0]]), 2, Generator().manual_seed(0)).sort().values.tolist()
    [0, 2]
    """

    on: View = Entries()
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"floor is {self.floor}: take a number that is 0 or more")

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        squares = _lengths(_checked(shown, count)).square()
        shares = squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
        uniform = torch.rand(len(shares), generator=rng, dtype=torch.float64).to(shares.device)
        waiting = -torch.log1p(-uniform).clamp(max=-torch.finfo(torch.float64).tiny)
        return ((shares + self.floor) * waiting).argsort(stable=True)[:count]


@dataclass(frozen=True)
class Given:
    """These columns, whatever the matrix is.

    >>> Given((4, 0))(torch.ones(1, 5), 2, Generator()).tolist()
    [4, 0]

    Raises ``ValueError`` where one is named twice, none of the matrix, or their number is not the one that is wanted.
    """

    indices: tuple[int, ...]
    on: View = Entries()

    def __call__(self, shown: Tensor, count: int, rng: Generator) -> Tensor:
        """The indices (count,) in order of choice."""
        n = _checked(shown, count).shape[1]
        if len(self.indices) != count or len(set(self.indices)) != count:
            raise ValueError(f"{count} different columns are wanted, not {len(set(self.indices))}: {self.indices}")
        if not all(0 <= index < n for index in self.indices):
            raise ValueError(f"columns are numbered from 0 to {n - 1}: {self.indices}")
        return torch.tensor(self.indices, dtype=torch.int64, device=shown.device)


def _checked(shown: Tensor, count: int) -> Tensor:
    if shown.ndim != 2 or not 1 <= count <= shown.shape[1]:
        raise ValueError(
            f"{count} columns of a tensor of shape {tuple(shown.shape)}: give at least 1, and a matrix of as many"
        )
    if not bool(torch.isfinite(shown).all()):
        raise ValueError(f"the {shown.shape[0]} x {shown.shape[1]} matrix holds NaN or infinity")
    return shown


def _lengths(shown: Tensor) -> Tensor:
    """The norms of the columns, (n,), float64."""
    return torch.linalg.vector_norm(shown.to(torch.float64), dim=0)
