"""The truncated SVD of matrices that are not decomposed in full, and the bounds that come with it, against LAPACK."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from market import (
    MATRICES,
    METRICS,
    SIZED,
    as_if_large,
    float64,
    gaussian,
    generator,
    inputs,
    lapack_values,
    metrics_for,
    orthonormal,
    whitened,
    with_spectrum,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.fit import Fit
from eckart.linalg import (
    Automatic,
    GramMatrix,
    Route,
    SubspaceIteration,
    Truncation,
    bounds_of,
    measured_bounds,
    remainder,
    truncated_svd,
    truncation,
)
from eckart.linalg.factors import Basis
from eckart.metric import Metric
from eckart.operator import Factors

INDEX = torch.arange(1, 121, dtype=torch.float64)
SPECTRA = {
    "fast": 1 / INDEX,
    "middling": INDEX**-0.5,
    "slow": INDEX**-0.2,
    "step": torch.where(INDEX <= 12, 1.0, 0.1).to(torch.float64),
    "flat": torch.ones(120, dtype=torch.float64),
}
STATED = 1e-10  # the probability with which probes fail


def errors(w: Tensor, fit: Fit, right: Tensor | None = None) -> tuple[float, float]:
    """The error of the factors as stored in the Frobenius and in the spectral norm, by NumPy."""
    assert isinstance(fit.op, Factors)
    left, other = (t.to(torch.float64).numpy() for t in (fit.op.left, fit.op.right))
    error = w.to(torch.float64).numpy() - left @ other
    if right is not None:
        error = error * right.numpy()
    return float(np.linalg.norm(error)), float(np.linalg.norm(error, 2))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)


# ---- routes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("large")
def test_every_route_is_taken_for_its_reason() -> None:
    a = with_spectrum(150, 120, SPECTRA["middling"])
    gram = Metric.gram("inputs", torch.eye(120, dtype=torch.float64))
    assert "subspace iteration" in truncated_svd(a, 12).how
    assert "no error above" in truncated_svd(a, 12, accuracy=0).how
    assert "more than a third of 120" in truncated_svd(a, 41).how
    assert "subspace iteration" in truncated_svd(a, 12, metric=gram).how
    assert "in the inputs metric: rank 21 is more than a sixth of 120" in truncated_svd(a, 21, metric=gram).how
    assert "subspace iteration" in truncated_svd(a, 20, metric=gram).how
    assert "did not get there" in truncated_svd(gaussian(150, 3) @ gaussian(3, 120, 1), 12).how


def test_small_matrices_are_decomposed_by_lapack() -> None:
    assert "by LAPACK: the smaller side is 30" in truncated_svd(gaussian(50, 30), 2).how


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.usefixtures("large")
def test_the_error_is_within_what_was_asked_for(name: str) -> None:
    s = SPECTRA[name]
    w = with_spectrum(120, 160, s).to(torch.float32)
    for rank in (1, 12, 40):
        optimum = float(s[rank:].norm())
        for accuracy in (1e-2, 2e-3):
            fit = truncated_svd(w, rank, accuracy=accuracy)
            assert errors(w, fit)[0] <= (1 + accuracy) * optimum * (1 + 1e-6)


@pytest.mark.usefixtures("large")
def test_a_diagonal_metric_is_the_one_that_is_minimised() -> None:
    w = with_spectrum(120, 160, SPECTRA["middling"])
    right = torch.logspace(0, -2, 160, dtype=torch.float64)
    optimum = lapack_values(w * right)
    fit = truncated_svd(w, 12, metric=Metric("scale", right), dtype=torch.float64, spectral=True)
    assert "subspace" in fit.how
    own, _ = errors(w, fit, right)
    assert own <= 1.002 * np.linalg.norm(optimum[12:])
    assert errors(w, truncated_svd(w, 12, dtype=torch.float64), right)[0] > 1.05 * own  # the plain optimum is another
    metric, plain, spectral = fit.bounds
    assert metric.achieved == pytest.approx(own, rel=1e-5)
    assert plain.achieved == pytest.approx(errors(w, fit)[0], rel=1e-5)
    assert metric.delta == {"lower": STATED}
    assert metric.lower is not None
    assert 0.8 * np.linalg.norm(optimum[12:]) <= metric.lower <= np.linalg.norm(optimum[12:])
    assert plain.lower is not None
    assert plain.lower <= np.linalg.norm(lapack_values(w)[12:])
    assert spectral.lower is not None
    assert spectral.lower <= lapack_values(w)[12]


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_market_goes_down_the_routes_of_large_matrices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = MATRICES[name]()
    values = lapack_values(w)
    for rank in {1, max(1, min(w.shape) // 3)}:
        fit = truncated_svd(w, rank, accuracy=1e-2, dtype=torch.float64, spectral=True)
        frobenius, spectral = fit.bounds
        optimum, size = float(np.linalg.norm(values[rank:])), float(np.linalg.norm(values))
        error, top = errors(w, fit)
        assert error <= 1.01 * optimum + 1e-7 * size  # on the Gram route what it cannot tell from zero
        assert frobenius.lower is not None
        assert frobenius.lower <= optimum <= frobenius.upper
        assert error <= frobenius.upper
        assert spectral.lower is not None
        assert spectral.lower <= (values[rank] if rank < len(values) else 0.0)
        assert top <= spectral.upper


# ---- bounds without a decomposition ---------------------------------------------------------------------------------


def check(w: Tensor, fit: Fit) -> tuple[float, float, float, float]:
    """That the bounds enclose; how far each is from what it bounds, as ratios of at least 1."""
    values = lapack_values(w)
    assert isinstance(fit.op, Factors)
    rank = fit.op.rank
    optimum, next_value = float(np.linalg.norm(values[rank:])), float(values[rank])
    error, top = errors(w, fit)
    frobenius, spectral = fit.bounds
    assert frobenius.lower is not None
    assert spectral.lower is not None
    assert frobenius.lower <= optimum
    assert spectral.lower <= next_value
    assert error <= frobenius.upper
    assert top <= spectral.upper
    assert frobenius.achieved == pytest.approx(error, rel=1e-3)
    assert spectral.achieved <= top * (1 + 1e-6)
    return (
        optimum / frobenius.lower if frobenius.lower else math.inf,
        next_value / spectral.lower if spectral.lower else math.inf,
        frobenius.upper / error,
        spectral.upper / top,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("large")
def test_bounds_of_iterated_fits_hold_and_are_near(dtype: torch.dtype) -> None:
    ratios = []
    for seed in range(4):
        for s in SPECTRA.values():
            w = with_spectrum(120, 160, s, seed).to(torch.float32)
            for rank in (2, 12, 40):
                fit = truncated_svd(w, rank, dtype=dtype, spectral=True, rng=generator(seed))
                assert fit.bounds[0].delta == {"lower": STATED}
                assert fit.bounds[1].delta == {"upper": STATED}
                ratios.append(check(w, fit))
    below, value, above, spectral = np.median(np.array(ratios), axis=0)
    assert below <= 1.06
    assert value <= 1.03
    assert above <= 1.005
    assert spectral <= 1.3
    assert np.isfinite(ratios).all()


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 10**6), st.floats(0.0, 3.0), st.data())
@settings(max_examples=150)
def test_bounds_hold_for_any_approximation_however_bad(
    m: int, n: int, seed: int, decay: float, data: st.DataObject
) -> None:
    """The lower figure speaks of all matrices of the rank, so it must hold from wherever it is computed."""
    rank = data.draw(st.integers(1, min(m, n) - 1))
    s = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay
    w = with_spectrum(m, n, s, seed)
    off = data.draw(st.sampled_from([0.0, 1e-3, 1.0]))
    left = torch.linalg.svd(w).U[:, :rank] + off * gaussian(m, rank, seed + 1)
    right = Basis.of(left, w).right() + off * gaussian(rank, n, seed + 2)
    with pytest.MonkeyPatch.context() as patch:
        as_if_large(patch, *SIZED)
        op = Factors(left.contiguous(), right.contiguous())
        bounds = measured_bounds(w, op, Metric.plain(), None, rng=generator(seed))
    optimum, value = float(s[rank:].norm()), float(s[rank])
    frobenius, spectral = bounds
    assert frobenius.lower is not None
    assert spectral.lower is not None
    assert frobenius.lower <= optimum * (1 + 1e-12)
    assert spectral.lower <= value * (1 + 1e-12)
    error = float(torch.linalg.norm(w - left @ right))
    assert error <= frobenius.upper
    assert frobenius.achieved == pytest.approx(max(error, frobenius.lower), rel=1e-2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(900, 70), (70, 900), (400, 400)])
def test_what_a_rough_image_is_off_by_is_said(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w, left = gaussian(*shape, 1).to(dtype), gaussian(shape[0], 9, 2).to(dtype)
    rough = Basis.rough(left, w, float(torch.linalg.norm(w.double())))
    off = float(np.linalg.norm(rough.image.numpy() - rough.q.numpy().T @ w.double().numpy()))
    assert 0 < off <= rough.grain <= 1e-4 * float(torch.linalg.norm(w.double()))
    assert np.allclose(rough.q.numpy() @ rough.coordinates.numpy(), left.double().numpy(), atol=1e-13)


@pytest.mark.usefixtures("large")
def test_the_lower_figure_is_a_theorem_worked_by_hand() -> None:
    """W = diag(3, 2, 1) approximated by its first entry: N = diag(2, 1), nothing couples, and 5 of 14 is all that is left."""
    w = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    op = Factors(torch.tensor([[3.0], [0.0], [0.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0, 0.0]]).double())
    frobenius, spectral = measured_bounds(w, op, Metric.plain(), None, rng=generator())
    assert frobenius.lower == pytest.approx(math.sqrt(5), rel=1e-5)
    assert frobenius.achieved == pytest.approx(math.sqrt(5), rel=1e-12)
    assert spectral.lower == pytest.approx(2.0, rel=1e-5)
    # Through the second entry instead: b = 4, v = 9, so up to 9 may be captured, and 5 of 14 is left as well.
    other = Factors(torch.tensor([[0.0], [2.0], [0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0, 0.0]]).double())
    frobenius, _ = measured_bounds(w, other, Metric.plain(), None, rng=generator())
    assert frobenius.achieved == pytest.approx(math.sqrt(10), rel=1e-12)
    assert frobenius.lower is not None
    assert 0 <= frobenius.lower <= math.sqrt(5)  # v is known from above only, which costs a little


@pytest.mark.usefixtures("large")
def test_errors_too_small_for_float32_are_formed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remainder of 1e-7 of the matrix: in float32 it is rounding, and the guard is what notices."""
    u, v = orthonormal(120, 30), orthonormal(160, 30, 1)
    s = torch.cat([torch.linspace(1, 0.5, 20), torch.full((10,), 1e-7)]).to(torch.float64)
    w = u * s @ v.T
    truth = float(s[20:].norm())
    bound = truncated_svd(w, 20).bounds[0]
    assert bound.achieved == pytest.approx(truth, rel=1e-6)
    monkeypatch.setattr(remainder, "COARSE", math.inf)
    careless = truncated_svd(w, 20).bounds[0]
    assert abs(careless.achieved - truth) > 1e-3 * truth
    assert careless.upper >= truth  # even then what is stated is true


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("large")
def test_what_rounding_leaves_of_an_exact_matrix_is_no_error(seed: int) -> None:
    """Matrices of small whole numbers, of rank 5 without any rounding: the least error of that rank is 0, not 1e-17."""
    left, right = (4 * gaussian(60, 5, seed)).round(), (4 * gaussian(5, 80, seed + 50)).round()
    w = left @ right
    op = Factors(left, Basis.of(left, w).right())
    frobenius, spectral = measured_bounds(w, op, Metric.plain(), None, rng=generator(seed))
    assert frobenius.lower == 0.0
    assert spectral.lower == 0.0


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MATRICES)
def test_in_every_metric_any_approximation_is_enclosed_without_a_decomposition(
    name: str, dtype: torch.dtype, form: str
) -> None:
    w = MATRICES[name]()
    metric = metrics_for(w.shape[1])[form]
    m, n = w.shape
    rank = max(1, min(m, n) // 3)
    size = max(1.0, float(w.abs().double().max()))
    op = Factors(gaussian(m, rank, 1).to(dtype), (gaussian(rank, n, 2) * size).to(dtype))
    whole = whitened(w, metric)
    error = np.linalg.norm(whole - whitened(op.left.double() @ op.right.double(), metric))
    own = measured_bounds(w, op, metric, None, rng=generator())[0]
    grain = 1e-13 * float(np.linalg.norm(float64(w))) * metric.reach
    assert own.lower is not None
    assert own.lower <= np.linalg.norm(lapack_values(whole)[rank:]) + grain
    assert error <= own.upper + grain
    assert own.achieved == pytest.approx(max(error, own.lower), rel=1e-2, abs=1e-6 * float(np.linalg.norm(whole)))
    assert own.scale == pytest.approx(np.linalg.norm(whole), rel=1e-5, abs=1e-200)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("shape", [(90, 160), (160, 160), (300, 120)])
@pytest.mark.parametrize("inputs_seen", [900, 60])  # many of them; fewer than there are channels
def test_full_metrics_are_iterated_in(shape: tuple[int, int], inputs_seen: int) -> None:
    w = with_spectrum(*shape, SPECTRA["middling"][: min(shape)]).to(torch.float32)
    x = inputs(shape[1], inputs_seen)
    metric = Metric.gram("inputs", x.T @ x, inputs_seen)
    fit = truncated_svd(w, 10, metric=metric, spectral=True)
    assert "steps of subspace iteration" in fit.how
    whole = whitened(w, metric)
    optimum = np.linalg.norm(lapack_values(whole)[10:])
    assert isinstance(fit.op, Factors)
    error = np.linalg.norm(whole - whitened(fit.op.left.double() @ fit.op.right.double(), metric))
    assert error <= 1.002 * optimum
    own, plain, spectral = fit.bounds
    assert [own.norm, plain.norm, spectral.norm] == ["inputs", "frobenius", "spectral"]
    assert own.delta == {"lower": STATED}
    assert own.lower is not None
    assert 0.95 * optimum <= own.lower <= optimum <= error <= own.upper <= 1.002 * error
    assert own.achieved == pytest.approx(error, rel=1e-4)
    difference = float64(w) - float64(fit.op.left.double() @ fit.op.right.double())
    assert plain.achieved == pytest.approx(np.linalg.norm(difference), rel=1e-5)
    assert plain.lower is not None
    assert plain.lower <= np.linalg.norm(lapack_values(w)[10:])


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("large")
def test_the_seed_decides_and_not_the_state_of_the_generator() -> None:
    w = with_spectrum(120, 160, SPECTRA["slow"]).to(torch.float32)

    def tensors(rng: torch.Generator | None) -> list[Tensor]:
        return list(truncated_svd(w, 9, rng=rng).op.tensors().values())

    used = generator(3)
    torch.randn(100, generator=used)
    assert all(torch.equal(a, b) for a, b in zip(tensors(generator(3)), tensors(used), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(None), tensors(generator(0)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(generator(3)), tensors(generator(4)), strict=True))


@pytest.mark.usefixtures("large")
def test_signs_are_fixed_on_the_iterated_route() -> None:
    w = with_spectrum(120, 160, SPECTRA["fast"])
    left = truncated_svd(w, 6, dtype=torch.float64).op.tensors()["left"]
    assert bool((left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all())
    negative = truncated_svd(-w, 6, dtype=torch.float64).op.tensors()["left"]
    assert float((left - negative).abs().max()) <= 1e-3  # the same subspace but for what the accuracy leaves open


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_come_in_the_type_of_the_matrix_or_another(dtype: torch.dtype) -> None:
    w = gaussian(20, 30).to(dtype)
    assert {t.dtype for t in truncated_svd(w, 3).op.tensors().values()} == {dtype}
    assert {t.dtype for t in truncated_svd(w, 3, dtype=torch.float32).op.tensors().values()} == {torch.float32}


@pytest.mark.parametrize("call", [lambda w: truncated_svd(w, 2), lambda w: Truncation(w, Metric.plain(), 0.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_not_finite_is_refused(call: Callable[[Tensor], object], bad: float, dtype: torch.dtype) -> None:
    w = torch.ones(3, 4, dtype=dtype)
    w[1, 2] = bad
    with pytest.raises(ValueError, match="3 x 4 matrix holds NaN or infinity"):
        call(w)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(3, 4, dtype=torch.int64)])
def test_what_is_no_matrix_is_refused(other: Tensor) -> None:
    with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted, not a tensor of shape"):
        truncated_svd(other, 1)


def test_finite_numbers_whose_norm_overflows_are_not_refused() -> None:
    w = 1e200 * gaussian(5, 6)
    assert Truncation(w, Metric.plain(), 0.0).target is w


def test_impossible_arguments_are_refused() -> None:
    w = gaussian(5, 6)
    for rank in (0, -1, 6):
        with pytest.raises(ValueError, match=rf"rank {rank} of a 5 x 6 matrix: give one from 1 to 5"):
            truncated_svd(w, rank)
    with pytest.raises(ValueError, match=r"not below 0: -0\.1"):
        truncated_svd(w, 2, accuracy=-0.1)


@pytest.mark.usefixtures("large")
def test_the_error_to_expect_is_that_of_the_fit() -> None:
    w = with_spectrum(120, 160, SPECTRA["middling"])
    right = torch.logspace(0, -1, 160, dtype=torch.float64)
    for metric in (Metric.plain(), Metric("scale", right)):
        for accuracy, rank in ((0.0, 7), (2e-3, 7), (2e-3, 60)):
            prepared = Truncation(w, metric, accuracy)
            fitted = prepared.fit(rank, dtype=torch.float64, rng=generator()).bounds[0].achieved
            assert prepared.error(rank, generator()) == pytest.approx(fitted, rel=5e-3)


@pytest.mark.parametrize("accuracy", [2e-3, 0.0])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.usefixtures("large")
def test_a_scale_of_the_matrix_is_one_of_its_bounds(name: str, accuracy: float) -> None:
    """By a power of two, which rounds nothing: every figure is multiplied by it."""
    w = with_spectrum(120, 160, SPECTRA[name]).to(torch.float32)
    for rank in (3, 30):
        expected = truncated_svd(w, rank, accuracy=accuracy, dtype=torch.float64, spectral=True).bounds
        for scale in (2.0**-30, 2.0**30):
            found = truncated_svd(w * scale, rank, accuracy=accuracy, dtype=torch.float64, spectral=True).bounds
            for one, other in zip(expected, found, strict=True):
                for figure in ("lower", "achieved", "upper", "scale"):
                    assert getattr(other, figure) == pytest.approx(scale * getattr(one, figure), rel=1e-6), figure
                assert one.delta == other.delta


@pytest.mark.usefixtures("large")
def test_a_lower_figure_that_comes_from_another_approximation_is_as_probable_as_that() -> None:
    """Of factors that have nothing to do with the matrix: what they tell of the optimum themselves is nothing."""
    w = with_spectrum(120, 160, SPECTRA["fast"])
    op = Factors(gaussian(120, 9, 5), gaussian(9, 160, 6))
    frobenius = bounds_of(w, op, rng=generator())[0]
    optimum = float(np.linalg.norm(lapack_values(w)[9:]))
    assert frobenius.lower is not None
    assert 0.9 * optimum <= frobenius.lower <= optimum
    assert frobenius.delta is not None
    assert frobenius.delta["lower"] == pytest.approx(1e-10)


def test_every_seed_has_a_start_of_its_own() -> None:
    """Also those near the end of what a generator takes."""
    seeds = [0, 1, 2**62, 2**63 - 1]
    starts = {truncation.seeded(generator(seed)).initial_seed() for seed in seeds}
    assert len(starts) == len(seeds)
    assert not starts & set(seeds)


class Products(TorchDispatchMode):
    """Notes the dtypes that matrix products are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "dot"):
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        return func(*args, **(kwargs or {}))


def test_a_right_factor_that_is_a_tenth_too_large_says_as_much_of_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower bound comes from the left factor: what the right one adds to the error within its span is told apart."""
    as_if_large(monkeypatch)
    s = torch.arange(1, 301, dtype=torch.float64) ** -0.5
    w = with_spectrum(400, 300, s).to(torch.float32)
    u = torch.linalg.svd(w.to(torch.float64)).U[:, :12].contiguous()
    op = Factors(u, 1.1 * (u.T @ w.to(torch.float64)))
    bound = measured_bounds(w, op, Metric.plain(), None, rng=generator())[0]
    assert bound.lower is not None
    assert 0.75 <= bound.lower / float(s[12:].norm()) <= 1.0


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("accuracy", [2e-3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.usefixtures("large")
def test_nothing_is_computed_in_half_precision(dtype: torch.dtype, accuracy: float, spectral: bool) -> None:
    """Products in float16 are hundreds of times slower than others on a processor."""
    w = with_spectrum(120, 160, SPECTRA["slow"]).to(torch.float16)
    with Products() as seen:
        truncated_svd(w, 8, accuracy=accuracy, dtype=dtype, spectral=spectral)
    assert seen.dtypes
    assert torch.float16 not in seen.dtypes


@pytest.mark.parametrize("route", [Automatic(), SubspaceIteration(steps=4, oversampling=8), GramMatrix()], ids=repr)
@pytest.mark.parametrize("form", ["diagonal", "gram"])
def test_the_best_in_the_plain_norm_is_looked_for_with_the_spectral_one(
    form: str, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another metric it takes a decomposition of its own; without, the same factors and figures come out, but for that ``lower``."""
    as_if_large(monkeypatch)
    w, metric = gaussian(40, 30, 1).to(torch.float32), metrics_for(30)[form]
    full = truncated_svd(w, 4, metric=metric, route=route, spectral=True)
    lean = truncated_svd(w, 4, metric=metric, route=route)
    assert torch.equal(full.op.dense(), lean.op.dense())
    own, plain, _ = full.bounds
    assert lean.bounds[0] == own
    assert [b.norm for b in lean.bounds] == [own.norm, "frobenius"]
    assert (lean.bounds[1].lower, lean.bounds[1].delta) == (None, None)
    assert lean.bounds[1].achieved == pytest.approx(plain.achieved, rel=1e-12)
    assert lean.bounds[1].upper == pytest.approx(plain.upper, rel=1e-12)
    assert plain.lower is not None
    assert plain.lower > 0.5 * plain.achieved


@pytest.mark.parametrize("shape", [(300, 270), (260, 400)])
def test_low_ranks_of_middling_matrices_are_iterated_for(shape: tuple[int, int]) -> None:
    """Above a side of 256 an iteration is several times faster; where bounds near the optimum are wanted LAPACK decomposes these."""
    side = min(shape)
    w = with_spectrum(*shape, torch.arange(1, side + 1, dtype=torch.float64) ** -0.5).to(torch.float32)
    values = lapack_values(w)
    for rank in (4, 60):
        fit, optimum = truncated_svd(w, rank), float(np.linalg.norm(values[rank:]))
        assert "steps of subspace iteration" in fit.how
        assert optimum <= fit.bounds[0].upper
        assert fit.bounds[0].achieved <= (1 + 2e-3) * optimum
        assert fit.bounds[0].lower is not None
        assert 0.2 * optimum < fit.bounds[0].lower <= optimum
        near = truncated_svd(w, rank, spectral=True)
        assert near.how == f"exact, by LAPACK: the smaller side is {side}"
        assert near.bounds[0].lower == pytest.approx(optimum, rel=1e-5)
    assert truncated_svd(w, side // 2).how == f"exact, by LAPACK: rank {side // 2} is more than a third of {side}"
    exact = truncated_svd(w, 4, accuracy=0)
    assert exact.how == "exact, by LAPACK: no error above the smallest possible is allowed"
    assert truncated_svd(w[:256], 4).how == f"exact, by LAPACK: the smaller side is {min(256, side)}"
