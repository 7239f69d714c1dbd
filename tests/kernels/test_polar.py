import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import (
    MATRICES,
    float64,
    gaussian,
    generator,
    lapack_values,
    orthonormal,
    with_exact_spectrum,
    with_spectrum,
)
from torch import Tensor

from eckart.linalg import BAND, CUBIC, QUINTIC, OddPolynomial, newton_schulz, polar

MODULE = import_module("eckart.kernels.polar")
EPS = 2.0**-52
CONVERGENT = {"cubic": CUBIC, "quintic": QUINTIC}


def full_rank(a: Tensor) -> bool:
    s = lapack_values(a)
    return bool(s[-1] > 1e-10 * s[0])


def off_orthonormal(u: np.ndarray) -> float:
    """Of columns where tall, of rows where wide; Frobenius norm."""
    gram = u.T @ u if u.shape[0] >= u.shape[1] else u @ u.T
    return float(np.linalg.norm(gram - np.eye(len(gram))))


# ---- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_the_factors_are_what_they_are_called(name: str) -> None:
    a = MATRICES[name]()
    u, p = polar(a)
    w, norm, grain = float64(a), np.linalg.norm(float64(a)), 50 * EPS * max(a.shape)
    assert u.shape == a.shape
    assert u.dtype == p.dtype == torch.float64
    assert off_orthonormal(u.numpy()) <= grain
    assert torch.equal(p, p.T)
    assert np.linalg.norm(u.numpy() @ p.numpy() - w) <= grain * norm
    values = scipy.linalg.eigvalsh(p.numpy())
    assert values.min() >= -grain * norm
    # The eigenvalues of p are the singular values, and zeros beside those of a wide matrix.
    truth = np.sort(np.concatenate([lapack_values(a), np.zeros(a.shape[1] - min(a.shape))]))
    assert np.abs(values - truth).max() <= grain * norm


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_scipy_where_it_is_unique(name: str) -> None:
    a = MATRICES[name]()
    expected_u, expected_p = scipy.linalg.polar(float64(a))
    u, p = polar(a)
    norm = np.linalg.norm(float64(a))
    assert np.abs(p.numpy() - expected_p).max() <= 1e-13 * norm
    if full_rank(a):
        assert np.abs(u.numpy() - expected_u).max() <= 1e-11


def test_a_worked_example() -> None:
    """A rotation by the angle of (3, 4) times a stretch, all in fractions of 5."""
    turn, stretch = (
        torch.tensor(t, dtype=torch.float64) for t in ([[0.6, -0.8], [0.8, 0.6]], [[2.0, 1.0], [1.0, 2.0]])
    )
    u, p = polar(turn @ stretch)
    assert float((u - turn).abs().max()) <= 1e-15 * 4
    assert float((p - stretch).abs().max()) <= 1e-15 * 4


def test_a_matrix_without_full_rank_is_completed_the_same_way_every_time() -> None:
    a = gaussian(12, 3, 1) @ gaussian(3, 9, 2)
    u, p = polar(a)
    assert torch.equal(u, polar(a.clone())[0])
    # On the rows of `a` the factor is determined, whatever completes it.
    assert float((u @ p - a).norm() / a.norm()) <= 1e-13
    assert off_orthonormal(u.numpy()) <= 1e-13
    assert off_orthonormal(polar(torch.zeros(5, 3))[0].numpy()) <= 1e-14
    assert polar(torch.zeros(5, 3))[1].tolist() == [[0.0] * 3] * 3


@given(st.integers(0, 10**6))
def test_it_is_the_nearest_orthogonal_matrix(seed: int) -> None:
    """Against rotations of the result itself: no small turn comes nearer."""
    a = gaussian(7, 7, seed)
    u, _ = polar(a)
    skew = gaussian(7, 7, seed + 1)
    turned = u @ torch.linalg.matrix_exp(0.05 * (skew - skew.T))
    assert float((a - u).norm()) <= float((a - turned).norm())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    u, p = polar(torch.zeros(shape))
    assert u.shape == shape
    assert p.tolist() == [[0.0] * shape[1]] * shape[1]
    found = newton_schulz(torch.zeros(shape), 3)
    assert found.u.shape == shape
    assert found.residual == 0.0


