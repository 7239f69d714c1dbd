"""Matrices with many zeros, whose places are told by one bit for each entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.packing import pack, packed_bytes, unpack
from eckart.operator.algebra import Transposed
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator


@dataclass(frozen=True)
class Masked:
    """A matrix (m, width) stored by its entries row by row, and one bit for each place that says whether there is one; the others are 0.

    A bit for each place takes less than ``Sparse``, which has an index for each entry, where more than one in sixteen are left.
    Products form the matrix: what is saved is memory.

    >>> op = Masked.of(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[True, False, True], [False, True, False]]))
    >>> op.dense().tolist(), op.values.tolist(), op.mask.tolist()
    ([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]], [1.0, 3.0, 5.0], [[5], [2]])

    Raises ``ValueError`` where the shapes do not fit each other, or there are not as many values as bits are set. The latter is looked
    at whenever one is made, other than on the meta device and while compiling.
    """

    values: Tensor  # (nnz,)
    mask: Tensor  # (m, ceil(width / 8)), uint8, as ``kernels.packing`` lays single bits
    width: int

    def __post_init__(self) -> None:
        bytes_ = packed_bytes(1, max(0, self.width))
        if self.values.ndim != 1 or self.mask.ndim != 2 or self.mask.shape[1] != bytes_ or self.width < 0:
            raise ValueError(
                f"a masked matrix of width {self.width} has values (nnz,) and a mask (m, {bytes_}), "
                f"not {tuple(self.values.shape)} and {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.uint8 or not self.values.is_floating_point():
            raise ValueError(f"masks are uint8 and values floating, not {self.mask.dtype} and {self.values.dtype}")
        if not (self.mask.is_meta or torch.compiler.is_compiling()):
            there = int(self.places.sum())
            if there != len(self.values):
                raise ValueError(f"the mask has {there} places, and there are {len(self.values)} values")

    @classmethod
    def of(cls, matrix: Tensor, mask: Tensor) -> Masked:
        """The entries of ``matrix`` (m, n) where ``mask`` (m, n) is true.

        Raises ``ValueError`` unless both are matrices of one shape and the mask is boolean.
        """
        if matrix.ndim != 2 or matrix.shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"a matrix (m, n) and a boolean mask (m, n) are needed, "
                f"not {tuple(matrix.shape)} and {tuple(mask.shape)} of {mask.dtype}"
            )
        return cls(matrix[mask], pack(mask.to(torch.uint8), 1), matrix.shape[1])

    @property
    def places(self) -> Tensor:
        """Where there are entries, boolean (m, width)."""
        return unpack(self.mask, 1, self.width).to(torch.bool)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, width)."""
        return len(self.mask), self.width

    @property
    def T(self) -> Operator:
        """The transpose, on the same entries."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return self.dense() @ x

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The transpose times ``x`` (m, k) or (m,)."""
        check_operand(Transposed(self), x)
        return self.dense().T @ x

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        return self.values.new_zeros(self.shape).masked_scatter(self.places, self.values)

    def tensors(self) -> Mapping[str, Tensor]:
        """Values and mask."""
        return tensors_of(self)
