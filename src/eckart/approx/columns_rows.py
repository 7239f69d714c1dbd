"""A matrix by columns and rows of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot
from eckart.approx.low_rank import LowRank
from eckart.fit import Fit
from eckart.linalg import Rule, cur
from eckart.linalg.selected import BY_DEIM
from eckart.metric import Metric
from eckart.operator import Dense, Product


@dataclass(frozen=True)
class ColumnsRows:
    """``C U R``: as many columns and rows of the matrix as they are, chosen by ``rule`` in the metric, and the core that joins them best.

    >>> w = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
    >>> fit = ColumnsRows().prepare(w, Metric.plain()).fit(2, dtype=torch.float32, rng=Generator().manual_seed(0), spectral=False)
    >>> fit.op.factors[0].dense().shape, fit.bounds[0].achieved < 1e-5
    (torch.Size([3, 2]), True)
    """

    rule: Rule = BY_DEIM

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of columns, core and rows."""
        sizes = range(1, min(rows, columns) + 1)
        return ListedSlot(
            dense_bytes=rows * columns * itemsize,
            listed=tuple(itemsize * (r * (rows + columns) + r * r) for r in sizes),
        )

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Product:
        """What is stored at a size, on the meta device."""
        sides = ((rows, size), (size, size), (size, columns))
        return Product(tuple(Dense(torch.empty(*shape, dtype=dtype, device="meta")) for shape in sides))

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """The squared errors of the best factors of the same ranks: a guess from below."""
        return LowRank().curve(target, metric)

    def prepare(self, target: Tensor, metric: Metric) -> _Chosen:
        """Each size is chosen by itself."""
        return _Chosen(target, metric, self.rule)


@dataclass(frozen=True)
class _Chosen:
    target: Tensor
    metric: Metric
    rule: Rule

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        found = cur(self.target, rank, columns=self.rule, rows=self.rule, metric=self.metric, dtype=dtype, rng=rng)
        if spectral:
            return found
        return Fit(op=found.op, bounds=tuple(b for b in found.bounds if b.norm != "spectral"), how=found.how)

    def error(self, rank: int, rng: Generator) -> float:
        return self.fit(rank, dtype=self.target.dtype, rng=rng, spectral=False).bounds[0].achieved
