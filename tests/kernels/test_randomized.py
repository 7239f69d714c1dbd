"""Subspace iteration against spectra that are known, and the guards without which it would fail silently."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from market import gaussian, generator, orthonormal, with_spectrum
from torch import Tensor

from eckart.kernels import randomized
from eckart.kernels.convergence import Outlook
from eckart.kernels.randomized import (
    InMemory,
    Subspace,
    conditioned,
    leading_subspace,
    most_steps,
    oversampling,
    subspace_iteration,
)

SIDE = 240
INDEX = torch.arange(1, SIDE + 1, dtype=torch.float64)
SPECTRA = {
    "like 1/k": 1 / INDEX,
    "like k^-1/2": INDEX**-0.5,
    "slow": INDEX**-0.2,
    "step behind the rank": torch.where(INDEX <= 20, 1.0, 0.05).to(torch.float64),
    "step within the rank": torch.where(INDEX <= 5, 1.0, 0.05 * INDEX**-0.3).to(torch.float64),
    "flat": torch.ones(SIDE, dtype=torch.float64),
}


def error_of(a: Tensor, found: Subspace) -> float:
    u = found.u.to(torch.float64)
    q = torch.linalg.qr(u).Q
    return float(torch.linalg.norm(a - q @ (q.T @ a)))


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With products in bfloat16, emulated where the processor lacks them, and without."""
    monkeypatch.setattr(randomized, "_has_bfloat16", lambda _: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(400, SIDE), (SIDE, 400)])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.usefixtures("bfloat16")
def test_the_error_is_within_what_was_asked_for(name: str, shape: tuple[int, int]) -> None:
    s = SPECTRA[name]
    a = with_spectrum(*shape, s)
    optimum = float(s[20:].norm())
    for accuracy in (1e-2, 2e-3, 2e-4):
        found = leading_subspace(a.to(torch.float32), 20, accuracy=accuracy, rng=generator())
        if found is None:  # refused, not wrong: more steps than are worth it
            assert (name, accuracy) == ("slow", 2e-4)
            continue
        assert error_of(a, found) <= (1 + accuracy) * optimum
        assert found.excess <= accuracy


@pytest.mark.parametrize("name", SPECTRA)
def test_what_is_returned_belongs_together(name: str, bfloat16: bool) -> None:
    grain = 2.0**-8 if bfloat16 else 1e-5
    a = with_spectrum(300, SIDE, SPECTRA[name]).to(torch.float32)
    found = leading_subspace(a, 16, accuracy=1e-3, rng=generator())
    assert found is not None
    u = found.u.numpy().astype(np.float64)
    assert np.abs(u.T @ u - np.eye(16)).max() <= 1e-5
    image = u.T @ a.numpy().astype(np.float64)
    assert np.abs(found.image.numpy() - image).max() <= grain
    # Rows of the image are orthogonal, of the lengths s, and these are values of W seen through a subspace.
    assert np.abs(image @ image.T - np.diag(found.s.numpy() ** 2)).max() <= grain
    truth = np.linalg.svd(a.numpy().astype(np.float64), compute_uv=False)
    assert bool((found.s.numpy() <= truth[:16] * (1 + grain)).all())


def test_a_finer_accuracy_takes_more_steps() -> None:
    a = with_spectrum(300, SIDE, SPECTRA["like k^-1/2"]).to(torch.float32)
    steps = [leading_subspace(a, 20, accuracy=x, rng=generator()).steps for x in (1e-1, 1e-3, 1e-5)]  # type: ignore[union-attr]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_values_that_float32_cannot_tell_apart_are_left_to_an_exact_route() -> None:
    falling = with_spectrum(300, SIDE, torch.logspace(0, -30, SIDE, dtype=torch.float64))
    assert leading_subspace(falling, 60, accuracy=1e-2, rng=generator()) is None
    few = gaussian(300, 4) @ gaussian(4, 200, 1)
    assert leading_subspace(few, 10, accuracy=1e-2, rng=generator()) is None
    assert leading_subspace(torch.zeros(50, 60), 3, accuracy=1e-2, rng=generator()) is None


def test_a_start_decides_the_bits() -> None:
    a = with_spectrum(300, SIDE, SPECTRA["slow"]).to(torch.float32)
    one, two, other = (leading_subspace(a, 9, accuracy=1e-2, rng=generator(seed)) for seed in (1, 1, 2))
    assert one is not None
    assert two is not None
    assert other is not None
    assert torch.equal(one.u, two.u)
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.u, other.u)


# ---- what would go wrong without the guards -------------------------------------------------------------------------


