"""Two factors in the dtype that they are stored in, from a basis of the left one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.panels import PANEL, panels
from eckart.kernels.randomized import InMemory
from eckart.metric import Metric
from eckart.operator import Factors, Operator, in_dtype


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns that span a left factor: ``left = q @ coordinates``; ``image = q.T @ W`` of the matrix W. float64.

    ``grain`` bounds the Frobenius norm of what products in float32 did to ``image``; of those in float64 nothing is said.
    """

    q: Tensor  # (m, r)
    coordinates: Tensor  # (r, r), upper triangular
    image: Tensor  # (r, n)
    grain: float = 0.0

    @classmethod
    def of(cls, left: Tensor, w: Tensor | Operator) -> Basis:
        """By Householder's factorisation of ``left`` (m, r), which gives orthonormal columns whatever ``left`` is.

        >>> basis = Basis.of(torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        >>> (basis.q @ basis.coordinates).tolist(), basis.image.abs().tolist()
        ([[2.0], [0.0]], [[3.0, 4.0]])
        """
        q, coordinates = _orthonormal(left)
        return cls(q, coordinates, image(q, w))

    @classmethod
    def rough(cls, left: Tensor, w: Tensor, size: float) -> Basis:
        """The same by products in float32, several times faster; ``size`` is the Frobenius norm of W.

        >>> basis = Basis.rough(torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), 9.3)
        >>> basis.image.abs().tolist(), 0 < basis.grain < 1e-3
        ([[3.0, 4.0]], True)
        """
        q, coordinates = _orthonormal(left)
        products, narrow = InMemory(w), q.to(torch.float32)
        away = torch.linalg.vector_norm(narrow.to(torch.float64) - q)
        grain = (products.rounding * torch.linalg.vector_norm(q) + away) * size
        seen = products.transposed_times(narrow, narrow=False).T.to(torch.float64)
        return cls(q, coordinates, seen, float(grain))

    def in_metric(self, metric: Metric) -> Basis:
        """The basis of the same left factor for ``W R``, R being diagonal."""
        weights = metric.right
        reach = 1.0 if weights is None else float(weights.abs().max())
        return Basis(self.q, self.coordinates, metric.whiten(self.image), self.grain * reach)

    def right(self) -> Tensor:
        """The X (r, n) for which ``left @ X`` is nearest to W.

        ``torch.linalg.lstsq`` is avoided: its pivoted driver gives other bits from call to call.
        """
        lengths = torch.linalg.vector_norm(self.coordinates, dim=0)
        lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        unit = self.coordinates / lengths
        if float(unit.diagonal().abs().min()) < 1e-6:  # columns that rounding made dependent
            solution = torch.linalg.pinv(unit) @ self.image
        else:
            solution = torch.linalg.solve_triangular(unit, self.image, upper=True)
        return solution / lengths[:, None]


def _orthonormal(left: Tensor) -> tuple[Tensor, Tensor]:
    left = left.to(torch.float64)
    lengths = torch.linalg.vector_norm(left, dim=0)
    q, r = torch.linalg.qr(left / torch.where(lengths > 0, lengths, torch.ones_like(lengths)))
    return q, r * lengths


def image(q: Tensor, w: Tensor | Operator) -> Tensor:
    """``q.T @ w`` in float64, with a panel of a matrix ``w`` (m, n) in float64 at a time, or by the products of an operator."""
    if not isinstance(w, Tensor):
        return (in_dtype(w, torch.float64).T @ q).T
    found = q.new_zeros(q.shape[1], w.shape[1])
    for rows, panel in zip(q.split(PANEL), panels(w), strict=True):
        found.addmm_(rows.T, panel)
    return found


def stored(u: Tensor, target: Tensor | Operator, dtype: torch.dtype) -> tuple[Factors, Basis]:
    """Factors in ``dtype`` for the projection of ``target`` (m, n) on the columns of ``u`` (m, r), and the basis of the left one.

    The left factor is rounded first and the right one solved for it, which takes back most of the first rounding; the
    minimiser for a given left factor is the same in every metric.
    """
    u = u.to(torch.float64)
    left = (u * lengths(image(u, target), dtype)).to(dtype).contiguous()
    basis = Basis.of(left, target)
    right = basis.right().to(dtype).contiguous()
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise ValueError(
            f"the factors of this {len(u)} x {right.shape[1]} matrix go beyond {dtype}: give a wider dtype"
        )
    return Factors(left, right), basis


def lengths(right: Tensor, dtype: torch.dtype) -> Tensor:
    """How long each column of the left factor is made, for an orthonormal one whose partner is ``right`` (r, n).

    Both factors get rows and columns of equal length, so that neither leaves the range of a narrow dtype. A direction in
    which the matrix is no larger than the rounding of ``dtype`` is not shortened further: what rounding leaves there would
    have to be met by an enormous row.
    """
    sizes = torch.linalg.vector_norm(right, dim=1, dtype=torch.float64)
    grain = torch.finfo(dtype).eps * torch.linalg.vector_norm(sizes) / max(1, min(right.shape)) ** 0.5
    sizes = sizes.clamp(min=float(grain))
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes)).sqrt()


def completed(u: Tensor, rank: int) -> Tensor:
    """Orthonormal columns (m, k), completed to ``rank`` where there are fewer.

    >>> completed(torch.eye(3)[:, :1], 2).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    if u.shape[1] >= rank:
        return u
    # Householder's reflections give orthonormal columns where there is nothing left to be reflected as well.
    return torch.linalg.qr(torch.cat([u, u.new_zeros(len(u), rank - u.shape[1])], dim=1)).Q
