"""What an approximation tells of the best one of its rank, its own error being known: figures worked by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from market import generator, with_spectrum
from torch import Generator, Tensor

from eckart.kernels.norms import SpectralNorm
from eckart.linalg import enclosure, measured_bounds
from eckart.linalg.factors import Basis
from eckart.metric import Metric
from eckart.operator import Factors

EPS = 2.0**-52


@dataclass(frozen=True)
class Known:
    """A remainder of which everything is stated."""

    target: Tensor
    error: Tensor
    slack: float = 0.0
    reach: float = 0.0
    eps: float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.error.shape
        return m, n

    @property
    def size(self) -> float:
        return float(torch.linalg.vector_norm(self.error))

    def times(self, x: Tensor) -> Tensor:
        return self.error @ x

    def image(self, q: Tensor) -> Tensor:
        return q.T @ self.target

    def spectral_norm(self, rng: Generator) -> SpectralNorm:
        top = float(torch.linalg.matrix_norm(self.error, 2))
        return SpectralNorm(top, top, 0.0, torch.eye(2, dtype=torch.float64)[1:])


def told(
    unit: float = 1.0,
    *,
    beside: float = 0.0,
    coupling: float = 0.1,
    below: float = 1.0,
    grain: float = 0.0,
    slack: float = 0.0,
    reach: float = 0.0,
    eps: float = 0.0,
) -> enclosure._Floors:
    """Of ``unit * [[1, 0], [coupling, below]]`` approximated by its first row, or by ``1 + beside`` times that row."""
    w = unit * torch.tensor([[1.0, 0.0], [coupling, below]], dtype=torch.float64)
    left = torch.eye(2, 1, dtype=torch.float64)
    right = (1 + beside) * w[:1]
    residual = Known(w, w - left @ right, slack * unit, reach * unit, eps)
    basis = Basis(left, torch.eye(1, dtype=torch.float64), w[:1], grain * unit)
    return enclosure._posterior(residual, right, basis, residual.spectral_norm(generator()))


# ---- what an approximation tells of the optimum ---------------------------------------------------------------------
#
# With b = 1 the energy of the first row, v the square of a bound on the norm of what is below it, and c the coupling, at most
# v + s - 1 + c**2 / s can be captured: least at s = c, which is one of the values tried where c is a tenth.


@pytest.mark.parametrize("unit", [1.0, 2.0**-10, 2.0**10])
@pytest.mark.parametrize("below", [1.0, 2.0])
def test_the_least_of_what_may_be_captured_worked_by_hand(below: float, unit: float) -> None:
    """The second row has all of v, so that 1 - 2 c is left."""
    floors = told(unit, below=below)
    assert floors.tail == pytest.approx(unit * math.sqrt(0.8), rel=1e-12)
    values = np.linalg.svd([[1.0, 0.0], [0.1, below]])[1]
    assert floors.top == pytest.approx(unit * values[0], rel=1e-12)
    assert floors.value == pytest.approx(unit * values[1], rel=1e-12)
    assert floors.tail <= unit * values[1]


@pytest.mark.parametrize("power", range(0, 48, 5))
def test_every_coupling_has_a_value_near_it(power: int) -> None:
    """From a share of 1 to one of 1e-12, four in each power of ten."""
    coupling = 10.0 ** (-power / 4)
    tail = told(coupling=coupling, below=3.0).tail
    assert tail**2 == pytest.approx(max(0.0, 1 - 2 * coupling), rel=1e-12, abs=1e-14)


def test_without_any_coupling_a_trillionth_is_given_away() -> None:
    assert told(coupling=0.0).tail ** 2 == pytest.approx(1 - 1e-12, rel=2e-15, abs=0.0)


def test_what_the_right_factor_misses_within_the_span_is_no_coupling() -> None:
    """It widens v, a bound on the norm of the whole error plus what it misses, and is no part of what is below."""
    floors = told(beside=0.25, below=2.0)
    whole = np.linalg.svd([[-0.25, 0.0], [0.1, 2.0]])[1][0]
    v = (whole + 0.25) ** 2
    assert floors.tail**2 == pytest.approx(max(0.0, 4.01 - (v - 0.8)), rel=1e-12)
    near = told(beside=0.01, below=2.0)
    whole = np.linalg.svd([[-0.01, 0.0], [0.1, 2.0]])[1][0]
    assert near.tail**2 == pytest.approx(4.01 - ((whole + 0.01) ** 2 - 0.8), rel=1e-12)
    assert near.tail > 0.8


def test_what_rounding_did_to_the_error_is_allowed_for() -> None:
    """By 0.02: what is left is less, its norm is more, and the coupling of 0.08 may be 0.1."""
    floors = told(coupling=0.08, slack=0.02)
    size = math.hypot(0.08, 1.0)
    assert floors.tail**2 == pytest.approx((size - 0.02) ** 2 - ((size + 0.02) ** 2 - 0.8), rel=1e-12)


def test_what_rounding_did_to_the_image_is_allowed_for() -> None:
    """By 0.01 in the coupling, the norm, what is captured and what is left; and in the value that is seen."""
    floors = told(coupling=0.09, grain=0.01)
    size = math.hypot(0.09, 1.0)
    assert floors.tail**2 == pytest.approx(size**2 - ((size + 0.01) ** 2 - 0.8) - 0.02 * (1 + size), rel=1e-12)
    assert floors.value == pytest.approx(np.linalg.svd([[1.0, 0.0], [0.09, 1.0]])[1][1] - 0.01, rel=1e-12)


def test_products_with_a_far_larger_matrix_are_as_coarse_as_that() -> None:
    """Sixteen roundings for each of two rows, relative to its reach: a hundredth here."""
    reach = 0.01 / (16 * EPS * 2)
    assert told(coupling=0.09, reach=reach).tail == pytest.approx(told(coupling=0.09, grain=0.01).tail, rel=1e-12)
    assert told(coupling=0.09, reach=reach).value == pytest.approx(told(coupling=0.09, grain=0.01).value, rel=1e-12)


def test_products_with_the_error_are_as_coarse_as_its_numbers() -> None:
    """A rounding of each of two rows: 0.02 of the coupling, and of nothing else."""
    size = math.hypot(0.08, 1.0)
    floors = told(coupling=0.08, eps=0.01 / size)
    assert floors.tail**2 == pytest.approx(size**2 - (size**2 - 0.8), rel=1e-12)


def test_an_error_that_may_be_rounding_altogether_tells_nothing() -> None:
    assert told(coupling=0.0, below=1e-3, slack=1e-2).tail == 0.0
    assert told(coupling=0.7, below=1.0).tail == 0.0
    assert told(coupling=0.0, below=1e-3, grain=0.5).value == 0.0


def test_a_value_that_the_energy_of_others_may_hide_is_lessened_by_what_that_may_hide() -> None:
    """Squares of 1 and 1e-12, and 16 roundings of their sum for each of the two."""
    seen = told(coupling=0.0, below=1e-6).value
    assert seen == pytest.approx(math.sqrt(1e-12 - 2 * 16 * EPS), rel=3e-4, abs=0.0)
    assert told(coupling=0.0, below=1e-8).value == 0.0


@pytest.mark.parametrize("within", [1e-9, 0.6, 1.0, 1e6])
def test_directions_that_lie_within_the_span_are_not_counted_twice(within: float) -> None:
    """Three probes of a matrix with three rows, of which the basis holds two already."""
    w = torch.diag(torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64))
    left = torch.eye(3, 2, dtype=torch.float64)
    basis = Basis(left, torch.eye(2, dtype=torch.float64), w[:2])
    residual = Known(w, w - left @ w[:2])
    probes = torch.tensor([[within, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    floors = enclosure._posterior(residual, w[:2], basis, SpectralNorm(0.5, 0.5, 0.0, probes))
    assert floors.value == pytest.approx(0.5, rel=1e-9)
    assert floors.top == pytest.approx(3.0, rel=1e-12)


def test_a_left_factor_of_full_rank_leaves_no_value() -> None:
    w = with_spectrum(3, 5, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    frobenius, spectral = measured_bounds(
        w, Factors(torch.eye(3).double(), 1.5 * w), Metric.plain(), None, rng=generator()
    )
    assert (frobenius.lower, spectral.lower) == (0.0, 0.0)
    assert spectral.scale == pytest.approx(3.0, rel=1e-12)
    assert spectral.achieved == pytest.approx(1.5, rel=1e-12)
