"""Matrices as sums of Kronecker products and as tensor trains, tensors by Tucker's decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.norms import frobenius_norm, spectral_norm
from eckart.kernels.svd import EPS, SAFETY, singular_values, svd
from eckart.linalg.factors import completed
from eckart.linalg.selected import refuse_no_matrix, refuse_overflow
from eckart.linalg.truncated import truncated_svd
from eckart.operator import Dense, Factors, Kronecker, Operator, Product, Sum, TensorTrain, in_dtype

SWEEPS = 50  # of alternating least squares, at the most
STALLED = 1e-6  # a sweep that gains less than this share of what is left is the last one


def kronecker_sum(
    a: Tensor,
    terms: int,
    left: tuple[int, int],
    *,
    dtype: torch.dtype | None = None,
    spectral: bool = False,
    rng: Generator | None = None,
) -> Fit:
    """The sum of ``terms`` Kronecker products ``B_i ⊗ C_i`` nearest to ``a`` (m, n), every B_i of the shape ``left``.

    With the entries of ``a`` rearranged so that each block (of the shape of C) becomes a row, sums of Kronecker products are
    matrices of that rank: the nearest one is a truncated SVD, and its error is the same (Van Loan and Pitsianis 1993). The
    Frobenius bound is therefore that of ``truncated_svd``; with ``spectral`` there is one in the spectral norm too, of whose least
    error nothing is known.

    >>> a = torch.kron(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0]]))
    >>> fit = kronecker_sum(a, 1, (2, 2))
    >>> bool(torch.allclose(fit.op.dense(), a, atol=1e-5)), fit.op.shape
    (True, (2, 4))

    Raises ``ValueError`` where ``left`` does not divide the shape of ``a``, for more terms than the smaller of both factors has
    entries, and as ``truncated_svd``.
    """
    refuse_no_matrix(a)
    (m, n), (p, q) = a.shape, left
    if p < 1 or q < 1 or m % p or n % q:
        raise ValueError(f"left factors of {p} x {q} do not divide a {m} x {n} matrix into blocks of equal size")
    inner = (m // p, n // q)
    blocks = a.reshape(p, inner[0], q, inner[1]).permute(0, 2, 1, 3).reshape(p * q, -1)
    fit = truncated_svd(blocks, terms, dtype=dtype, rng=rng)
    assert isinstance(fit.op, Factors)
    pairs = zip(fit.op.left.T, fit.op.right, strict=True)
    op = Sum(
        tuple(Kronecker(Dense(b.reshape(left).contiguous()), Dense(c.reshape(inner).contiguous())) for b, c in pairs)
    )
    beside = (_spectral(a, *_error(a, op, frobenius_norm(a)), rng),) if spectral else ()
    return Fit(op=op, bounds=(fit.bounds[0], *beside), how=f"{fit.how}, of the rearranged blocks")


def tensor_train(
    a: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    ranks: int | Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    spectral: bool = False,
    rng: Generator | None = None,
) -> Fit:
    """A tensor train (matrix product operator) near ``a`` (m, n), m and n being split into ``rows`` and ``columns`` as digits.

    TT-SVD (Oseledets 2011, algorithm 1) of the tensor whose k-th index is the pair of the k-th digits of row and column: one
    truncated SVD after the other, in float64, which leaves at most ``sqrt(d - 1)`` times the error of the best train of these
    ``ranks`` (one for each of the d - 1 bonds, or one for all; more than a bond can hold is cut back). ``lower`` is the largest of what
    each of these leaves, none of whose singular values is above that of the unfolding. With ``spectral`` it is the largest of what
    the unfoldings themselves leave, below which no train of these ranks can come, and there is a bound in the spectral norm.

    >>> a = torch.kron(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]]))
    >>> fit = tensor_train(a, (2, 2), (2, 2), 1)
    >>> bool(torch.allclose(fit.op.dense(), a, atol=1e-5)), fit.op.ranks
    (True, (1,))

    Raises ``ValueError`` where rows and columns are not as many, or do not multiply to the shape of ``a``, and for ranks
    that are not one for each bond and positive.
    """
    refuse_no_matrix(a)
    m, n = a.shape
    rows, columns = tuple(rows), tuple(columns)
    if len(rows) != len(columns) or math.prod(rows) != m or math.prod(columns) != n:
        raise ValueError(
            f"rows {rows} and columns {columns} are not the digits of a {m} x {n} matrix: as many, and these products"
        )
    d = len(rows)
    wanted = [ranks] * (d - 1) if isinstance(ranks, int) else list(ranks)
    if len(wanted) != d - 1 or any(rank < 1 for rank in wanted):
        raise ValueError(f"{d} cores have {d - 1} bonds, each of a rank of at least 1, not {ranks}")
    order = [axis for k in range(d) for axis in (k, d + k)]
    tensor = a.to(torch.float64).reshape(*rows, *columns).permute(order)
    sizes = [p * q for p, q in zip(rows, columns, strict=True)]
    rest, cores, before, lower, off = tensor, [], 1, 0.0, 0.0
    size = frobenius_norm(tensor)
    for k, rank in enumerate(wanted):
        rest = rest.reshape(before * sizes[k], -1)
        rank = min(rank, *rest.shape)
        found = svd(rest)
        u = found.u[:, :rank]
        cores.append(u.reshape(before, rows[k], columns[k], rank))
        rest, before = u.T @ rest, rank
        if spectral and k:
            left = singular_values(tensor.reshape(math.prod(sizes[: k + 1]), -1)).tail_floor(rank)
        else:
            left = found.tail_floor(rank) - off
        lower = max(lower, left)
        off += SAFETY * EPS * max(found.u.shape[0], rest.shape[1]) * size  # of what follows, by this projection
    cores.append(rest.reshape(before, rows[-1], columns[-1], 1))
    op = in_dtype(TensorTrain(tuple(_evened(cores))), dtype or a.dtype)
    return Fit(op=op, bounds=_bounds(a, op, lower, rng, spectral=spectral), how="one truncated SVD for each bond")


def tucker(
    a: Tensor,
    ranks: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    spectral: bool = False,
    rng: Generator | None = None,
) -> Fit:
    """Tucker's decomposition of a tensor ``a`` of any order above 1: a core of the size ``ranks`` and a basis for each axis.

    Higher-order orthogonal iteration from the truncated higher-order SVD (De Lathauwer, De Moor and Vandewalle 2000), in float64,
    until a sweep gains less than 1e-6 of what is left. The operator is the first unfolding, (first size, product of the others):
    ``U_1 G (U_2 ⊗ U_3 ⊗ …)^T`` with the core G unfolded likewise, whose factors are stored and no more. The error is at most
    ``sqrt(order)`` times the best possible; ``lower`` is the largest of what the unfoldings leave at their ranks. With ``spectral``
    there is a bound in the spectral norm of that unfolding as well.

    >>> a = torch.einsum("i,j,k->ijk", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([3.0, 4.0]))
    >>> fit = tucker(a, (1, 1, 1))
    >>> bool(torch.allclose(fit.op.dense().reshape(a.shape), a, atol=1e-5)), fit.bounds[0].achieved < 1e-5
    (True, True)

    Raises ``ValueError`` for a tensor of order below 2, NaN or infinity, ranks that are not one for each axis, within its size, and
    a ``dtype`` that can't hold the core.
    """
    shape = tuple(a.shape)
    if a.ndim < 2 or not a.is_floating_point():
        raise ValueError(f"a tensor of order 2 or more and floating-point numbers is wanted, not {shape} in {a.dtype}")
    if not bool(torch.isfinite(a).all()):
        raise ValueError(f"the tensor of shape {shape} holds NaN or infinity")
    ranks = tuple(ranks)
    if len(ranks) != a.ndim or not all(1 <= r <= size for r, size in zip(ranks, shape, strict=True)):
        raise ValueError(f"ranks {ranks} of a tensor of shape {shape}: give one for each axis, from 1 to its size")
    tensor = a.to(torch.float64)
    unfoldings = [_unfolded(tensor, axis) for axis in range(a.ndim)]
    found = [svd(unfolded) for unfolded in unfoldings]
    lower = max(one.tail_floor(rank) for one, rank in zip(found, ranks, strict=True))
    bases = [completed(one.u[:, :rank], rank) for one, rank in zip(found, ranks, strict=True)]
    whole, energy = float(tensor.square().sum()), float(_core(tensor, bases).square().sum())
    for _ in range(SWEEPS):
        for axis, rank in enumerate(ranks):
            others = _core(tensor, bases, leave=axis)
            bases[axis] = completed(svd(_unfolded(others, axis)).u[:, :rank], rank)
        before, energy = energy, float(_core(tensor, bases).square().sum())
        if energy - before <= STALLED * max(whole - energy, 0.0) + max(shape) * EPS * whole:
            break
    dtype = dtype or a.dtype
    core = refuse_overflow(_unfolded(_core(tensor, bases), 0).to(dtype), "the core")
    inner: Operator = Dense(bases[1].contiguous())
    for basis in bases[2:]:
        inner = Kronecker(inner, Dense(basis.contiguous()))
    op = in_dtype(Product((Dense(bases[0].contiguous()), Dense(core), inner.T)), dtype)
    flat = a.reshape(shape[0], -1)
    how = "higher-order orthogonal iteration from the truncated higher-order SVD"
    return Fit(op=op, bounds=_bounds(flat, op, lower, rng, spectral=spectral), how=how)


def _evened(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same train with cores of equal norm, so that none leaves the range of a narrow type."""
    norms = [float(torch.linalg.vector_norm(core)) for core in cores]
    if not all(norms):
        return [core.contiguous() for core in cores]
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [(core * (mean / norm)).contiguous() for core, norm in zip(cores, norms, strict=True)]


