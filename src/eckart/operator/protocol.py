"""A matrix as a value: it knows its shape, multiplies, and says exactly what it stores."""

from __future__ import annotations

from collections.abc import Mapping
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


class TransposeProduct(Operator, Protocol):
    """An operator that multiplies by its transpose itself, since that has another form."""

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The product of the transpose with ``x`` (m, k) or (m,), giving (n, k) or (n,)."""


def apply(op: Operator, x: Tensor) -> Tensor:
    """``op @ x`` written as a call, for operators inside of others and of modules.

    ``torch.compile`` takes the sign between a value and a tensor for one of its own operations, and fails; a call it follows.
    """
    return op.__matmul__(x)
