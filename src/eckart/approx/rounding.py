"""A matrix of a few bits for each entry: even steps, or the levels of a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot
from eckart.approx.protocol import Prepared
from eckart.fit import Fit
from eckart.kernels.packing import WIDTHS, packed_bytes
from eckart.linalg.formed import formed_bounds
from eckart.metric import Metric
from eckart.operator import Codes, Levels, Operator

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
        return _Rounded(target, metric, self).curve

    def prepare(self, target: Tensor, metric: Metric) -> Prepared:
        """There is one size."""
        return _Rounded(target, metric, self)

    def rounded(self, target: Tensor, dtype: torch.dtype) -> Codes:
        """The codes of a matrix, with scales and zeros in this dtype."""
        group, most = min(self.group, max(1, target.shape[1])), 2**self.bits - 1
        grouped = _grouped(target, group)
        low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
        largest = torch.finfo(dtype).max
        scale = ((high - low) / most).clamp(max=largest).to(dtype)
        step = torch.where(scale > 0, scale, torch.ones_like(scale)).to(torch.float64)
        zero = (-low / step).round().clamp(0, most)
        there = (largest / step).floor()  # steps from zero that the dtype has
        codes = (grouped / step[..., None] + zero[..., None]).round()
        codes = codes.clamp((zero - there).clamp(min=0)[..., None], (zero + there).clamp(max=most)[..., None])
        return Codes.of(_ungrouped(codes, target), scale, zero.to(dtype), bits=self.bits, group=self.group)


@dataclass(frozen=True)
class NormalFloat:
    """Every entry at the nearest of ``2^bits`` levels, times the largest magnitude in its group of columns; one size.

    Levels are quantiles of the normal distribution, so that normal entries come to all of them about as often: with
    ``k = 2^(bits - 1)`` and the quantile function Q they are ``Q(p)`` for k even steps p from ``offset`` down towards 1/2, zero, and
    ``-Q(p)`` for k - 1 such steps, all divided by ``Q(offset)`` (NF4 of Dettmers et al. 2023, whose ``offset`` is the
    default; ``1 - (1/32 + 1/30) / 2`` to seven digits). Zeros stay zeros. Scales and levels are in the dtype of the matrix.

    >>> [round(x, 4) for x in NormalFloat(bits=2).levels.tolist()]
    [-1.0, 0.0, 0.3379, 1.0]
    >>> w = torch.tensor([[0.0, -2.0, 0.6, 1.9]])
    >>> fit = NormalFloat(bits=2).prepare(w, Metric.plain()).fit(1, dtype=torch.float32, rng=Generator(), spectral=False)
    >>> [round(x, 3) for x in fit.op.dense()[0].tolist()]
    [0.0, -2.0, 0.676, 2.0]

    Raises ``ValueError`` for bits that levels cannot have, a group below 1, and an offset that is not above 1/2 and below 1.
    """

    bits: int = 4
    group: int = 64
    offset: float = 0.9677083

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS or self.bits < 2 or self.group < 1:
            known = ", ".join(str(width) for width in WIDTHS if width > 1)
            raise ValueError(f"normal levels take {known} bits in groups of at least 1 column")
        if not 0.5 < self.offset < 1:
            raise ValueError(f"the offset {self.offset:g} is a share of the normal distribution, above 1/2 and below 1")

    @property
    def levels(self) -> Tensor:
        """The levels from -1 to 1, ascending, float64."""
        half = 2 ** (self.bits - 1)
        above, below = (
            torch.special.ndtri(torch.linspace(self.offset, 0.5, count + 1, dtype=torch.float64)[:-1])
            for count in (half, half - 1)
        )
        return torch.cat([-below, above.new_zeros(1), above.flip(0)]) / above[0]

    def slot(self, rows: int, columns: int, itemsize: int) -> ListedSlot:
        """The bytes of codes, scales and levels."""
        size = rows * (packed_bytes(self.bits, columns) + itemsize * -(-columns // self.group))
        return ListedSlot(dense_bytes=rows * columns * itemsize, listed=(size + itemsize * 2**self.bits,))

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Levels:
        """What is stored, on the meta device."""
        scale = torch.empty(rows, -(-columns // self.group), dtype=dtype, device=EMPTY)
        packed = torch.empty(rows, packed_bytes(self.bits, columns), dtype=torch.uint8, device=EMPTY)
        levels = torch.empty(2**self.bits, dtype=dtype, device=EMPTY)
        return Levels(scale, levels, packed, self.bits, columns, self.group)

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """The squared size and the squared error of the codes."""
        return _Rounded(target, metric, self).curve

    def prepare(self, target: Tensor, metric: Metric) -> Prepared:
        """There is one size."""
        return _Rounded(target, metric, self)

    def rounded(self, target: Tensor, dtype: torch.dtype) -> Levels:
        """The codes of a matrix, with scales and levels in this dtype, as which they are what entries are the nearest to."""
        group = min(self.group, max(1, target.shape[1]))
        grouped, levels = _grouped(target, group), self.levels.to(dtype).to(target.device)
        scale = grouped.abs().amax(2).clamp(max=torch.finfo(dtype).max).to(dtype)
        wide, known = scale.to(torch.float64), levels.to(torch.float64)
        shares = (grouped / torch.where(wide > 0, wide, torch.ones_like(wide))[..., None]).contiguous()
        codes = torch.bucketize(shares, (known[1:] + known[:-1]) / 2)
        return Levels.of(_ungrouped(codes, target), scale, levels, bits=self.bits, group=self.group)


class _Rounding(Protocol):
    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int: ...

    def rounded(self, target: Tensor, dtype: torch.dtype) -> Operator: ...


@dataclass(frozen=True)
class _Rounded:
    target: Tensor
    metric: Metric
    by: _Rounding

    @property
    def curve(self) -> Tensor:
        return torch.tensor([self.metric.norm(self.target) ** 2, self.error(1, Generator()) ** 2], dtype=torch.float64)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        op = self.by.rounded(self.target, dtype)
        bounds = formed_bounds(self.target, op, self.metric, lower=None, rng=rng, spectral=spectral)
        return Fit(op=op, bounds=bounds, how=f"nearest of {2**self.by.bits} steps, groups of {self.by.group}")

    def error(self, rank: int, rng: Generator) -> float:
        return self.fit(rank, dtype=self.target.dtype, rng=rng, spectral=False).bounds[0].achieved


def _grouped(target: Tensor, group: int) -> Tensor:
    """The entries (rows, groups, group) in float64, filled up with zeros."""
    return F.pad(target.to(torch.float64), (0, -target.shape[1] % group)).reshape(len(target), -1, group)


def _ungrouped(codes: Tensor, target: Tensor) -> Tensor:
    rows, columns = target.shape
    return codes.reshape(rows, -1)[:, :columns].to(torch.int32)