def _unfolded(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _core(tensor: Tensor, bases: Sequence[Tensor], leave: int | None = None) -> Tensor:
    """The tensor in the coordinates of all bases, but for one axis that may be left as it is."""
    others = [axis for axis in range(len(bases)) if axis != leave]
    # What shrinks most comes first.
    for axis in sorted(others, key=lambda axis: bases[axis].shape[1] / len(bases[axis])):
        tensor = torch.tensordot(bases[axis].T, tensor, dims=([1], [axis])).movedim(0, axis)
    return tensor


def _bounds(a: Tensor, op: Operator, lower: float, rng: Generator | None, *, spectral: bool) -> tuple[Bound, ...]:
    """The error as measured, in the Frobenius norm and, where wanted, in the spectral norm."""
    size = frobenius_norm(a)
    error, slack = _error(a, op, size)
    achieved = max(frobenius_norm(error), lower)
    own = Bound(norm="frobenius", lower=lower, achieved=achieved, upper=achieved + slack, scale=size)
    return (own, _spectral(a, error, slack, rng)) if spectral else (own,)


def _error(a: Tensor, op: Operator, size: float) -> tuple[Tensor, float]:
    """What is left of ``a`` in float64, and what forming it may have added; ``size`` is the Frobenius norm of ``a``."""
    wide = in_dtype(op, torch.float64)
    parts = wide.terms if isinstance(wide, Sum) else (wide,)
    reach = sum(math.prod(float(torch.linalg.vector_norm(t)) for t in part.tensors().values()) for part in parts)
    return a.to(torch.float64) - wide.dense(), sum(op.shape) * EPS * (reach + size)


def _spectral(a: Tensor, error: Tensor, slack: float, rng: Generator | None) -> Bound:
    """The bound in the spectral norm, of whose least nothing is known."""
    rng = rng or Generator().manual_seed(0)
    found = spectral_norm(error, rng)
    return Bound(
        norm="spectral",
        lower=None,
        achieved=found.value,
        upper=found.upper + slack,
        scale=spectral_norm(a, rng).value,
        delta={"upper": found.delta} if found.delta else None,
    )
