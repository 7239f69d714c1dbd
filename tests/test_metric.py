import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, METRICS, float64, gaussian, inputs, metrics_for, whitened
from torch import Tensor

from eckart.metric import Metric

sizes = st.integers(1, 10)
seeds = st.integers(0, 10**6)


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_norm_is_that_of_the_error_times_the_root(name: str, form: str) -> None:
    e = MATRICES[name]()
    metric = metrics_for(e.shape[1])[form]
    expected = whitened(e, metric)
    # Where R nearly cancels e, rounding is relative to the product of the norms and not to the norm of the product.
    reach = np.linalg.norm(float64(e)) * (1.0 if metric.right is None else float(metric.right.norm()))
    assert np.abs(float64(metric.whiten(e)) - expected).max() <= 1e-14 * reach
    assert abs(metric.norm(e) - np.linalg.norm(expected)) <= 1e-14 * reach
    assert metric.whiten(e).dtype == torch.float64


@pytest.mark.parametrize("count", [200, 24, 7, 1])  # more inputs than channels, as many, fewer, a single one
def test_a_gram_metric_is_the_size_of_the_output_error(count: int) -> None:
    """The meaning of the metric, without its root: ``||E X^T||_F`` over the inputs X, whatever their rank."""
    x = inputs(24, count)
    metric = Metric.gram("inputs", x.T @ x)
    for seed in range(5):
        e = gaussian(10, 24, seed)
        assert metric.norm(e) == pytest.approx(np.linalg.norm(float64(e) @ float64(x).T), rel=1e-11)


def test_a_gram_metric_does_not_see_what_no_input_reaches() -> None:
    x = inputs(24, 7)
    metric = Metric.gram("inputs", x.T @ x)
    unseen = torch.from_numpy(np.linalg.svd(float64(x))[2][7:].copy())  # rows orthogonal to all inputs
    assert np.linalg.norm(float64(unseen)) == pytest.approx(math.sqrt(17))
    assert metric.norm(unseen) <= 1e-6 * float(metric.right.norm())  # the root of rounding


def test_a_gram_metric_weighs_rows_of_the_error_alike_and_columns_by_the_inputs() -> None:
    metric = Metric.gram("inputs", torch.diag(torch.tensor([9.0, 1.0, 0.0])))
    unit = torch.eye(3)
    for row in range(3):
        norms = [metric.norm(torch.outer(unit[row], unit[column])) for column in range(3)]
        assert norms == pytest.approx([3.0, 1.0, 0.0])


def test_a_diagonal_metric_is_the_gram_metric_of_independent_inputs() -> None:
    scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    e = gaussian(4, 3)
    assert Metric("d", scale).norm(e) == pytest.approx(Metric.gram("g", torch.diag(scale**2)).norm(e), rel=1e-13)


@given(sizes, sizes, seeds, st.sampled_from(METRICS), st.floats(-1e3, 1e3))
def test_every_metric_is_a_seminorm(m: int, n: int, seed: int, form: str, factor: float) -> None:
    metric, e, f = metrics_for(n)[form], gaussian(m, n, seed), gaussian(m, n, seed + 1)
    grain = 1e-12 * (metric.norm(e) + metric.norm(f))
    assert metric.norm(e) >= 0.0
    assert metric.norm(torch.zeros(m, n)) == 0.0
    assert metric.norm(factor * e) == pytest.approx(abs(factor) * metric.norm(e), rel=1e-12)
    assert metric.norm(e + f) <= metric.norm(e) + metric.norm(f) + grain


@given(sizes, sizes, seeds, st.sampled_from(METRICS))
def test_turning_the_outputs_changes_nothing(m: int, n: int, seed: int, form: str) -> None:
    metric, e = metrics_for(n)[form], gaussian(m, n, seed)
    turn = torch.linalg.qr(gaussian(m, m, seed + 2)).Q
    assert metric.norm(turn @ e) == pytest.approx(metric.norm(e), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", METRICS)
def test_errors_of_narrow_types_are_measured_in_float64(form: str, dtype: torch.dtype) -> None:
    e: Tensor = gaussian(6, 8).to(dtype)
    metric = metrics_for(8)[form]
    assert metric.norm(e) == metric.norm(e.to(torch.float64))


def test_the_plain_metric_has_no_root_and_is_frobenius() -> None:
    plain = Metric.plain()
    assert plain == Metric("frobenius", None)
    assert plain.norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == 5.0


@pytest.mark.parametrize("side", [5, 1200])
def test_the_size_of_a_metric_is_the_mean_energy_of_its_inputs(side: int) -> None:
    """Of a small one whose root is taken and of a large one whose moment is kept."""
    x = gaussian(40, side)
    metric = Metric.gram("inputs", x.T @ x, 40)
    assert (metric.moment is not None) == (side > 1024)
    assert metric.size(side) == pytest.approx(float(x.square().sum()) / 40, rel=1e-9)


@pytest.mark.parametrize("form", METRICS)
def test_what_columns_count_by_themselves_and_together(form: str) -> None:
    """``R R^T`` and its diagonal by NumPy, of a root as of a moment."""
    metric = metrics_for(9)[form]
    root = whitened(torch.eye(9), metric)
    moment = root @ root.T
    held = Metric("moment", moment=5 * torch.from_numpy(moment), count=5)
    for one in (metric, held):
        np.testing.assert_allclose(float64(one.second_moment(9)), moment, rtol=1e-13, atol=1e-13 * moment.max())
        np.testing.assert_allclose(float64(one.weights(9)), np.diag(moment), rtol=1e-13)
        assert one.weights(9).dtype == one.second_moment(9).dtype == torch.float64
    negative = Metric("moment", moment=torch.diag(torch.tensor([1.0, -1e-20]).to(torch.float64)))
    assert negative.weights(2).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("count", [4, 40])
def test_inputs_that_never_arrive_count_exactly_nothing(count: int) -> None:
    x = inputs(11, count)
    x[:, [2, 5, 10]] = 0
    metric = Metric.gram("inputs", x.T @ x)
    assert (metric.weights(11) == 0).nonzero()[:, 0].tolist() == [2, 5, 10]
    e = torch.zeros(3, 11, dtype=torch.float64)
    e[:, [2, 5, 10]] = 1e9
    assert metric.norm(e) == 0
