"""Singular vectors and values, of the weight, the gradient or the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.pick import Pick, Top
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Seed, Seen
from eckart.linalg import ACCURACY, GramMatrix, Route, truncated_svd
from eckart.linalg.truncated import SMALL
from eckart.metric import Metric
from eckart.operator import Factors
from eckart.stats import MetricRule, Need, Plain

FEW = 3  # a third of the components and more are found as fast by decomposing the whole
FAR = 1e4  # between the first and the last value of which a Gram matrix tells the vectors to 1e-8
COLUMNS = 512  # of a matrix that are in float64 at any one time
CLOSE = 1e-6  # how far what a span holds may be above the least that it can


@dataclass(frozen=True)
class OfWeight:
    """Singular vectors and values of the weight W, or of ``W R`` in a metric of R, whose right vectors are taken back through R.

    With ``W R = U S V^T`` the parts are ``U``, ``S`` and ``S^-1 U^T W``, which is ``V^T R^-1`` where R has an inverse and needs none.

    >>> from eckart.adapters.pick import Top
    >>> seed = OfWeight()(Seen(torch.diag(torch.tensor([1.0, 3.0]))), Top(), 1, torch.Generator())
    >>> seed.middle.tolist(), seed.right.abs().tolist()
    ([3.0], [[0.0, 1.0]])

    Raises ``ValueError`` unless accuracy is 0 or more.
    """

    metric: MetricRule = Plain()
    accuracy: float = ACCURACY
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("accuracy", self.accuracy, least=0)

    @property
    def needs(self) -> frozenset[Need]:
        """What its metric needs."""
        return self.metric.needs

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Vectors and values."""
        return components(seen.weight, self.metric(seen.moments), pick, rank, self.accuracy, rng)


@dataclass(frozen=True)
class OfGradient:
    """Singular vectors and values of the gradient G of the loss, its mean over samples.

    Raises ``ValueError`` unless accuracy is 0 or more.
    """

    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("accuracy", self.accuracy, least=0)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Vectors and values."""
        assert seen.gradient is not None
        return components(seen.gradient, Metric.plain(), pick, rank, self.accuracy, rng)


@dataclass(frozen=True)
class OfFirstStep:
    """Singular vectors and values of ``-rate sign(G)``, the first step that Adam would take at this rate.

    Raises ``ValueError`` unless rate is above 0, and accuracy is 0 or more.
    """

    rate: float
    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("rate", self.rate, above=0)
        check_number("accuracy", self.accuracy, least=0)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Vectors and values."""
        assert seen.gradient is not None
        step = -self.rate * seen.gradient.sign()
        return components(step, Metric.plain(), pick, rank, self.accuracy, rng)


