"""Aligning one matrix with another: by the best rotation, and by the best pairing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix


@dataclass(frozen=True, eq=False)
class Alignment:
    """An orthogonal ``q`` (n, n) and ``error``, the Frobenius norm of ``a @ q - b``, measured; float64."""

    q: Tensor
    error: float


def procrustes(a: Tensor, b: Tensor, *, proper: bool = False) -> Alignment:
    """The orthogonal q with the least ``||a q - b||_F``, for ``a`` and ``b`` (m, n); with ``proper`` the best one of determinant 1.

    With ``a^T b = U S V^T`` it is ``q = U V^T`` (Schönemann 1966); a proper rotation turns the direction of the smallest
    singular value around where the determinant would be -1 (Kabsch 1976). It is unique where ``a^T b`` has full rank, and where
    that turn is made if besides the smallest singular value is simple; else it is one of the minimisers.

    Raises ``ValueError`` for NaN or infinity, for what is no real matrix, and for shapes that differ.

    >>> a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> found = procrustes(a, a.flip(1))
    >>> found.q.round(decimals=9).abs().tolist(), round(found.error, 9)
    ([[0.0, 1.0], [1.0, 0.0]], 0.0)
    >>> round(procrustes(a, a.flip(1), proper=True).error, 9)
    2.0
    """
    a, b = finite_matrix(a).to(torch.float64), finite_matrix(b).to(torch.float64)
    if a.shape != b.shape:
        raise ValueError(f"matrices of one shape are wanted, not {tuple(a.shape)} and {tuple(b.shape)}")
    # Products of very small or large entries would leave the range of float64; the size of neither matters for q.
    u, _, vt = torch.linalg.svd(_unit(a).T @ _unit(b))
    if proper and len(u) and float(torch.linalg.det(u @ vt)) < 0:
        u[:, -1].neg_()
    q = u @ vt
    return Alignment(q, float(torch.linalg.vector_norm(a @ q - b)))


def _unit(a: Tensor) -> Tensor:
    return a / float(a.abs().max()) if bool(a.any()) else a


@dataclass(frozen=True, eq=False)
class Assignment:
    """Row ``rows[i]`` is paired with column ``columns[i]``, rows ascending; ``total`` is the sum of these costs, in float64."""

    rows: Tensor
    columns: Tensor
    total: float


def assignment(cost: Tensor) -> Assignment:
    """The pairing of rows with columns of ``cost`` (m, n) that costs least; of the longer side some are left over.

    Every row and column is in at most one of the ``min(m, n)`` pairs. Solved exactly by SciPy's shortest augmenting paths
    (Crouse 2016), which is imported here and nowhere else; for the largest total give ``-cost``.

    Raises ``ImportError`` where SciPy is not installed, and ``ValueError`` for NaN or infinity and for what is no real matrix.

    >>> found = assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]))
    >>> found.rows.tolist(), found.columns.tolist(), found.total
    ([0, 1], [1, 0], 3.0)
    """
    cost = finite_matrix(cost)
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("an assignment needs SciPy, which is not installed: pip install scipy") from error
    table = cost.detach().to("cpu", torch.float64)
    rows, columns = (torch.as_tensor(index, dtype=torch.int64) for index in linear_sum_assignment(table.numpy()))
    total = float(table[rows, columns].sum())
    return Assignment(rows.to(cost.device), columns.to(cost.device), total)
