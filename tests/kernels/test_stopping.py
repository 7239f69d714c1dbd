"""When an iteration looks at what it has, what it tells of it, and when it stops."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from market import float64, generator, with_spectrum
from torch import Tensor

from eckart.kernels import randomized
from eckart.kernels.convergence import Outlook
from eckart.kernels.randomized import (
    InMemory,
    Subspace,
    leading_subspace,
    most_steps,
    oversampling,
    subspace_iteration,
)

SIDE = 240
INDEX = torch.arange(1, SIDE + 1, dtype=torch.float64)


@dataclass
class Judged:
    """What an iteration is told about its basis, and what it showed to hear it; stands in for the estimates."""

    hoped: float = 0.0
    missed: float = 0.0
    shown: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    hopes: list[int] = field(default_factory=list)

    def instead(self, monkeypatch: pytest.MonkeyPatch) -> "Judged":
        monkeypatch.setattr(Outlook, "hoped", lambda _, step: (self.hopes.append(step), self.hoped)[1])
        monkeypatch.setattr(Outlook, "missed", lambda _, *shown: (self.shown.append(shown), self.missed)[1])
        return self


FALLING = with_spectrum(300, SIDE, INDEX**-0.5).to(torch.float32)
ENERGY = float((1 / INDEX).sum())


def led(accuracy: float, energy: float = ENERGY) -> Subspace | None:
    return leading_subspace(FALLING, 20, accuracy=accuracy, rng=generator(), energy=energy)


def error_of(a: Tensor, u: Tensor) -> float:
    q = np.linalg.qr(float64(u))[0]
    return float(np.linalg.norm(float64(a) - q @ (q.T @ float64(a))))


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomized, "_has_bfloat16", lambda _: False)


@pytest.mark.parametrize("energy", [ENERGY, 2 * ENERGY])
@pytest.mark.usefixtures("in_float32")
def test_twice_the_accuracy_of_the_tail_may_be_missed(energy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first basis that is looked at, that after a step, decides; the tail is what the energy that is told leaves."""
    judged = Judged(missed=0.02).instead(monkeypatch)
    first = led(1.0, energy)
    assert first is not None
    assert (first.steps, judged.hopes) == (1, [0])
    share = judged.missed / (2 * (energy - float(first.s.square().sum())))
    assert first.excess == pytest.approx(share, rel=1e-12)
    enough = led(1.001 * share, energy)
    assert enough is not None
    assert enough.steps == 1
    assert led(0.999 * share, energy) is None


@pytest.mark.usefixtures("in_float32")
def test_a_basis_is_looked_at_if_there_is_hope(monkeypatch: pytest.MonkeyPatch) -> None:
    """The energies before the first step, as products in float32 show them, say how much may be hoped for."""
    first = subspace_iteration(InMemory(FALLING), 20, steps=0, oversampling=oversampling(20, SIDE), rng=generator())
    tail = ENERGY - float(first.s.square().sum())
    Judged(hoped=0.02).instead(monkeypatch)
    enough = led(1.001 * 0.02 / (2 * tail))
    assert enough is not None
    assert (enough.steps, enough.excess) == (1, 0.0)
    assert led(0.999 * 0.02 / (2 * tail)) is None


@pytest.mark.usefixtures("in_float32")
def test_gains_are_told_from_one_step_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(missed=1e9).instead(monkeypatch)
    assert led(1e-2) is None
    steps = [step for *_, step in judged.shown]
    assert steps == list(range(1, most_steps(30, SIDE) + 1))
    for (_, before, _), (gains, after, _) in itertools.pairwise(judged.shown):
        assert torch.equal(gains, (after - before)[:20])
        assert len(after) == 30
    gained, at_first, _ = judged.shown[0]
    # Against the basis before the first step, from the same start.
    start = subspace_iteration(InMemory(FALLING), 20, steps=0, oversampling=10, rng=generator())
    assert float64(at_first[:20] - gained) == pytest.approx(float64(start.s.square()), rel=1e-4)


@pytest.mark.usefixtures("in_float32")
def test_what_is_returned_is_as_precise_as_what_it_was_seen_by() -> None:
    """Householder's basis, and the Ritz values of its image in float64: rows that are orthogonal and of these lengths."""
    for spectrum in (INDEX**-0.5, torch.cat([torch.linspace(5, 1, 40).double(), 1e-1 * INDEX[:200] ** -0.5])):
        a = with_spectrum(300, SIDE, spectrum).to(torch.float32)
        found = leading_subspace(a, 20, accuracy=2e-3, rng=generator())
        assert found is not None
        assert found.skew <= 4e-6
        rows = float64(found.image) @ float64(found.image).T
        assert np.abs(rows - np.diag(float64(found.s) ** 2)).max() <= 1e-12 * float(found.s[0]) ** 2
        assert np.abs(float64(found.u) - float64(found.basis) @ float64(found.basis).T @ float64(found.u)).max() <= 1e-5
        assert found.floor == 0.0
        assert found.beyond == pytest.approx(float(spectrum[20:30].square().sum()), rel=0.3)


@pytest.mark.parametrize("power", [-100, -80, 70, 110])
def test_a_scale_whose_squares_leave_the_range_of_float32_changes_nothing(power: int) -> None:
    """Neither how many steps are taken nor what is said of the error, which holds."""
    plain, scaled = (leading_subspace(FALLING * s, 20, accuracy=2e-3, rng=generator()) for s in (1.0, 2.0**power))
    assert plain is not None
    assert scaled is not None
    assert plain.steps == scaled.steps > 1
    assert scaled.excess == pytest.approx(plain.excess, rel=1e-3)
    assert error_of(FALLING.double(), scaled.u) <= 1.002 * float(INDEX[20:].rsqrt().norm())
    one, other = (
        subspace_iteration(InMemory(FALLING * s), 20, steps=2, oversampling=5, rng=generator())
        for s in (1.0, 2.0**power)
    )
    assert float64(other.s) / 2.0**power == pytest.approx(float64(one.s), rel=1e-5)


@pytest.mark.usefixtures("in_float32")
def test_just_as_much_as_is_allowed_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit: at an accuracy of a half all of the tail may be missed, and may be hoped for."""
    seen: list[Tensor] = []

    def noted(energies: Tensor, beside: Tensor) -> Outlook:
        seen.append(energies)
        return Outlook(0.0, 0.0)

    monkeypatch.setattr(Outlook, "of", noted)
    first = Judged().instead(monkeypatch)
    assert led(0.5) is not None
    before, after = (ENERGY - float(energies[:20].sum()) for energies in (seen[0], first.shown[0][1]))
    judged = Judged(hoped=before, missed=after).instead(monkeypatch)
    found = led(0.5)
    assert found is not None
    assert (found.steps, judged.hopes) == (1, [0])
    assert found.excess == 0.5


@pytest.mark.parametrize(("energy", "iterated"), [(1.1e-150, True), (0.9e-150, False), (0.9e70, True), (1.1e70, False)])
def test_what_leaves_the_range_of_float32_by_far_is_left_to_an_exact_way(energy: float, iterated: bool) -> None:
    """Infinities in float32 on the one side, and squares of energies that are nothing in float64 on the other."""
    a = with_spectrum(300, SIDE, INDEX**-0.5) * (energy / ENERGY) ** 0.5
    found = leading_subspace(a, 20, accuracy=2e-3, rng=generator())
    assert (found is not None) is iterated
    if found is not None:
        unit = float(found.s[0])
        assert error_of(a / unit, found.u) <= 1.002 * float(INDEX[20:].rsqrt().norm())
        assert found.excess == pytest.approx(1e-3, rel=0.5)
