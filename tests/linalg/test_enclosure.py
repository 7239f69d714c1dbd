"""Bounds of any approximation, by a decomposition or by what it tells of itself: figures worked by hand."""

import math

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values, orthonormal, with_spectrum
from torch import Tensor

from eckart.bound import Bound
from eckart.kernels.svd import singular_values
from eckart.linalg import Optimum, enclosure, frobenius_error, measured_bounds
from eckart.linalg.enclosure import implicit_bounds
from eckart.linalg.factors import Basis
from eckart.linalg.remainder import Formed, Implicit
from eckart.metric import Coordinates, Metric
from eckart.operator import Dense, Factors, Sum

EPS = 2.0**-52


# ---- bounds by a decomposition --------------------------------------------------------------------------------------


def by_values(w: Tensor, metric: Metric) -> Optimum:
    return Optimum(metric.singular_values(w), singular_values(w))


def test_the_spectral_bound_allows_for_rounding_in_both_directions() -> None:
    """A direction of 1e8 that is met exactly leaves nothing but the rounding of four operations on it."""
    w = torch.diag(torch.tensor([1e8, 1.0], dtype=torch.float64))
    op = Factors(torch.tensor([[1e8], [0.0]]).double(), torch.tensor([[1.0, 0.0]]).double())
    frobenius, spectral = measured_bounds(w, op, Metric.plain(), by_values(w, Metric.plain()), rng=generator())
    slack = 4 * EPS / 2 * 2e8
    assert frobenius.achieved == 1.0
    assert frobenius.upper - 1.0 == pytest.approx(slack, rel=1e-6, abs=0.0)
    assert 1.0 - spectral.achieved == pytest.approx(slack, rel=1e-6, abs=0.0)
    assert spectral.upper - 1.0 == pytest.approx(slack, rel=1e-6, abs=0.0)
    assert spectral.scale == pytest.approx(1e8, rel=1e-12)
    assert spectral.delta is None
    assert frobenius.delta is None


def test_in_a_metric_rounding_counts_by_its_largest_weight() -> None:
    w = torch.diag(torch.tensor([1e8, 1.0], dtype=torch.float64))
    op = Factors(torch.tensor([[1e8], [0.0]]).double(), torch.tensor([[1.0, 0.0]]).double())
    metric = Metric("scale", torch.tensor([16.0, 1.0], dtype=torch.float64))
    own, plain, spectral = measured_bounds(w, op, metric, by_values(w, metric), rng=generator())
    assert (own.norm, plain.norm, spectral.norm) == ("scale", "frobenius", "spectral")
    # What forming did to the error, and one rounding of the product with the weights.
    assert own.upper - own.achieved == pytest.approx(16 * (4 * EPS / 2 * 2e8), rel=1e-6, abs=0.0)
    assert own.scale == pytest.approx(16e8, rel=1e-12)
    assert plain.scale == pytest.approx(1e8, rel=1e-12)
    assert own.delta is None


def test_in_a_full_metric_every_column_adds_to_the_rounding_of_the_norm() -> None:
    """Of an error of 1 in one of 400 columns, against a matrix of zeros that costs no rounding itself."""
    n = 400
    op = Factors(torch.tensor([[1.0]]).double(), torch.eye(1, n).double())
    metric = Metric("full", 3.0 * torch.eye(n, 1).double().repeat(1, 2))
    w = torch.zeros(1, n, dtype=torch.float64)
    own = measured_bounds(w, op, metric, by_values(w, metric), rng=generator())[0]
    reach = 3 * math.sqrt(2)
    assert own.achieved == pytest.approx(3 * math.sqrt(2), rel=1e-12)
    assert own.upper - own.achieved == pytest.approx((4 / 2 + n) * EPS * reach, rel=0.01, abs=0.0)