# ---- polynomials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "polynomial", [CUBIC, QUINTIC, BAND, OddPolynomial(2.0, 3.0, 1.0), OddPolynomial(0.0, 0.0, 1.0)]
)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 1.7), (-1.5, 0.7), (0.4, 0.4)])
def test_the_image_of_an_interval_is_what_a_fine_grid_shows(
    polynomial: OddPolynomial, interval: tuple[float, float]
) -> None:
    x = np.linspace(*interval, 400_001)
    for steps in (0, 1, 2):
        y = x
        for _ in range(steps):
            y = polynomial.linear * y + polynomial.cubic * y**3 + polynomial.quintic * y**5
        low, high = polynomial.image(*interval, steps)
        reach = max(1.0, abs(low), abs(high))
        assert low <= y.min() + 1e-12 * reach
        assert high >= y.max() - 1e-12 * reach
        # A grid of step h misses an extremum by h^2 / 8 times the curvature, an end by nothing.
        assert low == pytest.approx(y.min(), abs=1e-6 * reach)
        assert high == pytest.approx(y.max(), abs=1e-6 * reach)


def test_an_interval_must_be_one() -> None:
    with pytest.raises(ValueError, match="an interval and no negative number"):
        CUBIC.image(1.0, 0.0)
    with pytest.raises(ValueError, match="an interval and no negative number"):
        CUBIC.image(0.0, 1.0, -1)


@pytest.mark.parametrize("name", CONVERGENT)
def test_orders_of_convergence(name: str) -> None:
    """Near 1 an error e becomes 3/2 e^2 for the cubic, and of the order e^3 (5/2) for the quintic."""
    e = 1e-3
    after = abs(CONVERGENT[name](1 - e) - 1)
    assert after == pytest.approx({"cubic": 1.5 * e**2, "quintic": 2.5 * e**3}[name], rel=0.01)


@pytest.mark.parametrize(("name", "reach"), [("cubic", math.sqrt(3)), ("quintic", math.sqrt(7 / 3))])
def test_reach_of_convergence(name: str, reach: float) -> None:
    polynomial = CONVERGENT[name]
    for x in (1e-6, 0.3, 1.0, 1.2, 0.999 * reach):
        y = x
        for _ in range(100):
            y = polynomial(y)
        assert y == pytest.approx(1.0, abs=1e-12)
    assert name != "cubic" or abs(polynomial(1.001 * reach)) < 0.01  # zero at the end, negative beyond
    assert name != "cubic" or polynomial(1.001 * reach) < 0


# ---- products alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polynomial", CONVERGENT)
@pytest.mark.parametrize("name", MATRICES)
def test_converges_to_the_exact_factor(name: str, polynomial: str) -> None:
    a = MATRICES[name]()
    found = newton_schulz(a, 40, CONVERGENT[polynomial])
    eps = torch.finfo(found.u.dtype).eps
    assert found.u.dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
    assert found.u.shape == a.shape
    assert found.residual == pytest.approx(off_orthonormal(float64(found.u)), abs=20 * eps * max(a.shape))
    s = lapack_values(a)
    if s[0] == 0 or s[-1] < 1e-5 * s[0]:
        return  # too weak for 40 steps, or zero: a law of its own below
    assert found.residual <= 10 * eps * max(a.shape)
    exact, _ = scipy.linalg.polar(float64(a))
    # Rounding moves the matrix by some eps of its norm, and the factor by at most that over the smallest value.
    assert np.linalg.norm(float64(found.u) - exact) <= 20 * eps * max(a.shape) * s[0] / s[-1]


