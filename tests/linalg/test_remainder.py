"""What an approximation leaves of a matrix, and how far rounding may have put that off: figures worked by hand."""

import math

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values
from torch import Tensor

from eckart.linalg.remainder import Formed, Implicit, Weighed, magnitude, norm_of
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Product, Sum

EPS32, EPS64 = 2.0**-23, 2.0**-52


def factors(m: int, n: int, rank: int, dtype: torch.dtype = torch.float64) -> Factors:
    return Factors(gaussian(m, rank, 3).to(dtype), gaussian(rank, n, 4).to(dtype))


def difference(w: Tensor, op: Factors) -> np.ndarray:
    return float64(w) - float64(op.left) @ float64(op.right)


def two_sizes(error: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Factors]:
    """Two entries of 1, of which one is met but for ``error``, and the other one exactly: no product needs rounding."""
    w = torch.zeros(4, 5, dtype=dtype)
    w[0, 0], w[1, 1] = 1.0, error
    return w, Factors(torch.eye(4, 1, dtype=dtype), torch.eye(1, 5, dtype=dtype))


# ---- formed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "eps"), [(False, EPS64), (True, EPS32)])
def test_the_rounding_of_a_difference_worked_by_hand(large: bool, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of two products, a difference and two conversions: five roundings of half an eps of what is subtracted."""
    if large:
        as_if_large(monkeypatch)
    op = Factors(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0, 6.0], [8.0, 0.0, 0.0]]))
    w = torch.tensor([[1e3, 0.0, 0.0], [0.0, 2e3, 0.0]])
    formed = Formed.of(w, op, 7.0)
    assert formed.eps == eps
    assert formed.slack == pytest.approx(5 * eps / 2 * (5.0 * 10.0 + 7.0), rel=1e-14, abs=0.0)
    assert formed.reach == formed.scale == 7.0
    assert formed.shape == (2, 3)
    expected = np.array([[1e3, 0.0, -18.0], [-32.0, 2e3, 0.0]])
    assert np.array_equal(float64(formed.error), expected)
    assert formed.size == pytest.approx(float(np.linalg.norm(expected)), rel=1e-14)


@pytest.mark.parametrize("side", [1024, 1025])
def test_up_to_the_side_of_lapack_the_error_is_formed_in_float64(side: int) -> None:
    w = torch.zeros(side, side + 1)
    w[0, 0] = 1.0
    op = Factors(torch.zeros(side, 1), torch.zeros(1, side + 1))
    assert Formed.of(w, op, 1.0).dtype == (torch.float64 if side == 1024 else torch.float32)


# In float32 the error of ``two_sizes`` has a slack of 4 eps / 2 * (1 + 1).
FINE = 4 * EPS32 / 5e-3


@pytest.mark.parametrize(("error", "dtype"), [(0.99 * FINE, torch.float64), (1.01 * FINE, torch.float32)])
def test_an_error_of_which_rounding_is_half_a_percent_is_formed_in_float64(
    error: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_large(monkeypatch)
    w, op = two_sizes(error)
    assert Formed.of(w, op, 1.0).dtype == dtype
    assert Formed.of(w, op, 1.0).slack == pytest.approx(4 * torch.finfo(dtype).eps, rel=1e-12, abs=0.0)


def test_an_error_of_which_rounding_is_exactly_half_a_percent_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    monkeypatch.setattr("eckart.linalg.remainder.COARSE", 2.0**-8)
    w, op = two_sizes(4 * 2.0**-23 * 2.0**8)
    assert Formed.of(w, op, 1.0).dtype == torch.float32


@pytest.mark.parametrize(("weight", "dtype"), [(3.9, torch.float32), (4.1, torch.float64)])
def test_in_a_metric_rounding_counts_by_the_largest_weight(
    weight: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an error whose column has the weight 1, four times as large as it must be where all columns count alike."""
    as_if_large(monkeypatch)
    w, op = two_sizes(4 * FINE)
    metric = Metric("scale", torch.tensor([weight, 1.0, 0.0, 0.0, 0.0]))
    formed = Formed.of(w, op, 1.0)
    assert formed.dtype == torch.float32
    assert formed.fine_in(metric).dtype == dtype
    assert formed.fine_in(metric).slack == pytest.approx(4 * torch.finfo(dtype).eps, rel=1e-12, abs=0.0)


def test_for_a_full_metric_the_error_is_formed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w, op = two_sizes(0.5)
    formed = Formed.of(w, op, 1.0)
    assert formed.fine_in(Metric("full", torch.eye(5))).dtype == torch.float64
    wide = formed.fine_in(Metric("full", torch.eye(5)))
    assert wide.fine_in(Metric.plain()) is wide
    assert formed.fine_in(Metric.plain()) is formed


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_formed_error_is_the_difference(dtype: torch.dtype, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        as_if_large(monkeypatch)
    w, op, x, q = gaussian(30, 20, 1).to(dtype), factors(30, 20, 3, dtype), gaussian(20, 2, 5), gaussian(30, 2, 6)
    before = w.clone()
    formed = Formed.of(w, op, float(w.double().norm()))
    rest = difference(w, op)
    grain = formed.eps * 30
    assert float64(formed.error) == pytest.approx(rest, abs=grain)
    assert formed.size == pytest.approx(float(np.linalg.norm(rest)), rel=grain)
    assert float64(formed.times(x)) == pytest.approx(rest @ float64(x), abs=10 * grain)
    assert formed.times(x).dtype == torch.float64
    assert float64(formed.image(q)) == pytest.approx(float64(q).T @ float64(w), abs=1e-12)
    assert formed.spectral_norm(generator()).value == pytest.approx(lapack_values(rest)[0], rel=1e-2)
    full = Metric("full", gaussian(20, 20, 7))
    assert formed.norm(full) == pytest.approx(float(np.linalg.norm(rest @ float64(full.right))), rel=grain)  # type: ignore[arg-type]
    assert torch.equal(w, before)  # whose own tensor is left alone


def test_the_norm_in_a_full_metric_is_added_up_over_all_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)  # panels of 7 rows
    w, op = gaussian(17, 6, 1), factors(17, 6, 2)
    full = Metric("full", gaussian(6, 6, 7))
    expected = float(np.linalg.norm(difference(w, op) @ float64(full.right)))  # type: ignore[arg-type]
    assert Formed.of(w, op, 1.0).norm(full) == pytest.approx(expected, rel=1e-5)


# ---- weighed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
def test_weights_multiply_the_error_and_what_rounding_did_to_it(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        as_if_large(monkeypatch)
    w, op = two_sizes(0.5)
    weights = torch.tensor([1.0, 6.0, 8.0, 1.0, 1.0], dtype=torch.float64)
    formed = Formed.of(w, op, 1.0)
    seen = formed.weighed(Metric("scale", weights), 11.0)
    eps = EPS32 if large else EPS64
    assert seen.eps == formed.eps == eps
    assert seen.shape == (4, 5)
    assert seen.size == 3.0
    assert seen.scale == seen.reach == 11.0
    # Four roundings in forming it, counted eight times, and one more in the product with the weights.
    assert seen.slack == pytest.approx(8 * 4 * eps + 3 * eps, rel=1e-12, abs=0.0)
    assert torch.equal(seen.error.double(), (w.double() - op.dense().double()) * weights)
    x, q = gaussian(5, 2, 1), gaussian(4, 2, 2)
    assert float64(seen.times(x)) == pytest.approx(float64(seen.error) @ float64(x), rel=1e-6)
    assert seen.times(x).dtype == torch.float64
    assert float64(seen.image(q)) == pytest.approx(float64(q).T @ (float64(w) * float64(weights)), rel=1e-12)
    assert seen.spectral_norm(generator()).value == pytest.approx(3.0, rel=1e-5)


def test_a_weighed_error_is_told_by_its_own_type() -> None:
    for dtype, eps in ((torch.float32, EPS32), (torch.float64, EPS64)):
        seen = Weighed(torch.eye(2), 1.0, torch.eye(2, 3, dtype=dtype), 0.0)
        assert seen.eps == eps
        assert seen.shape == (2, 3)
        assert seen.size == pytest.approx(math.sqrt(2), rel=1e-14)


# ---- by products ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, -8.0, 2.0, 0.5, 1.0], dtype=torch.float64)])
def test_the_rounding_of_products_worked_by_hand(weights: Tensor | None) -> None:
    """What five and four terms add up to is an allowance of its own, beside that of the difference."""
    top = 1.0 if weights is None else 8.0
    w = torch.zeros(4, 5)
    w[0, 0], w[1, 1] = 3.0, 4.0
    op = Factors(torch.eye(4, 1), 2 * torch.eye(1, 5))
    rest = Implicit(Dense(w), op, weights)
    scale = math.hypot(3.0, 4.0 * top)
    assert rest.scale == pytest.approx(scale, rel=1e-14)
    assert rest.reach == pytest.approx(5.0 * top, rel=1e-14)
    assert rest.slack == pytest.approx(4 * EPS64 / 2 * (2.0 + scale) + 9 * EPS64 * 5.0 * top, rel=1e-12, abs=0.0)
    assert rest.size == pytest.approx(math.hypot(1.0, 4.0 * top), rel=1e-14)
    assert rest.eps == EPS64
    assert rest.shape == (4, 5)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, -8.0, 2.0, 0.5, 1.0], dtype=torch.float64)])
