"""Matrices of which only some rows are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.operator.algebra import Transposed
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator
from eckart.operator.sparse import INDICES, narrowest


@dataclass(frozen=True)
class RowSparse:
    """A matrix (height, n) with the rows of ``matrix`` (k, n) in the places ``index``, zeros elsewhere.

    >>> op = RowSparse(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2, 0], dtype=torch.int16), height=3)
    >>> op.dense().tolist(), (op.T @ torch.tensor([1.0, 9.0, 1.0])).tolist()
    ([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], [4.0, 6.0])

    Raises ``ValueError`` unless there is one place for each row, of int16, int32 or int64, no two are equal and all are from 0 to
    height - 1; what the index says is looked at whenever one is made, other than on the meta device and while compiling.
    """

    matrix: Tensor  # (k, n)
    index: Tensor  # (k,)
    height: int

    def __post_init__(self) -> None:
        rows, places = tuple(self.matrix.shape), tuple(self.index.shape)
        if len(rows) != 2 or places != rows[:1] or self.index.dtype not in INDICES:
            raise ValueError(
                f"row-sparse matrices have rows (k, n) and an index (k,) of int16, int32 or int64, "
                f"not {rows} and {places} of {self.index.dtype}"
            )
        if not (self.index.is_meta or torch.compiler.is_compiling()):
            outside = bool(((self.index < 0) | (self.index >= self.height)).any())
            if outside or len(self.index.unique()) != len(self.index):
                raise ValueError(
                    f"the rows of a row-sparse matrix have places of their own from 0 to {self.height - 1}"
                )

    @classmethod
    def of(cls, matrix: Tensor, index: Tensor, height: int) -> RowSparse:
        """With the narrowest index that holds every place.

        >>> RowSparse.of(torch.ones(2, 1), torch.tensor([1, 3]), 40000).index.dtype
        torch.int32
        """
        return cls(matrix, narrowest(index, max(0, height - 1)), height)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and columns (height, n)."""
        return self.height, self.matrix.shape[1]

    @property
    def T(self) -> Operator:
        """The transpose, on the same rows."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        product = self.matrix @ x
        return product.new_zeros(self.height, *x.shape[1:]).index_copy(0, self.index.long(), product)

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The transpose times ``x`` (height, j) or (height,)."""
        check_operand(Transposed(self), x)
        return self.matrix.T @ x.index_select(0, self.index.long())

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        return self.matrix.new_zeros(self.shape).index_copy(0, self.index.long(), self.matrix)

    def tensors(self) -> Mapping[str, Tensor]:
        """The rows and their places."""
        return tensors_of(self)
