"""Rules and views at their edges: what they are where nothing is said, which of several equals they take, and their figures by hand."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from market import float64, generator
from torch import Tensor

from eckart.kernels.selection import (
    DEIM,
    Candidates,
    Entries,
    Largest,
    LeadingVectors,
    RidgeVectors,
    Sampled,
    StrongRRQR,
)

EPS = 2.0**-52


def kahan(n: int, angle: float) -> Tensor:
    """Kahan's matrix, on which column pivoting sees nothing to exchange and misses a tiny singular value."""
    s, c = math.sin(angle), math.cos(angle)
    upper = torch.eye(n, dtype=torch.float64) - c * torch.ones(n, n, dtype=torch.float64).triu(1)
    return s ** torch.arange(n, dtype=torch.float64)[:, None] * upper * (1 - 1e-10 * torch.arange(n)).to(torch.float64)


def test_two_is_the_parameter_of_strong_rrqr_where_none_is_given() -> None:
    """On Kahan's matrix an exchange gains more than 2 and less than 3."""
    a = kahan(20, 1.4)
    by_f = {f: StrongRRQR(f=f)(a, 19, generator()).tolist() for f in (1.5, 2.0, 3.0, 4.0)}
    assert by_f[1.5] == by_f[2.0]
    assert by_f[3.0] == by_f[4.0] != by_f[2.0]
    assert StrongRRQR()(a, 19, generator()).tolist() == by_f[2.0]


def test_squared_norms_are_drawn_by_where_nothing_is_said() -> None:
    assert Sampled() == Sampled(power=2.0)
    assert Sampled() == Sampled(Entries())
    assert DEIM() == DEIM(LeadingVectors(None))
    assert RidgeVectors() == RidgeVectors(None)


def test_of_equal_columns_the_first_are_taken() -> None:
    """Of a hundred, where sorting that is not stable mixes them."""
    assert Largest()(torch.ones(2, 100), 5, generator()).tolist() == [0, 1, 2, 3, 4]


def test_of_equal_draws_the_first_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), 0.5, dtype=torch.float64))
    assert Sampled()(torch.ones(2, 100), 5, generator()).tolist() == [0, 1, 2, 3, 4]


def test_a_draw_of_nothing_is_drawn_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting time of zero, which is as likely as any number: its logarithm is that of the least number, and no infinity."""
    drawn = torch.tensor([0.5, 0.0, 0.25, 0.0], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda n, **_: drawn)
    assert Sampled()(torch.tensor([[1.0, 1.0, 1.0, 2.0]]), 4, generator()).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_noise_is_the_square_of_what_rounding_may_do_to_a_value(shape: tuple[int, int]) -> None:
    """16 units of the norm for every row of the larger side, of rows as of columns."""
    a = torch.zeros(shape)
    a[0, 0], a[1, 2] = 3e3, 4e3
    both = Candidates(a)
    assert both.noise == pytest.approx((16 * EPS * 5 * 5e3) ** 2, rel=1e-9, abs=0.0)
    assert both.T.noise == both.noise


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_the_noise_of_a_gram_matrix_is_what_its_energies_are_off_by(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit of the trace for each summand, and 16 units of the norm for each row, times the root of the smaller side."""
    monkeypatch.setattr(import_module("eckart.kernels.svd"), "LAPACK_SIDE", 0)
    a = torch.zeros(shape)
    a[0, 0], a[1, 2] = 3.0, 4.0
    expected = math.sqrt(3) * (5 * EPS * 25 + 16 * EPS * 3 * math.hypot(9, 16))
    assert Candidates(a).noise == pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_ridge_is_what_is_left_over_the_rank(rank: int) -> None:
    """Values 4, 2, 1 on a diagonal: every score is ``s^2 / (s^2 + ridge)``, also where the ridge is well below 1."""
    for size in (1.0, 1e-3, 1e3):
        s = np.array([4.0, 2.0, 1.0]) * size
        ridge = max(float(np.sum(s[rank:] ** 2)), (16 * EPS * 3 * float(np.linalg.norm(s))) ** 2) / rank
        shown = RidgeVectors(rank)(Candidates(torch.diag(torch.from_numpy(s))), 1)
        assert float64(shown.square().sum(0)) == pytest.approx(s**2 / (s**2 + ridge), rel=1e-12, abs=0.0)
        assert float64(RidgeVectors()(Candidates(torch.diag(torch.from_numpy(s))), rank)) == pytest.approx(
            float64(shown)
        )
