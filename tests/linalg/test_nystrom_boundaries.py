"""What Nyström's approximations take for rounding and what they refuse, on both sides of each boundary."""

from importlib import import_module

import numpy as np
import pytest
import torch
from market import float64, gaussian, generator, with_spectrum
from torch import Tensor

from eckart.linalg import Given, generalised_nystrom, nystrom

NARROW = torch.finfo(torch.float32).eps


def skewed(n: int, units: float, size: float) -> Tensor:
    """The identity of this size, but for an entry that is off by units of rounding."""
    a = size * torch.eye(n)
    a[0, 1] = units * NARROW * size
    return a


@pytest.mark.parametrize("size", [1.0, 2.0**30, 2.0**-30])
@pytest.mark.parametrize("n", [2, 5])
def test_symmetric_is_what_differs_by_no_more_than_sixteen_units_of_rounding_for_each_row(n: int, size: float) -> None:
    assert nystrom(skewed(n, 16 * n, size), 1).op.shape == (n, n)
    with pytest.raises(ValueError, match="is not symmetric"):
        nystrom(skewed(n, 16 * n + 1, size), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [2, 100])
def test_entries_of_narrow_types_may_differ_by_sixteen_units_of_their_own_however_many_there_are(
    n: int, dtype: torch.dtype
) -> None:
    a = torch.eye(n, dtype=dtype)
    a[0, 1] = 16 * torch.finfo(dtype).eps
    assert nystrom(a, 1).op.shape == (n, n)
    a[0, 1] = 17 * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match="is not symmetric"):
        nystrom(a, 1)


def test_there_is_nothing_to_choose_from_in_an_empty_matrix() -> None:
    with pytest.raises(ValueError, match="1 of 0 columns"):
        nystrom(torch.zeros(0, 0), 1)


def off_diagonal(entry: float, diagonal: float = 1.0) -> Tensor:
    return torch.tensor([[diagonal, entry], [entry, 1.0]])


def test_an_entry_may_be_above_the_mean_of_its_diagonal_ones_by_a_unit_of_rounding_for_each_row() -> None:
    fit = nystrom(off_diagonal(1 + 2 * NARROW), 1, Given((0,)))
    assert "1 of 1 independent" in fit.how
    for entry in (1 + 3 * NARROW, 1.2, 1.7, 1e4):
        with pytest.raises(ValueError, match="an entry is above the mean of its diagonal ones"):
            nystrom(off_diagonal(entry), 1, Given((0,)))


@pytest.mark.parametrize("diagonal", [4.0, 0.25, 2.0**40, 2.0**-40])
def test_the_mean_of_two_diagonal_entries_is_the_geometric_one(diagonal: float) -> None:
    root = diagonal**0.5
    assert nystrom(off_diagonal(root, diagonal), 1, Given((0,))).bounds[0].achieved <= 1e-6
    with pytest.raises(ValueError, match="an entry is above the mean of its diagonal ones"):
        nystrom(off_diagonal(1.01 * root, diagonal), 1, Given((0,)))


def test_a_coordinate_without_any_length_is_left_out() -> None:
    """Its column is zero where the matrix is semidefinite."""
    a = torch.diag(torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64))
    fit = nystrom(a, 3)
    assert torch.equal(fit.op.dense(), a)
    assert "2 of 3 independent" in fit.how


@pytest.mark.parametrize(("units", "refused"), [(1, False), (2, False), (4, True), (100, True)])
def test_a_core_may_be_indefinite_by_a_unit_of_rounding_for_each_row(units: int, refused: bool) -> None:
    """Off-diagonal x, -x, x has the values 1 - 2 x and twice 1 + x."""
    x = 0.5 + units * NARROW / 2
    a = torch.tensor([[1.0, x, -x], [x, 1.0, x], [-x, x, 1.0]])
    assert float64(torch.linalg.eigvalsh(a.double()))[0] == pytest.approx(-units * NARROW, rel=1e-6, abs=0.0)
    if refused:
        with pytest.raises(ValueError, match="its core has the eigenvalue -"):
            nystrom(a, 3)
    else:
        assert "2 of 3 independent" in nystrom(a, 3).how


@pytest.mark.parametrize(("units", "refused"), [(40, False), (56, True)])
def test_in_float64_that_unit_is_sixteen_of_its_own(units: int, refused: bool) -> None:
    x = 0.5 + units * 2.0**-53
    a = torch.tensor([[1.0, x, -x], [x, 1.0, x], [-x, x, 1.0]], dtype=torch.float64)
    if refused:
        with pytest.raises(ValueError, match="its core has the eigenvalue -"):
            nystrom(a, 3)
    else:
        assert "2 of 3 independent" in nystrom(a, 3).how


@pytest.mark.parametrize(("units", "independent"), [(30, 1), (34, 2)])
def test_in_float64_sixteen_units_of_the_core_are_dropped(units: int, independent: int) -> None:
    """The core ``[[1, 1 - d], [1 - d, 1]]`` has the value d and a norm just below 2."""
    off = 1.0 - units * 2.0**-52
    fit = nystrom(torch.tensor([[1.0, off], [off, 1.0]], dtype=torch.float64), 2)
    assert f"{independent} of 2 independent" in fit.how


# ---- from two sketches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "rows"), [(1, 2), (2, 3), (3, 5), (4, 6), (7, 11)])
def test_half_the_rank_rounded_up_is_the_oversampling(rank: int, rows: int) -> None:
    assert f"{rank} columns and {rows} rows" in generalised_nystrom(gaussian(20, 15), rank).how


def test_without_oversampling_the_core_is_square() -> None:
    a = gaussian(9, 3) @ gaussian(3, 8, 1)
    fit = generalised_nystrom(a, 3, oversampling=0)
    assert "3 columns and 3 rows" in fit.how
    assert np.linalg.norm(float64(a) - float64(fit.op.dense())) <= 1e-10 * float(a.norm())
    assert "3 columns and 4 rows" in generalised_nystrom(a, 3, oversampling=1).how


def core_values(a: Tensor, rank: int, more: int, seed: int) -> np.ndarray:
    """The singular values of the core, by NumPy from the same sketches."""
    module = import_module("eckart.linalg.nystrom")
    rng = module.stream(generator(seed), module.SKETCH)
    x = torch.randn(a.shape[1], rank, generator=rng, dtype=torch.float64)
    y = torch.randn(a.shape[0], rank + more, generator=rng, dtype=torch.float64)
    return np.linalg.svd(float64(y).T @ float64(a) @ float64(x), compute_uv=False)


@pytest.mark.parametrize("scale", [1.0, 2.0**60, 2.0**-60])
@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_values_of_the_core_below_a_unit_of_rounding_for_the_longer_side_are_left_out(
    shape: tuple[int, int], scale: float
) -> None:
    """Of the largest value. The second value of the matrix moves that of the core through the boundary, 40 units."""
    for factor, kept in ((0.4, 1), (0.9, 1), (1.1, 2), (2.5, 2)):
        a = with_spectrum(*shape, torch.tensor([1.0, 1e-7], dtype=torch.float64), 3)
        own = core_values(a, 2, 1, 7)
        a = with_spectrum(
            *shape, torch.tensor([1.0, 1e-7 * factor * 40 * 2.0**-52 * own[0] / own[1]], dtype=torch.float64), 3
        )
        fit = generalised_nystrom(a * scale, 2, rng=generator(7))
        assert f"{kept} of 2 directions" in fit.how
