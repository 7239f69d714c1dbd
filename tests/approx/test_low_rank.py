"""Laws of every exact approximator, on the whole market, in metrics of every form, against SciPy's LAPACK.

A new approximator joins by a line in ``APPROXIMATORS``.
"""

import math
from fractions import Fraction
from functools import cache
from itertools import pairwise
from operator import mul

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import (
    MATRICES,
    METRICS,
    SIZED,
    as_if_large,
    float64,
    gaussian,
    generator,
    lapack_values,
    metrics_for,
    orthonormal,
    ranks_of,
    whitened,
    with_exact_spectrum,
    with_spectrum,
)
from torch import Tensor

from eckart.approx import Approximator, LowRank
from eckart.fit import Fit
from eckart.metric import Metric
from eckart.operator import Factors, nbytes

APPROXIMATORS: dict[str, Approximator] = {"low rank": LowRank()}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Which modules take the routes of large matrices.
ROUTES = {
    "gram": ["kernels.svd"],
    "probes": ["kernels.norms"],
    "float32": ["linalg.remainder"],
    "all": SIZED,
}
EPS = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()}


@pytest.fixture(params=APPROXIMATORS)
def approximator(request: pytest.FixtureRequest) -> Approximator:
    return APPROXIMATORS[request.param]


@cache
def case(name: str, form: str) -> tuple[Tensor, Metric, np.ndarray, np.ndarray]:
    """A matrix, a metric, and the singular values of ``W R`` and of ``W`` by SciPy."""
    w = MATRICES[name]()
    metric = metrics_for(w.shape[1])[form]
    return w, metric, lapack_values(whitened(w, metric)), lapack_values(w)


def fits(approximator: Approximator, w: Tensor, metric: Metric, dtype: str = "float32") -> dict[int, Fit]:
    """The fit of every rank worth testing."""
    prepared = approximator.prepare(w, metric)
    return {rank: prepared.fit(rank, dtype=DTYPES[dtype], rng=generator()) for rank in ranks_of(w)}


def root_norm(metric: Metric) -> float:
    return 1.0 if metric.root is None else float(metric.root.norm())


def tail(values: np.ndarray, rank: int) -> float:
    return float(np.linalg.norm(values[rank:]))


def remeasured(w: Tensor, metric: Metric, fit: Fit) -> tuple[float, float, float]:
    """The errors of the factors as stored in the metric, in the Frobenius and in the spectral norm, by NumPy."""
    assert isinstance(fit.op, Factors)
    error = float64(w) - float64(fit.op.left) @ float64(fit.op.right)
    in_metric = error if metric.is_plain else whitened(torch.from_numpy(error), metric)
    return float(np.linalg.norm(in_metric)), float(np.linalg.norm(error)), float(lapack_values(error)[0])