@pytest.mark.parametrize("polynomial", [CUBIC, QUINTIC, BAND])
@pytest.mark.parametrize("name", MATRICES)
def test_every_step_applies_the_polynomial_to_the_singular_values(name: str, polynomial: OddPolynomial) -> None:
    """Against the singular vectors of LAPACK, step by step; nothing here is near a limit."""
    a = MATRICES[name]().to(torch.float64)
    if not bool(a.any()):
        return
    left, s, right = scipy.linalg.svd(float64(a), full_matrices=False)
    for steps in (0, 1, 2, 5):
        found = newton_schulz(a, steps, polynomial)
        values = [float(v) / found.scale for v in s]
        for _ in range(steps):
            values = [polynomial(v) for v in values]
        # Every step multiplies what rounding did by at most the slope at zero.
        grain = 10 * EPS * max(a.shape) * polynomial.linear**steps
        assert np.linalg.norm(found.u.numpy() - left * values @ right) <= grain


@pytest.mark.parametrize("name", MATRICES)
def test_the_scale_is_a_bound_of_the_norm(name: str) -> None:
    a = MATRICES[name]()
    found = newton_schulz(a, 0)
    truth = float(lapack_values(a)[0])
    assert truth * (1 - EPS * 8) <= found.scale <= 1.001 * np.linalg.norm(float64(a)) + 1e-300
    assert (found.scale == 0.0) == (truth == 0.0)


def test_the_scale_is_tighter_than_the_frobenius_norm_and_exact_for_a_flat_spectrum() -> None:
    flat = orthonormal(64, 64)
    assert newton_schulz(flat, 0).scale == pytest.approx(64**0.25, rel=1e-12)  # the Frobenius norm is 8
    assert newton_schulz(gaussian(9, 1), 0).scale == pytest.approx(float(gaussian(9, 1).norm()), rel=1e-12)


