"""A matrix to be truncated: what is computed for it, once, and by which way."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values, metrics_for, whitened, with_spectrum
from torch import Generator, Tensor

from eckart.kernels.randomized import InMemory, Products, Subspace, ritz_subspace
from eckart.linalg import Automatic, Lapack, SubspaceIteration, Truncation, truncation
from eckart.linalg.factored import FactoredTruncation
from eckart.linalg.implicit import ImplicitTruncation
from eckart.linalg.measured import Analysed
from eckart.linalg.truncation import checked_rank, energies_left, seeded
from eckart.linalg.weighed import WeighedTruncation
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Factors


@dataclass(frozen=True)
class Call:
    """What a route was given."""

    matrix: Tensor
    rank: int
    energy: float
    accuracy: float
    seed: int


@dataclass(frozen=True)
class Noting(Automatic):
    """A route that is iterated on always, to axes as they come, and notes what it is given."""

    calls: list[Call] = field(default_factory=list)

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        return None

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        assert isinstance(a, InMemory)
        self.calls.append(Call(a.matrix, rank, energy, accuracy, rng.initial_seed()))
        return ritz_subspace(a, torch.eye(a.shape[0], rank + 2), rank, 1, None), "noted"


def fixed() -> Tensor:
    return with_spectrum(12, 9, torch.arange(9, 0, -1, dtype=torch.float64), 3)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_no_matrix_is_named() -> None:
    plain = Metric.plain()
    with pytest.raises(ValueError, match=r"wanted, not a tensor of shape \(3,\) in torch.float32"):
        Truncation(torch.ones(3), plain, 0.0)
    with pytest.raises(ValueError, match=r"wanted, not a tensor of shape \(3, 4\) in torch.int32"):
        Truncation(torch.ones(3, 4, dtype=torch.int32), plain, 0.0)
    assert Truncation(torch.ones(3, 4), plain, 0.0).shape == (3, 4)


def test_what_is_not_finite_is_refused_and_what_is_too_large_is_not() -> None:
    w = torch.ones(3, 4, dtype=torch.float64)
    assert Truncation(1e200 * w, Metric.plain(), 0.0).size == math.inf
    for bad in (math.nan, math.inf, -math.inf):
        w[1, 2] = bad
        with pytest.raises(ValueError, match="the 3 x 4 matrix holds NaN or infinity"):
            Truncation(w, Metric.plain(), 0.0)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_the_matrix_does_not_have_is_refused_whatever_the_route(rank: int) -> None:
    for route in (Lapack(), Noting()):
        with pytest.raises(ValueError, match=rf"rank {rank} of a 5 x 3 matrix: give one from 1 to 3"):
            Truncation(gaussian(5, 3), Metric.plain(), 0.0, route).fit(rank, dtype=torch.float64, rng=generator())
    for good in (1, 3):
        checked_rank(good, (5, 3))
        checked_rank(good, (3, 5))


# ---- what is iterated on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram"])
def test_a_route_is_given_the_matrix_as_the_metric_sees_it(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w, metric, route = fixed().to(torch.float32), metrics_for(9)[form], Noting()
    prepared = Truncation(w, metric, 0.125, route)
    prepared.fit(3, dtype=torch.float64, rng=generator(5))
    (call,) = route.calls
    seen = whitened(w, metric)
    assert call.rank == 3
    assert call.accuracy == 0.125
    assert call.seed == seeded(generator(5)).initial_seed()
    assert call.energy == pytest.approx(float(np.linalg.norm(seen)) ** 2, rel=1e-9)
    own = float64(call.matrix)
    assert own @ own.T == pytest.approx(seen @ seen.T, rel=1e-6, abs=1e-6 * call.energy)
    if form == "plain":
        assert call.matrix is w
    if form == "diagonal":
        assert call.matrix.dtype == torch.float32


@pytest.mark.parametrize("spectral", [True, False])
def test_of_a_full_metric_the_coordinates_are_taken_once(spectral: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    taken: list[int] = []
    whole = Metric.coordinates

    def noted(self: Metric, matrix: Tensor) -> object:
        taken.append(len(matrix))
        return whole(self, matrix)

    monkeypatch.setattr(Metric, "coordinates", noted)
    metric = metrics_for(9)["gram"]
    assert not metric.is_diagonal
    Truncation(fixed(), metric, 2e-3, Noting()).fit(3, dtype=torch.float64, rng=generator(), spectral=spectral)
    assert taken == [12]
    Truncation(fixed(), metric, 0.0).fit(3, dtype=torch.float64, rng=generator(), spectral=spectral)
    assert taken == [12]  # and never where it is decomposed anyway


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram"])
def test_what_is_iterated_on_is_not_decomposed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    monkeypatch.setattr(Metric, "svd", lambda *_: pytest.fail("decomposed"))
    monkeypatch.setattr(truncation, "singular_values", lambda *_: pytest.fail("decomposed"))
    w, metric = fixed(), metrics_for(9)[form]
    for spectral in (True, False):
        fit = Truncation(w, metric, 2e-3, Noting()).fit(3, dtype=torch.float64, rng=generator(), spectral=spectral)
        assert fit.how == "noted"
        assert fit.bounds[0].scale == pytest.approx(float(np.linalg.norm(whitened(w, metric))), rel=1e-9)
        assert isinstance(fit.op, Factors)
        rest = whitened(w - fit.op.dense(), metric)
        assert fit.bounds[0].achieved == pytest.approx(float(np.linalg.norm(rest)), rel=1e-6)


def test_values_of_the_matrix_itself_are_for_the_spectral_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another metric; in the plain one they are those that were found anyway."""
    asked: list[tuple[int, ...]] = []
    whole = truncation.singular_values
    monkeypatch.setattr(truncation, "singular_values", lambda a: (asked.append(tuple(a.shape)), whole(a))[1])
    for form, spectral, count in (
        ("plain", True, 0),
        ("plain", False, 0),
        ("diagonal", False, 0),
        ("diagonal", True, 1),
        ("gram", True, 2),
        ("gram", False, 2),
    ):
        fit = Truncation(fixed(), metrics_for(9)[form], 0.0).fit(
            3, dtype=torch.float64, rng=generator(), spectral=spectral
        )
        assert len(asked) == count
        assert (fit.bounds[-1].norm == "spectral") == spectral


