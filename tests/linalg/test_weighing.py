"""What a truncation in a metric with a left side computes, and what it says of rounding: figures worked by hand."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, inputs, lapack_values, metrics_for, whitened
from torch import Generator, Tensor

import eckart.linalg.weighed as weighed_module
from eckart.kernels.randomized import Products, Subspace, ritz_subspace
from eckart.linalg import Automatic, Lapack, Route, bounds_of
from eckart.linalg.remainder import Formed
from eckart.linalg.weighed import WeighedTruncation
from eckart.metric import Coordinates, Metric, TwoSided
from eckart.operator import Factors


def seen(w: Tensor, metric: TwoSided) -> np.ndarray:
    left = float64(metric.left)
    return (np.diag(left) if left.ndim == 1 else left) @ whitened(w, metric.columns)


def rows(m: int) -> Tensor:
    return torch.logspace(0, -3, m, dtype=torch.float64)


def root(m: int) -> Tensor:
    x = inputs(m, 3 * m, 40)
    return torch.linalg.cholesky(x.T @ x / (3 * m), upper=True)


@dataclass(frozen=True)
class Axes(Automatic):
    """A route that is iterated on always, to axes as they come."""

    asked: list[tuple[int, float]] = field(default_factory=list)

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        return None

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        self.asked.append((rank, energy))
        return ritz_subspace(a, torch.eye(a.shape[0], min(rank + 2, *a.shape)), rank, 1, None), "noted"


@pytest.mark.parametrize("spectral", [True, False])
def test_what_is_iterated_on_is_seen_once_and_not_decomposed(spectral: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    monkeypatch.setattr(Metric, "svd", lambda *_: pytest.fail("decomposed"))
    monkeypatch.setattr(weighed_module, "singular_values", lambda *_: pytest.fail("decomposed"))
    taken: list[int] = []
    whole = Metric.coordinates

    def noted(self: Metric, matrix: Tensor) -> Coordinates:
        taken.append(len(matrix))
        return whole(self, matrix)

    monkeypatch.setattr(Metric, "coordinates", noted)
    route, w = Axes(), gaussian(14, 9, 1)
    metric = TwoSided("own", rows(14), metrics_for(9)["gram"])
    fit = WeighedTruncation(w, metric, 2e-3, route).fit(3, dtype=torch.float64, rng=generator(), spectral=spectral)
    assert fit.how == "noted"
    assert taken == [14]
    ((rank, energy),) = route.asked
    assert rank == 3
    assert energy == pytest.approx(float(np.linalg.norm(seen(w, metric))) ** 2, rel=1e-9)
    error = float(np.linalg.norm(seen(w - fit.op.dense(), metric)))
    assert fit.bounds[0].achieved == pytest.approx(error, rel=1e-6)
    assert [b.norm for b in fit.bounds] == (["own", "frobenius", "spectral"] if spectral else ["own", "frobenius"])
    size = float(np.linalg.norm(float64(w)))
    assert fit.bounds[1].scale == pytest.approx(size, rel=1e-12)
    rest = float(np.linalg.norm(float64(w - fit.op.dense())))
    assert fit.bounds[1].achieved == pytest.approx(rest, rel=1e-5)


def test_what_is_decomposed_is_not_seen_in_other_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metric, "coordinates", lambda *_: pytest.fail("seen"))
    metric = TwoSided("own", rows(14), metrics_for(9)["gram"])
    fit = WeighedTruncation(gaussian(14, 9, 1), metric, 0.0).fit(3, dtype=torch.float64, rng=generator())
    assert all(bound.delta is None for bound in fit.bounds)


def test_without_a_spectral_bound_no_spectral_norm_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Formed, "spectral_norm", lambda *_: pytest.fail("looked for"))
    metric = TwoSided("own", rows(14), metrics_for(9)["diagonal"])
    prepared = WeighedTruncation(gaussian(14, 9, 1), metric, 0.0)
    fit = prepared.fit(3, dtype=torch.float64, rng=generator(), spectral=False)
    assert [bound.norm for bound in fit.bounds] == ["own", "frobenius"]


@pytest.mark.parametrize("rank", [0, 10])
def test_a_rank_that_the_matrix_does_not_have_is_refused(rank: int) -> None:
    """Also where fewer rows count than that."""
    prepared = WeighedTruncation(gaussian(14, 9, 1), TwoSided("few", gaussian(4, 14, 2)), 0.0)
    with pytest.raises(ValueError, match=rf"rank {rank} of a 14 x 9 matrix: give one from 1 to 9"):
        prepared.fit(rank, dtype=torch.float64, rng=generator())


@pytest.mark.parametrize(
    ("side", "route", "certain"), [(8, Axes(), True), (9, Axes(), False), (8, Lapack(), True), (9, Lapack(), True)]
)
def test_what_is_iterated_on_is_decomposed_for_its_plain_bounds_where_it_is_small(
    side: int, route: Route, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the side of LAPACK, here 8; what is decomposed in its metric has certain ones at any size."""
    as_if_large(monkeypatch)
    monkeypatch.setattr(weighed_module, "LAPACK_SIDE", 8)
    for w in (gaussian(side, 12, 1), gaussian(12, side, 1)):
        metric = TwoSided("own", torch.linspace(1, 2, len(w)))
        fit = WeighedTruncation(w, metric, 2e-3, route).fit(2, dtype=torch.float64, rng=generator())
        own, plain, spectral = fit.bounds
        assert (own.delta is None) == isinstance(route, Lapack)
        assert (plain.delta is None) == certain
        assert plain.lower is not None
        assert spectral.lower is not None
        if certain:
            assert plain.lower == pytest.approx(float(np.linalg.norm(lapack_values(w)[2:])), rel=1e-9)
            assert spectral.lower == pytest.approx(lapack_values(w)[2], rel=1e-6)


