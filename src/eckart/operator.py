"""A matrix as a value: it knows its shape, multiplies, and says exactly what it stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Operator(Protocol):
    """A real matrix of ``shape`` (m, n) in whatever form it is stored.

    ``op @ x`` never materialises the matrix; ``dense()`` is the only way to do so. ``tensors()`` is exactly
    what is stored: bytes, saving and loading all follow from it.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n)."""

    @property
    def T(self) -> Operator:
        """The transpose, (n, m), sharing storage."""

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product with ``x`` (n, k) or (n,), giving (m, k) or (m,)."""

    def dense(self) -> Tensor:
        """The matrix itself, (m, n)."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The stored tensors by name."""


@dataclass(frozen=True)
class Dense:
    """A matrix stored entry by entry.

    >>> import torch
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


# What a file calls an operator, and how it is built again from its stored tensors. Not changed at run time.
KINDS: Mapping[str, Callable[..., Operator]] = {"dense": Dense, "factors": Factors}


def kind_of(op: Operator) -> str:
    """The name under which ``op`` is stored, a key of ``KINDS``.

    >>> import torch
    >>> kind_of(Dense(torch.eye(2)))
    'dense'
    """
    return next(name for name, maker in KINDS.items() if type(op) is maker)


def nbytes(op: Operator) -> int:
    """The bytes that ``op`` stores: the sum over ``op.tensors()``.

    >>> import torch
    >>> nbytes(Factors(torch.zeros(4, 1), torch.zeros(1, 6)))
    40
    """
    return sum(t.numel() * t.element_size() for t in op.tensors().values())
