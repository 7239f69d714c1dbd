"""Eigenvectors in float32 by hand: of an identity they are exact, so that every allowance can be told from the figures."""

import math

import numpy as np
import pytest
import torch
from market import float64, gaussian, with_spectrum
from torch import Tensor

from eckart.kernels import single
from eckart.kernels.single import single_precision_subspace

EPS32, EPS64 = 2.0**-23, 2.0**-52
SHAPES = [(40, 40), (40, 60), (60, 40)]


@pytest.mark.parametrize("scale", [1.0, 3.0, 2.0**-20])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_hides_more_than_the_accuracy_is_not_looked_at(shape: tuple[int, int], scale: float) -> None:
    """A unit of rounding of the norm for the root of rank and side: beside twice the accuracy's share of what is left."""
    hides = math.sqrt(20 * 40) * EPS32 * math.sqrt(40)
    w, energy = scale * torch.eye(*shape), scale**2 * 40
    assert single_precision_subspace(w, 20, accuracy=1.01 * hides / (2 * 20), energy=energy) is not None
    assert single_precision_subspace(w, 20, accuracy=0.99 * hides / (2 * 20), energy=energy) is None


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_sixteen_units_for_both_sides_are_between_the_floor_and_the_optimum(
    shape: tuple[int, int], scale: float
) -> None:
    w, energy = scale * torch.eye(*shape), scale**2 * 40
    found = single_precision_subspace(w, 20, accuracy=1e-3, energy=energy)
    assert found is not None
    rounding = 16 * EPS64 * (max(shape) + 40) * math.sqrt(20) * energy
    assert energy / 2 - found.floor**2 == pytest.approx(rounding, rel=1e-2, abs=0.0)
    assert found.excess == pytest.approx(rounding / energy, rel=1e-2, abs=0.0)
    assert (found.beyond, found.steps) == (0.0, 0)
    assert float64(found.s) == pytest.approx(scale)
    assert found.basis.dtype == torch.float32
    assert torch.equal(found.u, found.basis.to(torch.float64))
    assert found.image.dtype == torch.float64


def test_vectors_that_are_too_long_are_paid_for_thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ``1 + d`` all of them: ``norm(E)`` and ``norm(F)`` are ``(2 d + d^2) sqrt(40)``, and the image counts for less."""
    d, eigh = 2.0**-10, torch.linalg.eigh

    def longer(a: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(a)
        return values, vectors * (1 + d)

    monkeypatch.setattr(torch.linalg, "eigh", longer)
    found = single_precision_subspace(torch.eye(40, 60), 20, accuracy=0.1, energy=40.0)
    assert found is not None
    squared = 2 * d + d**2
    floor = math.sqrt(20 - math.sqrt(20) * 2 * squared * math.sqrt(40))
    left = 40 - (1 - squared * math.sqrt(20)) * (1 + d) ** 2 * 20
    assert found.floor == pytest.approx(floor, rel=1e-9, abs=0.0)
    assert found.excess == pytest.approx(math.sqrt(left) / floor - 1, rel=1e-6, abs=0.0)
    within = single_precision_subspace(torch.eye(40, 60), 20, accuracy=1.001 * found.excess, energy=40.0)
    beyond = single_precision_subspace(torch.eye(40, 60), 20, accuracy=0.999 * found.excess, energy=40.0)
    assert within is not None
    assert beyond is None


def test_an_energy_that_the_directions_use_up_leaves_no_floor() -> None:
    """What is left is nothing then, and less: no share of that can be told."""
    for energy in (15.0, 20.0, 19.9999999):
        assert single_precision_subspace(torch.eye(40), 20, accuracy=0.1, energy=energy) is None


def test_an_image_that_holds_more_than_was_foreseen_is_no_better_than_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    eigh = torch.linalg.eigh

    def shrunk(a: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(a)
        return 0.9 * values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", shrunk)
    monkeypatch.setattr(single, "_misfit", lambda *_: 0.0)
    found = single_precision_subspace(torch.eye(40), 20, accuracy=0.1, energy=40.0)
    assert found is not None
    assert found.floor == pytest.approx(math.sqrt(22), rel=1e-6)
    assert found.excess == 0.0


def test_the_misfit_is_that_of_its_formula() -> None:
    """Of any values and vectors, whether they belong to the matrix or not."""
    x = gaussian(30, 12)
    gram, values, vectors = (
        x.T @ x,
        torch.linspace(5, 0, 12, dtype=torch.float64),
        gaussian(12, 12, 1).to(torch.float32),
    )
    u, d = float64(vectors), np.diag(float64(values))
    beside = np.sqrt(d) @ (u.T @ u - np.eye(12)) @ np.sqrt(d)
    expected = np.linalg.norm(float64(gram) - u @ d @ u.T) + np.linalg.norm(beside)
    assert single._misfit(gram, values, vectors) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("shape", [(30, 24), (24, 30), (24, 24)])
def test_what_is_given_belongs_to_the_matrix(shape: tuple[int, int]) -> None:
    w = with_spectrum(*shape, torch.linspace(4, 2, 24, dtype=torch.float64)).to(torch.float32)
    found = single_precision_subspace(w, 10, accuracy=1e-2, energy=float(w.double().square().sum()))
    assert found is not None
    left, s, right = np.linalg.svd(float64(w))
    assert float64(found.s) == pytest.approx(s[:10], rel=1e-6)
    assert float64(found.u) @ float64(found.image) == pytest.approx(left[:, :10] * s[:10] @ right[:10], abs=1e-4)
