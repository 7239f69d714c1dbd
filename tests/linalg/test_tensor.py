"""Kronecker sums, tensor trains and Tucker's decomposition against the unfoldings that say what is possible."""

import math
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from market import MATRICES, float64, gaussian, generator, lapack_values, orthonormal
from torch import Tensor

from eckart import linalg
from eckart.fit import Fit
from eckart.operator import Kronecker, Product, Sum, TensorTrain, in_dtype, nbytes

# With all bounds; that the others are the same without is a test of its own.
kronecker_sum, tensor_train, tucker = (
    partial(make, spectral=True) for make in (linalg.kronecker_sum, linalg.tensor_train, linalg.tucker)
)


def error(a: Tensor, fit: Fit) -> float:
    return float(np.linalg.norm(float64(a) - float64(in_dtype(fit.op, torch.float64).dense())))


def check(a: Tensor, fit: Fit, optimum: float | None = None) -> None:
    """Bounds as measured, and below what is possible."""
    frobenius, spectral = fit.bounds
    size = float(np.linalg.norm(float64(a)))
    found = error(a, fit)
    assert frobenius.lower is not None
    assert frobenius.lower <= found + 1e-13 * size
    assert found <= frobenius.upper + 1e-15 * size
    assert frobenius.achieved == pytest.approx(max(found, frobenius.lower), rel=1e-6, abs=1e-12 * size)
    rest = float64(a) - float64(in_dtype(fit.op, torch.float64).dense())
    assert spectral.lower is None
    assert spectral.achieved * (1 - 1e-9) - 1e-13 * size <= lapack_values(rest)[0] <= spectral.upper + 1e-15 * size
    if optimum is not None:
        assert frobenius.lower <= optimum + 1e-14 * size
        assert optimum <= frobenius.upper + 1e-14 * size


# ---- sums of Kronecker products --------------------------------------------------------------------------------------


def rearranged(a: Tensor, p: int, q: int) -> np.ndarray:
    """One row for each block, one column for each place in it: by NumPy, block by block."""
    w = float64(a)
    h, k = w.shape[0] // p, w.shape[1] // q
    return np.array([w[i * h : (i + 1) * h, j * k : (j + 1) * k].ravel() for i in range(p) for j in range(q)])


@pytest.mark.parametrize("left", [(2, 3), (4, 1), (1, 6), (8, 6), (1, 1)])
@pytest.mark.parametrize("terms", [1, 2])
def test_the_nearest_kronecker_sum_is_the_one_of_the_rearranged_blocks(left: tuple[int, int], terms: int) -> None:
    a = gaussian(8, 6, 1)
    values = lapack_values(rearranged(a, *left))
    if terms > len(values):
        with pytest.raises(ValueError, match="rank 2 of a"):
            kronecker_sum(a, terms, left)
        return
    fit = kronecker_sum(a, terms, left)
    optimum = float(np.linalg.norm(values[terms:]))
    check(a, fit, optimum)
    assert error(a, fit) == pytest.approx(optimum, abs=1e-12)
    assert fit.bounds[0].lower == pytest.approx(optimum, abs=1e-11)
    assert isinstance(fit.op, Sum)
    assert [term.a.shape for term in fit.op.terms if isinstance(term, Kronecker)] == [left] * terms


def test_a_sum_of_kronecker_products_is_found_again() -> None:
    b, c = ([gaussian(*shape, seed) for seed in seeds] for shape, seeds in (((3, 4), (1, 2)), ((5, 2), (3, 4))))
    a = sum((torch.kron(x, y) for x, y in zip(b, c, strict=True)), torch.zeros(15, 8).double())
    assert error(a, kronecker_sum(a, 2, (3, 4))) <= 1e-12
    assert error(a, kronecker_sum(a, 1, (3, 4))) > 0.1
    assert nbytes(kronecker_sum(a, 2, (3, 4)).op) == 2 * (12 + 10) * 8


def test_left_factors_divide_the_matrix() -> None:
    for left in ((3, 2), (2, 4), (0, 2), (16, 1)):
        with pytest.raises(ValueError, match=f"left factors of {left[0]} x {left[1]} do not divide a 8 x 6 matrix"):
            kronecker_sum(gaussian(8, 6), 1, left)


# ---- tensor trains ----------------------------------------------------------------------------------------------------