def test_in_the_metric_of_a_moment_an_error_that_counts_nothing_may_be_hidden_by_rounding() -> None:
    """Of the root of two roundings of it, and of what forming it may have put it off: here as much again as it is."""
    w = torch.diag(torch.tensor([1.0, 4 * EPS], dtype=torch.float64))
    op = Factors(torch.eye(2, 1).double(), torch.eye(1, 2).double())
    metric = Metric("inputs", moment=torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    own = measured_bounds(w, op, metric, by_values(w, metric), rng=generator())[0]
    assert own.achieved == 0.0
    assert own.upper == pytest.approx(4 * EPS * (1 + 2 * math.sqrt(2 * EPS)), rel=1e-9, abs=0.0)


@pytest.mark.parametrize("optimum", [True, False])
@pytest.mark.parametrize("form", ["plain", "diagonal", "full"])
def test_bounds_come_in_the_norms_that_are_wanted(form: str, optimum: bool) -> None:
    w, op = gaussian(9, 6, 1), Factors(gaussian(9, 2, 2), gaussian(2, 6, 3))
    metric = {
        "plain": Metric.plain(),
        "diagonal": Metric("diagonal", torch.linspace(1, 2, 6).double()),
        "full": Metric("full", gaussian(6, 6, 4)),
    }[form]
    best = by_values(w, metric) if optimum else None
    names = ["frobenius"] if form == "plain" else [form, "frobenius"]
    both, lean = (
        measured_bounds(w, op, metric, best, rng=generator(), spectral=spectral) for spectral in (True, False)
    )
    assert [bound.norm for bound in both] == [*names, "spectral"]
    assert [bound.norm for bound in lean] == names
    assert lean[0] == both[0]
    assert both[-1].lower is not None
    if form != "plain":  # of the least possible error in the other norm nothing is said then
        assert lean[1].lower is None
        assert both[1].lower is not None
    given = measured_bounds(w, op, metric, best, rng=generator(), sizes=(metric.norm(w), float(w.norm())))
    for one, other in zip(both, given, strict=True):
        assert (one.lower, one.achieved, one.upper) == pytest.approx((other.lower, other.achieved, other.upper))
        assert one.scale == pytest.approx(other.scale, rel=1e-12)


def test_sizes_that_are_given_are_not_computed() -> None:
    w, op = gaussian(9, 6, 1), Factors(gaussian(9, 2, 2), gaussian(2, 6, 3))
    metric = Metric("diagonal", torch.linspace(1, 2, 6).double())
    own, plain, _ = measured_bounds(w, op, metric, by_values(w, metric), rng=generator(), sizes=(7.5, 6.5))
    assert (own.scale, plain.scale) == (7.5, 6.5)
    assert frobenius_error(w, op, 5.5).scale == 5.5
    assert frobenius_error(w, op).scale == pytest.approx(float(w.norm()), rel=1e-12)


def test_an_exact_approximation_has_no_error() -> None:
    op = Factors(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.25, 0.0]]))
    bound = frobenius_error(op.dense(), op)
    assert (bound.lower, bound.achieved, bound.delta) == (None, 0.0, None)
    assert bound.upper == pytest.approx(4 * EPS / 2 * (0.5 + 0.5), rel=1e-12, abs=0.0)


def test_a_matrix_without_rows_has_bounds_of_zero() -> None:
    w, op = torch.zeros(0, 5), Factors(torch.zeros(0, 0), torch.zeros(0, 5))
    for bound in measured_bounds(w, op, Metric.plain(), by_values(w, Metric.plain()), rng=generator()):
        assert (bound.lower, bound.achieved, bound.upper, bound.scale) == (0.0, 0.0, 0.0, 0.0)


# ---- in the coordinates of a full metric ----------------------------------------------------------------------------


def in_coordinates(seen: Coordinates) -> Bound:
    """Of a matrix in four rows that is met in its span but for 0.125 in the metric."""
    w = torch.zeros(4, 3, dtype=torch.float64)
    w[0, 0] = 2.0
    op = Factors(torch.eye(4, 1).double(), torch.tensor([[1.875, 0.0, 0.0]]).double())
    metric = Metric("full", torch.eye(3).double())
    return measured_bounds(w, op, metric, None, rng=generator(), seen=seen, spectral=False)[0]


