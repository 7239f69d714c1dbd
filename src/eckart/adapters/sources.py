"""Where the matrices come from with which an adapter begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.draws import Draw
from eckart.adapters.forms.blocks import block_means
from eckart.adapters.pick import Pick, Top
from eckart.adapters.seed import CORE, CORES, LEFT, MIDDLE, PLACES, RIGHT, Seed, Seen
from eckart.kernels.selection import Candidates, Rule, chosen
from eckart.linalg import ACCURACY, qr, semi_nmf, tensor_train, truncated_svd
from eckart.metric import Metric
from eckart.operator import Factors, TensorTrain
from eckart.stats import MetricRule, Need, Plain


class Explaining(Protocol):
    """A source that knows how much each of its directions explains."""

    def shares(self, seen: Seen, most: int | None = None) -> Tensor:
        """Of what there is to explain the share of each direction, or of the first ``most``, descending; those of all add up to 1."""


class Source(Protocol):
    """Makes the parts of a start; ``gives`` names those that it makes, and what is ``ordered`` may be picked from.

    Where it ``approximates``, the product of its parts is meant to be an update, so that the scale in front is divided out.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What is to be measured for it."""

    @property
    def gives(self) -> frozenset[str]:
        """The parts that it makes."""

    @property
    def ordered(self) -> bool:
        """Whether its parts are in an order, the largest first."""

    @property
    def approximates(self) -> bool:
        """Whether the product of its parts is meant to be an update."""

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """The parts for one map, in float64."""


@dataclass(frozen=True)
class Drawn:
    """Random parts; a side that is not drawn begins at zero.

    >>> from eckart.adapters.draws import Kaiming
    >>> sorted(Drawn(right=Kaiming()).gives)
    ['right']
    """

    left: Draw | None = None
    middle: Draw | None = None
    core: Draw | None = None
    right: Draw | None = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    @property
    def gives(self) -> frozenset[str]:
        """The parts that are drawn."""
        parts = {LEFT: self.left, MIDDLE: self.middle, CORE: self.core, RIGHT: self.right}
        return frozenset(name for name, draw in parts.items() if draw is not None)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Those parts, one after the other."""
        (m, n), draws = seen.shape, (self.right, self.core, self.middle, self.left)
        shapes: tuple[tuple[int, ...], ...] = ((rank, n), (rank, rank), (rank,), (m, rank))
        right, core, middle, left = (
            None if draw is None else draw(shape, rng) for draw, shape in zip(draws, shapes, strict=True)
        )
        return Seed(left=left, middle=middle, core=core, right=right)


@dataclass(frozen=True)
class InCommon:
    """Random sides that all adapters of a model share: drawn once in the largest shape, and cut to each."""

    left: Draw
    right: Draw
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, RIGHT})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Both sides; views of the common ones."""
        assert seen.pool is not None
        (m, n), (most, widest) = seen.shape, seen.pool.largest
        return Seed(
            right=seen.pool.cut(RIGHT, self.right, (rank, n), (rank, widest)),
            left=seen.pool.cut(LEFT, self.left, (m, rank), (most, rank)),
        )


@dataclass(frozen=True)
class OfWeight:
    """Singular vectors and values of the weight W, or of ``W R`` in a metric of R, whose right vectors are taken back through R.

    With ``W R = U S V^T`` the parts are ``U``, ``S`` and ``S^-1 U^T W``, which is ``V^T R^-1`` where R has an inverse and needs none.

    >>> from eckart.adapters.pick import Top
    >>> seed = OfWeight()(Seen(torch.diag(torch.tensor([1.0, 3.0]))), Top(), 1, torch.Generator())
    >>> seed.middle.tolist(), seed.right.abs().tolist()
    ([3.0], [[0.0, 1.0]])
    """

    metric: MetricRule = Plain()
    accuracy: float = ACCURACY
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Need]:
        """What its metric needs."""
        return self.metric.needs

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Vectors and values."""
        return components(seen.weight, self.metric(seen.moments), pick, rank, self.accuracy, rng)


