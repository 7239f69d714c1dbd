"""Truncation in metrics with a left side, against a dense oracle that inverts both sides."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import (
    MATRICES,
    METRICS,
    as_if_large,
    float64,
    gaussian,
    generator,
    inputs,
    lapack_values,
    metrics_for,
    ranks_of,
    whitened,
    with_spectrum,
)
from torch import Tensor

from eckart.linalg import Lapack, bounds_of, truncated_svd
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Factors


def _gram(m: int, count: int) -> Tensor:
    x = inputs(m, count, 40)
    return torch.linalg.cholesky(x.T @ x / count + 1e-300 * torch.eye(m), upper=True) if count > m else x / count**0.5


LEFTS: dict[str, Callable[[int], Tensor]] = {
    "rows": lambda m: torch.logspace(0, -3, m, dtype=torch.float64),
    "rows of which some count nothing": lambda m: torch.arange(m, dtype=torch.float64).remainder(3),
    "root": lambda m: _gram(m, 3 * m),
    "flat root": lambda m: _gram(m, max(1, m // 3)),
    "narrow rows": lambda m: torch.linspace(1, 2, m, dtype=torch.bfloat16),
}


def left_of(metric: TwoSided) -> np.ndarray:
    left = float64(metric.left)
    return np.diag(left) if left.ndim == 1 else left


def seen(w: Tensor, metric: TwoSided) -> np.ndarray:
    return left_of(metric) @ whitened(w, metric.columns)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("columns", METRICS)
@pytest.mark.parametrize("left", LEFTS)
@pytest.mark.parametrize("name", MATRICES)
def test_no_matrix_of_the_rank_comes_nearer(
    name: str, left: str, columns: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = MATRICES[name]().to(torch.float64)
    metric = TwoSided("own", LEFTS[left](len(w)), metrics_for(w.shape[1])[columns])
    if large:
        as_if_large(monkeypatch)
    whole = seen(w, metric)
    values = lapack_values(whole)
    reach = np.linalg.norm(left_of(metric)) * np.linalg.norm(float64(w)) * metric.columns.reach
    for rank in ranks_of(w):
        fit = truncated_svd(w, rank, metric=metric, accuracy=0.0 if large else 2e-3, spectral=True)
        best = float(np.linalg.norm(values[rank:]))
        error = float(np.linalg.norm(whole - seen(fit.op.dense(), metric)))
        # A product with R R^T hides what is below 1e-8 of the largest value, and so does a Gram matrix.
        hidden = (1e-6 if large else 1e-7) * reach
        assert error <= best * (1 + 1e-9) + hidden
        own, plain, spectral = fit.bounds
        assert (own.norm, plain.norm, spectral.norm) == ("own", "frobenius", "spectral")
        assert own.lower <= best + 1e-15 * reach
        grain = 5e-3 * error if large else 0.0  # formed in float32 where that is fine enough
        doubt = own.upper - own.achieved + 1e-12 * reach
        assert abs(own.achieved - error) <= grain + doubt + max(0.0, own.lower - error)
        assert doubt <= grain + (1e-5 if large else 1e-9) * reach
        assert error <= own.upper + 1e-15 * reach
        assert own.scale == pytest.approx(float(np.linalg.norm(whole)), rel=1e-10, abs=1e-12 * reach)
        assert plain.lower <= np.linalg.norm(lapack_values(w)[fit.op.rank :]) * (1 + 1e-12) + 1e-15 * reach


def test_a_worked_example() -> None:
    """diag(3, 2) with rows weighed 1 and 2: the second direction counts 4, so it is the one to be kept."""
    w = torch.diag(torch.tensor([3.0, 2.0]))
    metric = TwoSided("rows", torch.tensor([1.0, 2.0]))
    fit = truncated_svd(w, 1, metric=metric, spectral=True)
    assert torch.allclose(fit.op.dense(), torch.diag(torch.tensor([0.0, 2.0])), atol=1e-6)
    own, plain, spectral = fit.bounds
    assert (own.lower, own.achieved, own.scale) == pytest.approx((3.0, 3.0, 5.0), rel=1e-6)
    assert (plain.lower, plain.achieved) == pytest.approx((2.0, 3.0), rel=1e-6)
    assert (spectral.lower, spectral.achieved) == pytest.approx((2.0, 3.0), rel=1e-6)
    assert truncated_svd(w, 1, metric=metric).bounds == (own, replace(plain, lower=None))


@pytest.mark.parametrize("form", METRICS)
def test_rows_that_count_alike_change_nothing(form: str) -> None:
    w, columns = gaussian(20, 14, 3), metrics_for(14)[form]
    one = truncated_svd(w, 4, metric=columns).bounds[0]
    two = truncated_svd(w, 4, metric=TwoSided("both", torch.full((20,), 0.5), columns)).bounds[0]
    assert two.achieved == pytest.approx(0.5 * one.achieved, rel=1e-10)
    assert two.lower == pytest.approx(0.5 * one.lower, rel=1e-10)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
def test_a_matrix_and_its_transpose_are_as_far_from_theirs(m: int, n: int, seed: int) -> None:
    w, a, b = gaussian(m, n, seed), gaussian(m, m, seed + 1), gaussian(n, n, seed + 2)
    rank = 1 + seed % min(m, n)
    errors = [
        truncated_svd(w, rank, metric=TwoSided("a", a, Metric("b", b))).bounds[0].achieved,
        truncated_svd(w.T, rank, metric=TwoSided("b", b.T, Metric("a", a.T))).bounds[0].achieved,
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-7, abs=1e-10 * float(a.norm() * b.norm() * w.norm()))


def test_from_second_moments_it_is_the_kronecker_factored_fisher_norm() -> None:
    """``vec(E)^T (A kron G) vec(E)``, written out."""
    x, d, e = inputs(9, 30, 1), inputs(6, 30, 2), gaussian(6, 9, 3)
    a, g = x.T @ x / 30, d.T @ d / 30
    metric = TwoSided.kronecker("fisher", d.T @ d, x.T @ x, 30)
    flat = float64(e.T.reshape(-1))
    assert metric.norm(e) ** 2 == pytest.approx(flat @ np.kron(float64(a), float64(g)) @ flat, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("left", LEFTS)
def test_rounded_factors_are_measured_as_they_are(left: str, dtype: torch.dtype) -> None:
    w = with_spectrum(30, 24, 1 / torch.arange(1, 25, dtype=torch.float64), 5)
    metric = TwoSided("own", LEFTS[left](30), metrics_for(24)["gram"])
    fit = truncated_svd(w, 6, metric=metric, dtype=dtype)
    own = fit.bounds[0]
    assert fit.op.left.dtype == fit.op.right.dtype == dtype
    error = float(np.linalg.norm(seen(w, metric) - seen(fit.op.left.double() @ fit.op.right.double(), metric)))
    assert own.achieved == pytest.approx(error, rel=1e-9)
    assert own.lower <= error <= own.upper
    assert own.achieved <= own.lower * (1.01 if dtype == torch.float32 else 1.3)


@pytest.mark.parametrize("columns", ["plain", "diagonal", "gram"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_large_matrices_are_iterated_on(columns: str, dtype: torch.dtype) -> None:
    w = with_spectrum(1300, 1100, torch.arange(1, 1101, dtype=torch.float64) ** -0.5, 6).to(dtype)
    metric = TwoSided("rows", torch.linspace(1, 3, 1300), metrics_for(1100)[columns])
    fit = truncated_svd(w, 40, metric=metric, dtype=torch.float32)
    exact = truncated_svd(w, 40, metric=metric, dtype=torch.float32, route=Lapack())
    assert "subspace iteration" in fit.how
    best = exact.bounds[0].lower
    own = fit.bounds[0]
    assert (0.95 if columns != "gram" else 0.8) * best <= own.lower <= best * (1 + 1e-9) <= own.achieved <= 1.002 * best
    assert own.achieved == pytest.approx(
        metric.norm(w.double() - fit.op.left.double() @ fit.op.right.double()), rel=1e-4
    )


@pytest.mark.parametrize("left", LEFTS)
def test_any_factors_are_bounded(left: str) -> None:
    w, metric = gaussian(18, 25, 1), TwoSided("own", LEFTS[left](18), metrics_for(25)["gram"])
    op = Factors(gaussian(18, 5, 2), gaussian(5, 25, 3))
    own, *plain = bounds_of(w, op, metric)
    whole, best = seen(w, metric), seen(w, metric)
    assert own.lower == pytest.approx(np.linalg.norm(lapack_values(best)[5:]), rel=1e-6, abs=1e-12)
    assert own.achieved == pytest.approx(np.linalg.norm(whole - seen(op.dense(), metric)), rel=1e-10)
    assert plain == list(bounds_of(w, op))


def test_sizes_other_than_a_rank_are_those_of_the_metric() -> None:
    w, metric = gaussian(20, 16, 1), TwoSided("own", LEFTS["root"](20), metrics_for(16)["gram"])
    values = lapack_values(seen(w, metric))
    for energy in (0.5, 0.9, 0.999):
        rank = truncated_svd(w, energy=energy, metric=metric).op.rank
        kept = np.cumsum(values**2) / np.sum(values**2)
        assert rank == int(np.argmax(kept >= energy)) + 1


def test_operators_are_formed() -> None:
    w, metric = gaussian(12, 9, 1), TwoSided("rows", torch.linspace(1, 2, 12))
    for op in (Dense(w), Factors(w, torch.eye(9, dtype=torch.float64))):
        assert torch.equal(
            truncated_svd(op, 3, metric=metric).op.dense(), truncated_svd(w, 3, metric=metric).op.dense()
        )


def test_a_rank_above_that_of_the_left_side_is_met_exactly() -> None:
    w = gaussian(12, 9, 1)
    fit = truncated_svd(w, 5, metric=TwoSided("two outputs", gaussian(2, 12, 2)))
    assert fit.op.rank == 2
    assert fit.bounds[0].achieved <= 1e-12 * fit.bounds[0].scale


def test_what_is_no_left_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is for 5 rows, not 4"):
        truncated_svd(torch.eye(4), 1, metric=TwoSided("rows", torch.ones(5)))
    with pytest.raises(ValueError, match=r"of shape \(2, 2, 2\)"):
        TwoSided("cube", torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match=r"torch.int64"):
        TwoSided("whole numbers", torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the holed metric holds NaN"):
        TwoSided("holed", torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match=r"4 x 4 matrix holds NaN"):
        truncated_svd(torch.full((4, 4), float("nan")), 1, metric=TwoSided("rows", torch.ones(4)))
    with pytest.raises(ValueError, match=r"rank 5 of a 4 x 4 matrix"):
        truncated_svd(torch.eye(4), 5, metric=TwoSided("rows", torch.ones(4)))


def test_the_seed_decides() -> None:
    w, metric = gaussian(30, 20, 1), TwoSided("own", LEFTS["root"](30))
    one, two = (truncated_svd(w, 4, metric=metric, rng=generator(7)).op for _ in range(2))
    assert torch.equal(one.dense(), two.dense())
