import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
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

from eckart.linalg import spectral_norm

NORMS = import_module("eckart.kernels.norms")
ROUNDING = 1e-12  # relative; what LAPACK and products in float64 may be off by


@pytest.fixture
def by_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the probabilistic route for matrices of any size."""
    monkeypatch.setattr(NORMS, "LAPACK_SIDE", 0)


@pytest.mark.parametrize("name", MATRICES)
def test_enclosure_by_lapack(name: str) -> None:
    a = MATRICES[name]()
    truth = float(lapack_values(a)[0])
    bound = spectral_norm(a, generator())
    assert bound.delta == 0.0
    assert bound.value <= truth * (1 + ROUNDING)
    assert truth <= bound.upper <= truth * (1 + 1e-10)


@pytest.mark.parametrize("spectrum", [(3,) * 16, (5,), (7, 7, 2, 1), tuple(range(1, 17))])
def test_enclosure_of_a_norm_known_without_rounding(spectrum: tuple[int, ...]) -> None:
    a, truth = with_exact_spectrum(16, spectrum)
    bound = spectral_norm(a, generator())
    assert truth[0] * (1 - ROUNDING) <= bound.value <= truth[0] * (1 + ROUNDING)
    assert truth[0] <= bound.upper


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.usefixtures("by_probes")
def test_enclosure_by_probes(name: str) -> None:
    a = MATRICES[name]()
    truth = float(lapack_values(a)[0])
    for seed in range(20):
        bound = spectral_norm(a, generator(seed))
        assert bound.delta == (1e-10 if truth else 0.0)
        assert bound.value <= truth * (1 + ROUNDING)
        assert truth <= bound.upper <= 1.29 * truth  # nothing measured here comes above 1.26
        assert bound.value >= 0.9 * truth


@pytest.mark.parametrize("shape", [(48, 30), (30, 48)])
@pytest.mark.parametrize("kind", ["flat", "two close values", "slow decay", "one value"])
@pytest.mark.usefixtures("by_probes")
def test_enclosure_by_probes_of_spectra_that_are_hard_for_products(kind: str, shape: tuple[int, int]) -> None:
    s = {
        "flat": torch.ones(30),
        "two close values": torch.tensor([1.0, 1 - 1e-6, *[1e-3] * 28]),
        "slow decay": torch.arange(1, 31) ** -0.2,
        "one value": torch.tensor([1.0]),
    }[kind].to(torch.float64)
    for seed in range(30):
        bound = spectral_norm(with_spectrum(*shape, s, seed), generator(seed))
        assert bound.value <= 1 + ROUNDING
        assert 1 - ROUNDING <= bound.upper <= 1.29


@pytest.mark.usefixtures("by_probes")
def test_the_probability_of_failure_is_what_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one probe of a matrix of rank 1 the stated probability of a tenth is nearly met, so a wrong constant shows.

    The bound fails where a normal variable is below sqrt(pi / 2) / 10 in magnitude: probability 0.0997.
    """
    monkeypatch.setattr(NORMS, "PROBES", 1)
    a = 7.0 * orthonormal(20, 1, 1) @ orthonormal(15, 1, 2).T
    trials = 600
    bounds = [spectral_norm(a, generator(seed)) for seed in range(trials)]
    # Where the bound fails it is raised to the value itself, which here is the norm up to rounding.
    failed = sum(bound.upper <= 7.0 * (1 + 1e-11) for bound in bounds)
    assert {bound.delta for bound in bounds} == {0.1}
    assert 0.06 <= failed / trials <= 0.14
    # And where it holds, it is the formula: 10 sqrt(2/pi) |g|, to the power 1 / 17.
    exact = math.erf(0.5 / math.sqrt(2))  # probability that |g| is below 0.5
    small = sum(bound.upper <= 7.0 * (10 * math.sqrt(2 / math.pi) * 0.5) ** (1 / 17) for bound in bounds)
    assert abs(small / trials - exact) <= 0.06


@pytest.mark.usefixtures("by_probes")
def test_no_overflow_and_no_underflow() -> None:
    a = with_spectrum(20, 12, torch.linspace(1, 0.1, 12, dtype=torch.float64))
    for scale in (1e-120, 1e-30, 1e30, 1e120):  # to the 17th power beyond every float
        bound = spectral_norm(a * scale, generator())
        assert bound.value <= scale * (1 + ROUNDING)
        assert scale * (1 - ROUNDING) <= bound.upper <= 1.29 * scale


@pytest.mark.usefixtures("by_probes")
def test_scaling_scales_both_ends() -> None:
    a = gaussian(20, 12)
    one, two = spectral_norm(a, generator(3)), spectral_norm(4 * a, generator(3))
    assert two.value == pytest.approx(4 * one.value, rel=1e-12)
    assert two.upper == pytest.approx(4 * one.upper, rel=1e-12)


@pytest.mark.usefixtures("by_probes")
def test_a_seed_fixes_the_result() -> None:
    a = with_spectrum(30, 30, torch.ones(30, dtype=torch.float64))
    assert spectral_norm(a, generator(1)) == spectral_norm(a, generator(1))
    assert spectral_norm(a, generator(1)) != spectral_norm(a, generator(2))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 5)])