def test_a_decomposition_serves_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    whole = Metric.svd
    monkeypatch.setattr(Metric, "svd", lambda *args: (taken.append(1), whole(*args))[1])
    prepared = Truncation(fixed(), metrics_for(9)["gram"], 0.0)
    for rank in (1, 4, 9):
        prepared.fit(rank, dtype=torch.float64, rng=generator())
        prepared.tails(rank, generator())
    assert taken == [1]


@pytest.mark.parametrize(
    "prepared",
    [
        Truncation(fixed(), Metric.plain(), 0.0),
        Truncation(fixed(), Metric.plain(), 0.0, SubspaceIteration()),
        Truncation(fixed(), Metric("diagonal", torch.ones(9)), 0.0, SubspaceIteration()),
        ImplicitTruncation(Dense(fixed()), Metric.plain(), 0.0, Automatic()),
        ImplicitTruncation(Dense(fixed()), Metric.plain(), 0.0, SubspaceIteration()),
        FactoredTruncation(Factors(gaussian(9, 3, 1), gaussian(3, 8, 2)), Metric.plain()),
        WeighedTruncation(fixed(), TwoSided("rows", torch.ones(12)), 0.0),
        WeighedTruncation(fixed(), TwoSided("rows", torch.ones(12)), 0.0, SubspaceIteration()),
    ],
    ids=lambda prepared: type(prepared).__name__,
)
def test_a_spectral_bound_is_there_unless_it_is_not_wanted(prepared: Analysed) -> None:
    full = prepared.fit(2, dtype=torch.float64, rng=generator())  # type: ignore[call-arg]
    lean = prepared.fit(2, dtype=torch.float64, rng=generator(), spectral=False)
    assert [bound.norm for bound in full.bounds] == [*(bound.norm for bound in lean.bounds), "spectral"]