def test_bfloat16_is_left_where_it_would_bury_wanted_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions 500 times weaker than the strongest ones, above a floor: lost among their rounding in bfloat16."""
    s = torch.cat([torch.ones(1), torch.full((19,), 2e-3), torch.full((SIDE - 20,), 1e-3)]).to(torch.float64)
    a = with_spectrum(300, SIDE, s)
    narrow = a.to(torch.float32)  # one in float64 would be iterated on in float64
    monkeypatch.setattr(randomized, "_has_bfloat16", lambda _: True)
    guarded = leading_subspace(narrow, 20, accuracy=1e-2, rng=generator())
    assert guarded is not None
    optimum = float(s[20:].norm())
    assert error_of(a, guarded) <= 1.001 * optimum
    monkeypatch.setattr(randomized, "BFLOAT16_NOISE", 0.0)
    monkeypatch.setattr(randomized, "BFLOAT16_ENERGY", 0.0)
    careless = leading_subspace(narrow, 20, accuracy=1e-2, rng=generator())
    assert careless is None or error_of(a, careless) > 1.001 * optimum


@pytest.mark.parametrize(
    ("matrix_unit", "instructions", "told", "faster"),
    [
        (True, True, {"cpu_name": "Intel Xeon"}, True),
        (False, True, {"cpu_name": "AMD EPYC"}, True),
        (False, True, {"cpu_name": "Intel Xeon"}, False),
        (False, True, {}, True),
        (False, False, {"cpu_name": "AMD EPYC"}, False),
    ],
)
def test_bfloat16_is_taken_where_the_processor_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, matrix_unit: bool, instructions: bool, told: dict[str, str], faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_unit)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    randomized._cpu_has_bfloat16.cache_clear()
    assert randomized.InMemory(torch.eye(2)).narrows is faster
    randomized._cpu_has_bfloat16.cache_clear()


def test_columns_that_are_nearly_dependent_are_found_by_their_pivots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case in which Cholesky in float32 returns something, and something wrong."""
    direction = orthonormal(200, 1)
    y = (direction @ gaussian(1, 12, 1) + 3e-4 * gaussian(200, 12, 2)).to(torch.float32)
    span = np.linalg.svd(y.numpy().astype(np.float64), full_matrices=False)[0]

    def off(q: Tensor) -> float:
        q64 = q.numpy().astype(np.float64)
        return float(np.abs(q64.T @ q64 - np.eye(12)).max() + np.linalg.norm(q64 - span @ (span.T @ q64), 2))

    assert off(conditioned(y)) <= 1e-2
    lengths = torch.linalg.vector_norm(y, dim=0)
    root, failed = torch.linalg.cholesky_ex(((y / lengths).T @ (y / lengths)).to(torch.float64), upper=True)
    assert int(failed) or off(torch.linalg.solve_triangular(root.float(), y / lengths, upper=True, left=False)) > 1e-2


def test_zero_columns_are_no_obstacle() -> None:
    y = gaussian(30, 4).to(torch.float32)
    y[:, 2] = 0.0
    q = conditioned(y).numpy()
    assert bool(np.isfinite(q).all())
    assert np.linalg.norm(q @ (q.T @ y.numpy()) - y.numpy()) <= 1e-4 * math.sqrt(120)


@dataclass
class Counted:
    """The products of a tensor, counted."""

    inner: InMemory
    products: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def narrows(self) -> bool:
        return self.inner.narrows

    @property
    def wide(self) -> bool:
        return self.inner.wide

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        self.products += 1
        return self.inner.times(x, narrow=narrow)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        self.products += 1
        return self.inner.transposed_times(y, narrow=narrow)


@pytest.mark.parametrize("strongest", [1e4, 3e4])
def test_what_float32_hides_is_found_in_float64(strongest: float) -> None:
    """A few values far above the wanted ones, as the inputs of trained models have them."""
    s = torch.cat([torch.full((3,), strongest, dtype=torch.float64), INDEX[3:] ** -0.5])
    a = with_spectrum(300, SIDE, s)
    assert leading_subspace(a.to(torch.float32), 12, accuracy=2e-3, rng=generator()) is None
    found = leading_subspace(a, 12, accuracy=2e-3, rng=generator())
    assert found is not None
    assert error_of(a, found) <= 1.002 * float(s[12:].norm())
    assert float(found.s[11]) == pytest.approx(float(s[11]), rel=3e-2)


def test_what_float64_hides_is_left_to_an_exact_way() -> None:
    s = torch.cat([torch.full((3,), 1e8, dtype=torch.float64), INDEX[3:] ** -0.5])
    assert leading_subspace(with_spectrum(300, SIDE, s), 12, accuracy=2e-3, rng=generator()) is None


def test_who_does_not_converge_is_given_up_after_the_steps() -> None:
    """Values that hardly fall, and an accuracy beyond reach: a start, so many steps of two products each and one to judge by, no more."""
    a = Counted(InMemory(with_spectrum(300, SIDE, INDEX**-0.02).to(torch.float32)))
    assert leading_subspace(a, 5, accuracy=1e-6, rng=generator(), energy=float((INDEX**-0.04).sum())) is None
    assert a.products == 1 + 2 * most_steps(5 + oversampling(5, SIDE), SIDE) + 1


def test_the_energy_of_products_must_be_given() -> None:
    with pytest.raises(ValueError, match="the energy of a matrix that is known by products must be given"):
        leading_subspace(InMemory(gaussian(9, 8)), 2, accuracy=1e-2, rng=generator())


def test_the_noise_of_bfloat16_is_what_rounding_makes() -> None:
    x = gaussian(300, 300)
    rounded = x.to(torch.bfloat16).to(torch.float64)
    assert float((rounded - x).square().sum() / x.square().sum()) == pytest.approx(randomized.BFLOAT16_NOISE, rel=0.2)


