"""Metrics: which error of a matrix counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from eckart.kernels.norms import frobenius_norm
from eckart.kernels.panels import PANEL, panels
from eckart.kernels.svd import EPS, LAPACK_SIDE, SVD, gram_svd, singular_values, svd
from eckart.kernels.symmetric import add_gram, least_share, nearly_cholesky, psd_root

_ROOTS = Lock()  # maps share a metric: the root is taken by the first thread that asks, and the others wait for it


@dataclass(frozen=True)
class Coordinates:
    """A matrix A (m, k) in float64 for which ``A A^T`` is nearly ``W R R^T W^T``.

    A differs by at most ``slack`` in the Frobenius norm from a matrix for which the difference has a trace norm of at most ``doubt``.
    """

    matrix: Tensor
    slack: float
    doubt: float

    @cached_property
    def size(self) -> float:
        """The Frobenius norm of A, nearly that of W in the metric."""
        return frobenius_norm(self.matrix)


@dataclass(frozen=True)
class Metric:
    """The norm ``||E R||_F`` of an error E (m, n), R being the identity, a diagonal or a root of a second moment.

    ``right`` is ``None``, a vector (n,) or a matrix (n, k). Instead of a root R a metric may hold the second moment
    ``moment`` (n, n) itself, ``count`` times ``R R^T``. The moment ``sum x x^T`` of ``count`` inputs makes the norm the size
    of the output error over them: ``||E R||_F^2 = mean ||E x||^2``. Nothing is ever inverted.

    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])  # three inputs, one a row
    >>> e = torch.tensor([[1.0, -1.0]])
    >>> metric = Metric.gram("inputs", x.T @ x)
    >>> round(metric.norm(e), 6), round(float(torch.linalg.norm(e @ x.T)), 6)
    (3.316625, 3.316625)
    """

    name: str
    right: Tensor | None = None
    moment: Tensor | None = None
    count: int = 1

    @classmethod
    def plain(cls) -> Metric:
        """The Frobenius norm itself."""
        return cls("frobenius")

    @classmethod
    def gram(cls, name: str, gram: Tensor, count: int = 1) -> Metric:
        """The norm of output errors over inputs with this second moment (n, n), or with this sum of ``count`` of them.

        Up to n = ``LAPACK_SIDE`` its root is taken at once, which is the more accurate way: what a strong direction
        hides in the moment, at 1e-16 of its energy, the root hides at 1e-16 of its magnitude. Above, the moment is kept.
        """
        if len(gram) <= LAPACK_SIDE:
            return cls(name, right=psd_root(gram).div_(math.sqrt(count)))
        return cls(name, moment=gram.to(torch.float64), count=count)

    @property
    def is_plain(self) -> bool:
        """Whether this is the Frobenius norm."""
        return self.right is None and self.moment is None

    @property
    def is_diagonal(self) -> bool:
        """Whether every column of an error counts on its own."""
        return self.moment is None and (self.right is None or self.right.ndim == 1)

    @property
    def root(self) -> Tensor | None:
        """R where it is a matrix or a vector; of a moment it is taken once and kept."""
        if self.moment is None:
            return None if self.right is None else self.right.to(torch.float64)
        with _ROOTS:
            return self._root_of_moment

    def whiten(self, matrix: Tensor) -> Tensor:
        """``matrix @ R`` in float64: the plain norm of the result is this metric's norm of ``matrix`` (m, n)."""
        matrix = matrix.to(torch.float64)
        if self.root is None:
            return matrix
        return matrix * self.root if self.root.ndim == 1 else matrix @ self.root

    def svd(self, matrix: Tensor, lapack_side: int | None = None) -> SVD:
        """The decomposition of ``matrix @ R``; what rounding the product did to it is in ``slack`` or ``slack_sq``.

        Of a moment the root is taken only for a tall ``matrix``. For others ``matrix R R^T matrix^T`` (m, m) has the left
        singular vectors as eigenvectors, at a fraction of the time and memory that a root of the wider side takes. Of a large
        tall one the right singular vectors are given in place of the left ones, which ``times`` makes of them.
        """
        return self._decomposed(matrix, LAPACK_SIDE if lapack_side is None else lapack_side, vectors=True)

    def singular_values(self, matrix: Tensor) -> SVD:
        """As ``svd`` without vectors."""
        return self._decomposed(matrix, LAPACK_SIDE, vectors=False)

    def times(self, matrix: Tensor, x: Tensor) -> Tensor:
        """``matrix @ R @ x`` in float64 for a few columns ``x``, with a panel of ``matrix`` in float64 at a time."""
        if self.root is not None:
            x = self.root[:, None] * x if self.root.ndim == 1 else self.root @ x
        return torch.cat([rows @ x for rows in panels(matrix)])

    def through(self, x: Tensor) -> Tensor:
        """``R R^T x`` (n, k) in float64 for a few columns ``x``; of a moment no root is taken for it.

        >>> Metric("diagonal", torch.tensor([2.0, 3.0])).through(torch.eye(2)).diag().tolist()
        [4.0, 9.0]
        """
        x = x.to(torch.float64)
        if self.moment is not None:
            return (self.moment @ x).div_(self.count)
        if self.right is None:
            return x
        right = self.right.to(torch.float64)
        return right.square()[:, None] * x if right.ndim == 1 else right @ (right.T @ x)

    def _decomposed(self, matrix: Tensor, lapack_side: int, *, vectors: bool) -> SVD:
        m, n = matrix.shape
        if self.moment is not None and m <= n and n > lapack_side:
            return gram_svd(self._outputs(matrix), self._rounding_sq(matrix), vectors=vectors)
        columns = n if self.root is None or self.root.ndim == 1 else self.root.shape[1]
        if m <= columns or columns <= lapack_side:
            found = (svd if vectors else singular_values)(self.whiten(matrix), lapack_side)
        else:
            found = self._turned(matrix, columns, vectors=vectors)
        # The root of a moment has lost what rounding does to the moment, which in directions that hardly count is a large share.
        doubt = 0.0 if self.moment is None else math.sqrt(min(m, n)) * self._rounding_sq(matrix)
        return replace(found, slack=found.slack + self._rounding(matrix), slack_sq=found.slack_sq + doubt)

    def _turned(self, matrix: Tensor, columns: int, *, vectors: bool) -> SVD:
        """The right singular vectors of ``matrix @ R``, which is never formed as a whole."""
        gram = torch.zeros(columns, columns, dtype=torch.float64, device=matrix.device)
        add_gram(gram, map(self.whiten, matrix.split(PANEL)))
        found = gram_svd(gram, len(matrix) * EPS * float(gram.trace()), vectors=vectors)
        return replace(found, u=gram.new_zeros(len(matrix), 0), v=found.u if vectors else None)

    def coordinates(self, matrix: Tensor) -> Coordinates:
        """A in whose plain norm ``matrix`` (m, n) is truncated as in this metric: it has the left singular vectors of ``matrix @ R``.

        Of a moment no root is taken by eigenvectors: A is a Cholesky factor of ``matrix R R^T matrix^T``, or of a tall ``matrix``
        the product with a Cholesky factor of the moment, which is computed once and kept.
        """
        m, n = matrix.shape
        slack = doubt = 0.0
        if self.moment is not None and m <= n:
            gram, rounding = self._outputs(matrix), self._rounding_sq(matrix)
            doubt = math.sqrt(m) * rounding
            a, share = nearly_cholesky(gram)
            if share > least_share(
                m
            ):  # not semidefinite: what the metric hardly sees is drowned by the rounding of products
                gram.diagonal().add_(rounding)
                doubt += m * rounding
                a, share = nearly_cholesky(gram)
            doubt += share * max(0.0, float(gram.trace()))
        elif self.moment is not None:
            with _ROOTS:
                triangle, share = self._triangle
            a = torch.cat([rows @ triangle for rows in panels(matrix)])
            weights = self.moment.diagonal().clamp(min=0) / self.count
            doubt = share * float(
                (torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64).square() * weights).sum()
            )
            slack = n * EPS * frobenius_norm(matrix) * frobenius_norm(triangle)
        else:
            a = self.whiten(matrix)
            slack = self._rounding(matrix)
        return Coordinates(a, slack, doubt)

    def norm(self, error: Tensor) -> float:
        """``||error R||_F``, float64."""
        if self.is_plain:
            return frobenius_norm(error)
        if self.moment is None:
            return math.hypot(*(float(torch.linalg.vector_norm(self.whiten(e))) for e in error.split(PANEL)))
        energy = sum(float(((e @ self.moment) * e).sum()) for e in panels(error))
        return math.sqrt(max(energy, 0.0) / self.count)

    def slack(self, size: float, norm: float) -> float:
        """By how much rounding may have made ``norm`` too small, that of an error whose Frobenius norm is ``size``."""
        if self.moment is None:
            return self._rounding_of(size)
        return math.sqrt(norm**2 + self._rounding_sq_of(size)) - norm

    @property
    def reach(self) -> float:
        """A bound on ``||R||_2``: how many times its Frobenius norm an error can count."""
        if self.moment is not None:
            return math.sqrt(self._moment_norm / self.count)
        if self.right is None:
            return 1.0
        return float(self.right.abs().max()) if self.right.ndim == 1 else float(torch.linalg.vector_norm(self.right))

    def size(self, width: int) -> float:
        """``||R||_F^2`` for matrices with ``width`` columns: how much a unit of error in every column counts.

        >>> Metric.plain().size(7)
        7.0
        """
        if self.moment is not None:
            return float(self.moment.trace()) / self.count
        return float(width) if self.right is None else float(self.right.square().sum())

    def weights(self, width: int) -> Tensor:
        """The diagonal of ``R R^T`` (width,), float64: what the squared error in each column counts by itself.

        >>> Metric("inputs", torch.tensor([[3.0, 4.0], [0.0, 2.0]])).weights(2).tolist()
        [25.0, 4.0]
        """
        if self.moment is not None:
            return self.moment.diagonal().clamp(min=0) / self.count
        if self.right is None:
            return torch.ones(width, dtype=torch.float64)
        squares = self.right.to(torch.float64).square()
        return squares if squares.ndim == 1 else squares.sum(1)

    def second_moment(self, width: int) -> Tensor:
        """``R R^T`` (width, width), float64.

        >>> Metric("diagonal", torch.tensor([2.0, 3.0])).second_moment(2).tolist()
        [[4.0, 0.0], [0.0, 9.0]]
        """
        if self.moment is not None:
            return self.moment / self.count
        if self.right is not None and self.right.ndim == 2:
            right = self.right.to(torch.float64)
            return right @ right.T
        return torch.diag(self.weights(width))

    def _outputs(self, matrix: Tensor) -> Tensor:
        """``matrix R R^T matrix^T`` (m, m) in float64."""
        assert self.moment is not None
        m = len(matrix)
        found = torch.empty(m, m, dtype=torch.float64, device=matrix.device)
        for i, rows in zip(range(0, m, PANEL), panels(matrix), strict=True):
            weighed = rows @ self.moment
            for j, others in zip(range(0, i + 1, PANEL), panels(matrix), strict=False):
                found[i : i + PANEL, j : j + PANEL] = weighed @ others.T
        return found.tril_().add_(found.tril(-1).T).div_(self.count)

    @cached_property
    def _root_of_moment(self) -> Tensor:
        assert self.moment is not None
        return psd_root(self.moment).div_(math.sqrt(self.count))

    @cached_property
    def _triangle(self) -> tuple[Tensor, float]:
        assert self.moment is not None
        triangle, share = nearly_cholesky(self.moment)
        return triangle.div_(math.sqrt(self.count)), share

    @cached_property
    def _moment_norm(self) -> float:
        assert self.moment is not None
        return float(torch.linalg.vector_norm(self.moment))

    def _rounding_sq(self, matrix: Tensor) -> float:
        """A bound on what rounding may have done to ``matrix R R^T matrix^T``, in the Frobenius norm."""
        return self._rounding_sq_of(frobenius_norm(matrix))

    def _rounding_sq_of(self, size: float) -> float:
        assert self.moment is not None
        return len(self.moment) * EPS * size**2 * self._moment_norm / self.count

    def _rounding(self, matrix: Tensor) -> float:
        """A bound on what rounding may have done to ``whiten(matrix)``, in the Frobenius norm."""
        return 0.0 if self.root is None else self._rounding_of(frobenius_norm(matrix))

    def _rounding_of(self, size: float) -> float:
        """Of a product rounding is relative to ``size ||R||_F``, which may be far more than the norm of the product."""
        if self.root is None:
            return 0.0
        terms = 1 if self.root.ndim == 1 else len(self.root)
        return terms * EPS * size * self.reach


