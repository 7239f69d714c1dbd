"""The search for the least rank, and what a call of ``truncated_svd`` hands on: what is asked of an analysed matrix, in which order."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from market import gaussian, generator, with_spectrum
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.randomized import Products, Subspace
from eckart.linalg import Automatic, truncated, truncated_svd
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Factors, Sum, in_dtype

SIDE = 100


@dataclass(frozen=True)
class Asked:
    """A matrix of norm 1 that notes what it is asked: what it leaves after each rank, and what fits of it do."""

    tails: list[float]
    errors: dict[int, float] = field(default_factory=dict)
    whole: bool = False  # all that is left is told whatever was asked for
    searched: list[int] = field(default_factory=list)
    fitted: list[int] = field(default_factory=list)


class Prepared:
    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def tails(self, rank: int, rng: Generator) -> Tensor:
        self.asked.searched.append(rank)
        assert len(self.asked.searched) < 50, "the search comes to no end"
        return torch.tensor(self.asked.tails[: None if self.asked.whole else rank + 1], dtype=torch.float64)

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        self.asked.fitted.append(rank)
        assert len(self.asked.fitted) < 50, "the search comes to no end"
        upper = self.asked.errors.get(rank, 0.0)
        bound = Bound(norm="frobenius", lower=0.0, achieved=upper, upper=upper, scale=2.0)
        return Fit(op=Factors(torch.zeros(SIDE, rank), torch.zeros(rank, SIDE)), bounds=(bound,), how="noted")


def search(asked: Asked, monkeypatch: pytest.MonkeyPatch, **size: float) -> int:
    monkeypatch.setattr(truncated, "analysed", lambda *_: Prepared(asked))
    op = truncated_svd(torch.zeros(SIDE, SIDE + 1), **size).op  # type: ignore[arg-type]
    assert isinstance(op, Factors)
    return op.rank


def steps(*pairs: tuple[int, float]) -> list[float]:
    """Energies after 0, 1, … directions, each from its rank on."""
    values = [pairs[0][1]] * (SIDE + 1)
    for rank, value in pairs:
        values[rank:] = [value] * (SIDE + 1 - rank)
    return values


# ---- which rank is looked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "searched"),
    [(1, [16]), (16, [16]), (17, [16, 32]), (33, [16, 32, 64]), (64, [16, 32, 64]), (65, [16, 32, 64, 100])],
)
def test_the_search_begins_at_sixteen_and_doubles(
    rank: int, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(steps((0, 4.0), (rank, 0.5)))
    assert search(asked, monkeypatch, error=0.5) == rank
    assert asked.searched == searched
    assert asked.fitted == [rank]


def test_what_leaves_exactly_as_much_as_is_allowed_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the energy, which is half of the norm, of the stored factors as well."""
    asked = Asked(steps((0, 4.0), (1, 2.0), (5, 1.0), (9, 0.0)), {5: 1.0})
    assert search(asked, monkeypatch, error=0.5) == 5
    assert search(asked, monkeypatch, energy=0.75) == 5
    assert asked.fitted == [5, 5]


def test_the_least_rank_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a matrix of zeros, of which no direction is needed."""
    assert search(Asked(steps((0, 0.0))), monkeypatch, error=0.5) == 1
    assert search(Asked(steps((0, 4.0), (1, 0.5))), monkeypatch, error=0.5) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_where_no_rank_leaves_as_little_it_is_the_full_one(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding may hide that nothing is left: of one that tells all at once nothing more is asked."""
    asked = Asked(steps((0, 4.0), (50, 1e-9)), whole=whole)
    assert search(asked, monkeypatch, error=1e-6) == SIDE
    assert asked.searched == ([16] if whole else [16, 32, 64, 100])