def test_what_the_coordinates_are_off_by_is_allowed_for() -> None:
    """They leave diag(3, 2) below the first axis of diag(4, 3, 2): at least 2 and 3 of it are left of any matrix of rank one."""
    a = torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.0], dtype=torch.float64))
    exact, doubtful = in_coordinates(Coordinates(a, 0.0, 0.0)), in_coordinates(Coordinates(a, 0.5, 0.25))
    assert exact.lower == pytest.approx(math.sqrt(13), rel=1e-9)
    assert exact.achieved == pytest.approx(math.sqrt(13 + 0.125**2), rel=1e-12)
    assert exact.upper == pytest.approx(exact.achieved, rel=1e-12)
    assert exact.scale == pytest.approx(math.sqrt(29), rel=1e-12)
    assert exact.delta is None
    assert doubtful.lower == pytest.approx(math.sqrt((math.sqrt(13) - 0.5) ** 2 - 0.25), rel=1e-9)
    assert doubtful.achieved == pytest.approx(exact.achieved, rel=1e-15)
    assert doubtful.upper == pytest.approx(math.sqrt((math.sqrt(13) + 0.5) ** 2 + 0.125**2 + 0.25), rel=1e-9)
    for slack, doubt in ((4.0, 0.0), (0.0, 14.0), (4.0, 14.0)):
        assert in_coordinates(Coordinates(a, slack, doubt)).lower == 0.0


def test_what_forming_the_rest_of_the_coordinates_did_is_allowed_for() -> None:
    """Beside a direction of 4e6, which takes four roundings of itself and of what is subtracted."""
    a = torch.diag(torch.tensor([4e6, 3.0, 2.0, 0.0], dtype=torch.float64))
    bound = in_coordinates(Coordinates(a, 0.0, 0.0))
    rest = math.sqrt(13) + 4 * EPS / 2 * 8e6
    assert bound.upper - bound.achieved == pytest.approx(
        math.hypot(rest, 0.125) - math.hypot(math.sqrt(13), 0.125), rel=1e-3, abs=0.0
    )


def test_products_with_the_matrix_add_to_what_is_missed_within_the_span() -> None:
    """Nothing is left beside it: what is said beyond 0.125 is the rounding of four rows and of three columns."""
    bound = in_coordinates(Coordinates(torch.zeros(4, 4, dtype=torch.float64), 0.0, 0.0))
    reach = math.sqrt(3)
    assert bound.achieved == 0.125
    assert bound.upper - 0.125 == pytest.approx(reach * (4 * 2.0 + 3 * 0.125) * EPS, rel=0.02, abs=0.0)
    assert bound.scale == 0.0
    assert bound.lower == 0.0


def test_bounds_in_a_full_metric_are_as_probable_as_the_norm_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.0], dtype=torch.float64))
    as_if_large(monkeypatch)
    assert in_coordinates(Coordinates(a, 0.0, 0.0)).delta == {"lower": 1e-10}


# ---- by products in float32 -----------------------------------------------------------------------------------------


def looks(monkeypatch: pytest.MonkeyPatch, error: float, dtype: torch.dtype = torch.float32) -> list[str]:
    """Which bases are made for a matrix of two entries, 1 and ``error``, of which the first one is met, with a norm of 2."""
    as_if_large(monkeypatch)
    w = torch.zeros(4, 5, dtype=dtype)
    w[0, 0], w[1, 1] = 1.0, error
    op = Factors(torch.eye(4, 1, dtype=dtype), torch.eye(1, 5, dtype=dtype))
    made: list[str] = []
    for name in ("rough", "of"):
        monkeypatch.setattr(Basis, name, _noting(made, name, getattr(Basis, name)))
    measured_bounds(w, op, Metric.plain(), None, rng=generator(), sizes=(2.0, 2.0))
    return made


def _noting(made: list[str], name: str, make: object) -> object:
    def noted(*args: object) -> object:
        made.append(name)
        return make(*args)  # type: ignore[operator]

    return noted


# Products of four rows are off by this share of them in float32; four times that may be half a percent of the squared error.
LEAST = math.sqrt(4 * (128 + 4 / 128 + 2) * 2.0**-24 / 5e-3)