# ---- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_enclose_what_lapack_and_numpy_find(name: str, form: str, dtype: str) -> None:
    """``lower <= optimum <= achieved <= upper``, in every norm and for every rank; ``achieved`` is what NumPy measures."""
    w, metric, in_metric, plain = case(name, form)
    for rank, fit in fits(LowRank(), w, metric, dtype).items():
        optima = [tail(in_metric, rank), tail(plain, rank), float(plain[rank]) if rank < len(plain) else 0.0]
        found = list(remeasured(w, metric, fit))
        scales = [float(np.linalg.norm(in_metric)), float(np.linalg.norm(plain)), float(plain[0])]
        if metric.is_plain:
            del optima[1], found[1], scales[1]
        assert len(fit.bounds) == len(optima)
        for bound, optimum, error, scale in zip(fit.bounds, optima, found, scales, strict=True):
            grain = (
                1e-13 * np.linalg.norm(plain) * (1.0 if bound.norm in ("frobenius", "spectral") else root_norm(metric))
            )
            assert bound.lower is not None
            assert bound.lower <= optimum <= bound.upper, (rank, bound)  # certain, hence without any tolerance
            assert optimum <= bound.achieved + grain, (rank, bound)
            assert abs(bound.achieved - error) <= grain, (rank, bound)
            assert bound.scale == pytest.approx(scale, rel=1e-12, abs=0)
            assert not bound.delta


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_are_tight(name: str, form: str) -> None:
    """Bounds of zero and infinity would enclose as well."""
    w, metric, in_metric, plain = case(name, form)
    for rank, fit in fits(LowRank(), w, metric, "float64").items():
        grain = 1e-10 * float(np.linalg.norm(plain)) * max(1.0, root_norm(metric))
        own, spectral = fit.bounds[0], fit.bounds[-1]
        assert own.lower >= tail(in_metric, rank) - grain
        assert own.achieved <= tail(in_metric, rank) + grain
        assert spectral.lower >= (plain[rank] if rank < len(plain) else 0.0) - grain
        assert all(bound.upper <= bound.achieved + grain for bound in fit.bounds)


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_norms_are_named_once_and_the_own_metric_comes_first(name: str, form: str) -> None:
    w, metric, _, _ = case(name, form)
    fit = LowRank().prepare(w, metric).fit(1, dtype=torch.float32, rng=generator())
    expected = ["frobenius", "spectral"] if form == "plain" else [metric.name, "frobenius", "spectral"]
    assert [bound.norm for bound in fit.bounds] == expected


def test_an_error_known_without_rounding() -> None:
    w, values = with_exact_spectrum(16, (9, 7, 7, 4, 1))
    for rank in range(1, 6):
        fit = LowRank().prepare(w, Metric.plain()).fit(rank, dtype=torch.float64, rng=generator())
        truth = math.sqrt(math.fsum(v * v for v in values[rank:]))
        frobenius, spectral = fit.bounds
        assert frobenius.lower <= truth <= frobenius.upper
        assert spectral.lower <= (values[rank] if rank < 5 else 0.0) <= spectral.upper
        assert frobenius.achieved == pytest.approx(truth, rel=1e-12, abs=1e-11)
        assert frobenius.relative == pytest.approx(truth / math.sqrt(math.fsum(v * v for v in values)), abs=1e-13)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_enclose_on_the_routes_of_large_matrices(
    name: str, form: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, _, in_metric, plain = case(name, form)
    as_if_large(monkeypatch, *ROUTES[route])
    metric = metrics_for(w.shape[1])[form]
    assert (metric.moment is not None) == (route == "all" and "gram" in form)
    for rank, fit in fits(LowRank(accuracy=0), w, metric).items():
        own, spectral = fit.bounds[0], fit.bounds[-1]
        _, _, error = remeasured(w, metric, fit)
        value = float(plain[rank]) if rank < len(plain) else 0.0
        assert own.lower <= tail(in_metric, rank) <= own.upper
        assert spectral.lower <= value <= spectral.upper
        assert error <= spectral.upper
        assert spectral.achieved <= max(error, value) * (1 + 1e-9) + 1e-13 * plain[0]
        probable = route in ("probes", "all") and error > 1e-12 * plain[0]
        if probable:
            assert spectral.delta == {"upper": 1e-10}
        if route in ("gram", "float32"):
            assert not spectral.delta
        assert not own.delta


# ---- optimality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_in_its_own_metric_a_truncation_beats_those_of_all_others(name: str, approximator: Approximator) -> None:
    w = MATRICES[name]()
    metrics = metrics_for(w.shape[1])
    found = {form: fits(approximator, w, metric, "float64") for form, metric in metrics.items()}
    for own, metric in metrics.items():
        grain = 1e-12 * float(np.linalg.norm(float64(w))) * root_norm(metric)
        for other in metrics:
            for rank in ranks_of(w):
                mine, theirs = remeasured(w, metric, found[own][rank])[0], remeasured(w, metric, found[other][rank])[0]
                assert mine <= theirs + grain, (own, other, rank)


def test_metrics_make_a_difference(approximator: Approximator) -> None:
    """Without this the law above would hold for an approximator that looks at no metric."""
    w = MATRICES["decaying"]()
    metrics = metrics_for(w.shape[1])
    found = {form: fits(approximator, w, metric, "float64")[6] for form, metric in metrics.items()}
    for own, metric in metrics.items():
        for other in set(metrics) - {own}:
            mine, theirs = remeasured(w, metric, found[own])[0], remeasured(w, metric, found[other])[0]
            assert theirs >= 1.01 * mine, (own, other)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6), st.sampled_from(METRICS), st.data())
