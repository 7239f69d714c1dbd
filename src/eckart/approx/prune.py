"""Zeros in a matrix: the entries that count least in the metric go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot
from eckart.fit import Fit
from eckart.kernels.packing import packed_bytes
from eckart.linalg.patterns import Pattern, PerMatrix
from eckart.linalg.pruning import BLOCK, DAMPING, brain_surgeon, check_surgery, pruned, pruned_tails
from eckart.metric import Metric
from eckart.operator import Masked


@dataclass(frozen=True)
class Prune:
    """Zeros of a ``pattern`` where entries count least: nearest in a plain or diagonal metric. In a full one inputs are taken for
    uncorrelated.

    >>> w = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    >>> fit = Prune().prepare(w, Metric.plain()).fit(1, dtype=torch.float32, rng=Generator(), spectral=False)
    >>> fit.op.dense().tolist(), Prune().curve(w, Metric.plain()).tolist()
    ([[3.0, 0.0], [0.0, 2.0]], [14.0, 1.0, 0.0])
    """

    pattern: Pattern = PerMatrix()

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of the entries that stay, and of a bit for every place."""
        return _slot(self.pattern, rows, columns, itemsize)

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Masked:
        """What is stored at a size, on the meta device."""
        return _form(self.pattern, rows, columns, size, dtype)

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error for size 0, 1, …, in a full metric as if inputs were not correlated."""
        return pruned_tails(target, self.pattern, metric)

    def prepare(self, target: Tensor, metric: Metric) -> _Pruned:
        """Any size can be taken."""
        return _Pruned(target, metric, self.pattern)


@dataclass(frozen=True)
class _Pruned:
    target: Tensor
    metric: Metric
    pattern: Pattern

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        return pruned(self.target, rank, self.pattern, metric=self.metric, dtype=dtype, rng=rng, spectral=spectral)

    def error(self, rank: int, rng: Generator) -> float:
        return float(pruned_tails(self.target, self.pattern, self.metric)[rank].sqrt())


@dataclass(frozen=True)
class BrainSurgeon:
    """Zeros of a ``pattern``, chosen column by column, the columns behind making up for what goes (optimal brain surgeon).

    ``block`` is how many columns' masks are chosen at once, ``damping`` the share of the mean diagonal that is added to the second moment.

    Raises ``ValueError`` for a block below 1 or not of whole groups, and a damping not above 0.
    """

    pattern: Pattern = PerMatrix()
    block: int = BLOCK
    damping: float = DAMPING

    def __post_init__(self) -> None:
        check_surgery(self.pattern, self.block, self.damping)

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of the entries that stay, and of a bit for every place."""
        return _slot(self.pattern, rows, columns, itemsize)

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Masked:
        """What is stored at a size, on the meta device."""
        return _form(self.pattern, rows, columns, size, dtype)

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """The squared error without making up for anything, as if inputs were not correlated: a guess."""
        return pruned_tails(target, self.pattern, metric)

    def prepare(self, target: Tensor, metric: Metric) -> _Operated:
        """Each size is worked out by itself."""
        return _Operated(target, metric, self)


@dataclass(frozen=True)
class _Operated:
    target: Tensor
    metric: Metric
    by: BrainSurgeon

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        return brain_surgeon(
            self.target,
            rank,
            self.by.pattern,
            metric=self.metric,
            block=self.by.block,
            damping=self.by.damping,
            dtype=dtype,
            rng=rng,
            spectral=spectral,
        )

    def error(self, rank: int, rng: Generator) -> float:
        return self.fit(rank, dtype=self.target.dtype, rng=rng, spectral=False).bounds[0].achieved


def _slot(pattern: Pattern, rows: int, columns: int, itemsize: int) -> ListedSlot:
    mask = rows * packed_bytes(1, columns)
    kept = (pattern.kept(rows, columns, size) for size in range(1, pattern.sizes(columns) + 1))
    return ListedSlot(dense_bytes=rows * columns * itemsize, listed=tuple(mask + itemsize * count for count in kept))


def _form(pattern: Pattern, rows: int, columns: int, size: int, dtype: torch.dtype) -> Masked:
    values = torch.empty(pattern.kept(rows, columns, size), dtype=dtype, device="meta")
    mask = torch.empty(rows, packed_bytes(1, columns), dtype=torch.uint8, device="meta")
    return Masked(values, mask, columns)
