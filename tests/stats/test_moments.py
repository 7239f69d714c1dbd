import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import float64, gaussian, inputs
from torch import Tensor

from eckart.metric import Metric
from eckart.stats import ActivationScale, Gram, MetricRule, Moments, Need, Plain, RootMeanSquare


def moments_of(*batches: Tensor, gram: bool = True) -> Moments:
    moments = Moments.zeros(batches[0].shape[-1], gram=gram)
    for batch in batches:
        moments.add(batch)
    return moments


def assert_close(a: Moments, b: Moments, rel: float) -> None:
    assert a.count == b.count
    assert float64(a.magnitude) == pytest.approx(float64(b.magnitude), rel=rel)
    assert float64(a.square) == pytest.approx(float64(b.square), rel=rel)
    assert (a.gram is None) == (b.gram is None)
    if a.gram is not None and b.gram is not None:
        assert float((a.gram - b.gram).norm()) <= rel * float(b.gram.norm())


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_moments_are_the_sums_they_are_named_after(dtype: torch.dtype, rel: float) -> None:
    x = inputs(12, 50).to(dtype)
    moments, rows = moments_of(x), float64(x)
    assert moments.count == 50
    assert float64(moments.magnitude) == pytest.approx(np.abs(rows).sum(0), rel=rel)
    assert float64(moments.square) == pytest.approx((rows**2).sum(0), rel=rel)
    assert np.linalg.norm(float64(moments.gram) - rows.T @ rows) <= rel * np.linalg.norm(rows.T @ rows)
    assert moments.energy == pytest.approx(np.linalg.norm(rows) ** 2, rel=rel)
    assert {moments.magnitude.dtype, moments.square.dtype, moments.gram.dtype} == {torch.float64}


@given(st.lists(st.integers(0, 40), max_size=3).map(sorted), st.booleans())
def test_a_stream_gives_what_one_batch_gives(cuts: list[int], gram: bool) -> None:
    """However it is cut: ``cuts`` are positions, equal ones make empty batches."""
    x = inputs(9, 40)
    edges = [0, *cuts, 40]
    parts = [x[a:b] for a, b in pairwise(edges)]
    assert_close(moments_of(*parts, gram=gram), moments_of(x, gram=gram), 1e-13)


def test_leading_dimensions_are_positions() -> None:
    x = inputs(6, 24)
    assert_close(moments_of(x.reshape(2, 3, 4, 6)), moments_of(x), 1e-13)
    assert_close(moments_of(*x), moments_of(x), 1e-13)  # vectors one by one
    assert_close(moments_of(x.T.contiguous().T), moments_of(x), 1e-13)


def test_moments_of_two_sets_add_up() -> None:
    x, y = inputs(8, 30), inputs(8, 11, 50)
    assert_close(moments_of(x) + moments_of(y), moments_of(torch.cat([x, y])), 1e-13)
    assert_close(moments_of(x, gram=False) + moments_of(y, gram=False), moments_of(x, y, gram=False), 1e-13)
    first, second = moments_of(x), moments_of(y)
    before = first.gram.clone()
    _ = first + second
    assert torch.equal(first.gram, before)


def test_a_batch_is_left_alone_and_may_change_afterwards() -> None:
    x = inputs(5, 10)
    kept, before = moments_of(x), x.clone()
    assert torch.equal(x, before)
    x.zero_()
    assert_close(kept, moments_of(before), 1e-13)


def test_small_batches_are_not_lost_beside_a_large_sum() -> None:
    """A float32 sum of 2^26 does not notice that 1 is added to it, however often."""
    large, small, times = 2.0**13, 1.0, 1000
    stream = [torch.full((1, 2), large), *[torch.full((1, 2), small)] * times]
    moments = moments_of(*stream)
    assert moments.gram.tolist() == [[2.0**26 + times] * 2] * 2
    assert moments.square.tolist() == [2.0**26 + times] * 2
    assert moments.magnitude.tolist() == [2.0**13 + times] * 2
    lost = torch.tensor(2.0**26)
    for _ in range(times):
        lost += 1.0
    assert float(lost) == 2.0**26  # the mistake that this test would show

    fine = [torch.full((1, 1), 2.0**24), *[torch.full((1, 1), 0.5)] * times]
    assert moments_of(*fine).magnitude.tolist() == [2.0**24 + times / 2]


