"""An operator seen through its products: in which type they are computed, and what a route is given."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values, with_spectrum
from torch import Generator, Tensor

from eckart.kernels.randomized import Products, Subspace, ritz_subspace
from eckart.linalg import Automatic, truncated_svd
from eckart.linalg.implicit import ImplicitTruncation, Through
from eckart.linalg.truncation import seeded
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Sum

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 4.0, 1.0, 3.0, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("asked", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_products_are_computed_in_the_wider_type_and_come_in_that_of_the_columns(
    own: torch.dtype, asked: torch.dtype, weights: Tensor | None
) -> None:
    """A sum of terms of 1e7 tells in which: float32 holds nothing of a difference of 1e-3."""
    w = gaussian(9, 7, 1)
    through = Through(Sum((Dense(w + 1e7), Dense(torch.full((9, 7), -1e7).double()))), weights, own)
    x, y = gaussian(7, 2, 2), gaussian(9, 2, 3)
    seen = float64(w) * (1.0 if weights is None else float64(weights))
    for found, expected in (
        (through.times(x.to(asked), narrow=False), seen @ float64(x)),
        (through.transposed_times(y.to(asked), narrow=False), seen.T @ float64(y)),
    ):
        assert found.dtype == asked
        off = float(np.abs(float64(found) - expected).max())
        if torch.float64 in (own, asked):
            assert off <= 1e-4
        else:
            assert off > 1e-2


def test_nothing_narrower_or_wider_is_to_be_had_of_an_operator() -> None:
    through = Through(Dense(gaussian(9, 7, 1)), None, torch.float32)
    assert through.narrows is False
    assert through.wide is False
    assert through.shape == (9, 7)
    assert through.device == torch.device("cpu")
    x = gaussian(7, 2).to(torch.float32)
    assert torch.equal(through.times(x, narrow=True), through.times(x, narrow=False))


@dataclass(frozen=True)
class Call:
    """What a route was given."""

    given: Products
    rank: int
    energy: float
    accuracy: float
    seed: int


@dataclass(frozen=True)
class Noting(Automatic):
    """A route that goes along the axes as they come, and notes what it is given."""

    calls: list[Call] = field(default_factory=list)
    why: str | None = None

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        return self.why

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        self.calls.append(Call(a, rank, energy, accuracy, rng.initial_seed()))
        return ritz_subspace(a, torch.eye(a.shape[0], rank + 2), rank, 1, None), "noted"


@pytest.mark.parametrize("weighed", [False, True])
def test_a_route_is_given_products_and_the_energy_of_what_they_are_of(weighed: bool) -> None:
    w, route = gaussian(9, 7, 1), Noting()
    metric = Metric("scale", WEIGHTS) if weighed else Metric.plain()
    seen = float64(w) * (float64(WEIGHTS) if weighed else 1.0)
    prepared = ImplicitTruncation(Dense(w), metric, 0.125, route)
    assert prepared.size == pytest.approx(float(np.linalg.norm(seen)), rel=1e-14)
    tails = prepared.tails(3, generator(5))
    (call,) = route.calls
    assert isinstance(call.given, Through)
    assert call.given.weights is metric.right
    assert (call.rank, call.accuracy, call.seed) == (3, 0.125, seeded(generator(5)).initial_seed())
    assert call.energy == pytest.approx(float(np.linalg.norm(seen)) ** 2, rel=1e-14)
    assert tails[0] == pytest.approx(call.energy, rel=1e-14)
    assert len(tails) == 4
    # Of what five rows hold, the best three directions.
    kept = np.cumsum(lapack_values(seen[:5]) ** 2)[:3]
    assert tails[1:].tolist() == pytest.approx(list(call.energy - kept), rel=1e-5)


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("weighed", [False, True])
def test_what_is_iterated_on_is_stored_with_its_bounds(weighed: bool, spectral: bool) -> None:
    w = with_spectrum(9, 7, torch.tensor([7.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    metric = Metric("scale", WEIGHTS) if weighed else Metric.plain()
    prepared = ImplicitTruncation(Dense(w), metric, 2e-3, Noting())
    fit = prepared.fit(3, dtype=torch.float32, rng=generator(), spectral=spectral)
    assert fit.how == "noted"
    assert isinstance(fit.op, Factors)
    assert fit.op.left.dtype == fit.op.right.dtype == torch.float32
    assert bool((fit.op.left.gather(0, fit.op.left.abs().argmax(0, keepdim=True)) > 0).all())
    rest = float64(w) - float64(fit.op.left) @ float64(fit.op.right)
    names = ["scale", "frobenius", "spectral"] if weighed else ["frobenius", "spectral"]
    assert [bound.norm for bound in fit.bounds] == (names if spectral else names[:-1])
    own = rest * (float64(WEIGHTS) if weighed else 1.0)
    assert fit.bounds[0].achieved == pytest.approx(float(np.linalg.norm(own)), rel=1e-12)


@pytest.mark.parametrize(
    ("why", "metric", "how"),
    [
        ("because", Metric.plain(), "exact, by LAPACK: the smaller side is 7"),
        (
            None,
            Metric("own", torch.eye(7, dtype=torch.float64)),
            "exact, by LAPACK in the own metric: the smaller side is 7",
        ),
    ],
)
def test_an_operator_is_formed_where_its_products_lead_nowhere(why: str | None, metric: Metric, how: str) -> None:
    """Because the route is an exact one, or the metric one that sees all columns."""
    w, route = gaussian(9, 7, 1), Noting(why=why)
    prepared = ImplicitTruncation(Dense(w), metric, 0.0, route)
    own = ImplicitTruncation(Dense(w), metric, 0.0, Automatic())
    values = lapack_values(w)
    if why is not None:
        assert prepared.fit(3, dtype=torch.float64, rng=generator()).how == "because; the operator was formed for it"
        assert route.calls == []
    else:
        assert prepared.fit(3, dtype=torch.float64, rng=generator()).how == "noted; the operator was formed for it"
    fit = own.fit(3, dtype=torch.float64, rng=generator())
    assert fit.how == f"{how}; the operator was formed for it"
    assert fit.bounds[0].achieved == pytest.approx(float(np.linalg.norm(values[3:])), rel=1e-12)
    assert own.size == pytest.approx(float(np.linalg.norm(values)), rel=1e-12)
    tails = own.tails(3, generator())
    assert tails.tolist() == pytest.approx([float(np.sum(values[k:] ** 2)) for k in range(8)], abs=1e-12)


@pytest.mark.parametrize("make", [Dense, lambda w: Sum((Dense(w), Dense(w)))])
def test_an_operator_that_is_too_large_for_float64_is_refused(make: Callable[[Tensor], Sum]) -> None:
    w = gaussian(4, 3)
    w[1, 1] = math.inf
    with pytest.raises(ValueError, match="the 4 x 3 operator holds NaN or infinity, or is too large for float64"):
        ImplicitTruncation(make(w), Metric.plain(), 0.0, Automatic())
    with pytest.raises(ValueError, match="is too large for float64"):
        ImplicitTruncation(make(1e200 * gaussian(4, 3)), Metric.plain(), 0.0, Automatic())


@pytest.mark.parametrize("rank", [0, 8])
def test_a_rank_that_the_operator_does_not_have_is_refused(rank: int) -> None:
    route = Noting()
    prepared = ImplicitTruncation(Dense(gaussian(9, 7)), Metric.plain(), 0.0, route)
    with pytest.raises(ValueError, match=rf"rank {rank} of a 9 x 7 matrix: give one from 1 to 7"):
        prepared.fit(rank, dtype=torch.float64, rng=generator())
    assert route.calls == []


def test_an_operator_and_its_matrix_are_iterated_on_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = with_spectrum(60, 50, torch.arange(1, 51, dtype=torch.float64) ** -0.5)
    one = truncated_svd(w, 5, dtype=torch.float64, rng=generator(3))
    other = truncated_svd(Sum((Dense(w / 2), Dense(w / 2))), 5, dtype=torch.float64, rng=generator(3))
    assert "subspace iteration" in one.how
    assert one.how == other.how
    assert float((one.op.dense() - other.op.dense()).abs().max()) <= 1e-4