def test_one_direction_more_than_asked_for_is_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that the decomposition is a whole one."""
    asked = Asked(steps((0, 4.0), (20, 0.5))[:18], whole=True)  # after 0 … 17 directions
    assert search(asked, monkeypatch, error=0.5) == SIDE
    assert asked.searched == [16]


# ---- what rounding of the factors takes -----------------------------------------------------------------------------


def test_ranks_that_rounding_takes_too_far_are_raised_by_more_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(steps((0, 4.0), (3, 0.5)), dict.fromkeys(range(30), 1.01))
    assert search(asked, monkeypatch, error=0.5) == 3 + 1 + 2 + 4 + 8 + 16
    assert asked.fitted == [3, 4, 6, 10, 18, 34]
    assert asked.searched == [16]


def test_an_error_that_no_rank_comes_down_to_is_refused_at_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(steps((0, 4.0), (90, 0.5)), dict.fromkeys(range(SIDE + 1), 1.5))
    with pytest.raises(
        ValueError, match=r"factors in torch.float32 leave 0.75 of the norm at any rank, more than the 0.5"
    ):
        search(asked, monkeypatch, error=0.5)
    assert asked.fitted == [90, 91, 93, 97, 100]


def test_no_error_at_all_is_met_by_what_rounding_leaves_of_the_full_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(steps((0, 4.0), (100, 0.0)), dict.fromkeys(range(SIDE + 1), 1e-9))
    assert search(asked, monkeypatch, error=0.0) == SIDE
    assert asked.fitted == [SIDE]
    sooner = Asked(steps((0, 4.0), (98, 0.0)), dict.fromkeys(range(SIDE + 1), 1e-9))
    assert search(sooner, monkeypatch, energy=1.0) == SIDE
    assert sooner.fitted == [98, 99, 100]


# ---- what is handed on ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noting(Automatic):
    """A route that notes with what it is asked for."""

    accuracies: list[float] = field(default_factory=list)

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        self.accuracies.append(accuracy)
        return "noted"

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        raise AssertionError("nothing is to be iterated for")


def test_without_an_accuracy_it_is_a_fifth_of_a_percent() -> None:
    route = Noting()
    assert truncated_svd(gaussian(5, 4), 2, route=route).how == "noted"
    truncated_svd(gaussian(5, 4), 2, route=route, accuracy=0.25)
    assert route.accuracies == [2e-3, 0.25]


@pytest.mark.parametrize(
    ("spectral", "route"), [(False, Automatic(small=256, single=True)), (True, Automatic(small=1024, single=False))]
)
def test_eigenvectors_in_float32_are_for_where_no_spectral_bound_is_wanted(
    spectral: bool, route: Automatic, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(steps((0, 4.0)))
    routes = []

    def noted(*args: object) -> Prepared:
        routes.append(args[-1])
        return Prepared(asked)

    monkeypatch.setattr(truncated, "analysed", noted)
    truncated_svd(torch.zeros(SIDE, SIDE), 2, spectral=spectral)
    truncated_svd(torch.zeros(SIDE, SIDE), 2, spectral=spectral, route=Noting())
    assert routes == [route, Noting()]
    assert asked.fitted == [2, 2]


@pytest.mark.parametrize(("side", "how"), [(256, "exact, by LAPACK: the smaller side is 256"), (257, "iteration")])
def test_up_to_a_side_of_256_nothing_is_iterated_for(side: int, how: str) -> None:
    w = with_spectrum(side, 300, torch.arange(1, 61, dtype=torch.float64) ** -0.5).to(torch.float32)
    assert how in truncated_svd(w + 1e-3 * gaussian(side, 300).to(torch.float32), 3).how


def test_bytes_hold_whole_directions() -> None:
    w = gaussian(6, 4)
    for count, rank in ((80, 1), (159, 1), (160, 2), (319, 3), (320, 4), (10**9, 4)):
        op = truncated_svd(w, bytes=count).op
        assert isinstance(op, Factors)
        assert op.rank == rank
    with pytest.raises(ValueError, match="79 bytes hold no factors of a 6 x 4 matrix: rank 1 takes 80"):
        truncated_svd(w, bytes=79)
    with pytest.raises(ValueError, match="1,079 bytes hold no factors of a 600 x 400 matrix: rank 1 takes 4,000"):
        truncated_svd(gaussian(600, 400).to(torch.float32), bytes=1079)


def test_shares_at_their_ends() -> None:
    w = with_spectrum(6, 4, torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64))
    for size in ({"energy": 1.0}, {"energy": 1}, {"error": 0.0}, {"error": 0}):
        op = truncated_svd(w, **size).op  # type: ignore[arg-type]
        assert isinstance(op, Factors)
        assert op.rank == 4
    for size in ({"energy": 1e-9}, {"error": 1 - 1e-9}):
        op = truncated_svd(w, **size).op  # type: ignore[arg-type]
        assert isinstance(op, Factors)
        assert op.rank == 1
    for bad in ({"energy": 0}, {"energy": 1 + 1e-9}, {"error": 1}, {"error": -1e-9}):
        with pytest.raises(ValueError, match="is a share"):
            truncated_svd(w, **bad)  # type: ignore[arg-type]


def test_an_accuracy_of_zero_is_allowed_and_none_below() -> None:
    assert math.isfinite(truncated_svd(gaussian(5, 4), 2, accuracy=0.0).bounds[0].achieved)
    with pytest.raises(ValueError, match="not below 0: -1e-09"):
        truncated_svd(gaussian(5, 4), 2, accuracy=-1e-9)


def test_the_type_is_the_widest_one_of_what_an_operator_is_composed_of() -> None:
    low = in_dtype(Factors(gaussian(9, 2, 1), gaussian(2, 8, 2)), torch.float32)
    for other, dtype in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        op = truncated_svd(Sum((Dense(gaussian(9, 8).to(other)), low)), 2).op
        assert {t.dtype for t in op.tensors().values()} == {dtype}
    assert {t.dtype for t in truncated_svd(Dense(gaussian(9, 8).to(torch.bfloat16)), 2).op.tensors().values()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(("rank", "how"), [(4, "exact, by the factors: their rank is 4"), (5, "formed for it")])
def test_factors_as_wide_as_the_matrix_are_no_shorter_way(rank: int, how: str) -> None:
    op = Factors(gaussian(7, rank, 1), gaussian(rank, 5, 2))
    fit = truncated_svd(op, 2, dtype=torch.float64)
    assert how in fit.how
    values = torch.linalg.svdvals(op.dense())
    assert fit.bounds[0].achieved == pytest.approx(float(values[2:].norm()), rel=1e-10)


def test_without_a_generator_it_is_that_of_the_seed_0() -> None:
    w = with_spectrum(270, 280, torch.arange(1, 271, dtype=torch.float64) ** -0.5).to(torch.float32)
    none, zero, one = (truncated_svd(w, 3, rng=rng) for rng in (None, generator(0), generator(1)))
    assert torch.equal(none.op.tensors()["left"], zero.op.tensors()["left"])
    assert not torch.equal(none.op.tensors()["left"], one.op.tensors()["left"])


def test_for_a_metric_with_a_left_side_an_operator_is_formed() -> None:
    w = torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64))
    metric = TwoSided("rows", torch.tensor([1.0, 2.0], dtype=torch.float64))
    for a in (w, Dense(w), Sum((Dense(w / 2), Dense(w / 2))), Factors(w, torch.eye(2, dtype=torch.float64))):
        fit = truncated_svd(a, 1, metric=metric)
        assert fit.bounds[0].achieved == pytest.approx(3.0, rel=1e-12)
        assert fit.bounds[0].norm == "rows"
        assert fit.op.dense().tolist()[1] == pytest.approx([0.0, 2.0], abs=1e-12)