# ---- what is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram", "rank-deficient gram"])
def test_errors_of_all_ranks_are_those_of_lapack(form: str) -> None:
    w, metric = fixed(), metrics_for(9)[form]
    values = lapack_values(whitened(w, metric))
    prepared = Truncation(w, metric, 0.0)
    tails = [float(np.sum(values[rank:] ** 2)) for rank in range(len(values) + 1)]
    found = prepared.tails(2, generator())
    assert found.tolist() == pytest.approx(tails, rel=1e-9, abs=1e-9 * tails[0])
    for rank in range(len(tails)):
        assert prepared.error(rank, generator()) == pytest.approx(math.sqrt(tails[rank]), abs=1e-6 * values[0])
    assert prepared.error(40, generator()) == pytest.approx(0.0, abs=1e-6)


def test_errors_by_iteration_are_what_its_directions_leave() -> None:
    """Of diag(4, 3, 2, 1), seen through its axes one after another."""
    w = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    prepared = Truncation(w, Metric.plain(), 2e-3, Noting())
    assert prepared.tails(2, generator()).tolist() == pytest.approx([30.0, 14.0, 5.0], rel=1e-6)
    assert prepared.error(2, generator()) == pytest.approx(math.sqrt(5.0), rel=1e-6)
    assert prepared.error(1, generator()) == pytest.approx(math.sqrt(14.0), rel=1e-6)
    weighed = replace(prepared, metric=Metric("scale", torch.tensor([1.0, 2.0, 0.0, 1.0])))
    assert weighed.tails(2, generator()).tolist() == pytest.approx([53.0, 17.0, 1.0], rel=1e-6)


def test_energies_that_rounding_took_below_zero_are_zero() -> None:
    found = ritz_subspace(InMemory(torch.diag(torch.tensor([2.0, 1.0]))), torch.eye(2), 2, 1, None)
    assert energies_left(5.0, found).tolist() == pytest.approx([5.0, 1.0, 0.0], abs=1e-12)
    assert energies_left(4.5, found).tolist() == pytest.approx([4.5, 0.5, 0.0], abs=1e-12)
    assert energies_left(5.0, found).dtype == torch.float64


# ---- leading directions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
@pytest.mark.parametrize("form", ["plain", "diagonal", "gram", "rank-deficient gram"])
def test_leading_directions_are_those_of_lapack(
    form: str, shape: tuple[int, int], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        as_if_large(monkeypatch)
    w, metric = with_spectrum(*shape, torch.arange(9, 0, -1, dtype=torch.float64) ** 2, 3), metrics_for(shape[1])[form]
    u = Truncation(w, metric, 0.0).leading(3)
    assert u.shape == (shape[0], 3)
    expected = np.linalg.svd(whitened(w, metric))[0][:, :3]
    assert np.abs(np.sum(float64(u) * expected, axis=0)) == pytest.approx([1.0] * 3, abs=1e-9)
    pivots = u.gather(0, u.abs().argmax(0, keepdim=True))
    assert bool((pivots > 0).all())


def test_directions_beyond_those_of_the_metric_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w, metric = gaussian(12, 9, 1), metrics_for(9)["rank-deficient gram"]
    for matrix in (w, w[:7]):
        u = Truncation(matrix, metric, 0.0).leading(6)
        assert float64(u.T @ u) == pytest.approx(np.eye(6), abs=1e-12)


# ---- where an iteration starts --------------------------------------------------------------------------------------


def test_the_start_of_a_seed_is_the_same_in_every_release() -> None:
    """The seed plus 2^64 over the golden ratio, whose bits have nothing to do with those of a seed, modulo 2^63."""
    golden = (math.isqrt(5 << 128) - (1 << 64)) // 2
    for seed in (0, 1, 12345, 2**62, 2**63 - 1):
        assert seeded(generator(seed)).initial_seed() == (seed + golden) % 2**63
    used = generator(7)
    torch.randn(3, generator=used)
    assert seeded(used).initial_seed() == seeded(generator(7)).initial_seed()


def test_a_fixed_number_of_steps_is_one_that_every_rank_takes() -> None:
    prepared = Truncation(fixed(), Metric.plain(), 2e-3, SubspaceIteration(steps=2, oversampling=3))
    assert "2 steps" in prepared.iterated(3, generator())[1]
    assert len(prepared.tails(3, generator())) == 4
