"""What an iteration is said to miss, against what it does miss: spectra are known, so that both can be had."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from market import generator
from torch import Tensor

from eckart.kernels.convergence import CHANCE, GAINED, GAINED_AT_FIRST, SEEN, Outlook, contractions
from eckart.kernels.randomized import oversampling

SIDE = 700
INDEX = torch.arange(1, SIDE + 1, dtype=torch.float64)
EVENLY = torch.linspace(0, 1, SIDE, dtype=torch.float64)
SPECTRA = {
    "k^-0.2": INDEX**-0.2,
    "k^-0.35": INDEX**-0.35,
    "k^-0.5": INDEX**-0.5,
    "k^-0.7": INDEX**-0.7,
    "1/k": 1 / INDEX,
    "slow, ending": INDEX**-0.2 * (1 - INDEX / (SIDE + 1)).sqrt(),
    "exponential": torch.exp(-INDEX / 30) + 1e-2,
    "slowly exponential": torch.exp(-INDEX / 300) + 1e-2,
    "step": torch.where(INDEX < 100, 1.0, 0.5) * torch.ones(SIDE, dtype=torch.float64),
    "linear": 1 - 0.98 * EVENLY,
    "quadratic": (1 - EVENLY) ** 2 + 1e-3,
    "spiked": torch.cat([torch.linspace(20, 3, 40, dtype=torch.float64), (1 - 0.98 * EVENLY)[:-40]]),
    "above a floor": (1 / INDEX + 1e-3).sqrt(),
}
NEGLIGIBLE = 1e-4  # as a share of the error; what is missed there is of no concern to anybody


@dataclass(frozen=True)
class Seen:
    """A basis as the iteration sees it, and the energy that it misses."""

    energies: Tensor
    outlook: Outlook
    missed: float


def iterated(s: Tensor, rank: int, steps: int) -> Iterator[Seen]:
    """The same iteration on ``diag(s)``, to which any matrix with these values comes by rotations, in float64."""
    y = s[:, None] * torch.randn(SIDE, rank + oversampling(rank, SIDE), generator=generator(rank), dtype=torch.float64)
    for _ in range(steps):
        q = torch.linalg.qr(y).Q
        image = s.square()[:, None] * q
        energies, turn = torch.linalg.eigh(q.T @ image)
        energies, turn = energies.flip(0), turn.flip(1)
        beside = torch.linalg.vector_norm((image @ turn - q @ turn * energies)[:, :rank], dim=0).square()
        missed = float(s[:rank].square().sum() - energies[:rank].sum())
        yield Seen(energies, Outlook.of(energies, beside), missed)
        y = image - energies[-1] / 2 * q


@pytest.mark.parametrize("rank", [8, 24, 64, 170])
@pytest.mark.parametrize("name", SPECTRA)
def test_what_is_missed_is_within_what_is_said(name: str, rank: int) -> None:
    s = SPECTRA[name]
    tail = float(s[rank:].square().sum())
    seen = list(iterated(s, rank, 6))
    for step, (before, after) in enumerate(itertools.pairwise(seen), start=1):
        assert after.missed <= max(SEEN * before.outlook.now, 2 * NEGLIGIBLE * tail)
        told = before.outlook.missed((after.energies - before.energies)[:rank], after.energies, step)
        assert after.missed <= max(told, 2 * NEGLIGIBLE * tail)


@pytest.mark.parametrize("name", ["k^-0.5", "slow, ending", "1/k", "quadratic"])
def test_it_is_not_said_to_be_much_worse_than_it_is(name: str) -> None:
    s, rank = SPECTRA[name], 64
    seen = list(iterated(s, rank, 4))
    told = [
        b.outlook.missed((a.energies - b.energies)[:rank], a.energies, step)
        for step, (b, a) in enumerate(itertools.pairwise(seen), start=1)
    ]
    assert told[0] <= 2.5 * seen[1].missed
    assert told[1] <= 2.2 * seen[2].missed
    assert told[2] <= 2.2 * seen[3].missed


def test_a_shift_is_worth_half_a_step() -> None:
    """Two steps with shifts miss less than half of what two steps without them do, and twice what three such steps do at the most."""
    s, rank = SPECTRA["k^-0.5"], 64
    shifted = [seen.missed for seen in iterated(s, rank, 3)]
    y = s[:, None] * torch.randn(SIDE, rank + oversampling(rank, SIDE), generator=generator(rank), dtype=torch.float64)
    plain = []
    for _ in range(4):
        q = torch.linalg.qr(y).Q
        plain.append(
            float(s[:rank].square().sum() - torch.linalg.eigvalsh(q.T @ (s.square()[:, None] * q)).flip(0)[:rank].sum())
        )
        y = s.square()[:, None] * q
    assert shifted[2] <= plain[2] / 2
    assert shifted[2] <= 2 * plain[3]


def test_flat_values_miss_nothing() -> None:
    """No gap and no gain: what is not there is not waited for."""
    energies = torch.ones(12, dtype=torch.float64)
    outlook = Outlook.of(energies, torch.full((8,), 1e-20, dtype=torch.float64))
    assert outlook.hoped(1) <= 1e-8
    assert outlook.missed(torch.full((8,), 1e-16, dtype=torch.float64), energies, 2) <= 1e-8


def test_what_gained_nothing_misses_nothing_even_where_no_step_was_to_help() -> None:
    energies = torch.ones(40, dtype=torch.float64)
    assert Outlook(now=1.0, then=1.0).missed(torch.zeros(8, dtype=torch.float64), energies, 3) == 0.0


def test_zero_values_have_no_rate() -> None:
    assert contractions(torch.tensor([1.0, 0.0, 0.0]), 2).tolist() == [0.0, 1.0]


# ---- by hand --------------------------------------------------------------------------------------------------------


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_an_outlook_is_the_larger_eigenvalue_of_two_by_two() -> None:
    """By LAPACK: ``[[e, c], [c, l]]`` for every wanted direction, less e; and what a step takes of it, ``(l / e)^2``."""
    energies, beside = doubles(9.0, 4.0, 2.5, 1.0, 0.5), doubles(3.0, 0.2, 1e-3)
    now, then = 0.0, 0.0
    for e, c2 in zip((9.0, 4.0, 2.5), (3.0, 0.2, 1e-3), strict=True):
        gain = float(np.linalg.eigvalsh([[e, c2**0.5], [c2**0.5, 0.5]])[-1]) - e
        now += gain
        then += gain * (0.5 / e) ** 2
    found = Outlook.of(energies, beside)
    assert found.now == pytest.approx(now, rel=1e-12, abs=0.0)
    assert found.then == pytest.approx(then, rel=1e-12, abs=0.0)


def test_contractions_are_squared_ratios_to_the_last_energy() -> None:
    assert contractions(doubles(8.0, 4.0, 2.0, 1.0), 3).tolist() == [1 / 64, 1 / 16, 1 / 4]
    assert contractions(doubles(8.0, 4.0, 2.0), 3).tolist() == [1 / 16, 1 / 4, 1.0]


def test_hope_is_three_times_the_outlook_at_first_and_less_later() -> None:
    """No more than twice what is missed now."""
    outlook = Outlook(now=10.0, then=2.0)
    assert [outlook.hoped(step) for step in (0, 1, 2)] == [6.0, 2.8, 2.8]
    assert Outlook(now=1.0, then=1.0).hoped(0) == 2.0
    assert Outlook(now=0.5, then=1.0).hoped(1) == 1.0


def cautions(step: int, further: int) -> float:
    """By how much the estimate is more than what gained evenly would miss, for one wanted direction and so many further ones.

    The direction has an energy of 2 above others of 1: a step makes a quarter of what it misses. It was to gain 3 of 4.
    """
    energies = torch.cat([doubles(2.0), torch.ones(further, dtype=torch.float64)])
    return Outlook(now=4.0, then=1.0).missed(doubles(0.3), energies, step) / 0.1


def test_estimates_are_cautious_at_first_and_for_few_further_directions() -> None:
    assert [cautions(step, 1000) for step in (0, 1, 2, 3)] == pytest.approx(
        [GAINED_AT_FIRST + 8e-5] * 2 + [GAINED + 8e-5] * 2, rel=1e-9, abs=0.0
    )
    assert [cautions(3, further) for further in (1, 2, 8, 20, 40)] == pytest.approx(
        [min(80.0, GAINED + CHANCE), GAINED + 20.0, GAINED + 1.25, GAINED + 0.2, GAINED + 0.05], rel=1e-9, abs=0.0
    )
    assert (CHANCE, GAINED_AT_FIRST, GAINED) == (80.0, 1.75, 1.1)


def test_a_basis_without_further_directions_is_judged_as_if_it_had_one() -> None:
    """Chance decides nearly everything there, and twice what was missed before remains the most."""
    energies = doubles(2.0, 1.0)
    outlook = Outlook(now=4.0, then=1.0)
    # gains f g / (1 - f) with f of 1/4 and 1: the second one is taken to gain in a thousand steps.
    assert outlook.missed(doubles(3e-2, 1e-6), energies, 3) == pytest.approx((GAINED + CHANCE) * 1.1e-2, rel=1e-9)
    assert outlook.missed(doubles(3.0, 0.0), energies, 3) == 2 * 4.0


def test_what_gained_more_than_foreseen_misses_more_than_foreseen() -> None:
    """Gains of 0.6 where 0.3 was to come: twice the outlook, though the rates of the directions say a third of it."""
    energies = torch.cat([doubles(2.0), torch.ones(4000, dtype=torch.float64)])
    told = Outlook(now=0.6, then=0.3).missed(doubles(0.6), energies, 2)
    assert told == pytest.approx(0.6 * (GAINED + 80 / 4000**2), rel=1e-9, abs=0.0)
    less = Outlook(now=0.6, then=0.3).missed(doubles(0.06), energies, 2)
    assert less == pytest.approx(0.06 * (GAINED + 80 / 4000**2), rel=1e-9, abs=0.0)


def test_losses_are_no_gains() -> None:
    """Rounding may take something from a direction: that is not set off against what others gained."""
    energies = torch.cat([doubles(2.0, 2.0), torch.ones(4000, dtype=torch.float64)])
    outlook = Outlook(now=4.0, then=1.0)
    assert outlook.missed(doubles(0.3, -0.2), energies, 2) == outlook.missed(doubles(0.3, 0.0), energies, 2) > 0.1


def test_directions_without_a_gap_are_taken_to_gain_in_a_thousand_steps() -> None:
    energies = torch.ones(4001, dtype=torch.float64)
    told = Outlook(now=1.0, then=1.0).missed(doubles(1e-4), energies, 2)
    assert told == pytest.approx(0.1 * (GAINED + 80 / 4000**2), rel=1e-9, abs=0.0)
