"""Metrics: which error of a matrix counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eckart.linalg import SVD, psd_root, singular_values, svd
from eckart.linalg.svd import EPS


@dataclass(frozen=True)
class Metric:
    """The norm ``||E R||_F`` of an error E (m, n), R being the identity, a diagonal or the root of a Gram matrix.

    ``right`` is ``None``, a vector (n,) or a matrix (n, k). The root of an input Gram matrix ``sum x x^T`` makes the
    norm the size of the output error over those inputs: ``||E R||_F^2 = sum ||E x||^2``. Nothing is ever inverted.

    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # three inputs, one a row
    >>> e = torch.tensor([[1.0, -1.0]])
    >>> metric = Metric.gram("inputs", x.T @ x)
    >>> round(metric.norm(e), 6), round(float(torch.linalg.norm(e @ x.T)), 6)
    (3.316625, 3.316625)
    """

    name: str
    right: Tensor | None = None

    @classmethod
    def plain(cls) -> Metric:
        """The Frobenius norm itself."""
        return cls("frobenius")

    @classmethod
    def gram(cls, name: str, gram: Tensor, count: int = 1) -> Metric:
        """The norm of output errors over inputs with this second moment (n, n), or with this sum of ``count`` of them."""
        return cls(name, psd_root(gram).div_(math.sqrt(count)))

    def whiten(self, matrix: Tensor) -> Tensor:
        """``matrix @ R`` in float64: the plain norm of the result is this metric's norm of ``matrix`` (m, n)."""
        matrix = matrix.to(torch.float64)
        if self.right is None:
            return matrix
        return matrix * self.right if self.right.ndim == 1 else matrix @ self.right

    def svd(self, matrix: Tensor) -> SVD:
        """The decomposition of ``matrix @ R``; what rounding the product did to it is in ``slack``."""
        found = svd(self.whiten(matrix))
        return replace(found, slack=found.slack + self.rounding(matrix))

    def singular_values(self, matrix: Tensor) -> SVD:
        """As ``svd`` without vectors."""
        found = singular_values(self.whiten(matrix))
        return replace(found, slack=found.slack + self.rounding(matrix))

    @property
    def reach(self) -> float:
        """A bound on ``||R||_2``: how many times its Frobenius norm an error can count."""
        if self.right is None:
            return 1.0
        return float(self.right.abs().max()) if self.right.ndim == 1 else float(torch.linalg.vector_norm(self.right))

    def rounding(self, matrix: Tensor) -> float:
        """A bound on what rounding may have done to ``whiten(matrix)``, in the Frobenius norm.

        Of a product it is relative to ``||matrix||_F ||R||_F``, which may be far more than the norm of the product.
        """
        if self.right is None:
            return 0.0
        terms = 1 if self.right.ndim == 1 else len(self.right)
        return terms * EPS * float(torch.linalg.vector_norm(matrix.to(torch.float64))) * self.reach

    def norm(self, error: Tensor) -> float:
        """``||error R||_F``, float64."""
        return float(torch.linalg.vector_norm(self.whiten(error)))

    def size(self, width: int) -> float:
        """``||R||_F^2`` for matrices with ``width`` columns: how much a unit of error in every column counts.

        >>> Metric.plain().size(7)
        7.0
        """
        return float(width) if self.right is None else float(self.right.square().sum())
