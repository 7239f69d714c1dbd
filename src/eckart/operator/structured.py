"""Diagonals, Kronecker products, blocks on the diagonal and perfect shuffles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.operator.algebra import Product
from eckart.operator.fields import check_operand, dense_within, tensors_of
from eckart.operator.protocol import Operator, apply


@dataclass(frozen=True)
class Diagonal:
    """The square matrix (n, n) with ``values`` (n,) on its diagonal.

    >>> op = Diagonal(torch.tensor([2.0, 3.0]))
    >>> op.dense().tolist(), (op @ torch.tensor([1.0, 10.0])).tolist()
    ([[2.0, 0.0], [0.0, 3.0]], [2.0, 30.0])

    Raises ``ValueError`` unless the values are a vector.
    """

    values: Tensor  # (n,)

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ValueError(f"the values of a diagonal are a vector (n,), not {tuple(self.values.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Twice the number of values."""
        return len(self.values), len(self.values)

    @property
    def T(self) -> Diagonal:
        """The same."""
        return self

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return (self.values if x.ndim == 1 else self.values[:, None]) * x

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        return torch.diag(self.values)

    def tensors(self) -> Mapping[str, Tensor]:
        """The values."""
        return tensors_of(self)


@dataclass(frozen=True)
class Kronecker:
    """The Kronecker product of two operators: entry ``(i p + k, j q + l)`` is ``a[i, j] b[k, l]`` for b (p, q).

    With x read as a grid X of (columns of a) x (columns of b), ``op @ x`` is ``a X b^T``; of the two products that one comes
    first which leaves the smaller grid between them.

    >>> from eckart.operator import Dense
    >>> op = Kronecker(Dense(torch.tensor([[1.0, 2.0]])), Dense(torch.tensor([[0.0, 1.0], [3.0, 0.0]])))
    >>> op.shape, op.dense().tolist()
    ((2, 4), [[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 6.0, 0.0]])
    """

    a: Operator
    b: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """The products of the rows and of the columns."""
        (m, n), (p, q) = self.a.shape, self.b.shape
        return m * p, n * q

    @property
    def T(self) -> Kronecker:
        """The Kronecker product of the transposes."""
        return Kronecker(self.a.T, self.b.T)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        (m, n), (p, q) = self.a.shape, self.b.shape
        grid = x.reshape(n, q, 1 if x.ndim == 1 else x.shape[1])
        grid = self._rows(self._columns(grid)) if n * p <= m * q else self._columns(self._rows(grid))
        return grid.reshape(m * p, *x.shape[1:])

    def _rows(self, grid: Tensor) -> Tensor:
        """``a`` times a grid, for each of its columns."""
        n, q, k = grid.shape
        return apply(self.a, grid.reshape(n, q * k)).reshape(self.a.shape[0], q, k)

    def _columns(self, grid: Tensor) -> Tensor:
        """A grid times the transpose of ``b``, for each of its rows."""
        n, q, k = grid.shape
        product = apply(self.b, grid.transpose(0, 1).reshape(q, n * k))
        return product.reshape(self.b.shape[0], n, k).transpose(0, 1)

    def dense(self) -> Tensor:
        """All products of an entry of one with an entry of the other."""
        a, b = dense_within(self.a, self), dense_within(self.b, self)
        return (a[:, None, :, None] * b[:, None, :]).reshape(self.shape)  # torch.kron refuses some transposed matrices

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of both, behind ``a_`` and ``b_``."""
        return tensors_of(self)


@dataclass(frozen=True)
class BlockDiagonal:
    """Blocks (p, q) of one size along the diagonal of a matrix (k p, k q).

    >>> op = BlockDiagonal(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    >>> op.shape, op.dense().tolist()
    ((2, 4), [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]])

    Raises ``ValueError`` unless the blocks have three dimensions.
    """

    blocks: Tensor  # (k, p, q)

    def __post_init__(self) -> None:
        if self.blocks.ndim != 3:
            raise ValueError(f"the blocks of a diagonal are a tensor (k, p, q), not {tuple(self.blocks.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of all blocks together."""
        k, p, q = self.blocks.shape
        return k * p, k * q

    @property
    def T(self) -> BlockDiagonal:
        """The blocks transposed, sharing storage."""
        return BlockDiagonal(self.blocks.mT)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        k, p, q = self.blocks.shape
        product = self.blocks @ x.reshape(k, q, 1 if x.ndim == 1 else x.shape[1])
        return product.reshape(k * p, *x.shape[1:])

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        return torch.block_diag(*self.blocks) if len(self.blocks) else self.blocks.new_zeros(0, 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """The blocks."""
        return tensors_of(self)


@dataclass(frozen=True)
class Shuffle:
    """The perfect shuffle: it turns a grid of ``rows`` x ``columns``, read row by row, into its transpose. It stores nothing.

    ``(op @ x)[j rows + i] = x[i columns + j]``. ``dense()`` is in the default dtype; inside of other operators it has theirs.

    >>> op = Shuffle(2, 3)
    >>> (op @ torch.arange(6)).tolist(), (op.T @ (op @ torch.arange(6))).tolist()
    ([0, 3, 1, 4, 2, 5], [0, 1, 2, 3, 4, 5])

    Raises ``ValueError`` unless rows and columns are positive.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a shuffle turns a grid of at least one row and column, not {self.rows} x {self.columns}")

    @property
    def shape(self) -> tuple[int, int]:
        """Twice the size of the grid."""
        return self.rows * self.columns, self.rows * self.columns

    @property
    def T(self) -> Shuffle:
        """The shuffle that turns the grid back."""
        return Shuffle(self.columns, self.rows)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return x.reshape(self.rows, self.columns, *x.shape[1:]).transpose(0, 1).reshape(x.shape)

    def dense(self) -> Tensor:
        """The permutation matrix."""
        return self @ torch.eye(self.rows * self.columns)

    def tensors(self) -> Mapping[str, Tensor]:
        """None."""
        return tensors_of(self)


def monarch(left_blocks: Tensor, right_blocks: Tensor) -> Product:
    """The Monarch matrix of left blocks (q, s, k) and right blocks (k, q, p): shape (s q, k p).

    ``M = P(q, s) L P(k, q) R``, where L and R have these blocks on their diagonals and ``P(a, b)`` is ``Shuffle(a, b)``; that is
    ``M[a q + b, c p + d] = left[b, a, c] right[c, b, d]``. With s = q = k = p these are the matrices of Dao et al., Monarch:
    Expressive structured matrices for efficient and accurate training (2022), whose ``P L P^T R`` it is.

    >>> op = monarch(torch.tensor([[[2.0]], [[3.0]]]), torch.tensor([[[1.0, 10.0], [5.0, 7.0]]]))
    >>> op.dense().tolist()
    [[2.0, 20.0], [15.0, 21.0]]

    Raises ``ValueError`` if there are not as many left blocks as right blocks have rows, or the converse for columns.
    """
    if left_blocks.ndim != 3 or right_blocks.ndim != 3 or left_blocks.shape[::2] != right_blocks.shape[1::-1]:
        raise ValueError(
            "a Monarch matrix takes left blocks (q, s, k) and right blocks (k, q, p), "
            f"not {tuple(left_blocks.shape)} and {tuple(right_blocks.shape)}"
        )
    q, s, k = left_blocks.shape
    return Product((Shuffle(q, s), BlockDiagonal(left_blocks), Shuffle(k, q), BlockDiagonal(right_blocks)))
