"""Singular vectors and values, of the weight, the gradient or the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.pick import Pick, Top
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Seed, Seen
from eckart.linalg import ACCURACY, truncated_svd
from eckart.metric import Metric
from eckart.operator import Factors
from eckart.stats import MetricRule, Need, Plain


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
        return seen.moments.gram / count - (torch.outer(mean, mean) if self.centred else 0.0)


def components(matrix: Tensor, metric: Metric, pick: Pick, rank: int, accuracy: float, rng: Generator) -> Seed:
    """Picked left vectors, values and right vectors of a matrix (m, n) in a metric; ``ValueError`` where there are not as many."""
    left, right = pick(rank, min(matrix.shape))
    reach = int(torch.cat([left, right]).max()) + 1
    wide = matrix.to(torch.float64)
    seen = metric.whiten(wide)
    span: Tensor | None = None
    if reach < min(seen.shape):  # else one decomposition will do
        found = truncated_svd(
            matrix if metric.is_plain else seen, reach, accuracy=accuracy, dtype=torch.float64, rng=rng
        ).op
        assert isinstance(found, Factors)
        # Of the factors the left one spans the subspace; within it the vectors are those of the small matrix that is left.
        span = torch.linalg.qr(found.left).Q
        seen = span.T @ seen
    turned, values, _ = torch.linalg.svd(seen, full_matrices=False)
    if len(values) < reach:
        raise ValueError(
            f"{len(values)} of {min(matrix.shape)} components are left in the metric of what was seen, and number {reach} is picked: "
            "show it more, or pick Top"
        )
    basis = turned if span is None else span @ turned
    signs = torch.where(basis.gather(0, basis.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    basis = basis * signs
    rows = basis.T @ wide
    lengths = torch.where(values > 0, values, torch.ones_like(values))
    return Seed(left=basis[:, left], middle=values[right], right=rows[right] / lengths[right, None])