@dataclass(frozen=True)
class TwoSided:
    """The norm ``||L E R||_F`` of an error E (m, n): rows count as ``left`` has it, and columns as the metric ``columns`` has it.

    ``left`` is a vector (m,), the diagonal of L, or L itself (k, m). With L a root of the second moment of the gradients at a
    map's outputs, ``L^T L = G``, and R one of that of its inputs, the norm is that of the Kronecker-factored Fisher matrix.

    >>> metric = TwoSided("rows", torch.tensor([2.0, 0.0]))
    >>> metric.norm(torch.tensor([[3.0, 4.0], [7.0, 7.0]]))
    10.0
    """

    name: str
    left: Tensor
    columns: Metric = Metric.plain()

    def __post_init__(self) -> None:
        if self.left.ndim not in (1, 2) or not self.left.is_floating_point():
            raise ValueError(
                f"the left side of a metric is a vector or a matrix of floating-point numbers, not {self.left.dtype} "
                f"of shape {tuple(self.left.shape)}"
            )
        if not bool(torch.isfinite(self.left).all()):
            raise ValueError(f"the left side of the {self.name} metric holds NaN or infinity")

    @classmethod
    def kronecker(cls, name: str, outputs: Tensor, inputs: Tensor, count: int = 1) -> TwoSided:
        """From second moments at the outputs (m, m) and the inputs (n, n), or from these sums over ``count`` tokens.

        >>> eye = torch.eye(2)
        >>> round(TwoSided.kronecker("fisher", 4 * eye, 9 * eye).norm(eye), 6)  # 2 * 3 * sqrt(2)
        8.485281
        """
        left = psd_root(outputs).div_(math.sqrt(count)).T.contiguous()
        return cls(name, left, Metric.gram(name, inputs, count))

    def weigh(self, matrix: Tensor) -> Tensor:
        """``L @ matrix`` in float64. Raises ``ValueError`` where the left side is not as wide as the matrix is high."""
        if self.left.shape[-1] != len(matrix):
            raise ValueError(
                f"the left side of the {self.name} metric is for {self.left.shape[-1]} rows, not {len(matrix)}"
            )
        left = self.left.to(torch.float64)
        if left.ndim == 1:
            return left[:, None] * matrix.to(torch.float64)
        found = left.new_zeros(len(left), matrix.shape[1])
        for part, rows in zip(left.split(PANEL, dim=1), panels(matrix), strict=True):
            found.addmm_(part, rows)
        return found

    def norm(self, error: Tensor) -> float:
        """``||L error R||_F``, float64."""
        return self.columns.norm(self.weigh(error))

    def rounding(self, size: float) -> float:
        """What rounding may do to ``weigh`` of a matrix whose Frobenius norm is ``size``, counted in the columns' metric."""
        terms = 1 if self.left.ndim == 1 else self.left.shape[1]
        reach = float(self.left.abs().max() if self.left.ndim == 1 else torch.linalg.vector_norm(self.left))
        return terms * EPS * size * reach * self.columns.reach
