"""Matrices in tensor-train form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from eckart.operator.fields import check_operand, tensors_of


@dataclass(frozen=True)
class TensorTrain:
    """A matrix as a train of cores (r_{k-1}, m_k, n_k, r_k) with r_0 = r_d = 1, of shape (prod m_k, prod n_k).

    With a row i = (i_1, ..., i_d) and a column j = (j_1, ..., j_d) read as digits, the first of them the most significant, the
    entry (i, j) is the product of the matrices ``core_1[:, i_1, j_1, :] ... core_d[:, i_d, j_d, :]``. One core for each digit and
    all r_k = 1 make a Kronecker product. ``@`` contracts one core after the other with x. (Oseledets, Approximation of 2^d x 2^d
    matrices using tensor decomposition, 2010; Novikov et al., Tensorizing neural networks, 2015.)

    >>> cores = (torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), torch.tensor([[[[2.0]]], [[[5.0]]]]))
    >>> op = TensorTrain(cores)  # (1, 1, 2, 2) and (2, 1, 1, 1)
    >>> op.shape, op.dense().tolist(), op.T.dense().tolist()
    ((1, 2), [[2.0, 5.0]], [[2.0], [5.0]])

    Raises ``ValueError`` if there is no core, one has not four dimensions, or the ranks of neighbours differ.
    """

    cores: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(core.shape) for core in self.cores]
        if (
            not shapes
            or any(len(shape) != 4 for shape in shapes)
            or not shapes[0][0] == shapes[-1][3] == 1
            or any(one[3] != other[0] for one, other in pairwise(shapes))
        ):
            listed = ", ".join(map(str, shapes)) or "none"
            raise ValueError(f"cores are (r, m, n, s), s being the r of the next one and 1 at both ends, not {listed}")

    @property
    def shape(self) -> tuple[int, int]:
        """The products of the m_k and of the n_k."""
        return prod([core.shape[1] for core in self.cores]), prod([core.shape[2] for core in self.cores])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The inner ranks r_1, ..., r_{d-1}."""
        return tuple(core.shape[0] for core in self.cores[1:])

    @property
    def T(self) -> TensorTrain:
        """Rows and columns of every core swapped, sharing storage."""
        return TensorTrain(tuple(core.transpose(1, 2) for core in self.cores))

    def __matmul__(self, x: Tensor) -> Tensor:
        check_operand(self, x)
        # Rows made so far, the rank open to the right, the columns still to be summed over with those of x.
        rows, state = 1, x
        for i, core in enumerate(self.cores):
            r, m, n, _ = core.shape
            rest = prod([later.shape[2] for later in self.cores[i + 1 :]]) * x.shape[1:].numel()
            state = torch.einsum("iajk,amjs->imsk", state.reshape(rows, r, n, rest), core)
            rows *= m
        return state.reshape(rows, *x.shape[1:])

    def dense(self) -> Tensor:
        """The matrix, core by core."""
        matrix = self.cores[0].new_ones(1, 1, 1)
        for core in self.cores:
            i, j, _ = matrix.shape
            _, m, n, s = core.shape
            matrix = torch.einsum("ija,amns->imjns", matrix, core).reshape(i * m, j * n, s)
        return matrix[:, :, 0]

    def tensors(self) -> Mapping[str, Tensor]:
        """The cores, ``cores_0`` first."""
        return tensors_of(self)
