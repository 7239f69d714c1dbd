"""Positive semidefinite matrices: products that make them, and square roots, exact ones and fast ones, without inverses."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
BLOCK = 192  # columns at once: narrower blocks save more of the product, and wider ones run faster


def add_gram(gram: Tensor, rows: Iterable[Tensor]) -> Tensor:
    """Add ``sum(x.T @ x for x in rows)`` to a symmetric ``gram`` (n, n), in place and exactly symmetric: at little more than half the cost.

    Only blocks that touch the lower triangle are computed, and the upper one is copied from them.

    >>> add_gram(torch.zeros(2, 2), [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])]).tolist()
    [[1.0, 2.0], [2.0, 5.0]]
    """
    starts = range(0, len(gram), BLOCK)
    for x in rows:
        for start in starts:
            stop = start + BLOCK
            gram[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])
    for start in starts:
        stop = start + BLOCK
        gram[:start, start:stop] = gram[start:stop, :start].T
        block = gram[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).T)
    return gram


def psd_root(gram: Tensor) -> Tensor:
    """``R`` (n, k) in float64 with ``R @ R.T == gram``, for a symmetric positive semidefinite ``gram`` (n, n).

    From the eigenvectors, ``R = Q diag(sqrt(l))``; directions whose eigenvalue rounding made zero or negative are
    left out, so a rank-deficient matrix gives a narrower root instead of a failure. Only the lower triangle is read, and
    ``R`` takes the place of the eigenvectors: beside ``gram`` there are 3 n^2 numbers in memory at the most. Where the diagonal is 0
    so is the row of ``R``, without any rounding.

    >>> psd_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).abs().round(decimals=9).tolist()
    [[2.0], [0.0]]
    """
    values, vectors = torch.linalg.eigh(gram.to(torch.float64))
    first = int((values <= 0).sum())  # eigenvalues ascend
    return vectors[:, first:].mul_(values[first:].sqrt()).index_fill_(0, (gram.diagonal() == 0).nonzero()[:, 0], 0.0)


def nearly_cholesky(gram: Tensor) -> tuple[Tensor, float]:
    """``C`` (n, n), lower triangular in float64, with ``C @ C.T = gram + J``, at a tenth of the time of ``psd_root``, and a bound on J.

    For every diagonal entry g of ``gram`` an entry of J beside the diagonal is at most ``share / n * sqrt(g_i g_j)``, and of the
    diagonal ``share * g_i``: so ``trace(W J W^T)`` is at most ``share * sum_i g_i ||W_i||^2`` for the columns W_i of any W. J begins with
    what rounding may do in Cholesky's algorithm (Higham 2002, theorem 10.3), which keeps a semidefinite matrix from failing in it,
    and grows until it does not. An entry of zero counts as a tiny one. Only the lower triangle is read; ``ValueError`` for NaN or
    infinity in it, with which no J would do.

    >>> c, share = nearly_cholesky(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))
    >>> (c @ c.T).round(decimals=9).tolist(), share < 1e-12
    ([[4.0, 2.0], [2.0, 1.0]], True)
    """
    gram = gram.to(torch.float64)
    n, sizes = len(gram), gram.diagonal()
    if not bool(torch.isfinite(gram.tril()).all()):
        raise ValueError(f"the {n} x {n} Gram matrix holds NaN or infinity")
    sizes = sizes.clamp(min=max(1e-30 * float(sizes.max()), 1e-300))
    for power in count():
        added = 4 * n * EPS * 16.0**power
        shifted = gram.clone()
        shifted.diagonal().copy_(sizes * (1 + added))
        c, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            break
    return c, added + n * (n + 2) * EPS


def least_share(n: int) -> float:
    """The share of ``nearly_cholesky`` for a matrix of side n that is semidefinite but for what rounding does in the algorithm itself.

    >>> nearly_cholesky(torch.eye(3))[1] == least_share(3)
    True
    """
    return 4 * n * EPS + n * (n + 2) * EPS
