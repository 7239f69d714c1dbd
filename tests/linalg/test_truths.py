"""What bounds say where rounding is largest: narrow types, cancellation, moments with directions that do not count."""

import math

import numpy as np
import pytest
import torch
from market import float64, gaussian, generator

from eckart.linalg import SubspaceIteration, truncated_svd
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Factors, Product, Sum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sided", [False, True])
def test_an_operator_of_a_narrow_type_is_met_as_it_is(dtype: torch.dtype, sided: bool) -> None:
    """Not as its type would round it while it is formed."""
    for seed in range(4):
        a, b = (torch.randn(40, 40, generator=generator(seed + i)).to(dtype) for i in range(2))
        metric: Metric | TwoSided = TwoSided("rows", torch.ones(40)) if sided else Metric.plain()
        fit = truncated_svd(Product((Dense(a), Dense(b))), 30, metric=metric, dtype=torch.float64)
        exact = float64(a) @ float64(b)
        error = float(np.linalg.norm(exact - float64(fit.op.dense())))
        optimum = float(np.linalg.norm(np.linalg.svd(exact)[1][30:]))
        bound = fit.bounds[0]
        assert bound.lower is not None
        assert bound.lower <= optimum * (1 + 1e-12)
        assert bound.upper >= error * (1 - 1e-12)


def test_a_product_that_a_metric_cancels_has_no_lower_bound_above_the_truth() -> None:
    """All that is left of it is what rounding the root left, and the bound knows that it knows no better."""
    for seed in range(12):
        left, right = gaussian(20, 2, seed), gaussian(2, 15, seed + 100)
        root = torch.eye(15, dtype=torch.float64) - torch.linalg.pinv(right) @ right
        bound = truncated_svd(Factors(left, right), 1, metric=Metric("m", right=root), dtype=torch.float64).bounds[0]
        wide = np.asarray(left.numpy(), np.longdouble) @ (
            np.asarray(right.numpy(), np.longdouble) @ np.asarray(root.numpy(), np.longdouble)
        )
        least = float(np.linalg.svd(wide.astype(float))[1][1])
        assert bound.lower is not None
        assert bound.lower <= least


def test_what_a_moment_does_not_see_is_not_bounded_from_below() -> None:
    """Inputs and weights of whole numbers, so that every product of the two is zero, and not nearly so."""
    k, r = 7, 4
    c = (5 * gaussian(k, r, 1)).round()
    inputs = torch.cat([torch.eye(k, dtype=torch.float64), c], 1)
    weights = torch.cat([-c.T, torch.eye(r, dtype=torch.float64)], 1)
    x, w = (3 * gaussian(30, k, 2)).round() @ inputs, (4 * gaussian(16, r, 3)).round() @ weights
    assert bool((x @ w.T == 0).all())
    bound = truncated_svd(w, 2, metric=Metric("moment", moment=x.T @ x, count=30)).bounds[0]
    assert bound.lower == 0.0


@pytest.mark.parametrize("size", [{"error": 0.5}, {"energy": 0.5}])
def test_of_what_a_metric_does_not_see_nothing_is_kept(size: dict[str, float]) -> None:
    w = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    fit = truncated_svd(w, metric=Metric("dead", torch.tensor([0.0, 1.0])), **size)  # type: ignore[arg-type]
    assert fit.op.shape == (2, 2)
    assert fit.bounds[0].scale == 0.0


def test_a_moment_that_sees_nearly_nothing_is_iterated_in() -> None:
    for seed in range(30):
        v = gaussian(2, 16, seed + 50)
        w = gaussian(9, 2, seed) @ v
        x = gaussian(48, 16, seed + 7) @ (torch.eye(16, dtype=torch.float64) - torch.linalg.pinv(v) @ v)
        metric = Metric("moment", moment=x.T @ x, count=48)
        bound = truncated_svd(w, 1, metric=metric, route=SubspaceIteration(4)).bounds[0]
        assert bound.achieved <= 1e-6 * float(torch.linalg.norm(w))


def test_factors_beyond_their_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"go beyond torch\.float16: give a wider dtype"):
        truncated_svd(1e12 * gaussian(9, 7), 2, dtype=torch.float16)


def test_factors_without_any_column_are_a_matrix_of_zeros() -> None:
    fit = truncated_svd(Factors(torch.zeros(50, 0), torch.zeros(0, 40)), 1)
    assert float(fit.op.dense().abs().max()) == 0.0
    assert fit.bounds[0].achieved == 0.0


def test_a_root_may_be_of_a_narrower_type() -> None:
    w, root = gaussian(6, 5), gaussian(5, 5, 3).float()
    found = truncated_svd(w, 2, metric=Metric("own", root), dtype=torch.float64).bounds[0]
    expected = truncated_svd(w, 2, metric=Metric("own", root.double()), dtype=torch.float64).bounds[0]
    assert found == expected


def test_an_accuracy_is_a_number() -> None:
    with pytest.raises(ValueError, match="not below 0: nan"):
        truncated_svd(gaussian(4, 4), 1, accuracy=math.nan)


def test_sums_that_cancel_are_formed_in_full_width() -> None:
    big = (1e4 * gaussian(30, 20)).float()
    small = gaussian(30, 20, 2).float()
    fit = truncated_svd(Sum((Dense(big + small), Dense(-big))), 5, dtype=torch.float64)
    exact = float64(big + small) - float64(big)
    error = float(np.linalg.norm(exact - float64(fit.op.dense())))
    assert fit.bounds[0].upper >= error * (1 - 1e-12)
    assert fit.bounds[0].achieved == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-130, 1e130, 1e160, 1e250])
@pytest.mark.parametrize("size", [{"rank": 2}, {"error": 0.3}, {"energy": 0.8}, {"bytes": 200}])
@pytest.mark.parametrize("spectral", [False, True])
def test_entries_whose_squares_are_no_numbers_are_met_all_the_same(
    scale: float, size: dict[str, float], spectral: bool
) -> None:
    """What comes out is that of the same matrix in other units, to the last bit where these are powers of two."""
    unit = 2.0 ** math.frexp(scale)[1]
    w = gaussian(9, 7)
    near = truncated_svd(w, dtype=torch.float64, spectral=spectral, **size)  # type: ignore[arg-type]
    far = truncated_svd(w * unit, dtype=torch.float64, spectral=spectral, **size)  # type: ignore[arg-type]
    assert float64(far.op.dense() / unit) == pytest.approx(float64(near.op.dense()), rel=1e-14, abs=1e-14)
    for a, b in zip(far.bounds, near.bounds, strict=True):
        assert (a.norm, a.certain) == (b.norm, b.certain)
        for figure in ("lower", "achieved", "upper", "scale"):
            assert getattr(a, figure) / unit == pytest.approx(getattr(b, figure), rel=1e-12, abs=1e-15)


def test_zeros_can_be_iterated_on() -> None:
    fit = truncated_svd(torch.zeros(9, 7), 2, route=SubspaceIteration())
    assert (fit.bounds[0].achieved, fit.bounds[0].scale) == (0.0, 0.0)


def test_numbers_that_no_float_holds_are_named() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        truncated_svd(torch.tensor([[math.inf, 1.0], [0.0, 1.0]], dtype=torch.float64), 1)
