"""Inverse p-th roots of symmetric positive semidefinite matrices, by eigenvectors and by products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.checked import finite_square

# The smallest eigenvalue at least doubles per step while it is small: 53 steps for what float64 can tell from zero, and a few
# more in which convergence is quadratic.
STEPS = 60


@dataclass(frozen=True, eq=False)
class InverseRoot:
    """``root`` (n, n), symmetric, with ``root^p @ a`` the projection onto the ``rank`` directions that were inverted.

    ``steps`` of the Newton iteration were made; ``None`` where the root comes from the eigenvectors.
    """

    root: Tensor
    rank: int
    steps: int | None


def inverse_root(a: Tensor, p: int, *, damping: float = 0.0, tolerance: float | None = None) -> InverseRoot:
    """``(a + damping I)^(-1/p)`` of a symmetric positive semidefinite ``a`` (n, n), by eigenvectors in float64.

    Eigenvalues that rounding made negative count as zero, ``damping`` is added to all, and those that are then at most
    ``tolerance`` times the largest are not inverted: their directions are zero in the root, as in a pseudo-inverse. Any
    damping above that share of the largest eigenvalue therefore inverts all. Without ``tolerance`` it is what rounding can
    make of a zero: ``max(n eps64, sqrt(n) eps)``, eps being that of the dtype of ``a``; a matrix that was summed in a narrower
    dtype than it is given in needs a larger one. Only the lower triangle is read.

    Raises ``ValueError`` for NaN or infinity, for what is not square, for ``p < 1``, for negative damping or tolerance, and
    where an eigenvalue is more negative than tolerance and damping explain.

    >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 2).root.abs().round(decimals=9).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), 2, damping=0.25).root.abs().round(decimals=4).tolist()
    [[0.4851, 0.0], [0.0, 2.0]]
    """
    a = _checked(a, p, damping)
    n = len(a)
    if tolerance is None:
        tolerance = max(n * torch.finfo(torch.float64).eps, math.sqrt(n) * _eps(a.dtype))
    if tolerance < 0:
        raise ValueError(
            f"the tolerance {tolerance} is negative: give the share of the largest eigenvalue that counts as zero"
        )
    values, vectors = torch.linalg.eigh(a.to(torch.float64))  # ascending
    if n == 0:
        return InverseRoot(vectors, 0, None)
    top, bottom = float(values[-1]), float(values[0])
    if bottom < -max(tolerance * top, damping):
        raise ValueError(
            f"the {n} x {n} matrix is not positive semidefinite: it has the eigenvalue {bottom:.3g} beside {top:.3g}; "
            "give a damping or a tolerance that covers it if rounding made it"
        )
    damped = values.clamp(min=0) + damping
    kept = damped > tolerance * float(damped[-1])
    vectors = vectors[:, kept]
    root = (vectors * damped[kept].pow(-1 / p)) @ vectors.T
    return InverseRoot((root + root.T) / 2, int(kept.sum()), None)


def newton_inverse_root(a: Tensor, p: int, *, damping: float = 0.0, accuracy: float | None = None) -> InverseRoot:
    """``(a + damping I)^(-1/p)`` by the coupled Newton iteration (Guo and Higham 2006, eq. 3.8): products only.

    ``X <- X T``, ``M <- T^p M`` with ``T = ((p + 1) I - M) / p``, from ``M = a / c^p`` and ``X = I / c``; M goes to the identity and
    X to the root for every start with eigenvalues in (0, p + 1). Here c is ``(2 b / (p + 1))^(1/p)`` with b the smaller one of
    two certain bounds on the spectral norm, the largest row sum and the Frobenius norm.

    It has converged when ``||M - I||_F <= accuracy sqrt(n)``; the step after that, which squares what is left, is the last one.
    M is a recurrence of its own and knows nothing of the rounding in X, so ``||X^p a - I||_F`` must be as small as well. Where
    one of the two is not, as for a matrix that is singular or nearly so, ``inverse_root`` gives the result. ``accuracy`` is
    the square root of the dtype's eps if it is not given.

    Runs in float32, for float64 input in float64, and gives that dtype. Only the lower triangle is read.

    Raises ``ValueError`` as ``inverse_root``; the sign of eigenvalues is looked at only where the iteration fails.

    >>> found = newton_inverse_root(torch.tensor([[4.0, 0.0], [0.0, 9.0]]), 2)
    >>> found.root.round(decimals=4).tolist(), found.rank, found.steps < 10
    ([[0.5, 0.0], [0.0, 0.333...]], 2, True)
    """
    a = _checked(a, p, damping)
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    accuracy = math.sqrt(torch.finfo(dtype).eps) if accuracy is None else accuracy
    x = a.to(dtype)
    x = x.tril() + x.tril(-1).T
    x.diagonal().add_(damping)
    found = _iterated(x, p, accuracy * math.sqrt(len(a)))
    if found is not None:
        return found
    exact = inverse_root(a, p, damping=damping)
    return InverseRoot(exact.root.to(dtype), exact.rank, None)


def _iterated(a: Tensor, p: int, allowed: float) -> InverseRoot | None:
    """The iteration for a full symmetric ``a``; ``None`` where it does not end in a root of it."""
    bound = _norm_bound(a)
    if bound == 0.0:
        return None
    unit = torch.eye(len(a), dtype=a.dtype, device=a.device)
    start = a / bound * ((p + 1) / 2)  # eigenvalues up to (p + 1) / 2
    m, x, steps = start, unit, 0  # of the scaled matrix; the scale comes back at the end
    for _ in range(STEPS):
        converged = _deviation(m, unit) <= allowed  # and this step, the last one, squares what is left
        turn = ((p + 1) * unit - m) / p
        x, m = x @ turn, torch.linalg.matrix_power(turn, p) @ m
        steps += 1
        if converged:
            break
    x = (x + x.T) / 2
    # NaN, in which an iteration that diverges ends, is not small either.
    if not _deviation(torch.linalg.matrix_power(x, p) @ start, unit) <= allowed:
        return None
    return InverseRoot(x * ((p + 1) / 2 / bound) ** (1 / p), len(a), steps)


def _norm_bound(a: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    wide = a.to(torch.float64)
    return float(torch.minimum(wide.abs().sum(1).max(), torch.linalg.vector_norm(wide)))


def _deviation(m: Tensor, unit: Tensor) -> float:
    return float(torch.linalg.vector_norm(m - unit, dtype=torch.float64))


def _checked(a: Tensor, p: int, damping: float) -> Tensor:
    a = finite_square(a)
    if p < 1:
        raise ValueError(f"there is no inverse root of order {p}: give a positive integer")
    if not 0 <= damping < math.inf:
        raise ValueError(f"the damping {damping} is not a finite number of at least zero")
    return a


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