def test_products_with_the_error_are_those_of_the_difference(
    weights: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_large(monkeypatch)  # panels of 7 rows
    w, op, x, q = gaussian(16, 5, 1), factors(16, 5, 2), gaussian(5, 2, 5), gaussian(16, 2, 6)
    right = np.ones(5) if weights is None else float64(weights)
    rest, target = difference(w, op) * right, float64(w) * right
    seen = Implicit(Sum((Dense(w / 2), Dense(w / 2))), op, weights)
    assert seen.size == pytest.approx(float(np.linalg.norm(rest)), rel=1e-13)
    assert seen.scale == pytest.approx(float(np.linalg.norm(target)), rel=1e-13)
    assert float64(seen.times(x)) == pytest.approx(rest @ float64(x), abs=1e-11)
    assert float64(seen.image(q)) == pytest.approx(float64(q).T @ target, abs=1e-11)
    top, enclosed = lapack_values(rest)[0], seen.spectral_norm(generator())
    assert 0.999 * top <= enclosed.value <= top <= enclosed.upper <= 1.3 * top


def test_norms_of_operators_are_added_up_over_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w, weights = gaussian(16, 5, 1), torch.tensor([1.0, -8.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    assert norm_of(Dense(w)) == pytest.approx(float(np.linalg.norm(float64(w))), rel=1e-14)
    expected = float(np.linalg.norm(float64(w) * float64(weights)))
    assert norm_of(Dense(w), weights) == pytest.approx(expected, rel=1e-14)
    assert norm_of(Dense(w.to(torch.bfloat16))) == pytest.approx(float(w.to(torch.bfloat16).double().norm()), rel=1e-14)


def test_the_magnitude_of_what_is_composed_is_composed_of_norms() -> None:
    """3 times 5 for factors, sums for sums, products for products, and the norm of the rest."""
    two = Factors(torch.tensor([[3.0], [0.0]]), torch.tensor([[3.0, 4.0]]))
    one = Dense(2 * torch.eye(2, 1))
    assert magnitude(two) == 15.0
    assert magnitude(one) == 2.0
    assert magnitude(Sum((two, two, Dense(torch.eye(2, 2) * 0)))) == 30.0
    assert magnitude(Product((two, one))) == 30.0


def test_an_approximation_has_as_many_rows_as_its_operator() -> None:
    """Also where whole panels of them are missing."""
    target = Dense(gaussian(1024, 3))
    with pytest.raises(ValueError, match="shorter"):
        _ = Implicit(target, factors(512, 3, 1)).size