@pytest.mark.parametrize("large", [False, True])
def test_errors_to_expect_are_those_of_the_weighed_matrix(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of ranks above the number of rows that count."""
    if large:
        as_if_large(monkeypatch)
    w, metric = gaussian(12, 9, 1), TwoSided("few outputs", gaussian(4, 12, 2), metrics_for(9)["diagonal"])
    values = lapack_values(seen(w, metric))
    prepared = WeighedTruncation(w, metric, 0.0)
    expected = [float(np.sum(values[rank:] ** 2)) for rank in range(5)]
    for rank in (1, 4, 9):
        assert prepared.tails(rank, generator()).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9 * expected[0])
        error = math.sqrt(expected[min(rank, 4)])
        assert prepared.error(rank, generator()) == pytest.approx(error, rel=1e-9, abs=1e-6)
    route = Axes()
    WeighedTruncation(w, metric, 0.0, route).tails(9, generator())
    WeighedTruncation(w, metric, 0.0, route).fit(9, dtype=torch.float64, rng=generator())
    assert [rank for rank, _ in route.asked] == [4, 4]


@pytest.mark.parametrize(("weight", "kept"), [(0.99 * 2.0**-25, 1), (1.01 * 2.0**-25, 2), (0.5, 2)])
def test_directions_whose_squares_are_rounding_are_not_told(weight: float, kept: int) -> None:
    """The square of the smaller weight must be above four roundings of that of the larger one, for four rows."""
    w = torch.eye(4, dtype=torch.float64)[:, :2].contiguous()
    metric = TwoSided("rows", 4 * torch.tensor([1.0, weight, 0.0, 0.0], dtype=torch.float64))
    op = WeighedTruncation(w, metric, 0.0).fit(2, dtype=torch.float64, rng=generator()).op
    assert isinstance(op, Factors)
    assert int((op.left.norm(dim=0) > 0).sum()) == kept
    assert float64(op.left.norm(dim=0)[:kept]) == pytest.approx(np.ones(kept), rel=1e-7)
    assert float64(op.dense())[:2] == pytest.approx(np.diag([1.0, float(kept == 2)]), abs=1e-7)


@pytest.mark.parametrize("left", [torch.zeros(4), torch.ones(4)])
def test_where_nothing_counts_nothing_is_told(left: Tensor) -> None:
    w = gaussian(4, 3, 1) * float(1 - left[0])
    op = WeighedTruncation(w, TwoSided("rows", left), 0.0).fit(2, dtype=torch.float64, rng=generator()).op
    assert isinstance(op, Factors)
    assert float(op.dense().abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_columns_and_rows_of_both_factors_are_of_equal_length(dtype: torch.dtype) -> None:
    """The root each of 9 and of 4, which are what the left factor, of unit columns, leaves for the right one."""
    w = torch.diag(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64))
    metric = TwoSided("rows", torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    op = WeighedTruncation(w, metric, 0.0).fit(2, dtype=dtype, rng=generator()).op
    assert isinstance(op, Factors)
    assert op.left.dtype == op.right.dtype == dtype
    assert op.left.double().norm(dim=0).tolist() == pytest.approx([3.0, 2.0], rel=1e-12)
    assert op.right.double().norm(dim=1).tolist() == pytest.approx([3.0, 2.0], rel=1e-12)


def test_the_rounding_of_products_with_the_left_side_worked_by_hand() -> None:
    """A row of 1e8 that counts nothing, and is met by one of 3e8: a rounding of each, counted by the largest weights."""
    w = torch.diag(torch.tensor([1e8, 1.0, 1.0], dtype=torch.float64))
    op = Factors(torch.tensor([[1e6], [0.0], [0.0]]).double(), torch.tensor([[300.0, 0.0, 0.0]]).double())
    columns = Metric("columns", torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    metric = TwoSided("rows", torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64), columns)
    own = bounds_of(w, op, metric)[0]
    eps = 2.0**-52
    assert own.achieved == pytest.approx(math.sqrt(5.0), rel=1e-14)
    assert own.upper - own.achieved == pytest.approx(2 * 4 * eps * 4e8, rel=1e-5, abs=0.0)
    assert own.lower is not None
    assert 1.0 - own.lower == pytest.approx(2 * 4 * eps * 1e8, rel=1e-5, abs=0.0)
    far = bounds_of(replace_top(w, 1e17), op, metric)[0]
    assert far.lower == 0.0


def replace_top(w: Tensor, value: float) -> Tensor:
    other = w.clone()
    other[0, 0] = value
    return other


def test_factors_in_another_type_are_bounded_by_the_seed_0() -> None:
    w, metric = gaussian(12, 9, 1), TwoSided("own", root(12), metrics_for(9)["gram"])
    op = Factors(gaussian(12, 3, 2).to(torch.float32), gaussian(3, 9, 3).to(torch.float32))
    assert bounds_of(w, op, metric) == bounds_of(w, op, metric, rng=generator(0))
    error = float(np.linalg.norm(seen(w - op.left.double() @ op.right.double(), metric)))
    assert bounds_of(w, op, metric)[0].achieved == pytest.approx(error, rel=1e-9)
