"""Sums, products and transposes of operators, which form nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

from torch import Tensor

from eckart.operator.fields import dense_within, tensors_of
from eckart.operator.protocol import Operator, TransposeProduct, apply


@dataclass(frozen=True)
class Sum:
    """The sum of operators of one shape, stored one by one.

    >>> import torch
    >>> from eckart.operator import Dense, Factors
    >>> op = Sum((Dense(torch.eye(2)), Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0]]))))
    >>> op.dense().tolist(), (op @ torch.tensor([1.0, 1.0])).tolist()
    ([[2.0, 0.0], [2.0, 1.0]], [2.0, 3.0])

    Raises ``ValueError`` where there is no term or their shapes differ.
    """

    terms: tuple[Operator, ...]

    def __post_init__(self) -> None:
        shapes = [term.shape for term in self.terms]
        if len(set(shapes)) != 1:
            raise ValueError(f"the terms of a sum have one shape, not {_listed(shapes)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n) of every term."""
        return self.terms[0].shape

    @property
    def T(self) -> Sum:
        """The sum of the transposes."""
        return Sum(tuple(term.T for term in self.terms))

    def __matmul__(self, x: Tensor) -> Tensor:
        first, *others = self.terms
        return sum((apply(term, x) for term in others), apply(first, x))

    def dense(self) -> Tensor:
        """The sum of the matrices."""
        first, *others = (dense_within(term, self) for term in self.terms)
        return sum(others, first)

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the terms, each name behind the number of its term."""
        return tensors_of(self)


@dataclass(frozen=True)
class Product:
    """The product of operators, applied from the last to the first.

    >>> import torch
    >>> from eckart.operator import Dense
    >>> op = Product((Dense(torch.tensor([[1.0], [2.0]])), Dense(torch.tensor([[3.0, 4.0]]))))
    >>> op.shape, op.dense().tolist(), sorted(op.tensors())
    ((2, 2), [[3.0, 4.0], [6.0, 8.0]], ['0_matrix', '1_matrix'])

    Raises ``ValueError`` where there is no factor or neighbours do not fit.
    """

    factors: tuple[Operator, ...]

    def __post_init__(self) -> None:
        shapes = [factor.shape for factor in self.factors]
        if not shapes or any(a[1] != b[0] for a, b in pairwise(shapes)):
            raise ValueError(f"columns of each factor are to be the rows of the next one: {_listed(shapes)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the first factor and columns of the last."""
        return self.factors[0].shape[0], self.factors[-1].shape[1]

    @property
    def T(self) -> Product:
        """The product of the transposes in reversed order."""
        return Product(tuple(factor.T for factor in reversed(self.factors)))

    def __matmul__(self, x: Tensor) -> Tensor:
        return reduce(lambda y, factor: apply(factor, y), reversed(self.factors), x)

    def dense(self) -> Tensor:
        """The product of the matrices."""
        *others, last = self.factors
        return reduce(lambda y, factor: apply(factor, y), reversed(others), dense_within(last, self))

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the factors, each name behind the number of its factor."""
        return tensors_of(self)


@dataclass(frozen=True)
class Transposed:
    """The transpose of an operator whose own kind is not closed under it, by the products that it offers for that.

    Raises ``ValueError`` if it offers none.
    """

    of: TransposeProduct

    def __post_init__(self) -> None:
        if not hasattr(self.of, "transpose_matmul"):
            raise ValueError(f"a {type(self.of).__name__} has no transpose_matmul: its transpose is its own T")

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows of the other."""
        m, n = self.of.shape
        return n, m

    @property
    def T(self) -> Operator:
        """The operator itself."""
        return self.of

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.of.transpose_matmul(x)

    def dense(self) -> Tensor:
        """The transposed matrix."""
        return self.of.dense().T

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the other, behind ``of_``."""
        return tensors_of(self)


def _listed(shapes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{m} x {n}" for m, n in shapes) or "none"
