"""What approximations by columns share: a choice, its random numbers, columns at unit length, and what is refused."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from market import float64, gaussian, generator, metrics_for

from eckart.linalg import DEIM, Given, PivotedQR, cur, interpolative, select
from eckart.linalg.selected import BOUNDS, COLUMNS, ROWS, SKETCH, Span, refuse_no_matrix, refuse_overflow, stream
from eckart.metric import Metric
from eckart.operator import Factors, Product

EPS = 2.0**-52


# ---- random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "purposes"),
    [
        (0, (5851342789287276437, 2479313541719777066, 8330656331007053503, 4958627083439554132)),
        (3, (5851342789287276440, 2479313541719777069, 8330656331007053506, 4958627083439554135)),
        (2**62, (1239656770859888533, 7090999560147164970, 3718970312579665599, 346941065012166228)),
    ],
)
def test_seeds_that_were_given_once_stay_what_they_are(seed: int, purposes: tuple[int, ...]) -> None:
    """Whoever notes a seed gets the same columns from any later version."""
    found = [stream(generator(seed), purpose).initial_seed() for purpose in (COLUMNS, ROWS, SKETCH, BOUNDS)]
    assert found == list(purposes)


def test_without_a_generator_the_seed_is_zero() -> None:
    assert stream(None, COLUMNS).initial_seed() == stream(generator(0), COLUMNS).initial_seed()
    used = generator(5)
    torch.randn(7, generator=used)
    assert stream(used, ROWS).initial_seed() == stream(generator(5), ROWS).initial_seed()


@pytest.mark.parametrize("count", [1, 4])
def test_all_columns_and_a_single_one_may_be_chosen(count: int) -> None:
    assert sorted(select(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), count, PivotedQR()).tolist()) == list(
        range(count)
    )
    with pytest.raises(ValueError, match="5 of 4 columns: give a number from 1 to 4"):
        select(torch.eye(4), 5, PivotedQR())


# ---- columns at unit length --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4)])
def test_a_span_is_the_decomposition_of_unit_columns(shape: tuple[int, int]) -> None:
    c = gaussian(*shape, 2) * torch.logspace(-6, 6, shape[1], dtype=torch.float64)
    span = Span.of(c)
    lengths = np.linalg.norm(float64(c), axis=0)
    unit = float64(c) / lengths
    values = scipy.linalg.svd(unit, compute_uv=False, lapack_driver="gesvd")
    q = min(shape)
    assert (span.u.shape, span.s.shape, span.weights.shape) == ((shape[0], q), (q,), (shape[1], q))
    assert float64(span.s) == pytest.approx(values, rel=1e-12)
    again = float64(span.u) * float64(span.s) @ np.linalg.pinv(float64(span.weights) * lengths[:, None])
    assert again == pytest.approx(unit, abs=1e-12)
    if shape[0] >= shape[1]:
        inverse = float64(span.weights) / float64(span.s) @ float64(span.u).T * lengths[:, None]
        assert inverse @ unit == pytest.approx(np.eye(shape[1]), abs=1e-12)


@pytest.mark.parametrize("exponent", [-60, -1, 1, 60])
def test_lengths_of_columns_do_not_matter(exponent: int) -> None:
    c = gaussian(6, 3, 4)
    one, other = Span.of(c), Span.of(c * 2.0**exponent)
    assert torch.equal(one.s, other.s)
    assert torch.equal(one.u, other.u)
    assert torch.equal(one.weights, other.weights * 2.0**exponent)


def test_a_column_of_zeros_has_no_direction() -> None:
    span = Span.of(torch.tensor([[0.0, 0.5], [0.0, 0.0], [0.0, 0.0]]))
    assert span.s.tolist() == [1.0, 0.0]
    assert span.u[:, 0].abs().tolist() == [1.0, 0.0, 0.0]
    assert span.weights.abs().tolist() == [[0.0, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1), (64, 4)])
def test_noise_is_a_unit_of_rounding_of_the_largest_value_for_the_longer_side(shape: tuple[int, int]) -> None:
    """Equal columns: one value, the root of their number."""
    span = Span.of(torch.full(shape, 3.0))
    assert span.noise == pytest.approx(EPS * max(shape) * math.sqrt(shape[1]), rel=1e-12, abs=0.0)


@pytest.mark.parametrize("shape", [(4, 0), (0, 4), (0, 0)])
def test_where_there_are_no_values_there_is_no_noise(shape: tuple[int, int]) -> None:
    assert Span.of(torch.zeros(shape)).noise == 0.0


# ---- what is refused ---------------------------------------------------------------------------------------------------


def test_a_norm_beyond_float64_is_no_infinity_in_the_matrix() -> None:
    a = torch.full((3, 3), 1e200, dtype=torch.float64)
    refuse_no_matrix(a)
    a[2, 2] = torch.inf
    with pytest.raises(ValueError, match="the 3 x 3 matrix holds NaN or infinity"):
        refuse_no_matrix(a)


@pytest.mark.parametrize(
    "a", [torch.ones(4), torch.ones(1, 2, 3), torch.ones(2, 2, dtype=torch.int32), torch.tensor(1.0)]
)
def test_what_is_no_matrix_is_told_its_shape_and_type(a: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted") as caught:
        refuse_no_matrix(a)
    assert f"{tuple(a.shape)} in {a.dtype}" in str(caught.value)


def test_what_was_rounded_to_infinity_is_refused() -> None:
    good = torch.tensor([[6e4]]).to(torch.float16)
    assert refuse_overflow(good, "it") is good
    with pytest.raises(ValueError, match=r"it has entries too large for torch\.float16: give a dtype of wider range"):
        refuse_overflow(torch.tensor([[7e4]]).to(torch.float16), "it")


# ---- which columns a metric is shown -----------------------------------------------------------------------------------


def stored(op: object) -> torch.Tensor:
    assert isinstance(op, Factors | Product)
    return op.left if isinstance(op, Factors) else op.factors[0].dense()


@pytest.mark.parametrize("rule", [PivotedQR(), DEIM()])
def test_columns_are_chosen_in_a_metric_that_scales_them_and_not_in_one_that_mixes_them(rule: object) -> None:
    a = gaussian(10, 9, 3).to(torch.float32)
    scales = torch.tensor([1.0, 1.0, 50.0, 1.0, 1.0, 80.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    for metric, shown in (
        (Metric.plain(), a),
        (Metric("scale", scales), a * scales),
        (metrics_for(9)["gram"], a),
    ):
        indices = select(shown, 3, rule)
        for make in (interpolative, lambda a, r, rule, metric: cur(a, r, columns=rule, rows=rule, metric=metric)):
            assert torch.equal(stored(make(a, 3, rule, metric=metric).op), a[:, indices])
    assert not torch.equal(select(a, 3, rule), select(a * scales, 3, rule))
    assert not torch.equal(select(a, 3, rule), select(metrics_for(9)["gram"].whiten(a), 3, rule))


@pytest.mark.parametrize("name", ["plain", "diagonal", "gram"])
def test_rows_are_chosen_as_the_metric_sees_them(name: str) -> None:
    a = gaussian(10, 9, 3)
    metric = metrics_for(9)[name]
    fit = cur(a, 3, rows=PivotedQR(), metric=metric)
    assert isinstance(fit.op, Product)
    assert torch.equal(fit.op.factors[2].dense(), a[select(metric.whiten(a).T, 3, PivotedQR())])


def test_as_many_rows_as_columns_are_taken_unless_another_number_is_given() -> None:
    a = gaussian(8, 9)
    for given, taken in ((None, 3), (3, 3), (1, 1), (5, 5)):
        fit = cur(a, 3, row_count=given)
        assert isinstance(fit.op, Product)
        assert [factor.shape for factor in fit.op.factors] == [(8, 3), (3, taken), (taken, 9)]


def test_a_share_of_the_core_is_told() -> None:
    """Two columns that are one and two rows that are not: of each row of the core half is kept."""
    a = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    assert "50 % of the core kept" in cur(a, 2, columns=Given((0, 1)), rows=Given((0, 1))).how
    assert "100 % of the core kept" in cur(a, 2, columns=Given((0, 2)), rows=Given((0, 1))).how
    assert "1 of 2 independent" in interpolative(a, 2, Given((0, 1))).how
    assert "2 of 2 independent" in interpolative(a, 2, Given((0, 2))).how
