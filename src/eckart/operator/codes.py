"""Matrices of a few bits per entry, with a scale and a zero for each group of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eckart.kernels.packing import WIDTHS, pack, packed_bytes, unpack
from eckart.kernels.panels import PANEL
from eckart.operator.algebra import Transposed
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator


@dataclass(frozen=True)
class Codes:
    """A matrix (m, columns) of unsigned codes of ``bits`` 1, 2, 3, 4 or 8, in groups of ``group`` consecutive columns.

    ``entry[i, j] = scale[i, j // group] (code[i, j] - zero[i, j // group])``, worked out in float32 (float64 for a float64 scale)
    and rounded to the dtype of ``scale``. The last group of a row may be shorter. ``codes`` holds the codes as
    ``kernels.packing.pack`` lays them; ``of`` takes them one by one. ``@`` has a panel of rows at a time as numbers, and forms
    it again for the gradient instead of keeping it.

    >>> op = Codes.of(torch.tensor([[0, 3, 7, 1]]), torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 0.0]]), bits=3, group=2)
    >>> op.dense().tolist(), op.codes.tolist()
    ([[-0.5, 1.0, 14.0, 2.0]], [[216, 3]])

    Raises ``ValueError`` if shapes do not fit each other and the settings, or codes are no bytes and scales no floating numbers.
    """

    # The scale comes first: a module calls its first tensor "weight", which stock code takes for floating numbers.
    scale: Tensor  # (m, groups)
    zero: Tensor  # (m, groups)
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
        shapes = [tuple(t.shape) for t in (self.scale, self.zero, self.codes)]
        rows = self.scale.shape[:1]
        if shapes != [(*rows, groups), (*rows, groups), (*rows, wanted)]:
            raise ValueError(
                f"{self.columns} columns of {self.bits} bits in groups of {self.group} take scale (m, {groups}), "
                f"zero (m, {groups}) and codes (m, {wanted}), not {', '.join(map(str, shapes))}"
            )
        if self.codes.dtype != torch.uint8 or not self.scale.is_floating_point():
            raise ValueError(f"codes are uint8 and scales floating, not {self.codes.dtype} and {self.scale.dtype}")

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, zero: Tensor, *, bits: int, group: int) -> Codes:
        """From integer codes (m, n) in [0, 2^bits), which are packed; scale and zero (m, ceil(n / group)).

        Raises ``ValueError`` as ``pack`` and the class do.
        """
        return cls(scale, zero, pack(codes, bits), bits, codes.shape[1], group)

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
        return self._entries(self.scale, self.zero, self.codes)

    def tensors(self) -> Mapping[str, Tensor]:
        """Scales, zeros and the packed codes."""
        return tensors_of(self)

    def _panels(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(self.scale.split(PANEL), self.zero.split(PANEL), self.codes.split(PANEL), strict=True)

    def _entries(self, scale: Tensor, zero: Tensor, codes: Tensor) -> Tensor:
        """The numbers of some rows."""
        wide = at_least_float32(scale.dtype)
        steps = unpack(codes, self.bits, self.columns).to(wide) - self._spread(zero.to(wide))
        return (self._spread(scale.to(wide)) * steps).to(scale.dtype)

    def _spread(self, per_group: Tensor) -> Tensor:
        return spread(per_group, self.group, self.columns)


def times(entries: Callable[..., Tensor], panels: Iterator[tuple[Tensor, ...]], x: Tensor) -> Tensor:
    """The product with ``x`` (n, …) of a matrix whose rows are ``entries(*panel)``, one panel after the other."""

    def product(*panel: Tensor) -> Tensor:
        return entries(*panel) @ x

    return torch.cat([_again(product, *panel) for panel in panels])


def transposed_times(
    entries: Callable[..., Tensor], panels: Iterator[tuple[Tensor, ...]], x: Tensor, columns: int
) -> Tensor:
    """The product of its transpose with ``x`` (m, …); those of panels are added up in at least float32."""
    wide = at_least_float32(x.dtype)

    def product(rows: Tensor, *panel: Tensor) -> Tensor:
        return (entries(*panel).T @ rows).to(wide)

    total = x.new_zeros(columns, *x.shape[1:], dtype=wide)
    for rows, panel in zip(x.split(PANEL), panels, strict=True):
        total = total + _again(product, rows, *panel)
    return total.to(x.dtype)


def spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """What groups of columns have, (m, groups), for every column, (m, columns)."""
    return per_group.repeat_interleave(min(group, columns), 1)[:, :columns]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.promote_types(dtype, torch.float32)


def _again(product: object, *tensors: Tensor) -> Tensor:
    """``product(*tensors)``, whose inner values are formed again for the gradient: kept, they would be the dense matrix."""
    made = checkpoint(product, *tensors, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(made, Tensor)
    return made
