"""Nyström approximation: of a positive semidefinite matrix from some of its columns, of any matrix from two sketches."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.kernels.panels import panels
from eckart.kernels.selection import Candidates, Rule
from eckart.kernels.svd import EPS, SAFETY, fix_signs
from eckart.linalg.certified import bounds_of
from eckart.linalg.selected import (
    BOUNDS,
    BY_DEIM,
    COLUMNS,
    SKETCH,
    refuse_no_matrix,
    refuse_overflow,
    selected,
    stream,
)
from eckart.operator import Factors

NOISE = 1.0  # how many units of what rounding may have made of a core's smallest values are taken for rounding


def nystrom(
    a: Tensor,
    rank: int,
    rule: Rule = BY_DEIM,
    *,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """The Nyström approximation of a symmetric positive semidefinite ``a`` (n, n) from ``rank`` coordinates J.

    ``a ≈ F F^T = C W^+ C^T`` with ``C = a[:, J]`` and ``W = a[J, J]``. In exact arithmetic ``a - F F^T`` is positive semidefinite
    and zero in the chosen rows and columns. The core W is not inverted and not shifted (Tropp, Yurtsever, Udell and Cevher 2017
    shift): with D the root of its diagonal, ``D^-1 W D^-1 = V diag(l) V^T`` and ``F = C D^-1 V diag(l)^(-1/2)``, where columns of F
    are zero whose l is no more than what rounding the entries of ``a`` to their type may have made. F is stored in
    ``dtype``, by default that of ``a``, and the right factor is its transpose: what is stored is positive semidefinite too.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    >>> fit = nystrom(x @ x.T, 2)
    >>> bool(torch.allclose(fit.op.dense(), x @ x.T, atol=1e-5)), fit.bounds[0].achieved < 1e-5
    (True, True)

    Raises ``ValueError`` for a rank outside 1 … n, for what is no square matrix of finite floating-point numbers, not symmetric,
    or seen not to be positive semidefinite in the chosen columns and on the diagonal, which is where it is looked at.
    """
    refuse_no_matrix(a)
    n = len(a)
    if a.shape[1] != n:
        raise ValueError(f"a symmetric matrix is wanted, not one of {a.shape[0]} x {a.shape[1]}")
    grain = torch.finfo(a.dtype).eps
    # Entries of a narrow type are rounded once: what adds them up does so in float32 at least.
    apart = SAFETY * max(grain, n * min(grain, torch.finfo(torch.float32).eps))
    if n and float((a - a.T).abs().max()) > apart * float(a.abs().max()):
        raise ValueError(f"the {n} x {n} matrix is not symmetric: give (a + a.T) / 2 if that is what is meant")
    indices = selected(Candidates(a), rank, rule, stream(rng, COLUMNS), "columns")
    factor, kept = _root_factor(a[:, indices].to(torch.float64), a.diagonal().to(torch.float64), indices, grain)
    left = refuse_overflow(factor.to(dtype or a.dtype).contiguous(), "the factor")
    op = Factors(left, left.T)
    return Fit(
        op=op,
        bounds=bounds_of(a, op, rng=stream(rng, BOUNDS)),
        how=f"coordinates by {rule}, {kept} of {rank} independent; pseudo-inverse of the core",
    )


def _root_factor(c: Tensor, diagonal: Tensor, indices: Tensor, grain: float) -> tuple[Tensor, int]:
    """F (n, r) with ``F F^T = C W^+ C^T``, and how many of its columns are not zero; ``grain`` is the rounding of an entry."""
    n = len(c)
    if float(diagonal.min()) < 0 or bool(
        (c.square() > (1 + n * grain) ** 2 * torch.outer(diagonal, diagonal[indices])).any()
    ):
        raise ValueError(
            f"the {n} x {n} matrix is not positive semidefinite: an entry is above the mean of its diagonal ones"
        )
    lengths = diagonal[indices].sqrt()
    unit = c / torch.where(lengths > 0, lengths, torch.ones_like(lengths))  # (n, r)
    core = unit[indices] / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None]
    values, vectors = torch.linalg.eigh(core)
    if float(values[0]) < -n * max(grain, SAFETY * EPS):
        raise ValueError(
            f"the {n} x {n} matrix is not positive semidefinite: its core has the eigenvalue {float(values[0]):.3g}"
        )
    kept = values > NOISE * max(grain, SAFETY * EPS) * float(torch.linalg.vector_norm(core))
    roots = torch.where(kept, values, torch.ones_like(values)).sqrt()
    factor = torch.where(kept, unit @ vectors / roots, torch.zeros_like(unit)).flip(1)
    return fix_signs(factor), int(kept.sum())


def generalised_nystrom(
    a: Tensor,
    rank: int,
    *,
    oversampling: int | None = None,
    dtype: torch.dtype | None = None,
    rng: Generator | None = None,
) -> Fit:
    """An approximation of any ``a`` (m, n) from two Gaussian sketches, taken in one pass over it (Nakatsukasa 2020).

    ``a ≈ (a X) (Y^T a X)^+ (Y^T a)`` with X (n, r) and Y (m, r + l), ``oversampling`` l being by default half the rank, rounded
    up, and at most m - r. The core ``Y^T a X = P diag(s) Z^T`` is not inverted: the left factor is ``a X Z diag(1 / s)``, the right one
    ``P^T Y^T a``, without the directions whose s is no more than rounding of the core (its stabilised form). Rows and columns of
    both factors have equal lengths. Bounds are measured on the factors as stored, in ``dtype``, by default that of ``a``,
    for which the matrix is read again. What is random depends on the seed of ``rng`` (0 where none is given), not on its state.

    The mean square of the Frobenius error is at most ``(1 + r / (l - 1)) (1 + k / (r - k - 1))`` times what the best matrix of
    rank k leaves, for every k < r - 1 (Tropp, Yurtsever, Udell and Cevher 2017, theorem 4.3).

    >>> a = torch.outer(torch.arange(1.0, 5.0), torch.tensor([1.0, -1.0, 2.0]))
    >>> fit = generalised_nystrom(a, 1)
    >>> bool(torch.allclose(fit.op.dense(), a, atol=1e-5)), fit.bounds[0].achieved < 1e-5
    (True, True)

    Raises ``ValueError`` for a rank outside 1 … min(m, n), a negative ``oversampling``, and for what is no matrix of
    floating-point numbers or holds NaN or infinity.
    """
    refuse_no_matrix(a)
    m, n = a.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} of a {m} x {n} matrix: give one from 1 to {min(m, n)}")
    more = (rank + 1) // 2 if oversampling is None else oversampling
    if more < 0:
        raise ValueError(f"the oversampling is a number of rows and not below 0: {more}")
    more = min(more, m - rank)
    right, left, core = _sketched(a, rank, rank + more, stream(rng, SKETCH))
    p, s, zt = torch.linalg.svd(core, full_matrices=False)
    kept = s > NOISE * EPS * max(m, n) * s[0]
    inverse = torch.where(kept, 1 / torch.where(kept, s, torch.ones_like(s)), torch.zeros_like(s))
    op = _balanced(right @ zt.T * inverse, p.T @ left, kept, dtype or a.dtype)
    return Fit(
        op=op,
        bounds=bounds_of(a, op, rng=stream(rng, BOUNDS)),
        how=f"Gaussian sketches of {rank} columns and {rank + more} rows, {int(kept.sum())} of {rank} directions above rounding",
    )


def _sketched(a: Tensor, columns: int, rows: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``a X`` (m, columns), ``Y^T a`` (rows, n) and ``Y^T a X``, in float64, from one pass over ``a``."""
    m, n = a.shape
    x = torch.randn(n, columns, generator=rng, dtype=torch.float64).to(a.device)
    y = torch.randn(m, rows, generator=rng, dtype=torch.float64).to(a.device)
    ya, ax, start = x.new_zeros(rows, n), [], 0
    for panel in panels(a):
        ax.append(panel @ x)
        ya.addmm_(y[start : start + len(panel)].T, panel)
        start += len(panel)
    found = torch.cat(ax)
    return found, ya, y.T @ found


def _balanced(left: Tensor, right: Tensor, kept: Tensor, dtype: torch.dtype) -> Factors:
    """Both factors in ``dtype``, columns of one and rows of the other of equal lengths."""
    ratio = torch.linalg.vector_norm(right, dim=1) / torch.linalg.vector_norm(left, dim=0)
    scale = torch.where(kept, ratio, torch.ones_like(ratio)).sqrt()
    right = torch.where(kept[:, None], right, torch.zeros_like(right))
    stored = [(left * scale).to(dtype).contiguous(), (right / scale[:, None]).to(dtype).contiguous()]
    return Factors(*(refuse_overflow(t, "a factor") for t in stored))