def test_nothing_and_zero_have_norm_zero(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (1024, 0):
        monkeypatch.setattr(NORMS, "LAPACK_SIDE", side)
        bound = spectral_norm(torch.zeros(shape), generator())
        assert (bound.value, bound.upper, bound.delta) == (0.0, 0.0, 0.0)


def test_nan_is_refused() -> None:
    a = torch.ones(3, 3)
    a[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        spectral_norm(a, generator())


@pytest.mark.usefixtures("by_probes")
def test_of_a_matrix_of_rank_one_the_upper_figure_is_the_formula() -> None:
    """M w is sigma^17 u (v^T w), so the bound is sigma (10 sqrt(2/pi) max |v^T w|)^(1/17) for the vectors w drawn."""
    u, v = orthonormal(20, 1, 1), orthonormal(15, 1, 2)
    for seed in range(5):
        drawn = torch.randn(NORMS.PROBES, 15, generator=generator(seed), dtype=torch.float64)
        largest = float((drawn @ v).abs().max())
        expected = 7.0 * (10 * math.sqrt(2 / math.pi) * largest) ** (1 / 17)
        assert spectral_norm(7.0 * u @ v.T, generator(seed)).upper == pytest.approx(max(expected, 7.0), rel=1e-9)


@pytest.mark.parametrize(("side", "certain"), [(8, True), (9, False)])
def test_up_to_the_side_itself_the_norm_is_certain(side: int, certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("eckart.kernels.norms"), "LAPACK_SIDE", 8)
    assert (spectral_norm(gaussian(side, 12), generator()).delta == 0.0) is certain


# ---- the Frobenius norm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", [1, 5, 1 << 18])
@pytest.mark.parametrize("name", MATRICES)
def test_the_frobenius_norm_is_that_of_numpy(name: str, panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NORMS, "PANEL", panel)
    a = MATRICES[name]()
    assert NORMS.frobenius_norm(a) == pytest.approx(float(np.linalg.norm(float64(a))), rel=1e-14, abs=0.0)


def test_the_frobenius_norm_takes_any_number_of_sides() -> None:
    a = gaussian(6, 20).reshape(3, 2, 4, 5)
    assert NORMS.frobenius_norm(a) == pytest.approx(float(np.linalg.norm(a.numpy().ravel())), rel=1e-14, abs=0.0)
    assert NORMS.frobenius_norm(torch.tensor([3.0, 4.0])) == 5.0
    for nothing in (torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 0)):
        assert NORMS.frobenius_norm(nothing) == 0.0


@pytest.mark.parametrize(
    ("shape", "panels"),
    [
        ((1000, 1000), [262_000, 262_000, 262_000, 214_000]),
        ((1 << 17, 4), [1 << 18, 1 << 18]),
        ((2, 300_000), [300_000, 300_000]),
        ((7, 9), [63]),
    ],
)
def test_the_frobenius_norm_goes_by_panels_of_a_quarter_of_a_million(
    shape: tuple[int, int], panels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows at once as hold 2^18 entries, one at least."""
    seen: list[int] = []
    dot = Tensor.dot
    monkeypatch.setattr(Tensor, "dot", lambda self, other: (seen.append(len(self)), dot(self, other))[1])
    found = NORMS.frobenius_norm(torch.ones(shape, dtype=torch.bfloat16))
    assert found == pytest.approx(math.sqrt(math.prod(shape)), rel=1e-15, abs=0.0)
    assert seen == panels


# ---- what belongs to a norm -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_probes")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_are_unit_vectors_near_the_leading_one(dtype: torch.dtype) -> None:
    a = with_spectrum(30, 18, torch.tensor([4.0, *[1.0] * 17]).double()).to(dtype)
    bound = spectral_norm(a, generator())
    leading = scipy.linalg.svd(float64(a))[0][:, 0]
    assert bound.directions.shape == (10, 30)
    assert bound.directions.dtype == dtype
    assert np.abs(float64(bound.directions) @ leading) == pytest.approx(1.0, abs=1e-6)
    assert np.linalg.norm(float64(bound.directions), axis=1) == pytest.approx(1.0, abs=1e-6)


def test_without_products_there_are_no_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spectral_norm(gaussian(5, 3), generator()).directions.shape == (0, 5)
    monkeypatch.setattr(NORMS, "LAPACK_SIDE", 0)
    none = spectral_norm(torch.zeros(5, 3), generator()).directions
    assert (none.shape, none.dtype) == ((0, 5), torch.float64)


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float64)],
)
@pytest.mark.usefixtures("by_probes")
def test_products_run_in_float32_where_the_matrix_has_it(dtype: torch.dtype, taken: torch.dtype) -> None:
    assert spectral_norm(gaussian(9, 8).to(dtype), generator()).directions.dtype == taken


@pytest.mark.parametrize("shape", [(20, 64), (64, 20)])
def test_the_rounding_of_products_widens_both_ends(shape: tuple[int, int]) -> None:
    """Products with a matrix of a single entry are exact: what is left is as many units of rounding as the larger side, either way."""
    m, n = shape
    e = torch.zeros(m, n)
    e[0, 0] = 2.0
    for seed in range(3):
        bound = NORMS.probed_norm(lambda x: x @ e.T, lambda y: y @ e, shape, torch.float32, generator(seed))
        grain = 64 * 2.0**-23
        largest = float(torch.randn(10, n, generator=generator(seed), dtype=torch.float64)[:, 0].abs().max())
        upper = 2 * max(1.0, (10 * math.sqrt(2 / math.pi) * largest) ** (1 / 17)) * (1 + grain)
        assert bound.value == pytest.approx(2 * (1 - grain), rel=1e-9, abs=0.0)
        assert bound.upper == pytest.approx(upper, rel=1e-7, abs=0.0)


def test_a_norm_takes_no_more_products_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight with E^T E, one with E, and one back to measure."""
    taken: list[str] = []
    e = gaussian(9, 7)

    def forth(x: Tensor) -> Tensor:
        taken.append("forth")
        return x @ e.T

    def back(y: Tensor) -> Tensor:
        taken.append("back")
        return y @ e

    NORMS.probed_norm(forth, back, (9, 7), e.dtype, generator())
    assert taken == ["forth", "back"] * 9
