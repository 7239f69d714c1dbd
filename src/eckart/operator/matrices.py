"""Matrices stored entry by entry, and products of two factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """A matrix stored entry by entry.

    >>> import torch
    >>> from eckart.operator import nbytes
    >>> op = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> (op @ torch.tensor([1.0, 1.0])).tolist()
    [3.0, 7.0]
    >>> nbytes(op)
    16
    """

    matrix: Tensor  # (m, n)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n)."""
        m, n = self.matrix.shape
        return m, n

    @property
    def T(self) -> Dense:
        """The transpose, sharing storage."""
        return Dense(self.matrix.T)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix

    def tensors(self) -> Mapping[str, Tensor]:
        """The one stored tensor."""
        return {"matrix": self.matrix}


@dataclass(frozen=True)
class Factors:
    """The product ``left @ right`` of rank at most r, stored as its two factors.

    >>> import torch
    >>> op = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0, 1.0]]))
    >>> op.shape, op.rank
    ((2, 3), 1)
    >>> op.dense().tolist()
    [[3.0, 0.0, 1.0], [6.0, 0.0, 2.0]]
    >>> bool(torch.equal(op.T.dense(), op.dense().T))
    True
    """

    left: Tensor  # (m, r)
    right: Tensor  # (r, n)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n) of the product."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return self.left.shape[1]

    @property
    def T(self) -> Factors:
        """The transpose, sharing storage."""
        return Factors(self.right.T, self.left.T)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.left @ (self.right @ x)

    def dense(self) -> Tensor:
        """The product, (m, n)."""
        return self.left @ self.right

    def tensors(self) -> Mapping[str, Tensor]:
        """The two stored factors."""
        return {"left": self.left, "right": self.right}