@dataclass(frozen=True)
class OfInputs:
    """Directions of greatest variance of the inputs, or of greatest second moment where they are not ``centred``, as rows.

    >>> from eckart.adapters.pick import Top
    >>> from eckart.stats import Moments
    >>> moments = Moments.zeros(2, gram=True)
    >>> moments.add(torch.tensor([[5.0, 1.0], [5.0, -1.0]]))
    >>> seen = Seen(torch.eye(2), moments)
    >>> [OfInputs(centred)(seen, Top(), 1, torch.Generator()).right.abs().round().tolist() for centred in (True, False)]
    [[[0.0, 1.0]], [[1.0, 0.0]]]

    Raises ``ValueError`` unless accuracy is 0 or more.
    """

    centred: bool = True
    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})
    gives: ClassVar[frozenset[str]] = frozenset({RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("accuracy", self.accuracy, least=0)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """The directions."""
        _, picked = pick(rank, seen.shape[1])
        return Seed(right=self._leading(seen, int(picked.max()) + 1)[0][:, picked].T)

    def shares(self, seen: Seen, most: int | None = None) -> Tensor:
        """Of the variance of the inputs the share of each direction, descending."""
        _, values, total = self._leading(seen, seen.shape[1] if most is None else min(most, seen.shape[1]))
        return values[:most] / max(total, torch.finfo(torch.float64).tiny)

    def _leading(self, seen: Seen, count: int) -> tuple[Tensor, Tensor, float]:
        """Directions as columns, at least so many, their variances, and the variance of all."""
        known = seen.worked_out.get(repr(self))
        if known is None or known[0].shape[1] < count:
            moment = self.moment(seen)
            seed = components(moment, Metric.plain(), Top(), count, self.accuracy, Generator().manual_seed(0))
            assert seed.left is not None
            assert seed.middle is not None
            known = seed.left, seed.middle, float(moment.diagonal().sum())
            seen.worked_out[repr(self)] = known
        return known

    def moment(self, seen: Seen) -> Tensor:
        """The covariance (n, n), or the second moment."""
        assert seen.moments is not None
        assert seen.moments.gram is not None
        count = max(1, seen.moments.count)
        mean = seen.moments.total / count
        moment = seen.moments.gram / count
        return moment.addr_(mean, mean, alpha=-1) if self.centred else moment


def components(matrix: Tensor, metric: Metric, pick: Pick, rank: int, accuracy: float, rng: Generator) -> Seed:
    """Picked left vectors, values and right vectors of a matrix (m, n) in a metric; ``ValueError`` where there are not as many."""
    left, right = pick(rank, min(matrix.shape))
    both = torch.cat([left, right])
    before, reach = int(both.min()), int(both.max()) + 1
    seen = matrix if metric.is_plain else metric.whiten(matrix.to(torch.float64))
    within, found = None, 0  # a basis whose components are those from this number on, and the matrix within it
    if reach < min(seen.shape):
        within = leading_span(seen, reach, accuracy, rng)
    elif FEW * (reach - before) < reach == min(seen.shape):
        within = trailing_span(seen.to(torch.float64), reach - before)
        found = 0 if within is None else before
    rows = None
    if within is None:  # a whole decomposition will do
        basis, values, _ = torch.linalg.svd(seen.to(torch.float64), full_matrices=False)
    else:
        span, inner = within
        turned, values = left_vectors(inner)
        basis = span @ turned
        rows = turned.T @ inner if metric.is_plain else None
    if found + len(values) < reach:
        raise ValueError(
            f"{len(values)} of {min(matrix.shape)} components are left in the metric of what was seen, and number {reach} is picked: "
            "show it more, or pick Top"
        )
    rows = times(basis, matrix) if rows is None else rows
    signs = torch.where(basis.gather(0, basis.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    lengths = signs[0] * torch.where(values > 0, values, torch.ones_like(values))
    left, right = left - found, right - found
    return Seed(left=(basis * signs)[:, left], middle=values[right], right=rows[right] / lengths[right, None])


def times(basis: Tensor, matrix: Tensor) -> Tensor:
    """``B^T M`` (k, n) of a basis (m, k) in float64, without a copy of the whole matrix in it."""
    return torch.cat([basis.T @ columns.to(torch.float64) for columns in matrix.split(COLUMNS, dim=1)], dim=1)


def left_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors as columns and the values, descending, of a matrix (k, n) in float64 with no more rows than columns.

    From the Gram matrix of the rows, where that tells the vectors.

    >>> vectors, values = left_vectors(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64))
    >>> vectors.abs().tolist(), values.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [2.0, 1.0])
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    if float(squares[0]) * FAR**2 >= float(squares[-1]):
        return vectors.flip(1), squares.flip(0).sqrt()
    exact, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return exact, values


def leading_span(matrix: Tensor, count: int, accuracy: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (m, count) of the left vectors of the ``count`` largest values, and the matrix within it.

    They are exact where the accuracy is 0 or the matrix small.
    """

    def found(route: Route | None) -> tuple[Tensor, Tensor]:
        op = truncated_svd(matrix, count, accuracy=accuracy, route=route, dtype=torch.float64, rng=rng).op
        assert isinstance(op, Factors)
        span = torch.linalg.qr(op.left).Q
        return span, times(span, matrix)

    if accuracy > 0 and min(matrix.shape) > SMALL:
        return found(None)
    span, inner = found(GramMatrix())
    squares = torch.linalg.eigvalsh(inner @ inner.T)
    return (span, inner) if float(squares[0]) * FAR**2 >= float(squares[-1]) else found(None)


def trailing_span(matrix: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """An orthonormal basis (m, count) of the left vectors of the ``count`` smallest of min(m, n) values of a float64 matrix.

    And the matrix within it. With ``A = Q T``, or ``A^T = Q T`` of a wide matrix, they are the largest ones of the triangular ``T^-1``,
    whose vectors a Gram matrix tells well where those of ``A^T A`` are lost in rounding. ``None`` where ``A`` is too near a singular
    matrix for that.

    >>> trailing_span(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)), 1)[0].abs().round(decimals=6).flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    triangle = torch.linalg.qr(matrix if tall else matrix.T, mode="r").R
    tiny = torch.finfo(triangle.dtype).eps * triangle.abs().max()
    if not bool((triangle.diagonal().abs() > tiny).all()):
        return None
    inverse = torch.linalg.solve_triangular(
        triangle, torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device), upper=True
    )
    values, vectors = torch.linalg.eigh(inverse @ inverse.T)
    vectors = vectors[:, -count:]
    span = torch.linalg.qr(matrix @ vectors if tall else vectors).Q
    inner = span.T @ matrix
    least = torch.linalg.vector_norm(values[-count:].clamp(min=torch.finfo(torch.float64).tiny).rsqrt())
    return (span, inner) if torch.linalg.vector_norm(inner) <= (1 + CLOSE) * least else None
