"""A damaged matrix and a low-rank branch beside it that makes up for the damage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot
from eckart.approx.low_rank import LowRank
from eckart.approx.protocol import Approximator, Prepared
from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm, spectral_norm
from eckart.linalg.formed import rounding_of, widened
from eckart.metric import Metric
from eckart.operator import Operator, Sum, in_dtype


@dataclass(frozen=True)
class Compensated:
    """What ``damage`` stores in at most the share ``keep`` of the bytes (its smallest size where none is so small), and beside it a
    low-rank ``branch`` for what that leaves out: ``W ≈ X + B A`` with the ``B A`` nearest to ``W - X``. Sizes are ranks of the branch.
    Bounds are those of the branch: no other one of its rank makes up for this damage better than ``lower``.

    >>> from eckart.approx import Prune
    >>> w = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    >>> fit = Compensated(Prune(), keep=0.6).prepare(w, Metric.plain()).fit(1, dtype=torch.float32, rng=Generator(), spectral=False)
    >>> fit.op.terms[0].dense().tolist(), round(fit.bounds[0].achieved, 6)
    ([[3.0, 0.0], [0.0, 2.0]], 1.0)

    Raises ``ValueError`` for a share that is not above 0 and below 1.
    """

    damage: Approximator
    keep: float = 0.6
    branch: Approximator = LowRank()

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep {self.keep:g} must be above 0 and below 1")

    def _size(self, rows: int, columns: int, itemsize: int) -> int:
        slot = self.damage.slot(rows, columns, itemsize)
        return max(1, slot.within(self.keep * slot.dense_bytes))

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of the damaged matrix and of both factors."""
        base = self.damage.slot(rows, columns, itemsize).stored(self._size(rows, columns, itemsize))
        one, dense = (rows + columns) * itemsize, rows * columns * itemsize
        return ListedSlot(
            dense_bytes=dense, listed=tuple(base + rank * one for rank in range(1, min(rows, columns) + 1))
        )

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Sum:
        """What is stored with a branch of a rank, on the meta device."""
        damaged = self.damage.form(rows, columns, self._size(rows, columns, dtype.itemsize), dtype)
        return Sum((damaged, self.branch.form(rows, columns, size, dtype)))

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error for branches of rank 0, 1, …."""
        return self.prepare(target, metric).curve

    def prepare(self, target: Tensor, metric: Metric) -> _Compensated:
        """Damage the matrix; any rank can be taken of what that leaves out."""
        return _Compensated(target, metric, self)


@dataclass(frozen=True)
class _Compensated:
    target: Tensor
    metric: Metric
    by: Compensated

    @cached_property
    def _damaged(self) -> Operator:
        rows, columns = self.target.shape
        size = self.by._size(rows, columns, self.target.dtype.itemsize)
        prepared = self.by.damage.prepare(self.target, self.metric)
        return prepared.fit(size, dtype=self.target.dtype, rng=Generator(), spectral=False).op

    @cached_property
    def _missing(self) -> Tensor:
        return self.target.to(torch.float64) - in_dtype(self._damaged, torch.float64).dense()

    @cached_property
    def _branch(self) -> Prepared:
        return self.by.branch.prepare(self._missing, self.metric)

    @cached_property
    def curve(self) -> Tensor:
        return self.by.branch.curve(self._missing, self.metric)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        if dtype != self.target.dtype:
            raise ValueError(
                f"what makes up for damage is stored in the dtype of the matrix, {self.target.dtype}, not in {dtype}"
            )
        made = self._branch.fit(rank, dtype=dtype, rng=rng, spectral=spectral)
        op = Sum((self._damaged, made.op))
        scales = {"frobenius": frobenius_norm(self.target), self.metric.name: self.metric.norm(self.target)}
        if spectral:
            scales["spectral"] = spectral_norm(self.target, rng).value
        slack = rounding_of(self.target, frobenius_norm(self._missing))
        own, *others = (_of_whole(bound, scales[bound.norm]) for bound in made.bounds)
        bounds = widened(own, slack * self.metric.reach), *(widened(bound, slack) for bound in others)
        return Fit(op=op, bounds=bounds, how=f"{made.how}, beside {self.by.damage}")

    def error(self, rank: int, rng: Generator) -> float:
        return math.sqrt(max(0.0, float(self.curve[min(rank, len(self.curve) - 1)])))


def _of_whole(bound: Bound, scale: float) -> Bound:
    """The bound of a branch, as one of the matrix: the errors are the same, the size that they are measured by is not."""
    return replace(bound, scale=scale)