def test_squares_of_narrow_types_are_taken_in_float64() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = gaussian(64, 5).to(dtype) * 300
        moments = moments_of(x, gram=False)
        assert float64(moments.square) == pytest.approx((float64(x) ** 2).sum(0), rel=1e-14)
        assert float64(moments.magnitude) == pytest.approx(np.abs(float64(x)).sum(0), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gram_of_narrow_types_is_not_rounded_to_them(dtype: torch.dtype) -> None:
    x = gaussian(64, 5).to(dtype) * 300  # float16 even overflows
    expected = float64(x).T @ float64(x)
    assert np.linalg.norm(float64(moments_of(x).gram) - expected) <= 1e-6 * np.linalg.norm(expected)


def test_directions_that_hardly_occur_are_not_drowned_in_float32_products() -> None:
    x = (gaussian(2048, 12) @ gaussian(12, 24, 1)).to(torch.float32)  # half of all directions hold rounding only
    weak = torch.from_numpy(np.linalg.svd(float64(x))[2][12:].copy())
    metric = Gram()(moments_of(*x.split(256)))
    truth = np.linalg.norm(float64(weak) @ float64(x).T) / math.sqrt(len(x))
    # What float64 buries is the root of its rounding of the energy; of float32 that would be 2e4 times as much.
    buried = math.sqrt(2.0**-52 * float(x.double().square().sum()) / len(x))
    assert metric.norm(weak) <= truth + 2 * buried


# ---- the metrics made from them -------------------------------------------------------------------------------------

RULES: tuple[MetricRule, ...] = (Plain(), ActivationScale(), RootMeanSquare(), Gram())


@pytest.mark.parametrize("count", [60, 12, 5])
def test_the_gram_metric_is_the_mean_size_of_the_output_error(count: int) -> None:
    x = inputs(12, count)
    metric = Gram()(moments_of(*x.split(4)))
    for seed in range(5):
        e = gaussian(7, 12, seed)
        expected = np.linalg.norm(float64(e) @ float64(x).T) / math.sqrt(count)
        assert metric.norm(e) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_activation_scale_is_a_power_of_the_mean_magnitude(power: float) -> None:
    x = inputs(12, 60)
    metric = ActivationScale(power=power, floor=0.0)(moments_of(x, gram=False))
    assert float64(metric.right) == pytest.approx(np.abs(float64(x)).mean(0) ** power, rel=1e-12)


def test_the_input_scale_is_the_root_of_the_mean_square() -> None:
    """Over inputs that are not correlated the mean size of the output error; where none arrives it counts nothing."""
    x = inputs(12, 60)
    x[:, 3] = 0
    metric = RootMeanSquare()(moments_of(*x.split(13), gram=False))
    assert float64(metric.right) == pytest.approx(np.sqrt((float64(x) ** 2).mean(0)), rel=1e-12)
    assert float(metric.right[3]) == 0


def test_the_floor_is_relative_to_the_largest_scale() -> None:
    moments = moments_of(torch.tensor([[100.0, 0.0, 1.0]]), gram=False)
    for unit in (1.0, 1e-6):
        scaled = Moments(
            count=1,
            total=moments.total * unit,
            magnitude=moments.magnitude * unit,
            square=moments.square * unit**2,
            gram=None,
        )
        right = ActivationScale(power=1.0, floor=0.01)(scaled).right
        assert right.tolist() == pytest.approx([101 * unit, 1 * unit, 2 * unit])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_number_of_inputs_does_not_scale_a_metric(rule: MetricRule) -> None:
    """The same inputs again leave every mean, and so every metric, as it was."""
    x, e = inputs(9, 20), gaussian(4, 9)
    assert rule(moments_of(x, x, x)).norm(e) == pytest.approx(rule(moments_of(x)).norm(e), rel=1e-11)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_without_any_signal_every_error_counts_the_same(rule: MetricRule) -> None:
    for silent in (Moments.zeros(6, gram=True), moments_of(torch.zeros(4, 6))):
        metric = rule(silent)
        assert metric == Metric.plain()


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: type(rule).__name__)
def test_one_input_is_enough(rule: MetricRule) -> None:
    assert not rule(moments_of(inputs(6, 1))).is_plain


def test_what_rules_need() -> None:
    assert {type(rule).__name__: rule.needs for rule in RULES} == {
        "Plain": frozenset(),
        "ActivationScale": {Need.ACTIVATIONS},
        "RootMeanSquare": {Need.ACTIVATIONS},
        "Gram": {Need.GRAM},
    }
    assert Plain()(None) == Metric.plain()


def test_metrics_say_what_they_are() -> None:
    moments = moments_of(inputs(5, 9))
    names = [rule(moments).name for rule in RULES]
    assert len(set(names)) == len(names)
