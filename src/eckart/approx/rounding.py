"""A matrix of a few bits for each entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot
from eckart.fit import Fit
from eckart.kernels.packing import WIDTHS, packed_bytes
from eckart.linalg.formed import formed_bounds
from eckart.metric import Metric
from eckart.operator import Codes

EMPTY = torch.device("meta")


@dataclass(frozen=True)
class RoundToNearest:
    """Every entry at the nearest of ``2^bits`` even steps between the least and the largest of its group of columns; one size.

    A group always has 0 among its steps' range. Scale and zero are in the dtype of the matrix.

    >>> w = torch.tensor([[0.0, 1.0, 2.0, 3.1]])
    >>> fit = RoundToNearest(bits=2).prepare(w, Metric.plain()).fit(1, dtype=torch.float32, rng=Generator(), spectral=False)
    >>> [round(x, 2) for x in fit.op.dense()[0].tolist()]
    [0.0, 1.03, 2.07, 3.1]

    Raises ``ValueError`` for bits that codes cannot have, and a group below 1.
    """

    bits: int = 4
    group: int = 128

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS or self.group < 1:
            raise ValueError(f"codes take {', '.join(map(str, WIDTHS))} bits in groups of at least 1 column")

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of codes, scales and zeros."""
        size = rows * (packed_bytes(self.bits, columns) + 2 * itemsize * -(-columns // self.group))
        return ListedSlot(dense_bytes=rows * columns * itemsize, listed=(size,))

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Codes:
        """What is stored, on the meta device."""
        steps = torch.empty(rows, -(-columns // self.group), dtype=dtype, device=EMPTY)
        packed = torch.empty(rows, packed_bytes(self.bits, columns), dtype=torch.uint8, device=EMPTY)
        return Codes(steps, steps, packed, self.bits, columns, self.group)

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """The squared size and the squared error of the codes."""
        error = self.prepare(target, metric).error(1, Generator())
        return torch.tensor([metric.norm(target) ** 2, error**2], dtype=torch.float64)

    def prepare(self, target: Tensor, metric: Metric) -> _Rounded:
        """There is one size."""
        return _Rounded(target, metric, self)


@dataclass(frozen=True)
class _Rounded:
    target: Tensor
    metric: Metric
    by: RoundToNearest

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        op = self._codes(dtype)
        bounds = formed_bounds(self.target, op, self.metric, lower=None, rng=rng, spectral=spectral)
        return Fit(op=op, bounds=bounds, how=f"nearest of {2**self.by.bits} steps, groups of {self.by.group}")

    def error(self, rank: int, rng: Generator) -> float:
        return self.fit(rank, dtype=self.target.dtype, rng=rng, spectral=False).bounds[0].achieved

    def _codes(self, dtype: torch.dtype) -> Codes:
        rows, columns = self.target.shape
        group, most = min(self.by.group, max(1, columns)), 2**self.by.bits - 1
        grouped = F.pad(self.target.to(torch.float64), (0, -columns % group)).reshape(rows, -1, group)
        low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
        largest = torch.finfo(dtype).max
        scale = ((high - low) / most).clamp(max=largest).to(dtype)
        step = torch.where(scale > 0, scale, torch.ones_like(scale)).to(torch.float64)
        zero = (-low / step).round().clamp(0, most)
        there = (largest / step).floor()  # steps from zero that the dtype has
        codes = (grouped / step[..., None] + zero[..., None]).round()
        codes = codes.clamp((zero - there).clamp(min=0)[..., None], (zero + there).clamp(max=most)[..., None])
        flat = codes.reshape(rows, -1)[:, :columns].to(torch.int32)
        return Codes.of(flat, scale, zero.to(dtype), bits=self.by.bits, group=self.by.group)
