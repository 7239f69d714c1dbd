"""Matrices of which only some entries are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.operator.algebra import Transposed
from eckart.operator.fields import check_operand, tensors_of
from eckart.operator.protocol import Operator

INDICES = (torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Sparse:
    """A matrix (m, width) stored by its entries row by row; the others are 0.

    Row i holds ``values[offsets[i] : offsets[i + 1]]`` in the ``columns`` of the same numbers. Entries that name one place twice
    add up. Indices are int16, int32 or int64.

    >>> op = Sparse(torch.tensor([5.0, 7.0]), torch.tensor([2, 0]), torch.tensor([0, 1, 1, 2]), width=3)
    >>> op.dense().tolist()
    [[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [7.0, 0.0, 0.0]]
    >>> (op @ torch.tensor([1.0, 2.0, 3.0])).tolist(), (op.T @ torch.tensor([1.0, 2.0, 3.0])).tolist()
    ([15.0, 0.0, 7.0], [21.0, 0.0, 5.0])

    Raises ``ValueError`` if there are not as many values as columns, offsets do not rise from 0 to that number, or a column lies
    outside. What the indices say is looked at whenever one is made, other than on the meta device and while compiling.
    """

    values: Tensor  # (nnz,)
    columns: Tensor  # (nnz,)
    offsets: Tensor  # (m + 1,)
    width: int

    def __post_init__(self) -> None:
        values, columns, offsets = (tuple(t.shape) for t in (self.values, self.columns, self.offsets))
        if len(values) != 1 or values != columns or len(offsets) != 1 or not offsets[0]:
            raise ValueError(
                "a sparse matrix has values (nnz,), columns (nnz,) and offsets (m + 1,), "
                f"not {values}, {columns}, {offsets}"
            )
        if self.columns.dtype not in INDICES or self.offsets.dtype not in INDICES or self.width < 0:
            raise ValueError(
                f"columns and offsets are int16, int32 or int64 and the width is not negative, "
                f"not {self.columns.dtype}, {self.offsets.dtype} and {self.width}"
            )
        if not (self.offsets.is_meta or torch.compiler.is_compiling()):
            self._check_indices()

    def _check_indices(self) -> None:
        count, offsets = len(self.values), self.offsets
        if int(offsets[0]) != 0 or int(offsets[-1]) != count or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"the offsets of a sparse matrix rise from 0 to its {count} values, which these do not")
        if count and not (int(self.columns.min()) >= 0 and int(self.columns.max()) < self.width):
            raise ValueError(
                f"the columns of a sparse matrix lie in [0, {self.width}), "
                f"these from {int(self.columns.min())} to {int(self.columns.max())}"
            )

    @classmethod
    def of(cls, matrix: Tensor, mask: Tensor) -> Sparse:
        """The entries of ``matrix`` (m, n) where ``mask`` (m, n) is true, with the narrowest indices that hold them.

        >>> op = Sparse.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]]))
        >>> op.dense().tolist(), op.columns.dtype
        ([[1.0, 0.0], [0.0, 4.0]], torch.int16)

        Raises ``ValueError`` unless both are matrices of one shape and the mask is boolean.
        """
        if matrix.ndim != 2 or matrix.shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"a matrix (m, n) and a boolean mask (m, n) are needed, "
                f"not {tuple(matrix.shape)} and {tuple(mask.shape)} of {mask.dtype}"
            )
        offsets = F.pad(mask.sum(1).cumsum(0), (1, 0))
        columns = mask.nonzero()[:, 1]
        return cls(
            matrix[mask], narrowest(columns, matrix.shape[1] - 1), narrowest(offsets, len(columns)), matrix.shape[1]
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, width)."""
        return len(self.offsets) - 1, self.width

    @property
    def T(self) -> Operator:
        """The transpose, on the same entries."""
        return Transposed(self)

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        return _times(self.values, self.columns, self.offsets, x)

    def transpose_matmul(self, x: Tensor) -> Tensor:
        """The transpose times ``x`` (m, k) or (m,), by sorting the entries by columns."""
        check_operand(Transposed(self), x)
        columns, order = self.columns.sort(stable=True)
        bounds = torch.arange(self.width + 1, device=columns.device)
        return _times(self.values[order], self._rows()[order], torch.searchsorted(columns.long(), bounds), x)

    def dense(self) -> Tensor:
        """The matrix with its zeros."""
        return self.values.new_zeros(self.shape).index_put(
            (self._rows(), self.columns.long()), self.values, accumulate=True
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Values, columns and offsets."""
        return tensors_of(self)

    def _rows(self) -> Tensor:
        """The row of every entry, int64."""
        rows = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff().long(), output_size=len(self.values))


def _times(values: Tensor, columns: Tensor, offsets: Tensor, x: Tensor) -> Tensor:
    """Row i is the sum of ``values[e] x[columns[e]]`` over ``offsets[i] <= e < offsets[i + 1]``.

    A bag of embeddings is the one product of torch that is made of these without a copy of x for every entry, adds up in
    one order, and has gradients for both.
    """
    wide = torch.promote_types(torch.promote_types(columns.dtype, offsets.dtype), torch.int32)
    table = x[:, None] if x.ndim == 1 else x
    product = F.embedding_bag(
        columns.to(wide),
        table,
        offsets.to(wide),
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )
    return product[:, 0] if x.ndim == 1 else product


def narrowest(indices: Tensor, largest: int) -> Tensor:
    """Indices up to ``largest`` in the narrowest dtype that holds them.

    >>> narrowest(torch.tensor([3]), 40000).dtype
    torch.int32
    """
    return indices.to(index_dtype(largest))


def index_dtype(largest: int) -> torch.dtype:
    """The narrowest dtype for indices up to ``largest``."""
    return next(dtype for dtype in INDICES if largest <= torch.iinfo(dtype).max)
