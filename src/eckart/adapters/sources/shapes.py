"""Parts of a weight by its columns and rows, its digits, or its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.forms.blocks import block_means
from eckart.adapters.forms.tensors import MOST_CORES
from eckart.adapters.pick import Pick
from eckart.adapters.seed import CORE, CORES, LEFT, PLACES, RIGHT, Seed, Seen
from eckart.kernels.selection import Candidates, Rule, chosen
from eckart.linalg import qr, semi_nmf, tensor_train
from eckart.operator import Factors, TensorTrain
from eckart.stats import Need


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

    Raises ``ValueError`` unless cutoff is 0 or more.
    """

    columns: Rule
    rows: Rule
    inverted: bool = True
    cutoff: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({LEFT, CORE, RIGHT})
    ordered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("cutoff", self.cutoff, least=0)

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

    Between neighbours there are as many directions as the rank says, and no more than they can hold. Raises ``ValueError`` unless there
    are 1 to 64 cores.

    >>> from eckart.adapters.pick import Top
    >>> [tuple(core.shape) for core in OfTrain(2)(Seen(torch.ones(6, 4)), Top(), 5, torch.Generator()).cores]
    [(1, 2, 2, 4), (4, 3, 2, 1)]
    """

    count: int = 3
    needs: ClassVar[frozenset[Need]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({CORES})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("count", self.count, least=1, most=MOST_CORES)

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """The cores."""
        m, n = seen.shape
        rows, columns = digits(m, self.count), digits(n, self.count)
        found = tensor_train(seen.weight, rows, columns, rank, dtype=torch.float64, rng=rng).op
        assert isinstance(found, TensorTrain)
        return Seed(cores=found.cores)


@dataclass(frozen=True)
class OfBlocks:
    """The blocks of a side ``size`` on whose entries the gradient has the largest mean magnitude, as many as the rank says.

    Raises ``ValueError`` unless size is at least 1.
    """

    size: int = 256
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    gives: ClassVar[frozenset[str]] = frozenset({PLACES})
    ordered: ClassVar[bool] = False
    approximates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("size", self.size, least=1)

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