@dataclass(frozen=True)
class OfGradient:
    """Singular vectors and values of the gradient G of the loss, its mean over samples."""

    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Vectors and values."""
        assert seen.gradient is not None
        return components(seen.gradient, Metric.plain(), pick, rank, self.accuracy, rng)


@dataclass(frozen=True)
class OfFirstStep:
    """Singular vectors and values of ``-rate sign(G)``, the first step that Adam would take at this rate."""

    rate: float
    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, MIDDLE, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

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
    """

    centred: bool = True
    accuracy: float = ACCURACY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})
    gives: ClassVar[frozenset[str]] = frozenset({RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = False

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


@dataclass(frozen=True)
class OrthogonalTriangular:
    """The first columns of Q and the first rows of R of ``W = Q R``, whose product is W projected onto its first columns.

    >>> from eckart.adapters.pick import Top
    >>> OrthogonalTriangular()(Seen(torch.tensor([[3.0, 1.0], [4.0, 1.0]])), Top(), 1, torch.Generator()).right.round(decimals=6).tolist()
    [[5.0, 1.4]]
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, RIGHT})
    ordered: ClassVar[bool] = True
    approximates: ClassVar[bool] = False

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Both parts."""
        left, right = pick(rank, min(seen.shape))
        wide = seen.weight.to(torch.float64)
        q, _ = qr(
            wide[:, : int(torch.cat([left, right]).max()) + 1]
        )  # later columns have no part in the first ones of Q
        return Seed(left=q[:, left], right=q[:, right].T @ wide)


@dataclass(frozen=True)
class OfSemiNonnegative:
    """Factors F and G near the weight, G without negative entries: a semi-nonnegative factorisation.

    >>> from eckart.adapters.pick import Top
    >>> seed = OfSemiNonnegative()(Seen(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])), Top(), 1, torch.Generator())
    >>> (seed.left @ seed.right).round(decimals=6).tolist(), bool((seed.right >= 0).all())
    ([[1.0, 2.0], [-1.0, -2.0]], True)
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, RIGHT})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = True

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Both factors."""
        found = semi_nmf(seen.weight, rank, dtype=torch.float64).op
        assert isinstance(found, Factors)
        return Seed(left=found.left, right=found.right)


@dataclass(frozen=True)
class Crossing:
    """Columns and rows of the weight by a rule each, and the pseudo-inverse of where they meet: Nyström's form.

    ``W[:, J] pinv(W[I, J]) W[I]`` is W where the block in the middle has the rank of W. Singular values of the block below
    ``cutoff`` of its largest are left out. With ``inverted`` false the block itself lies in the middle.

    >>> from eckart.adapters.pick import Top
    >>> from eckart.linalg import PivotedQR
    >>> w = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    >>> seed = Crossing(PivotedQR(), PivotedQR())(Seen(w), Top(), 1, torch.Generator())
    >>> bool(torch.allclose(seed.left @ seed.core @ seed.right, w.double()))
    True
    """

    columns: Rule
    rows: Rule
    inverted: bool = True
    cutoff: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, CORE, RIGHT})
    ordered: ClassVar[bool] = False

    @property
    def approximates(self) -> bool:
        """With the inverse between them; with the block itself the product is nothing like the weight."""
        return self.inverted

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Columns, core and rows."""
        candidates = Candidates(seen.weight)
        j, i = chosen(candidates, rank, self.columns, rng), chosen(candidates.T, rank, self.rows, rng)
        wide = seen.weight.to(torch.float64)
        block = wide[i][:, j]
        core = torch.linalg.pinv(block, rtol=self.cutoff) if self.inverted else block
        return Seed(left=wide[:, j], core=core, right=wide[i])


@dataclass(frozen=True)
class OfTrain:
    """The weight as a tensor train of ``count`` cores, both of its sides being split into as many digits, as even as they can be.

    Between neighbours there are as many directions as the rank says, and no more than they can hold.

    >>> from eckart.adapters.pick import Top
    >>> [tuple(core.shape) for core in OfTrain(2)(Seen(torch.ones(6, 4)), Top(), 5, torch.Generator()).cores]
    [(1, 2, 2, 4), (4, 3, 2, 1)]
    """

    count: int = 3
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({CORES})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = True

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """The cores."""
        m, n = seen.shape
        rows, columns = digits(m, self.count), digits(n, self.count)
        found = tensor_train(seen.weight, rows, columns, rank, dtype=torch.float64, rng=rng).op
        assert isinstance(found, TensorTrain)
        return Seed(cores=found.cores)


@dataclass(frozen=True)
class OfBlocks:
    """The blocks of a side ``size`` on whose entries the gradient has the largest mean magnitude, as many as the rank says."""

    size: int = 256
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({PLACES})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """Their places; ``ValueError`` where the weight has not as many."""
        means = self._means(seen)
        if rank > means.numel():
            raise ValueError(f"{rank} blocks of a weight that has {means.numel()}: take fewer")
        best = means.flatten().argsort(descending=True, stable=True)[:rank].sort().values
        return Seed(places=torch.stack([best // means.shape[1], best % means.shape[1]], 1))

    def shares(self, seen: Seen, most: int | None = None) -> Tensor:
        """The mean magnitudes, descending."""
        return self._means(seen).flatten().sort(descending=True).values[:most]

    def _means(self, seen: Seen) -> Tensor:
        assert seen.gradient is not None
        return block_means(seen.gradient, self.size)


def digits(size: int, count: int) -> tuple[int, ...]:
    """``count`` factors of a size, ascending, as even as they can be made by its prime factors.

    >>> digits(320, 3), digits(7, 2)
    ((5, 8, 8), (1, 7))
    """
    primes, rest, divisor = [], size, 2
    while rest > 1:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    found = [1] * count
    for prime in reversed(primes):
        found[found.index(min(found))] *= prime
    return tuple(sorted(found))


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