def test_no_nearby_matrix_of_the_rank_is_better(m: int, n: int, seed: int, form: str, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    w, metric = gaussian(m, n, seed), metrics_for(n)[form]
    fit = LowRank().prepare(w, metric).fit(rank, dtype=torch.float64, rng=generator())
    left, right = fit.op.tensors().values()
    best = metric.norm(w - left @ right)
    for step in (1e-1, 1e-2, 1e-3):
        other = (left + step * gaussian(m, rank, seed + 1)) @ (right + step * gaussian(rank, n, seed + 2))
        assert best <= metric.norm(w - other) + 1e-12 * metric.norm(w)


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_error_falls_with_the_rank(name: str, form: str, approximator: Approximator) -> None:
    w, metric, _, _ = case(name, form)
    errors = [fit.bounds[0].achieved for fit in fits(approximator, w, metric, "float64").values()]
    grain = 1e-13 * float(np.linalg.norm(float64(w))) * root_norm(metric)
    assert all(after <= before + grain for before, after in pairwise(errors))


def test_the_error_falls_strictly_where_there_is_something_left(approximator: Approximator) -> None:
    w = MATRICES["square"]()
    for form, metric in metrics_for(24).items():
        prepared = approximator.prepare(w, metric)
        errors = [prepared.fit(r, dtype=torch.float64, rng=generator()).bounds[0].achieved for r in range(1, 9)]
        assert all(after < before for before, after in pairwise(errors)), form


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MATRICES)
def test_full_rank_is_lossless_up_to_the_type(name: str, dtype: str, approximator: Approximator) -> None:
    w, metric, _, _ = case(name, "plain")
    fit = fits(approximator, w, metric, dtype)[min(w.shape)]
    assert fit.bounds[0].lower == 0.0
    if (name, dtype) != ("tiny entries", "float16"):  # 1e-30 is below every float16, even as a root
        assert fit.bounds[0].relative <= max(EPS[dtype], 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "tiny entries"])
def test_rounding_costs_no_more_than_the_grain_of_the_type(name: str, form: str, dtype: str) -> None:
    w, metric, in_metric, plain = case(name, form)
    spread = (
        1.0
        if metric.right is None
        else float(np.linalg.norm(float64(metric.right), 2 if metric.right.ndim == 2 else np.inf))
    )
    for rank, fit in fits(LowRank(), w, metric, dtype).items():
        optimum, grain = tail(in_metric, rank), EPS[dtype] * np.linalg.norm(plain) * spread
        assert fit.bounds[0].achieved <= math.hypot(optimum, grain) + 1e-12 * np.linalg.norm(plain) * spread


def test_the_right_factor_takes_back_its_share_of_the_rounding_of_the_left_one() -> None:
    """Of the left factor's rounding, the share r / m that lies in its own columns: at full rank all of it.

    Rounding both factors of the decomposition on their own costs sqrt(2) times as much there.
    """
    ratios = []
    for seed in range(10):
        w = gaussian(24, 40, seed)
        fit = LowRank().prepare(w, Metric.plain()).fit(24, dtype=torch.bfloat16, rng=generator())
        f = torch.linalg.svd(w, full_matrices=False)
        left, right = (f.U * f.S.sqrt()).to(torch.bfloat16), (f.S.sqrt()[:, None] * f.Vh).to(torch.bfloat16)
        both = torch.linalg.norm(w - left.to(torch.float64) @ right.to(torch.float64))
        ratios.append(fit.bounds[0].achieved / float(both))
    assert np.mean(ratios) == pytest.approx(math.sqrt(0.5), abs=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e3, 1e6])
