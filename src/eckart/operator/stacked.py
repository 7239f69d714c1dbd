"""Matrices made of rows that are stored in several tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.operator.algebra import Transposed
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator


@dataclass(frozen=True)
class Stacked:
    """A matrix (sum of k_i, n) whose blocks of rows (k_i, n) stand one under the other, each a tensor that may be another matrix's as well.

    >>> op = Stacked((torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])))
    >>> op.dense().tolist(), (op.T @ torch.tensor([1.0, 0.0, 1.0])).tolist()
    ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [6.0, 8.0])

    Raises ``ValueError`` where there is no block, or the blocks are not matrices of one width.
    """

    blocks: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(block.shape) for block in self.blocks]
        if not shapes or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            listed = ", ".join(map(str, shapes)) or "none"
            raise ValueError(f"blocks are matrices of one width, one under the other, not {listed}")

    @property
    def shape(self) -> tuple[int, int]:
        """The rows of all blocks, and their columns."""
        return sum(len(block) for block in self.blocks), self.blocks[0].shape[1]

    @property
    def T(self) -> Operator:
        """The transpose, on the same blocks."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return torch.cat([block @ x for block in self.blocks])

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The transpose times ``x`` (m, j) or (m,)."""
        check_operand(Transposed(self), x)
        parts = x.split([len(block) for block in self.blocks])
        first, *others = (block.T @ part for block, part in zip(self.blocks, parts, strict=True))
        return sum(others, first)

    def dense(self) -> Tensor:
        """The matrix in one tensor."""
        return torch.cat(self.blocks)

    def tensors(self) -> Mapping[str, Tensor]:
        """The blocks, ``blocks_0`` first."""
        return tensors_of(self)
