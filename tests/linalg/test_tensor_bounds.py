"""What the bounds of Kronecker sums, trains and Tucker's decomposition add and take off for rounding, and of which type factors are."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.linalg import kronecker_sum, tensor_train, tucker
from eckart.operator import Sum

EPS = 2.0**-52
ROWS, COLUMNS = (4, 3, 2), (3, 2, 2)  # of 24 x 12 matrices

Make = Callable[..., Fit]
ALL: dict[str, Make] = {
    "kronecker": lambda a, **more: kronecker_sum(a, 2, (4, 3), **more),
    "train": lambda a, **more: tensor_train(a, ROWS, COLUMNS, 2, **more),
    "tucker": lambda a, **more: tucker(a.reshape(24, 3, 4), (2, 2, 3), **more),
}


def met(kind: str) -> Tensor:
    """A matrix (24, 12) that nothing but rounding is left of."""
    return ALL[kind](3 * gaussian(24, 12, 5)).op.dense()


def sizes(fit: Fit) -> float:
    """How large the terms of a product of the stored tensors may be together."""
    parts = fit.op.terms if isinstance(fit.op, Sum) else (fit.op,)
    return sum(math.prod(float(t.norm()) for t in part.tensors().values()) for part in parts)


@pytest.mark.parametrize("kind", ALL)
def test_upper_is_what_was_measured_and_the_rounding_of_the_products(kind: str) -> None:
    """A unit for each row and column, of the matrix and of the terms."""
    a = met(kind)
    fit = ALL[kind](a, spectral=True)
    slack = (24 + 12) * EPS * (sizes(fit) + float(a.norm()))
    for bound in fit.bounds[1:] if kind == "kronecker" else fit.bounds:
        assert bound.achieved <= slack
        assert bound.upper - bound.achieved == pytest.approx(slack, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("kind", ALL)
def test_factors_are_of_the_type_of_the_matrix_unless_another_is_wanted(kind: str) -> None:
    a = gaussian(24, 12, 5)
    for own, wanted, found in (
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float64, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
    ):
        fit = ALL[kind](a.to(own), dtype=wanted)
        assert {t.dtype for t in fit.op.tensors().values()} == {found}


@pytest.mark.parametrize("kind", ALL)
def test_the_spectral_norm_of_a_small_matrix_is_certain(kind: str) -> None:
    a = gaussian(24, 12, 5)
    bound = ALL[kind](a, spectral=True).bounds[1]
    assert bound.delta is None
    assert bound.scale == pytest.approx(lapack_values(a.reshape(24, 12))[0], rel=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_the_spectral_norm_of_a_large_matrix_is_probed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the generator that is given, by that of seed 0 where none is; ``upper`` fails with a probability of 1e-10."""
    a = gaussian(24, 12, 5)
    fit = ALL[kind](a)
    as_if_large(monkeypatch, "kernels.norms")

    def probed(rng: Generator | None) -> tuple[float, ...]:
        bound = ALL[kind](a, spectral=True, rng=rng).bounds[1]
        assert bound.delta == {"upper": 1e-10}
        true = lapack_values(float64(a) - float64(fit.op.dense()))[0]
        assert bound.achieved <= true * (1 + 1e-12)
        assert true <= bound.upper
        assert bound.scale == pytest.approx(lapack_values(a)[0], rel=0.05)
        return bound.achieved, bound.upper, bound.scale

    assert probed(None) == probed(generator(0))
    assert probed(None) != probed(generator(1))


def test_what_a_kronecker_sum_leaves_in_the_spectral_norm_by_hand() -> None:
    """diag(2, 1) ⊗ diag(3, 4) and a single one, rearranged orthogonal to it: the one is what is left of one term."""
    a = torch.diag(torch.tensor([6.0, 8.0, 3.0, 4.0], dtype=torch.float64))
    a[0, 3] = 1.0
    bound = kronecker_sum(a, 1, (2, 2), spectral=True).bounds[1]
    assert bound.achieved == pytest.approx(1.0, rel=1e-12)
    assert bound.scale == pytest.approx(8.0, rel=1e-12)


