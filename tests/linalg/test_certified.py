"""Bounds of what others made: when the matrix is decomposed for them, and how near the best is looked for otherwise."""

from collections.abc import Callable

import pytest
import torch
from market import as_if_large, gaussian, generator, lapack_values, metrics_for, with_spectrum
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.linalg import Truncation, bounds_of, certified, measured_bounds
from eckart.metric import Metric
from eckart.operator import Factors


def op_of(m: int, n: int, rank: int) -> Factors:
    return Factors(gaussian(m, rank, 5), gaussian(rank, n, 6))


@pytest.mark.parametrize(("side", "certain"), [(20, True), (21, False)])
@pytest.mark.parametrize("wide", [True, False])
def test_up_to_the_side_of_lapack_what_is_below_is_certain(
    side: int, certain: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller one counts."""
    as_if_large(monkeypatch)
    monkeypatch.setattr(certified, "LAPACK_SIDE", 20)
    w = with_spectrum(side, 40, torch.arange(1, side + 1, dtype=torch.float64) ** -0.5)
    w = w if wide else w.T.contiguous()
    own = bounds_of(w, op_of(*w.shape, 2))[0]
    assert (own.delta is None) == certain


def test_in_a_full_metric_what_is_below_is_certain_whatever_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w, metrics = gaussian(30, 20, 1), metrics_for(20)
    for form, certain in (("gram", True), ("diagonal", False), ("plain", False)):
        bounds = bounds_of(w, op_of(30, 20, 2), metrics[form])
        assert (bounds[0].delta is None) == certain
        assert [b.norm for b in bounds] == ([] if form == "plain" else [form]) + ["frobenius", "spectral"]


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram"])
def test_bounds_of_a_small_matrix_are_those_of_lapack(form: str) -> None:
    w, metric, op = gaussian(12, 9, 1), metrics_for(9)[form], op_of(12, 9, 2)
    bounds = bounds_of(w, op, metric)
    own, plain, spectral = bounds[0], bounds[-2], bounds[-1]
    for bound, matrix in ((own, metric.whiten(w)), (plain, w)):
        assert bound.lower == pytest.approx(float((lapack_values(matrix)[2:] ** 2).sum() ** 0.5), rel=1e-9)
    assert spectral.lower == pytest.approx(lapack_values(w)[2], rel=1e-12)


def _noted(asked: list[tuple[object, ...]]) -> Callable[..., object]:
    class Noted(Truncation):
        def __post_init__(self) -> None:
            asked.append((self.target.shape, self.metric.name, self.accuracy))

        def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool = True) -> Fit:
            asked.append((rank, dtype, spectral))
            return super().fit(rank, dtype=dtype, rng=rng, spectral=spectral)

    return Noted


@pytest.mark.parametrize("form", ["plain", "diagonal"])
def test_of_a_large_matrix_the_best_is_looked_for_to_a_hundredth(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(certified, "Truncation", _noted(asked))
    w, metric = gaussian(30, 20, 1), metrics_for(20)[form]
    bounds_of(w, op_of(30, 20, 3), metric)
    assert asked == [(w.shape, metric.name, 1e-2), (3, torch.float32, True)]


@pytest.mark.parametrize("rank", [20, 22])
def test_nothing_is_looked_for_where_the_rank_leaves_nothing(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    monkeypatch.setattr(certified, "Truncation", lambda *_: pytest.fail("looked for"))
    w = gaussian(30, 20, 1)
    op = op_of(30, 20, rank)
    bounds = bounds_of(w, op)
    assert bounds == measured_bounds(w, op, Metric.plain(), None, rng=generator())
    assert [b.lower for b in bounds] == [0.0, 0.0]


def test_a_figure_that_is_raised_takes_the_others_along() -> None:
    """A matrix whose own error is as small as its optimum, told by an approximation that has to be the better one."""
    certain = certified.Bound(norm="frobenius", lower=1.0, achieved=1.25, upper=1.5, scale=9.0, delta={"upper": 0.125})
    above = certified.Bound(norm="frobenius", lower=2.0, achieved=3.0, upper=4.0, scale=9.0)
    raised = certified._raised(certain, above)
    assert (raised.lower, raised.achieved, raised.upper) == (2.0, 2.0, 2.0)
    assert raised.delta == {"upper": 0.125}
    between = certified.Bound(norm="frobenius", lower=1.125, achieved=3.0, upper=4.0, scale=9.0)
    raised = certified._raised(certain, between)
    assert (raised.lower, raised.achieved, raised.upper) == (1.125, 1.25, 1.5)
    below = certified.Bound(norm="frobenius", lower=0.5, achieved=3.0, upper=4.0, scale=9.0)
    assert certified._raised(certain, below) is certain


def test_bounds_hold_for_factors_of_a_narrow_type(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w: Tensor = with_spectrum(60, 50, torch.arange(1, 51, dtype=torch.float64) ** -0.5).to(torch.bfloat16)
    op = Factors(gaussian(60, 4, 1).to(torch.bfloat16), gaussian(4, 50, 2).to(torch.bfloat16))
    frobenius, spectral = bounds_of(w, op)
    values = lapack_values(w)
    best = float((values[4:] ** 2).sum() ** 0.5)
    assert frobenius.lower is not None
    assert 0.95 * best <= frobenius.lower <= best
    assert spectral.lower is not None
    assert 0.9 * values[4] <= spectral.lower <= values[4]
    error = lapack_values(w.double() - op.left.double() @ op.right.double())
    assert frobenius.achieved == pytest.approx(float((error**2).sum() ** 0.5), rel=1e-5)
    assert error[0] <= spectral.upper