def test_ranks_beyond_that_of_the_matrix_leave_the_factors_in_proportion(scale: float, dtype: str) -> None:
    """What is left there is rounding: a vanishing column times an enormous row would not survive a narrow type."""
    w = scale * MATRICES["rank-deficient"]()
    prepared = LowRank().prepare(w, Metric.plain())
    for rank in (4, 5, 7, 12, 20):
        fit = prepared.fit(rank, dtype=DTYPES[dtype], rng=generator())
        assert fit.bounds[0].relative <= EPS[dtype]
        for factor in fit.op.tensors().values():
            assert float(factor.abs().max()) <= 4 * math.sqrt(float(prepared.plain.s[0]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e7])
def test_narrow_types_neither_overflow_nor_vanish(scale: float) -> None:
    """float16 ends at 65504: the factors share the size of the matrix between them."""
    w = scale * with_spectrum(20, 16, torch.logspace(0, -3, 16, dtype=torch.float64))
    fit = LowRank().prepare(w, Metric.plain()).fit(16, dtype=torch.float16, rng=generator())
    left, right = fit.op.tensors().values()
    assert bool(torch.isfinite(left).all() and torch.isfinite(right).all())
    assert fit.bounds[0].relative <= EPS["float16"]
    lengths = [torch.linalg.vector_norm(f.to(torch.float64), dim=d) for f, d in ((left, 0), (right, 1))]
    assert lengths[0].tolist() == pytest.approx(lengths[1].tolist(), rel=0.01)


# ---- the curve ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_curve_is_the_squared_error_of_every_rank(name: str, form: str, approximator: Approximator) -> None:
    w, metric, in_metric, plain = case(name, form)
    curve = approximator.curve(w, metric)
    assert curve.dtype == torch.float64
    assert curve.shape == (min(w.shape) + 1,)
    assert float(curve[-1]) >= 0.0
    assert bool((curve.diff() <= 0).all())
    energy = float((in_metric**2).sum())
    expected = [tail(in_metric, r) ** 2 for r in range(len(curve))]
    assert curve.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12 * energy)
    for rank, fit in fits(approximator, w, metric, "float64").items():
        grain = 1e-13 * (np.linalg.norm(plain) * root_norm(metric)) ** 2
        assert abs(float(curve[rank]) - fit.bounds[0].achieved ** 2) <= grain + 1e-10 * energy


# ---- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MATRICES)
def test_factors_have_the_rank_and_the_type_that_were_asked_for(name: str, dtype: str) -> None:
    for form in METRICS:
        w, metric, _, _ = case(name, form)
        for rank, fit in fits(LowRank(), w, metric, dtype).items():
            left, right = fit.op.tensors()["left"], fit.op.tensors()["right"]
            assert (left.shape, right.shape) == ((w.shape[0], rank), (rank, w.shape[1]))
            assert left.dtype == right.dtype == DTYPES[dtype]
            assert left.is_contiguous()
            assert right.is_contiguous()
            assert nbytes(fit.op) == rank * sum(w.shape) * left.element_size()


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_same_input_gives_the_same_bits(name: str, form: str) -> None:
    w, metric, _, _ = case(name, form)
    before = w.clone()
    one, two = fits(LowRank(), w, metric), fits(LowRank(), w.clone(), metric)
    for rank in one:
        for key in ("left", "right"):
            assert torch.equal(one[rank].op.tensors()[key], two[rank].op.tensors()[key])
        assert one[rank].bounds == two[rank].bounds
    assert torch.equal(w, before)


