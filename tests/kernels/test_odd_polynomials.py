"""The polar decomposition at its limits: polynomials whose turning points are known, scales in fractions, what LAPACK is given."""

import math

import pytest
import torch
from market import gaussian
from torch import Tensor

from eckart.linalg import CUBIC, QUINTIC, OddPolynomial, newton_schulz, polar

EPS = 2.0**-52
# Derivatives 3 (1 - x^2), 12 - 3 x^2, and (x^2 - 1) (x^2 - 4).
ONE_TURN, LATE_TURN, TWO_TURNS = OddPolynomial(3.0, -1.0), OddPolynomial(12.0, -1.0), OddPolynomial(4.0, -5 / 3, 1 / 5)


def test_the_value_is_that_of_the_formula() -> None:
    assert OddPolynomial(2.0, 3.0, 5.0)(2.0) == 2 * 2 + 3 * 8 + 5 * 32
    assert OddPolynomial(2.0, 3.0, 5.0)(-2.0) == -188.0
    assert OddPolynomial(2.0, 3.0)(3.0) == 2 * 3 + 3 * 27
    assert [QUINTIC(x) for x in (0.0, 1.0, -1.0)] == [0.0, 1.0, -1.0]
    assert QUINTIC(2.0) == 2 * (15 - 40 + 48) / 8


@pytest.mark.parametrize(
    ("polynomial", "interval", "image"),
    [
        (ONE_TURN, (0.0, 2.0), (-2.0, 2.0)),
        (ONE_TURN, (0.0, 0.5), (0.0, 1.375)),  # before the turn
        (ONE_TURN, (1.5, 2.0), (-2.0, 1.125)),  # behind it
        (ONE_TURN, (-1.5, 1.5), (-2.0, 2.0)),
        (LATE_TURN, (-3.0, 1.0), (-16.0, 11.0)),
        (LATE_TURN, (-1.0, 3.0), (-11.0, 16.0)),
        (OddPolynomial(-0.03, 1.0), (-0.15, 0.05), (-0.001375, 0.002)),  # turns at -0.1
        (TWO_TURNS, (0.5, 2.1), (16 / 15, 38 / 15)),
        (OddPolynomial(0.4, -1 / 6, 1 / 50), (0.5, 2.1), (16 / 150, 38 / 150)),  # a tenth of it
        (TWO_TURNS, (-2.1, -0.5), (-38 / 15, -16 / 15)),
        (TWO_TURNS, (1.5, 2.1), (16 / 15, 1.89375)),
        (OddPolynomial(2.0, 0.0), (-1.0, 3.0), (-2.0, 6.0)),
        (OddPolynomial(1.0, 1.0, 1.0), (-1.0, 2.0), (-3.0, 42.0)),  # no turn at all
        (OddPolynomial(-1.0, 0.0, 1 / 5), (0.0, 1.2), (-0.8, 0.0)),
    ],
)
def test_an_image_by_hand(polynomial: OddPolynomial, interval: tuple[float, float], image: tuple[float, float]) -> None:
    assert polynomial.image(*interval) == pytest.approx(image, rel=1e-14, abs=1e-16)


def test_steps_of_an_image_follow_each_other() -> None:
    assert OddPolynomial(2.0, 0.0).image(-1.0, 3.0, 3) == (-8.0, 24.0)
    assert ONE_TURN.image(0.5, 0.75, 0) == (0.5, 0.75)
    assert ONE_TURN.image(0.0, 0.5, 2) == ONE_TURN.image(0.0, 1.375)
    assert CUBIC.image(1.0, 1.0, 5) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float64, EPS), (torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-23)]
)
def test_the_scale_gives_back_one_rounding_for_each_row(dtype: torch.dtype, eps: float) -> None:
    """(3, 4) has the length 5, and everything on the way is exact; so is a column of sixteen."""
    assert newton_schulz(torch.tensor([[3.0], [4.0]], dtype=dtype), 0).scale == 5 * (1 + 2 * eps)
    assert newton_schulz(torch.tensor([[-3.0, 4.0]], dtype=dtype), 0).scale == 5 * (1 + 2 * eps)
    assert newton_schulz(torch.full((16, 1), 0.5, dtype=dtype), 0).scale == 2 * (1 + 16 * eps)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_zeros_have_no_scale_and_miss_every_direction(shape: tuple[int, int]) -> None:
    found = newton_schulz(torch.zeros(shape), 4)
    assert found.u.tolist() == [[0.0] * shape[1]] * shape[0]
    assert (found.scale, found.residual) == (0.0, math.sqrt(min(shape)))
    smallest = torch.zeros(shape)
    smallest[1, 2] = 1e-44
    assert newton_schulz(smallest, 40).u[1, 2] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_what_has_no_entries_has_no_scale_and_misses_nothing(shape: tuple[int, int]) -> None:
    found = newton_schulz(torch.zeros(shape), 2)
    assert (found.u.shape, found.scale, found.residual) == (shape, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(7, 4), (5, 4), (4, 4), (4, 5), (4, 7)])
def test_lapack_is_given_the_tall_orientation(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it is twice as fast on."""
    a, seen, svd = gaussian(*shape), [], torch.linalg.svd

    def noted(given: Tensor, *, full_matrices: bool) -> object:
        seen.append(given)
        return svd(given, full_matrices=full_matrices)

    monkeypatch.setattr(torch.linalg, "svd", noted)
    u, p = polar(a)
    assert [torch.equal(given, a if shape[0] >= shape[1] else a.T) for given in seen] == [True]
    assert float((u @ p - a).abs().max()) <= 1e-14
