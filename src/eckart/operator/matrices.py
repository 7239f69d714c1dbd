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

    Raises ``ValueError`` unless it has two dimensions.
    """

    matrix: Tensor  # (m, n)

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise ValueError(f"the matrix of a dense operator has shape (m, n), not {tuple(self.matrix.shape)}")

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

    Raises ``ValueError`` unless left has as many columns as right has rows.
    """

    left: Tensor  # (m, r)
    right: Tensor  # (r, n)

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"factors are left (m, r) and right (r, n), not {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

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
