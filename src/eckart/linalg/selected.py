"""Choosing columns of a matrix, and what the approximations by them have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.kernels.norms import frobenius_norm
from eckart.kernels.selection import DEIM, Candidates, Rule, chosen
from eckart.kernels.svd import EPS
from eckart.metric import Metric

BY_DEIM = DEIM()
_ODD = 0xD1342543DE82EF95
COLUMNS, ROWS, SKETCH, BOUNDS = range(1, 5)  # what random numbers are for


def select(a: Tensor, count: int, rule: Rule = BY_DEIM, *, rng: Generator | None = None) -> Tensor:
    """The indices (count,) of ``count`` columns of ``a`` (m, n) by a rule, in order of choice.

    They are the columns that ``interpolative`` and, in plain and diagonal metrics, ``cur`` take with the same rule and seed. What
    is random depends on the seed of ``rng`` (0 where none is given), not on its state.

    >>> from eckart.linalg import PivotedQR
    >>> select(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 0.5]]), 2, PivotedQR()).tolist()
    [0, 2]

    Raises ``ValueError`` for a count outside 1 … n, or above what the rule can choose, and for what is no matrix of
    floating-point numbers or holds NaN or infinity.
    """
    refuse_no_matrix(a)
    return selected(Candidates(a), count, rule, stream(rng, COLUMNS), "columns")


def selected(candidates: Candidates, count: int, rule: Rule, rng: Generator, kind: str) -> Tensor:
    """As ``select``, ``kind`` being what the candidates are called."""
    n = candidates.matrix.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"{count} of {n} {kind}: give a number from 1 to {n}")
    return chosen(candidates, count, rule, rng)


def stream(rng: Generator | None, purpose: int) -> Generator:
    """Random numbers of their own for each purpose, from the seed of ``rng`` and whatever was drawn from it before."""
    seed = rng.initial_seed() if rng is not None else 0
    return Generator().manual_seed((seed + purpose * _ODD) % 2**63)


@dataclass(frozen=True)
class Span:
    """``c = u @ diag(s) @ pinv(weights)`` for columns c (m, k): its decomposition with the columns at unit length.

    ``pinv(c)`` is then ``weights / s @ u.T``, and how dependent the columns are does not depend on their lengths.
    """

    u: Tensor  # (m, q) orthonormal columns
    s: Tensor  # (q,) descending
    weights: Tensor  # (k, q)

    @classmethod
    def of(cls, c: Tensor) -> Span:
        """By LAPACK, in float64.

        >>> span = Span.of(torch.tensor([[2.0, 0.0], [0.0, 1e-9], [0.0, 0.0]]))
        >>> span.s.tolist(), (span.u.T @ (2 * torch.eye(3, dtype=torch.float64)[:, :1])).abs().tolist()
        ([1.0, 1.0], [[2.0], [0.0]])
        """
        c = c.to(torch.float64)
        lengths = torch.linalg.vector_norm(c, dim=0)
        lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        u, s, vt = torch.linalg.svd(c / lengths, full_matrices=False)
        return cls(u, s, vt.T / lengths[:, None])

    @property
    def noise(self) -> float:
        """Below this a value may be nothing but rounding."""
        return EPS * max(len(self.u), len(self.weights)) * (float(self.s[0]) if len(self.s) else 0.0)


def refuse_no_matrix(a: Tensor) -> None:
    """Raise ``ValueError`` for what is no matrix of floating-point numbers, or holds NaN or infinity."""
    if a.ndim != 2 or not a.is_floating_point():
        raise ValueError(
            f"a matrix of floating-point numbers is wanted, not a tensor of shape {tuple(a.shape)} in {a.dtype}"
        )
    if not math.isfinite(frobenius_norm(a)) and not bool(torch.isfinite(a).all()):
        raise ValueError(f"the {a.shape[0]} x {a.shape[1]} matrix holds NaN or infinity")


def refuse_narrower(a: Tensor, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` where entries of ``a`` can't be copied to ``dtype`` without rounding."""
    if torch.promote_types(a.dtype, dtype) != dtype:
        raise ValueError(
            f"entries in {a.dtype} are copied and {dtype} would round them: give {a.dtype} or a wider type"
        )


def refuse_overflow(t: Tensor, what: str) -> Tensor:
    """``t``, or ``ValueError`` where it was rounded to infinity."""
    if not bool(torch.isfinite(t).all()):
        raise ValueError(
            f"{what} has entries too large for {t.dtype}: give a dtype of wider range, such as torch.float32"
        )
    return t


def refuse_other_width(a: Tensor, metric: Metric) -> None:
    """Raise ``ValueError`` where the metric is for matrices of another number of columns."""
    side = metric.moment if metric.moment is not None else metric.right
    if side is not None and len(side) != a.shape[1]:
        m, n = a.shape
        raise ValueError(
            f"the {metric.name} metric is for {len(side)} columns, the matrix is {m} x {n}: give one for {n}"
        )
