"""Operators row by row, and matrices that are too large to be converted as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eckart.operator.algebra import Product, Sum
from eckart.operator.fields import within
from eckart.operator.matrices import Dense, Factors
from eckart.operator.protocol import Operator

PANEL = 512  # rows of a product that are made at once
AnyOperator = TypeVar("AnyOperator", bound=Operator)


@dataclass(frozen=True)
class Panelled:
    """A matrix that may lie in a memory-mapped file: products read it once, a panel of rows at a time, in the type of the other.

    >>> op = Panelled(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16))
    >>> (op @ torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist(), (op.T @ torch.tensor([1.0, 0.0])).tolist()
    ([3.0, 7.0], [1.0, 2.0])
    """

    matrix: Tensor  # (m, n)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n)."""
        m, n = self.matrix.shape
        return m, n

    @property
    def T(self) -> Panelled:
        """The transpose, sharing storage."""
        return Panelled(self.matrix.T)

    def __matmul__(self, x: Tensor) -> Tensor:
        # Of a transposed matrix the columns lie one behind the other, and its rows go through the whole file each.
        if self.matrix.stride(0) < self.matrix.stride(1):
            parts = zip(self.matrix.T.split(PANEL), x.split(PANEL), strict=True)
            found = x.new_zeros(len(self.matrix), *x.shape[1:])
            for panel, own in parts:
                found += panel.T.to(x.dtype) @ own
            return found
        return torch.cat([panel.to(x.dtype) @ x for panel in self.matrix.split(PANEL)])

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix

    def tensors(self) -> Mapping[str, Tensor]:
        """The one stored tensor."""
        return {"matrix": self.matrix}


def rows(op: Operator, start: int, stop: int) -> Tensor:
    """``op.dense()[start:stop]`` without the rest of it.

    >>> rows(Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]])), 1, 2).tolist()
    [[6.0, 8.0]]
    """
    match op:
        case Dense() | Panelled():
            return op.matrix[start:stop]
        case Factors():
            return op.left[start:stop] @ op.right
        case Sum():
            first, *others = (within(rows(term, start, stop), term, op) for term in op.terms)
            return sum(others, first)
        case Product(factors=(first_factor, *other_factors)) if other_factors:
            first = within(rows(first_factor, start, stop), first_factor, op)
            return (Product(tuple(other_factors)).T @ first.T).T
        case _:
            dtype = next((t.dtype for t in op.tensors().values() if t.is_floating_point()), torch.get_default_dtype())
            unit = torch.eye(op.shape[0], dtype=dtype, device=device_of(op))[:, start:stop]
            return (op.T @ unit).T


def in_dtype(op: AnyOperator, dtype: torch.dtype) -> AnyOperator:
    """The same operator with all its floating-point tensors in ``dtype``; what is ``Panelled`` converts by itself.

    >>> in_dtype(Sum((Dense(torch.eye(2)), Panelled(torch.eye(2)))), torch.float64).dense().dtype
    torch.float64
    """
    if isinstance(op, Panelled):
        return op
    assert is_dataclass(op)
    return replace(op, **{f.name: _converted(getattr(op, f.name), dtype) for f in fields(op)})


def _converted(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_converted(entry, dtype) for entry in value)
    return in_dtype(value, dtype) if is_dataclass(value) else value  # type: ignore[type-var]


def device_of(op: Operator) -> torch.device:
    """Where the tensors of an operator lie."""
    return next((tensor.device for tensor in op.tensors().values()), torch.device("cpu"))