def test_the_scale_holds_where_rounding_takes_from_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank-one float32 matrix the bound is the norm itself; what rounding takes must be given back."""

    def shortfall() -> float:
        worst = 1.0
        for seed in range(30):
            a = gaussian(500, 1, seed).to(torch.float32)
            worst = min(worst, newton_schulz(a, 0).scale / float(lapack_values(a)[0]))
        return worst

    assert shortfall() >= 1.0
    real = torch.finfo

    class WithoutEps:
        eps = 0.0

    monkeypatch.setattr(MODULE.torch, "finfo", lambda dtype: WithoutEps)
    short = shortfall()
    monkeypatch.setattr(MODULE.torch, "finfo", real)
    assert short < 1.0


@pytest.mark.parametrize("exponent", [-42, -25, 25, 38])
def test_entries_whose_squares_leave_the_range(exponent: int) -> None:
    """Division by the largest entry comes first; the squares of 1e-25 are zero in float32, those of 1e25 infinite."""
    plain = orthonormal(12, 5)
    a = (plain * 10.0**exponent).to(torch.float32)
    if exponent == -42:  # a few digits are left in what float32 holds there
        a, plain = a[:, :1], a[:, :1].to(torch.float64) / a[:, :1].to(torch.float64).norm()
    found = newton_schulz(a, 12)
    assert float((found.u.to(torch.float64) - plain).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", MATRICES)
def test_a_wide_matrix_goes_through_its_transpose(name: str) -> None:
    a = MATRICES[name]()
    there, back = newton_schulz(a, 5), newton_schulz(a.T, 5)
    if a.shape[0] != a.shape[1]:
        assert torch.equal(there.u, back.u.T)
        assert there.residual == back.residual
        assert there.scale == back.scale
    assert float((there.u - back.u.T).abs().max()) <= 1e-4


def test_values_of_zero_stay_and_the_residual_tells() -> None:
    a = with_exact_spectrum(16, (4,) * 5 + (2,) * 7)[0]
    found = newton_schulz(a, 30)
    s = lapack_values(found.u)
    assert np.abs(s - np.array([1.0] * 12 + [0.0] * 4)).max() <= 16 * EPS * 1.5**30  # what rounding made of zeros grows
    assert found.residual == pytest.approx(2.0, abs=1e-12)  # the root of four ones
    assert newton_schulz(torch.zeros(5, 3), 4).residual == pytest.approx(math.sqrt(3))
    assert newton_schulz(torch.zeros(5, 3), 4).u.tolist() == [[0.0] * 3] * 5


@pytest.mark.parametrize("shape", [(48, 30), (30, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_quintic_of_optimisers_ends_in_a_band_and_not_at_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = with_spectrum(*shape, torch.logspace(0, -1.5, 30, dtype=torch.float64), 3).to(dtype)
    start = lapack_values(a) / newton_schulz(a, 0).scale
    for steps in (5, 6, 9):
        found = newton_schulz(a, steps, BAND)
        low, high = BAND.image(float(start[-1]), float(start[0]), steps)
        s = lapack_values(found.u)
        grain = 1e-4 if dtype != torch.float64 else 1e-11
        assert low - grain <= s[-1]
        assert s[0] <= high + grain
        assert low >= 0.68
        assert high <= 1.21
        assert s[0] - s[-1] > 0.2  # spread over the band however many steps are made
        assert found.residual > 0.5
        assert newton_schulz(a, 3 * steps, CUBIC).residual < 1e-3


def test_the_band_is_invariant_and_wide() -> None:
    low, high = BAND.image(0.01, 1.0, 5)
    assert (round(low, 3), round(high, 3)) == (0.682, 1.134)
    assert BAND.image(low, high) == pytest.approx((low, high), abs=1e-3)


# ---- bfloat16, when asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 40), (40, 64)])
def test_bfloat16_products_end_orthonormal_and_near(shape: tuple[int, int]) -> None:
    a = with_spectrum(*shape, torch.linspace(1, 0.2, 40, dtype=torch.float64), 5).to(torch.float32)
    found = newton_schulz(a, 12, products=torch.bfloat16)
    assert found.u.dtype == torch.float32
    exact, _ = scipy.linalg.polar(float64(a))
    off = np.linalg.norm(float64(found.u) - exact, 2)
    assert off <= 0.1  # some 2^-8 of the norm over the smallest value, a few times
    assert off >= 1e-5  # and it was in fact used
    assert found.residual <= 1e-3
    assert newton_schulz(a, 12).residual <= 1e-4


def test_without_the_last_two_steps_in_float32_columns_are_not_orthonormal(monkeypatch: pytest.MonkeyPatch) -> None:
    a = gaussian(64, 16, 6).to(torch.float32)
    guarded = newton_schulz(a, 10, products=torch.bfloat16).residual
    monkeypatch.setattr(MODULE, "FINE_STEPS", 0)
    assert newton_schulz(a, 10, products=torch.bfloat16).residual > 20 * guarded
    assert guarded <= 1e-4


def test_two_steps_or_fewer_never_run_in_bfloat16() -> None:
    a = gaussian(20, 8).to(torch.float32)
    for steps in (0, 1, 2):
        assert torch.equal(newton_schulz(a, steps, products=torch.bfloat16).u, newton_schulz(a, steps).u)
    assert not torch.equal(newton_schulz(a, 3, products=torch.bfloat16).u, newton_schulz(a, 3).u)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_finite_real_matrix_is_refused(bad: float) -> None:
    a = torch.ones(3, 4)
    a[2, 1] = bad
    for run in (polar, lambda t: newton_schulz(t, 3)):
        with pytest.raises(ValueError, match="3 x 4 matrix holds NaN or infinity"):
            run(a)
        with pytest.raises(ValueError, match="a matrix is wanted, not a tensor of shape"):
            run(torch.ones(3))
        with pytest.raises(ValueError, match="a real matrix is wanted"):
            run(torch.ones(2, 2, dtype=torch.complex64))


def test_other_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 steps"):
        newton_schulz(torch.ones(2, 2), -1)
    with pytest.raises(ValueError, match=r"torch.float16 are not offered"):
        newton_schulz(torch.ones(2, 2), 3, products=torch.float16)


def test_the_argument_is_left_alone() -> None:
    a = torch.randn(6, 4, generator=generator())
    before = a.clone()
    polar(a)
    newton_schulz(a, 3, products=torch.bfloat16)
    assert torch.equal(a, before)
