"""Columns of a matrix chosen one after another by elimination: pivoted QR, its strong form, and interpolation points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.svd import EPS

# A norm that downdating made smaller than this share (of its square) of the one last computed is computed anew.
CANCELLED = math.sqrt(EPS)
# What is left of a column is rounding where it is below this many units of it, times the longer side.
NOISE = 1.0


@dataclass(frozen=True)
class Pivoted:
    """``a[:, order] = q @ r`` but for what is left after ``rank`` steps, ``r`` upper trapezoidal with a falling, positive diagonal.

    ``rank`` is the number of steps wanted, or fewer where nothing but rounding was left of every other column.
    """

    order: Tensor  # (n,) the chosen columns in order of choice, then the others as they were
    q: Tensor  # (m, rank) orthonormal columns
    r: Tensor  # (rank, n)

    @property
    def rank(self) -> int:
        """How many steps were made."""
        return len(self.r)


def pivoted_qr(a: Tensor, steps: int) -> Pivoted:
    """``steps`` steps of the QR factorisation of ``a`` (m, n) with column pivoting (Businger and Golub 1965), in float64.

    Each step takes the column of which most is left beside the span of those chosen before, the first of several equals. The
    lengths of what is left are downdated, ``sqrt(l**2 - r**2)``; where that has cancelled too many digits they are computed
    anew (Drmač and Bujanović 2008). Every step orthogonalises one column twice and reads ``a`` once.

    >>> found = pivoted_qr(torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]]), 2)
    >>> found.order.tolist(), found.r.tolist()
    ([2, 1, 0], [[3.0, 0.0, 1.0], [0.0, 2.0, 0.0]])

    Raises ``ValueError`` for a number of steps outside 0 … n.
    """
    m, n = a.shape
    if not 0 <= steps <= n:
        raise ValueError(f"{steps} pivots of a {m} x {n} matrix: give a number from 0 to {n}")
    a = a.to(torch.float64)
    q, r = a.new_zeros(m, min(steps, m)), a.new_zeros(min(steps, m), n)
    lengths = torch.linalg.vector_norm(a, dim=0)
    noise = NOISE * max(m, n) * EPS * lengths
    left, computed = lengths.clone(), lengths.clone()
    free = torch.ones(n, dtype=torch.bool, device=a.device)
    chosen: list[int] = []
    for step in range(min(steps, m)):
        worth = torch.where(free & (left > noise), left, torch.zeros_like(left))
        pivot = int(worth.argmax())
        if float(worth[pivot]) == 0:
            break
        column = a[:, pivot]
        for _ in range(2):
            column = column - q[:, :step] @ (q[:, :step].T @ column)
        length = torch.linalg.vector_norm(column)
        q[:, step] = column / length
        free[pivot] = False
        r[step] = torch.where(free, q[:, step] @ a, torch.zeros_like(lengths))
        r[step, pivot] = length
        chosen.append(pivot)
        left, computed = _downdated(a, q[:, : step + 1], r[: step + 1], free, left, computed)
    rest = torch.arange(n, device=a.device)[free]
    order = torch.cat([torch.tensor(chosen, dtype=torch.int64, device=a.device), rest])
    return Pivoted(order, q[:, : len(chosen)], r[: len(chosen), order])


def _downdated(a: Tensor, q: Tensor, r: Tensor, free: Tensor, left: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of every column after the last row of ``r``, and what that was when it was last computed."""
    share = (1 - (r[-1] / torch.where(left > 0, left, torch.ones_like(left))).square()).clamp(min=0)
    since = left / torch.where(computed > 0, computed, torch.ones_like(computed))
    stale = free & (share * since.square() <= CANCELLED)
    left = left * share.sqrt()
    if bool(stale.any()):
        left[stale] = torch.linalg.vector_norm(a[:, stale] - q @ r[:, stale], dim=0)
        computed = torch.where(stale, left, computed)
    return left, computed