@dataclass
class Noted(Counted):
    """Which of the products were narrow ones, whatever the processor."""

    narrow: list[bool] = field(default_factory=list)

    @property
    def narrows(self) -> bool:
        return True

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        self.narrow.append(narrow)
        return super().times(x, narrow=narrow)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        self.narrow.append(narrow)
        return super().transposed_times(y, narrow=narrow)


def test_a_fixed_number_of_steps_runs_in_float32_throughout() -> None:
    a = Noted(InMemory(with_spectrum(300, SIDE, INDEX**-0.5).to(torch.float32)))
    subspace_iteration(a, 9, steps=2, oversampling=4, rng=generator())
    assert a.narrow == [False] * 6


@pytest.mark.parametrize("accuracy", [5e-3, 1e-3])
def test_only_the_product_to_judge_by_is_a_wide_one(accuracy: float) -> None:
    """None is made to look at what is not hoped to be good enough yet."""
    a = Noted(InMemory(with_spectrum(300, SIDE, INDEX**-0.5).to(torch.float32)))
    found = leading_subspace(a, 20, accuracy=accuracy, rng=generator(), energy=float((1 / INDEX).sum()))
    assert found is not None
    assert found.steps > 1
    assert a.narrow == [True] * (1 + 2 * found.steps) + [False]


def test_the_rounding_that_is_told_counts_the_longest_chain_of_sums() -> None:
    """128 products and their sums, ten sums of these, the last product's rounding and that of what is stored."""
    half = 2.0**-24
    assert InMemory(torch.zeros(1280, 3)).rounding == pytest.approx((128 + 10 + 2) * half)
    assert InMemory(torch.zeros(1280, 3, dtype=torch.float64)).rounding == pytest.approx((128 + 10 + 4) * half)


def test_the_excess_is_half_of_what_is_missed_of_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is the root of an energy: of a tail t with m too much it is ``1 + m / (2 t)`` times the smallest."""
    monkeypatch.setattr(Outlook, "missed", lambda *_: 1e-3)
    a = with_spectrum(300, SIDE, INDEX**-0.5).to(torch.float32)
    found = leading_subspace(a, 20, accuracy=1e-2, rng=generator())
    assert found is not None
    tail = float((1 / INDEX).sum() - found.s.square().sum())
    assert found.excess == pytest.approx(1e-3 / (2 * tail), rel=1e-4)


def test_once_in_float64_no_product_is_narrow() -> None:
    s = torch.cat([torch.full((3,), 1e4, dtype=torch.float64), INDEX[3:] ** -0.5])
    a = Noted(InMemory(with_spectrum(300, SIDE, s)))
    found = leading_subspace(a, 12, accuracy=2e-3, rng=generator(), energy=float(s.square().sum()))
    assert found is not None
    assert found.basis.dtype == torch.float64
    assert a.narrow[:2] == [True, True]
    assert not any(a.narrow[2:])
    assert error_of(with_spectrum(300, SIDE, s), found) <= 1.002 * float(s[12:].norm())


def test_in_float64_no_product_is_narrow_where_narrow_ones_would_do() -> None:
    """One value far above others that are alike, and an accuracy that anything has: what float32 hides would not be blurred."""
    s = torch.cat([torch.tensor([1.1e4]), torch.ones(SIDE - 1)]).to(torch.float64)
    a = Noted(InMemory(with_spectrum(300, SIDE, s)))
    found = leading_subspace(a, 12, accuracy=40.0, rng=generator(), energy=float(s.square().sum()))
    assert found is not None
    assert found.basis.dtype == torch.float64
    assert a.narrow == [True, True] + [False] * (1 + 2 * found.steps)


def test_blurred_products_are_made_anew_in_float32_before_anything_is_judged_by_them() -> None:
    """An accuracy that bfloat16 can't show: the start and the first look are narrow, all others are not."""
    a = Noted(InMemory(with_spectrum(300, SIDE, INDEX**-0.5).to(torch.float32)))
    found = leading_subspace(a, 20, accuracy=1e-5, rng=generator(), energy=float((1 / INDEX).sum()))
    assert found is not None
    assert a.narrow == [True, True] + [False] * (2 * found.steps)
    assert found.steps > 1


@pytest.mark.parametrize(("shape", "oversampled", "columns"), [((50, 40), 6, 10), ((50, 8), 6, 8), ((7, 40), 6, 7)])
def test_directions_of_a_fixed_iteration_are_no_more_than_there_are(
    shape: tuple[int, int], oversampled: int, columns: int
) -> None:
    found = subspace_iteration(InMemory(gaussian(*shape)), 4, steps=1, oversampling=oversampled, rng=generator())
    assert found.basis.shape == (shape[0], columns)
    assert found.u.shape == (shape[0], 4)
    assert (found.steps, found.excess) == (1, None)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="a number of steps is not below 0: -1"):
        subspace_iteration(InMemory(gaussian(5, 4)), 2, steps=-1, oversampling=1, rng=generator())