@pytest.mark.parametrize(
    ("share", "dtype", "made"),
    [
        (1.02, torch.float32, ["rough"]),
        (0.98, torch.float32, ["rough", "of"]),
        (1.02, torch.float64, ["of"]),  # who gives a matrix in float64 wants it seen in float64
        (1.02, torch.bfloat16, ["rough"]),
    ],
)
def test_a_rough_basis_is_for_errors_that_it_tells(
    share: float, dtype: torch.dtype, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looks(monkeypatch, 2 * share * LEAST * (1.05 if dtype == torch.bfloat16 else 1.0), dtype) == made


def test_a_rough_basis_that_is_just_good_enough_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclosure, "COARSE", 64 * (128 + 4 / 128 + 2) * 2.0**-24)
    assert looks(monkeypatch, 0.5) == ["rough"]


def test_a_small_error_has_a_basis_of_its_own_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is formed in float64 because float32 does not tell it."""
    assert looks(monkeypatch, 1e-5) == ["of"]


# ---- operators that are never formed --------------------------------------------------------------------------------


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("form", ["plain", "diagonal"])
def test_bounds_of_operators_enclose_what_the_matrix_has(form: str, spectral: bool) -> None:
    w, n = with_spectrum(30, 20, torch.arange(1, 21, dtype=torch.float64) ** -0.5, 3), 20
    metric = Metric.plain() if form == "plain" else Metric("diagonal", torch.logspace(0, -1, n, dtype=torch.float64))
    u = 0.05 * orthonormal(30, 4, 7) + torch.linalg.svd(metric.whiten(w)).U[:, :4]
    basis = Basis.of(u, w)
    op = Factors(u.contiguous(), basis.right())
    target = Sum((Dense(w - 1), Dense(torch.ones_like(w))))
    bounds = implicit_bounds(target, op, metric, basis, rng=generator(), spectral=spectral)
    names = ["frobenius"] if form == "plain" else ["diagonal", "frobenius"]
    assert [bound.norm for bound in bounds] == names + ["spectral"] * spectral
    rest = float64(w) - float64(op.left) @ float64(op.right)
    for bound in bounds[: len(names)]:
        scale = float64(metric.right) if bound.norm == "diagonal" else 1.0  # type: ignore[arg-type]
        best = float(np.linalg.norm(lapack_values(float64(w) * scale)[4:]))
        assert bound.achieved == pytest.approx(float(np.linalg.norm(rest * scale)), rel=1e-12)
        assert bound.scale == pytest.approx(float(np.linalg.norm(float64(w) * scale)), rel=1e-12)
        if bound.norm == "frobenius" and form == "diagonal" and not spectral:
            assert (bound.lower, bound.delta) == (None, None)
        else:
            assert bound.lower is not None
            assert 0.4 * best <= bound.lower <= best
            assert bound.delta == {"lower": 1e-10}
    if spectral:
        assert bounds[-1].achieved <= lapack_values(rest)[0] <= bounds[-1].upper
        assert bounds[-1].delta == {"upper": 1e-10}
        assert bounds[-1].scale == pytest.approx(1.0, rel=0.02)


def test_an_operator_is_as_coarse_as_the_sum_of_its_parts() -> None:
    """What its bounds add for rounding is what its remainder states."""
    w = with_spectrum(12, 9, torch.linspace(2, 1, 9, dtype=torch.float64), 3)
    far = torch.full_like(w, 2.0**24)
    basis = Basis.of(torch.linalg.svd(w).U[:, :2], w)
    op = Factors(basis.q, basis.right())
    target = Sum((Dense(w + far), Dense(-far)))
    own, spectral = implicit_bounds(target, op, Metric.plain(), basis, rng=generator(), spectral=True)
    slack = Implicit(target, op).slack
    assert slack > 1e-7
    assert own.upper - own.achieved == pytest.approx(slack, rel=1e-6, abs=0.0)
    top = Implicit(target, op).spectral_norm(generator())
    assert top.value - spectral.achieved == pytest.approx(slack, rel=1e-6, abs=0.0)
    assert spectral.upper - top.upper == pytest.approx(slack, rel=1e-6, abs=0.0)


def test_a_formed_error_says_how_its_bound_is_wider() -> None:
    w, op = gaussian(12, 9, 1), Factors(gaussian(12, 2, 2), gaussian(2, 9, 3))
    formed = Formed.of(w, op, float(w.norm()))
    own = measured_bounds(w, op, Metric.plain(), by_values(w, Metric.plain()), rng=generator())[0]
    assert own.upper == own.achieved + formed.slack
