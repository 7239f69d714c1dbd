"""The basis of a left factor and the right factor that goes with it, against worked examples and NumPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from market import MATRICES, float64, gaussian, orthonormal, with_spectrum
from torch import Tensor

from eckart.kernels.randomized import InMemory
from eckart.linalg.factors import Basis, completed, image, lengths, stored
from eckart.metric import Metric
from eckart.operator import Dense, in_dtype

EPS32 = 2.0**-23


# ---- the basis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_a_basis_is_orthonormal_and_gives_its_factor_back(name: str) -> None:
    """Also of factors with columns of zeros, or of very different length."""
    w = MATRICES[name]()
    left = gaussian(len(w), min(3, *w.shape), 5) * torch.tensor([1e-30, 1.0, 1e30])[: min(3, *w.shape)].double()
    for part in (left, torch.cat([left[:, :-1], 0 * left[:, -1:]], dim=1)):
        basis = Basis.of(part, w)
        assert float64(basis.q.T @ basis.q) == pytest.approx(np.eye(part.shape[1]), abs=1e-14)
        assert float64(basis.q @ basis.coordinates) == pytest.approx(float64(part), rel=1e-12, abs=1e-45)
        assert basis.coordinates.tril(-1).count_nonzero() == 0
        scale = float(w.double().abs().max())
        assert float64(basis.image) == pytest.approx(float64(basis.q).T @ float64(w), rel=1e-12, abs=1e-14 * scale)
        assert basis.grain == 0.0


def test_the_grain_of_a_rough_image_worked_by_hand() -> None:
    """Four axes, which float32 holds: what is left is the rounding of sums of 256 terms in chains of 128, of columns of length 1."""
    w = gaussian(256, 20, 1).to(torch.float32)
    rough = Basis.rough(torch.eye(256)[:, :4], w, 5.0)
    assert rough.grain == pytest.approx((128 + 2 + 2) * EPS32 / 2 * 2.0 * 5.0, rel=1e-12)
    assert rough.image.dtype == torch.float64
    assert torch.equal(rough.image.abs(), w[:4].double().abs())


def test_what_float32_does_to_the_basis_is_part_of_the_grain() -> None:
    w = gaussian(256, 20, 1).to(torch.float32)
    left = orthonormal(256, 4, 2)
    rough = Basis.rough(left, w, 5.0)
    away = float(np.linalg.norm(float64(rough.q) - float64(rough.q).astype(np.float32)))
    assert away > 1e-8
    assert rough.grain == pytest.approx((132 * EPS32 + away) * 5.0, rel=1e-9)


def test_a_rough_image_is_that_of_products_in_float32() -> None:
    """Not of narrower ones, which would be off by more than a thousandth."""
    w, left = gaussian(300, 40, 1), gaussian(300, 6, 2)
    rough = Basis.rough(left, w, float(w.norm()))
    assert float((rough.image - rough.q.T @ w).abs().max()) <= 2e-6
    assert float((rough.image - rough.q.T @ w).abs().max()) > 0


def test_the_grain_grows_with_the_largest_weight_of_a_diagonal_metric() -> None:
    w = gaussian(30, 4, 1).to(torch.float32)
    basis = Basis.rough(gaussian(30, 2, 2), w, 3.0)
    weights = torch.tensor([1.0, -8.0, 0.5, 2.0], dtype=torch.float64)
    seen = basis.in_metric(Metric("scale", weights))
    assert seen.grain == pytest.approx(8 * basis.grain, rel=1e-15)
    assert torch.equal(seen.image, basis.image * weights)
    assert torch.equal(seen.q, basis.q)
    assert torch.equal(seen.coordinates, basis.coordinates)
    assert basis.in_metric(Metric.plain()).grain == basis.grain
    assert torch.equal(basis.in_metric(Metric.plain()).image, basis.image)


@pytest.mark.parametrize("wrap", [lambda w: w, Dense])
def test_an_image_is_a_product_in_float64_whatever_it_is_of(wrap: Callable[[Tensor], object]) -> None:
    w, q = gaussian(1100, 7, 1).to(torch.bfloat16), orthonormal(1100, 3, 2)
    seen = image(q, wrap(w))  # type: ignore[arg-type]
    assert seen.dtype == torch.float64
    assert seen.shape == (3, 7)
    assert float64(seen) == pytest.approx(float64(q).T @ float64(w), abs=1e-13)


def test_an_image_is_of_as_many_rows_as_the_matrix_has() -> None:
    """Also where whole panels of them are too many."""
    with pytest.raises(ValueError, match="shorter"):
        image(gaussian(1024, 2), gaussian(512, 3))


# ---- the right factor -----------------------------------------------------------------------------------------------


def test_the_right_factor_is_the_solution_by_least_squares() -> None:
    w, left = gaussian(40, 9, 1), gaussian(40, 5, 2) * torch.logspace(-3, 3, 5, dtype=torch.float64)
    expected = np.linalg.lstsq(float64(left), float64(w), rcond=None)[0]
    assert float64(Basis.of(left, w).right()) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("length", [1e-20, 1e20])
def test_a_column_is_met_however_short_or_long_it_is(length: float) -> None:
    w, left = gaussian(12, 5, 1), gaussian(12, 3, 2)
    lengths = torch.tensor([1.0, length, 1.0], dtype=torch.float64)
    plain, scaled = Basis.of(left, w).right(), Basis.of(left * lengths, w).right()
    assert float64(scaled * lengths[:, None]) == pytest.approx(float64(plain), rel=1e-10)


def test_a_column_of_zeros_is_met_by_a_row_of_zeros() -> None:
    w, left = gaussian(12, 5, 1), gaussian(12, 3, 2)
    left[:, 1] = 0
    right = Basis.of(left, w).right()
    assert float(right[1].abs().max()) == 0.0
    expected = np.linalg.lstsq(float64(left[:, [0, 2]]), float64(w), rcond=None)[0]
    assert float64(right[[0, 2]]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def _pair(pivot: float) -> Basis:
    """Two columns at unit length, the second one this far from the first."""
    coordinates = torch.tensor([[1.0, math.sqrt(1 - pivot**2)], [0.0, pivot]], dtype=torch.float64)
    return Basis(torch.eye(2, dtype=torch.float64), coordinates, torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("pivot", "pseudo"), [(0.99e-6, 1), (1.01e-6, 0), (1.9e-6, 0), (1e-3, 0), (0.5e-6, 1)])
def test_a_pseudo_inverse_is_for_columns_less_than_a_millionth_apart(
    pivot: float, pseudo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    whole = torch.linalg.pinv

    def noted(a: Tensor) -> Tensor:
        calls.append(a)
        return whole(a)

    monkeypatch.setattr(torch.linalg, "pinv", noted)
    found = _pair(pivot).right()[:, 0].tolist()
    assert found == pytest.approx([1 + 1 / pivot, -1 / pivot], rel=1e-6)
    assert len(calls) == pseudo


def test_what_two_columns_have_in_common_is_shared_among_both() -> None:
    """Where substitution would meet it by enormous rows."""
    basis = _pair(1e-17)
    assert basis.right()[:, 0].tolist() == pytest.approx([0.5, 0.5], rel=1e-12)
    same = torch.tensor([[3.0, 6.0], [4.0, 8.0]], dtype=torch.float64)
    right = Basis.of(same, torch.tensor([[3.0], [4.0]], dtype=torch.float64)).right()
    assert right[:, 0].tolist() == pytest.approx([0.5, 0.25], rel=1e-12)  # half of it by each, whatever their length


# ---- factors as stored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_stored_is_shared_among_both_factors_evenly(dtype: torch.dtype) -> None:
    """Columns and rows of equal length: the root of the singular value each."""
    s = torch.tensor([1e8, 1.0, 1e-2], dtype=torch.float64)
    w = with_spectrum(30, 20, s, 3)
    u = torch.linalg.svd(w).U[:, :2]
    op, basis = stored(u, w, dtype)
    assert op.left.dtype == op.right.dtype == dtype
    left, right = op.left.double().norm(dim=0), op.right.double().norm(dim=1)
    grain = {torch.bfloat16: 0.01, torch.float32: 1e-6}.get(dtype, 1e-12)
    assert left.tolist()[0] == pytest.approx(1e4, rel=grain)
    assert right.tolist()[0] == pytest.approx(1e4, rel=grain)
    if dtype == torch.float64:
        assert left.tolist()[1] == pytest.approx(1.0, rel=1e-6)
        assert right.tolist()[1] == pytest.approx(1.0, rel=1e-6)
    assert float64(basis.q @ basis.coordinates) == pytest.approx(float64(op.left), rel=1e-12, abs=1e-10)
    solution = np.linalg.lstsq(float64(op.left), float64(w), rcond=None)[0]
    assert float64(op.right) == pytest.approx(solution, rel=grain, abs=1e-8)


def test_a_direction_within_the_rounding_of_the_type_is_no_shorter_than_that() -> None:
    """Of sizes 3 and 4 and nothing, seen in three columns: a root of eps times 5 over the root of three."""
    right = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        eps = torch.finfo(dtype).eps
        expected = [math.sqrt(3), 2.0, math.sqrt(5 * eps / math.sqrt(3))]
        assert lengths(right, dtype).tolist() == pytest.approx(expected, rel=1e-14)


def test_what_is_zero_has_a_length_of_one() -> None:
    assert lengths(torch.zeros(2, 5), torch.float32).tolist() == [1.0, 1.0]


def test_of_one_column_all_directions_but_one_are_rounding() -> None:
    right = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    assert lengths(right, torch.float32).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2 * EPS32)], rel=1e-14)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_directions_are_completed_by_orthonormal_ones(count: int) -> None:
    u = orthonormal(6, 3, 1)[:, :count]
    found = completed(u, 4)
    assert found.shape == (6, 4)
    assert float64(found.T @ found) == pytest.approx(np.eye(4), abs=1e-14)
    assert float64(found[:, :count].abs()) == pytest.approx(float64(u.abs()), abs=1e-14)


def test_as_many_directions_as_wanted_or_more_are_left_alone() -> None:
    u = orthonormal(6, 3, 1)
    for rank in (2, 3):
        assert completed(u, rank) is u


def test_products_with_an_operator_and_its_matrix_store_the_same_factors() -> None:
    w = gaussian(25, 18, 4)
    u = torch.linalg.svd(w).U[:, :3]
    one, other = stored(u, w, torch.float64)[0], stored(u, in_dtype(Dense(w), torch.float64), torch.float64)[0]
    assert float64(one.dense()) == pytest.approx(float64(other.dense()), abs=1e-13)
    assert InMemory(w).shape == w.shape
