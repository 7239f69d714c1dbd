"""Matrices of a few bits per entry, each one of some levels of a codebook, with a scale for each group of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from eckart.kernels.packing import WIDTHS, pack, packed_bytes, unpack
from eckart.operator.algebra import Transposed
from eckart.operator.codes import PANEL, at_least_float32, spread, times, transposed_times
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator


@dataclass(frozen=True)
class Levels:
    """A matrix (m, columns) of unsigned codes of ``bits`` 1, 2, 3, 4 or 8, which number ``levels`` that need not be even steps.

    ``entry[i, j] = scale[i, j // group] levels[code[i, j]]``, worked out in float32 (float64 for a float64 scale) and rounded to
    the dtype of ``scale``. The last group of a row may be shorter. Codes are packed, and ``@`` works, as for ``Codes``.

    >>> op = Levels.of(torch.tensor([[0, 3, 1, 2]]), torch.tensor([[0.5, 2.0]]), torch.tensor([-1.0, 0.0, 0.25, 1.0]), bits=2, group=2)
    >>> op.dense().tolist(), op.codes.tolist()
    ([[-0.5, 0.5, 0.0, 0.5]], [[156]])

    Raises ``ValueError`` if shapes do not fit each other and the settings, or codes are no bytes and the others no floating numbers.
    """

    # The scale comes first: a module calls its first tensor "weight", which stock code takes for floating numbers.
    scale: Tensor  # (m, groups)
    levels: Tensor  # (2^bits,)
    codes: Tensor  # (m, bytes), uint8
    bits: int
    columns: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS or self.columns < 0 or self.group < 1:
            raise ValueError(
                f"codes have {', '.join(map(str, WIDTHS))} bits, and groups at least one column, "
                f"not {self.bits} bits and {self.columns} columns in groups of {self.group}"
            )
        groups, wanted = -(-self.columns // self.group), packed_bytes(self.bits, self.columns)
        shapes = [tuple(t.shape) for t in (self.scale, self.levels, self.codes)]
        rows = self.scale.shape[:1]
        if shapes != [(*rows, groups), (2**self.bits,), (*rows, wanted)]:
            raise ValueError(
                f"{self.columns} columns of {self.bits} bits in groups of {self.group} take scale (m, {groups}), "
                f"levels ({2**self.bits},) and codes (m, {wanted}), not {', '.join(map(str, shapes))}"
            )
        floating = self.scale.is_floating_point() and self.levels.is_floating_point()
        if self.codes.dtype != torch.uint8 or not floating:
            raise ValueError(
                f"codes are uint8, scales and levels floating, not {self.codes.dtype}, {self.scale.dtype} and {self.levels.dtype}"
            )

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, levels: Tensor, *, bits: int, group: int) -> Levels:
        """From integer codes (m, n) in [0, 2^bits), which are packed; scale (m, ceil(n / group)).

        Raises ``ValueError`` as ``pack`` and the class do.
        """
        return cls(scale, levels, pack(codes, bits), bits, codes.shape[1], group)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.codes), self.columns

    @property
    def T(self) -> Operator:
        """The transpose, on the same codes."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return times(self._entries, self._panels(), x)

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The transpose times ``x`` (m, k) or (m,); the products of panels are added up in at least float32."""
        check_operand(Transposed(self), x)
        return transposed_times(self._entries, self._panels(), x, self.columns)

    def dense(self) -> Tensor:
        """The matrix of numbers."""
        return self._entries(self.scale, self.levels, self.codes)

    def tensors(self) -> Mapping[str, Tensor]:
        """Scales, levels and the packed codes."""
        return tensors_of(self)

    def _panels(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(self.scale.split(PANEL), repeat(self.levels), self.codes.split(PANEL), strict=False)

    def _entries(self, scale: Tensor, levels: Tensor, codes: Tensor) -> Tensor:
        """The numbers of some rows."""
        wide = at_least_float32(scale.dtype)
        found = levels.to(wide)[unpack(codes, self.bits, self.columns)]
        return (spread(scale.to(wide), self.group, self.columns) * found).to(scale.dtype)