@pytest.mark.parametrize("form", METRICS)
def test_signs_of_the_factors_do_not_depend_on_those_of_the_matrix(form: str) -> None:
    """The gauge law: signs and order of the pairs that make up the matrix leave the factors as they are."""
    u, v = orthonormal(20, 8, 1), orthonormal(15, 8, 2)
    s = torch.arange(8, 0, -1, dtype=torch.float64)
    flips = torch.randint(0, 2, (8,), generator=generator(3)).to(torch.float64) * 2 - 1
    order = torch.randperm(8, generator=generator(4))
    metric = metrics_for(15)[form]

    def factors(w: Tensor) -> dict[str, Tensor]:
        op = LowRank().prepare(w, metric).fit(4, dtype=torch.float64, rng=generator()).op
        return dict(op.tensors())

    plain = factors(u * s @ v.T)
    for turned in ((u * flips) * s @ (v * flips).T, u[:, order] * s[order] @ v[:, order].T):
        for key, tensor in factors(turned).items():
            assert float((tensor - plain[key]).abs().max()) <= 1e-10, key
    negative = factors(-(u * s @ v.T))
    assert float((negative["left"] - plain["left"]).abs().max()) <= 1e-10
    assert float((negative["right"] + plain["right"]).abs().max()) <= 1e-10
    pivots = plain["left"].gather(0, plain["left"].abs().argmax(0, keepdim=True))
    assert bool((pivots > 0).all())


def test_a_metric_of_lower_rank_than_the_fit_is_no_obstacle() -> None:
    """One input only: rank 1 is lossless in the metric, and every further rank still gives a matrix of that rank."""
    w = gaussian(10, 12)
    w[:, 0] = torch.eye(10, dtype=torch.float64)[0]  # the one direction that counts is also the first of any completion
    x = 2.0 * torch.eye(12, dtype=torch.float64)[:1]
    metric = Metric.gram("one input", x.T @ x)
    for rank in (1, 2, 5, 10):
        fit = LowRank().prepare(w, metric).fit(rank, dtype=torch.float64, rng=generator())
        assert fit.bounds[0].achieved <= 1e-7 * fit.bounds[0].scale
        assert int(torch.linalg.matrix_rank(fit.op.dense())) == rank
    silent = Metric.gram("no input", torch.zeros(12, 12))
    fit = LowRank().prepare(w, silent).fit(3, dtype=torch.float64, rng=generator())
    assert (fit.bounds[0].achieved, fit.bounds[0].upper, fit.bounds[0].scale) == (0.0, 0.0, 0.0)
    assert LowRank().curve(w, silent).tolist() == [0.0] * 11


@pytest.mark.parametrize("rank", [-1, 0, 8, 100])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    prepared = LowRank().prepare(gaussian(7, 9), Metric.plain())
    with pytest.raises(ValueError, match=rf"rank {rank} of a 7 x 9 matrix: give one from 1 to 7"):
        prepared.fit(rank, dtype=torch.float32, rng=generator())


def test_certain_bounds_hold_where_the_metric_nearly_cancels_the_matrix() -> None:
    """Inputs with one direction 1e13 times above all others, which the matrix maps to almost nothing."""
    direction = orthonormal(40, 1)
    w = gaussian(6, 40)
    w -= w @ direction @ direction.T
    right = torch.cat([1e-3 * torch.eye(40, dtype=torch.float64)[:, :8], 1e10 * direction * gaussian(1, 32, 1)], dim=1)
    rows, columns = ([[Fraction(x) for x in row] for row in t.tolist()] for t in (w, right.T))
    exact = [[float(sum(map(mul, row, column))) for column in columns] for row in rows]  # each entry rounded once
    truth = lapack_values(np.array(exact))
    prepared = LowRank().prepare(w, Metric("dominated", right))
    for rank in range(1, 6):
        bound = prepared.fit(rank, dtype=torch.float64, rng=generator()).bounds[0]
        assert bound.lower is not None
        assert bound.lower <= tail(truth, rank) * (1 + 1e-12)
        assert tail(truth, rank) * (1 - 1e-12) <= bound.upper