def test_a_kronecker_sum_refuses_by_the_shape_that_was_given() -> None:
    """And not by that of the rearranged blocks, of which nobody knows."""
    a = gaussian(4, 6)
    a[1, 2] = math.nan
    with pytest.raises(ValueError, match="the 4 x 6 matrix holds NaN or infinity"):
        kronecker_sum(a, 1, (2, 2))
    for other in (torch.ones(4), torch.ones(2, 2, 2), torch.ones(4, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted, not a tensor of shape"):
            kronecker_sum(other, 1, (2, 2))


def test_a_core_beyond_the_range_of_its_type_is_refused() -> None:
    """All that there is of a constant tensor is one number, its norm: 640 times the 200 that each entry is."""
    a = torch.full((64, 80, 80), 200.0, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"the core has entries too large for torch\.float16: give a dtype of wider"):
        tucker(a, (1, 1, 1))
    assert tucker(a, (1, 1, 1), dtype=torch.bfloat16).bounds[0].relative < 0.02
    assert tucker(a / 2, (1, 1, 1)).bounds[0].relative < 0.002


# ---- what each bond of a train leaves ----------------------------------------------------------------------------------


def bond_by_bond(a: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]) -> list[tuple]:
    """TT-SVD by NumPy: for each bond the shape of what is decomposed there, and what is left of it."""
    d = len(rows)
    w = float64(a).reshape(*rows, *columns).transpose([axis for k in range(d) for axis in (k, d + k)])
    found, before = [], 1
    for k, rank in enumerate(ranks):
        w = w.reshape(before * rows[k] * columns[k], -1)
        u, s, _ = np.linalg.svd(w, full_matrices=False)
        found.append((w.shape, float(np.linalg.norm(s)), float(np.linalg.norm(s[rank:]))))
        w, before = u[:, :rank].T @ w, rank
    return found


@pytest.mark.parametrize("ranks", [(2, 1), (8, 2), (3, 3)])
def test_lower_is_the_largest_of_what_bonds_leave(ranks: tuple[int, int]) -> None:
    a = gaussian(24, 12, 7)
    found = bond_by_bond(a, ROWS, COLUMNS, ranks)
    fit = tensor_train(a, ROWS, COLUMNS, ranks)
    assert fit.bounds[0].lower == pytest.approx(max(tail for _, _, tail in found), rel=1e-11)


def test_without_the_spectral_norm_a_later_bond_counts_by_what_the_earlier_ones_left_of_it() -> None:
    a = gaussian(24, 12, 7)
    lean, full = (tensor_train(a, ROWS, COLUMNS, (5, 1), spectral=wanted).bounds[0].lower for wanted in (False, True))
    w = float64(a).reshape(*ROWS, *COLUMNS).transpose(0, 3, 1, 4, 2, 5).reshape(72, 4)
    assert lean == pytest.approx(bond_by_bond(a, ROWS, COLUMNS, (5, 1))[1][2], rel=1e-11)
    assert full == pytest.approx(float(np.linalg.norm(lapack_values(w)[1:])), rel=1e-11)
    assert lean < 0.99 * full


def test_of_a_train_that_is_met_nothing_is_said_to_be_left() -> None:
    assert tensor_train(met("train"), ROWS, COLUMNS, 2).bounds[0].lower == 0.0
    assert tensor_train(met("train"), ROWS, COLUMNS, 2, spectral=True).bounds[0].lower == 0.0


@pytest.mark.parametrize(("rows", "columns"), [((12, 2), (6, 2)), ((12, 2, 2), (6, 1, 2)), ((2, 6, 4), (2, 3, 2))])
def test_what_bonds_leave_is_told_less_sixteen_units_of_rounding_of_each(
    rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    """A unit is that of the whole for each of the longer side. A large part of rank one makes them visible beside what is left."""
    d = len(rows)
    cores = [gaussian(p * q, 1, k) for k, (p, q) in enumerate(zip(rows, columns, strict=True))]
    large = cores[0].reshape(rows[0], columns[0])
    for k in range(1, d):
        large = torch.kron(large, cores[k].reshape(rows[k], columns[k]))
    a = gaussian(math.prod(rows), math.prod(columns), 9) * 1e-3 + 1e6 * large
    ranks = (*[4] * (d - 2), 1)  # most is left at the last bond
    found = bond_by_bond(a, rows, columns, ranks)
    assert found[-1][2] == max(tail for _, _, tail in found)
    size = float(a.norm())
    allowed = 16 * EPS * size * sum(max(shape) for shape, _, _ in found)
    lower = tensor_train(a, rows, columns, ranks).bounds[0].lower
    assert lower is not None
    assert found[-1][2] - lower == pytest.approx(allowed, rel=0.02)