DIGITS = [((2, 3, 4), (3, 2, 2)), ((4, 6), (2, 6)), ((24,), (12,)), ((2, 2, 2, 3), (2, 1, 3, 2))]


def unfoldings(a: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> list[np.ndarray]:
    d = len(rows)
    tensor = float64(a).reshape(*rows, *columns).transpose([axis for k in range(d) for axis in (k, d + k)])
    sizes = [1, *np.cumprod([p * q for p, q in zip(rows, columns, strict=True)])]
    return [tensor.reshape(size, -1) for size in sizes[1:-1]]


@pytest.mark.parametrize(("rows", "columns"), DIGITS)
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_a_train_is_within_the_theorem_of_the_best(rows: tuple[int, ...], columns: tuple[int, ...], rank: int) -> None:
    a = gaussian(24, 12, 2) * torch.logspace(0, -2, 12, dtype=torch.float64)
    fit = tensor_train(a, rows, columns, rank)
    assert isinstance(fit.op, TensorTrain)
    tails = [
        float(np.linalg.norm(lapack_values(u)[r:]))
        for u, r in zip(unfoldings(a, rows, columns), fit.op.ranks, strict=True)
    ]
    check(a, fit)
    most = max(tails, default=0.0)
    assert fit.bounds[0].lower == pytest.approx(most, abs=1e-11)
    assert most - 1e-12 <= error(a, fit) <= math.hypot(*tails) + 1e-12  # Oseledets 2011, theorem 2.2
    assert [core.shape[1] for core in fit.op.cores] == list(rows)
    assert [core.shape[2] for core in fit.op.cores] == list(columns)
    if rank == 100:
        assert error(a, fit) <= 1e-12


def test_a_train_of_given_ranks_is_found_again() -> None:
    cores = (
        gaussian(1, 6, 1).reshape(1, 2, 3, 1),
        gaussian(1, 8, 2).reshape(1, 2, 2, 2),
        gaussian(2, 12, 3).reshape(2, 3, 4, 1),
    )
    a = TensorTrain(cores).dense()
    fit = tensor_train(a, (2, 2, 3), (3, 2, 4), (1, 2))
    assert error(a, fit) <= 1e-12 * float(a.norm())
    assert isinstance(fit.op, TensorTrain)
    assert fit.op.ranks == (1, 2)
    assert error(a, tensor_train(a, (2, 2, 3), (3, 2, 4), 1)) > 1e-3


def test_of_two_cores_the_best_train_is_a_truncated_svd() -> None:
    a = gaussian(12, 10, 3)
    for rank in (1, 4):
        (unfolded,) = unfoldings(a, (3, 4), (5, 2))
        optimum = float(np.linalg.norm(lapack_values(unfolded)[rank:]))
        fit = tensor_train(a, (3, 4), (5, 2), rank)
        check(a, fit, optimum)
        assert error(a, fit) == pytest.approx(optimum, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cores_are_of_one_size_in_narrow_types(dtype: torch.dtype) -> None:
    a = 1e-3 * gaussian(24, 12, 4)
    fit = tensor_train(a, (2, 3, 4), (3, 2, 2), 2, dtype=dtype)
    check(a, fit)
    assert isinstance(fit.op, TensorTrain)
    norms = [float(core.double().norm()) for core in fit.op.cores]
    assert all(one == pytest.approx(other, rel=0.02) for one, other in pairwise(norms))
    wide = tensor_train(a, (2, 3, 4), (3, 2, 2), 2)
    assert error(a, fit) <= error(a, wide) + 8 * torch.finfo(dtype).eps * float(a.norm())


def test_digits_and_ranks_are_checked() -> None:
    a = gaussian(24, 12)
    for rows, columns in (((2, 3), (3, 4)), ((2, 12), (12,)), ((24, 1), (3, 5))):
        with pytest.raises(ValueError, match="are not the digits of a 24 x 12 matrix"):
            tensor_train(a, rows, columns, 2)
    for ranks in ((1,), (0, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="3 cores have 2 bonds, each of a rank of at least 1"):
            tensor_train(a, (2, 3, 4), (3, 2, 2), ranks)


# ---- Tucker -----------------------------------------------------------------------------------------------------------


def spread(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int, noise: float = 0.0) -> Tensor:
    """A tensor of these multilinear ranks, and noise."""
    tensor = gaussian(math.prod(ranks), 1, seed).reshape(ranks)
    for axis, (size, rank) in enumerate(zip(shape, ranks, strict=True)):
        tensor = torch.tensordot(orthonormal(size, rank, seed + axis), tensor, dims=([1], [axis])).movedim(0, axis)
    return tensor + noise * gaussian(math.prod(shape), 1, seed + 9).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "ranks"), [((6, 5, 4), (2, 3, 2)), ((3, 3, 8, 7), (2, 1, 3, 2)), ((9, 7), (3, 3)), ((4, 1, 5), (2, 1, 2))]
)
def test_tensors_of_low_multilinear_rank_are_found_again(shape: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    a = spread(shape, ranks, 1)
    fit = tucker(a, ranks)
    assert error(a.reshape(shape[0], -1), fit) <= 1e-12
    assert isinstance(fit.op, Product)
    assert nbytes(fit.op) == 8 * (math.prod(ranks) + sum(size * rank for size, rank in zip(shape, ranks, strict=True)))


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_the_error_is_between_what_unfoldings_leave_and_the_truncated_one(noise: float) -> None:
    shape, ranks = (7, 6, 5), (3, 2, 3)
    a = spread(shape, ranks, 2, noise)
    fit = tucker(a, ranks)
    flat = a.reshape(7, -1)
    check(flat, fit)
    w = float64(a)
    unfolded = [np.moveaxis(w, axis, 0).reshape(shape[axis], -1) for axis in range(3)]
    tails = [float(np.linalg.norm(lapack_values(u)[r:])) for u, r in zip(unfolded, ranks, strict=True)]
    assert fit.bounds[0].lower == pytest.approx(max(tails), rel=1e-9)
    truncated = w
    for axis, (u, rank) in enumerate(zip(unfolded, ranks, strict=True)):
        basis = np.linalg.svd(u)[0][:, :rank]
        truncated = np.moveaxis(np.tensordot(basis @ basis.T, truncated, axes=([1], [axis])), 0, axis)
    plain = float(np.linalg.norm(w - truncated))
    assert max(tails) <= error(flat, fit) <= plain * (1 + 1e-9)
    if noise > 0.1:
        assert error(flat, fit) < plain * (1 - 1e-4)  # the iteration is worth its time


def test_of_a_matrix_it_is_the_truncated_svd() -> None:
    a = gaussian(9, 7, 5)
    fit = tucker(a, (3, 3))
    check(a, fit, float(np.linalg.norm(lapack_values(a)[3:])))
    assert error(a, fit) == pytest.approx(float(np.linalg.norm(lapack_values(a)[3:])), rel=1e-9)


def test_ranks_beyond_what_the_others_hold_are_completed() -> None:
    a = gaussian(6, 2).reshape(6, 2, 1)
    fit = tucker(a, (5, 2, 1))
    assert error(a.reshape(6, 2), fit) <= 1e-12
    assert next(iter(fit.op.tensors().values())).shape == (6, 5)


def test_tucker_refuses() -> None:
    for ranks in ((1, 1), (0, 1, 1), (3, 2, 2), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="give one for each axis, from 1 to its size"):
            tucker(torch.ones(2, 2, 2), ranks)
    with pytest.raises(ValueError, match="a tensor of order 2 or more"):
        tucker(torch.ones(3), (1,))


# ---- all of them ------------------------------------------------------------------------------------------------------

ALL = {
    "kronecker": lambda a: kronecker_sum(a, 1, (1, a.shape[1])),
    "train": lambda a: tensor_train(a, (a.shape[0], 1), (1, a.shape[1]), 1),
    "tucker": lambda a: tucker(a, (1, 1)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("kind", ALL)
def test_of_rank_one_all_of_them_are_the_truncated_svd(kind: str, name: str) -> None:
    """A row as the left Kronecker factor, bonds between rows and columns, a core of one entry: outer products, each of them."""
    a = MATRICES[name]()
    wide = a.to(torch.float64)
    fit = ALL[kind](wide)
    optimum = float(np.linalg.norm(lapack_values(a)[1:]))
    size = float(np.linalg.norm(float64(a)))
    assert error(wide, fit) <= optimum + 1e-12 * size
    assert fit.bounds[0].lower is not None
    assert fit.bounds[0].lower <= optimum + 1e-14 * size


@pytest.mark.parametrize("kind", ALL)
def test_what_is_not_finite_is_refused(kind: str) -> None:
    a = gaussian(4, 6)
    a[1, 2] = math.nan
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        ALL[kind](a)
    with pytest.raises(ValueError, match="wanted"):
        ALL[kind](torch.ones(4, 6, dtype=torch.int64))


@pytest.mark.parametrize("kind", ALL)
def test_the_same_bits_from_the_same_matrix(kind: str) -> None:
    a = gaussian(8, 6, 3)
    torch.randn(3, generator=generator())
    for one, other in zip(ALL[kind](a).op.tensors().values(), ALL[kind](a.clone()).op.tensors().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_is_refused_by_name(wrong: float) -> None:
    a = gaussian(4, 6).reshape(4, 2, 3)
    a[1, 0, 2] = wrong
    with pytest.raises(ValueError, match=r"the tensor of shape \(4, 2, 3\) holds NaN or infinity"):
        tucker(a, (2, 2, 2))


@pytest.mark.parametrize("kind", ALL)
def test_the_spectral_norm_comes_on_request(kind: str) -> None:
    a = gaussian(8, 6, 3)
    lean = {
        "kronecker": lambda: linalg.kronecker_sum(a, 1, (1, 6)),
        "train": lambda: linalg.tensor_train(a, (8, 1), (1, 6), 1),
        "tucker": lambda: linalg.tucker(a, (1, 1)),
    }[kind]()
    full = ALL[kind](a)
    assert [bound.norm for bound in full.bounds] == ["frobenius", "spectral"]
    assert lean.bounds == full.bounds[:1]
    assert torch.equal(lean.op.dense(), full.op.dense())


@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 5, 3), (4, 8, 6)])
def test_what_each_bond_leaves_is_below_what_its_unfolding_leaves(ranks: tuple[int, ...]) -> None:
    a = gaussian(24, 18, 5) * torch.logspace(0, -1, 18, dtype=torch.float64)
    rows, columns = (2, 3, 2, 2), (3, 1, 3, 2)
    free, near = linalg.tensor_train(a, rows, columns, ranks), tensor_train(a, rows, columns, ranks)
    assert torch.equal(free.op.dense(), near.op.dense())
    first = float(np.linalg.norm(lapack_values(unfoldings(a, rows, columns)[0])[ranks[0] :]))
    assert first * (1 - 1e-12) <= free.bounds[0].lower + 1e-12
    assert 0 < free.bounds[0].lower <= near.bounds[0].lower <= error(a, free)


# ---- tensorly ---------------------------------------------------------------------------------------------------------


def check_with_tensorly(a: np.ndarray, ranks: tuple[int, ...], bond: int) -> None:
    """Trains are the same algorithm and as good; Tucker's decomposition ends within 1e-4 of what a hundred sweeps come to."""
    decomposition = pytest.importorskip("tensorly.decomposition", reason="tensorly is not installed")
    w = torch.from_numpy(a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of ranks above what an unfolding has
        theirs = decomposition.tucker(a, list(ranks), init="svd", n_iter_max=100, tol=1e-10)
    core, factors = theirs
    for axis, factor in enumerate(factors):
        core = np.moveaxis(np.tensordot(factor, core, axes=([1], [axis])), 0, axis)
    found = linalg.tucker(w, ranks).bounds[0]
    assert found.lower is not None
    assert found.lower <= np.linalg.norm(a - core)
    assert found.achieved <= (1 + 1e-4) * np.linalg.norm(a - core) + 1e-12 * found.scale
    train = linalg.tensor_train(w.reshape(-1, 1), a.shape, (1,) * a.ndim, bond)
    assert isinstance(train.op, TensorTrain)
    rest = a - decomposition.tensor_train(a, [1, *train.op.ranks, 1]).to_tensor()
    assert train.bounds[0].achieved == pytest.approx(np.linalg.norm(rest), rel=1e-9, abs=1e-12 * found.scale)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_tensorly_comes_to_the_same(noise: float) -> None:
    check_with_tensorly(float64(spread((7, 6, 5, 3), (3, 2, 3, 2), 4, noise)), (3, 2, 3, 2), 4)


@pytest.mark.data
@pytest.mark.parametrize("name", ["COVID19_data", "IL2_Response_Tensor", "Kinetic"])
def test_tensorly_comes_to_the_same_on_real_tensors(name: str, data_dir: Path) -> None:
    a = np.nan_to_num(np.load(data_dir / "tensorly_tensors" / f"{name}.npy")).astype(np.float64)
    check_with_tensorly(a, tuple(max(1, side // 6) for side in a.shape), 4)