def strong_pivots(a: Tensor, count: int, f: float) -> Tensor:
    """``count`` columns of ``a`` (m, n) by strong rank-revealing QR (Gu and Eisenstat 1996, algorithm 4), in order of choice.

    From the columns of pivoted QR, one chosen column is exchanged for another as long as that multiplies the volume of the
    chosen ones by more than ``f``: by ``sqrt((R11^-1 R12)_ij**2 + (g_j w_i)**2)``, g being the lengths of the columns of
    R22 and w those of the rows of ``R11^-1``. Then no entry of ``R11^-1 R12`` is above f, and the singular values of R11 and
    R22 are within ``sqrt(1 + f**2 k (n - k))`` of those of ``a``. Where ``a`` has fewer than ``count`` independent columns
    the exchange is among those, and the first of the others fill up.

    >>> strong_pivots(torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]]), 2, 2.0).tolist()
    [2, 1]

    Raises ``ValueError`` where ``f`` is not above 1 or the count is outside 0 … n.
    """
    if not f > 1:
        raise ValueError(f"strong rank-revealing QR with f = {f:g}: give a number above 1, such as 2")
    a = a.to(torch.float64)
    if a.shape[0] > a.shape[1]:
        a = torch.linalg.qr(a, mode="r").R  # the same lengths and angles in fewer numbers
    first = pivoted_qr(a, count)
    rank = first.rank
    chosen = first.order[:rank]
    volume = first.r.diagonal().log().sum()
    while rank and rank < len(first.order) and (larger := _exchanged(a, chosen, volume, f)) is not None:
        chosen, volume = larger
    return torch.cat([chosen, _others(chosen, len(first.order))])[:count]


def _exchanged(a: Tensor, chosen: Tensor, volume: Tensor, f: float) -> tuple[Tensor, Tensor] | None:
    """The chosen columns after the best exchange and the logarithm of their volume; ``None`` where none gains more than ``f``."""
    others = _others(chosen, a.shape[1])
    i, j, gain = _best_exchange(a[:, chosen], a[:, others])
    if gain <= f:
        return None
    exchanged = chosen.clone()
    exchanged[i] = others[j]
    larger = torch.linalg.qr(a[:, exchanged], mode="r").R.diagonal().abs().log().sum()
    # Else the gain was rounding: among nearly dependent columns this could go on for ever.
    return (exchanged, larger) if bool(larger > volume) else None


def _others(chosen: Tensor, n: int) -> Tensor:
    free = torch.ones(n, dtype=torch.bool, device=chosen.device)
    free[chosen] = False
    return torch.arange(n, device=chosen.device)[free]


def _best_exchange(inside: Tensor, outside: Tensor) -> tuple[int, int, float]:
    """Which column of ``inside`` (m, k) to give for which of ``outside``, and by how much that multiplies the volume."""
    q, r = torch.linalg.qr(inside)
    seen = q.T @ outside
    beside = torch.linalg.vector_norm(outside - q @ seen, dim=0)
    coefficients = torch.linalg.solve_triangular(r, seen, upper=True)
    inverse = torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=r.dtype, device=r.device), upper=True)
    rows = torch.linalg.vector_norm(inverse, dim=1)
    gains = torch.hypot(coefficients, rows[:, None] * beside)
    i, j = divmod(int(gains.argmax()), gains.shape[1])
    return i, j, float(gains[i, j])


def interpolation_points(basis: Tensor, count: int) -> Tensor:
    """``count`` columns of ``basis`` (k, n) by the discrete empirical interpolation method, in order of choice.

    Row j is interpolated at the points so far from the rows before it; the next point is where that misses it by most, the
    first of several equals (Sorensen and Embree 2016, algorithm 1). What is missed is row j after the elimination of the earlier
    points: these are the pivots of Gaussian elimination with partial pivoting.

    >>> interpolation_points(torch.tensor([[0.6, 0.8, 0.0], [0.8, -0.6, 0.1]]), 2).tolist()
    [1, 0]

    Raises ``ValueError`` where there are fewer rows or columns than points are wanted.
    """
    k, n = basis.shape
    if not 0 <= count <= min(k, n):
        raise ValueError(
            f"{count} interpolation points from {k} vectors of {n} entries: there is one for each vector at most; "
            "want fewer, or choose by pivoted QR"
        )
    missed = basis.to(torch.float64).clone()
    free = torch.ones(n, dtype=torch.bool, device=basis.device)
    chosen = []
    for j in range(count):
        row = missed[j]
        point = int(torch.where(free, row.abs(), torch.full_like(row, -math.inf)).argmax())
        chosen.append(point)
        free[point] = False
        if float(row[point]) != 0:  # a vector that those before it make up has nothing to eliminate
            missed[j + 1 :] -= torch.outer(missed[j + 1 :, point] / row[point], row)
    return torch.tensor(chosen, dtype=torch.int64, device=basis.device)
