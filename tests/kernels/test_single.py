"""Eigenvectors in float32 with a certificate in float64: what it says holds whatever they are, and most of the time it says enough."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from market import as_if_large, gaussian, lapack_values, with_spectrum
from torch import Tensor

from eckart.kernels import single
from eckart.kernels.single import single_precision_subspace
from eckart.linalg import truncated_svd

INDEX = torch.arange(1, 121, dtype=torch.float64)
SPECTRA = {
    "k^-1/2": INDEX**-0.5,
    "slow": INDEX**-0.2,
    "flat": torch.ones(120, dtype=torch.float64),
    "step": torch.where(INDEX <= 50, 1.0, 0.3).to(torch.float64),
}


def energy_of(w: Tensor) -> float:
    return float(w.to(torch.float64).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(120, 120), (120, 200), (200, 120)])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_error_is_certified(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = with_spectrum(*shape, SPECTRA[name]).to(dtype)
    values = lapack_values(w)
    for rank in (45, 60, 100):
        found = single_precision_subspace(w, rank, accuracy=2e-3, energy=energy_of(w))
        assert found is not None
        assert found.excess is not None
        optimum = float(np.linalg.norm(values[rank:]))
        q = np.linalg.qr(found.u.numpy())[0]
        wide = w.to(torch.float64).numpy()
        error = float(np.linalg.norm(wide - q @ (q.T @ wide)))
        assert optimum / 1.001 <= found.floor <= optimum * (1 + 1e-14)
        assert error <= (1 + found.excess + 1e-6) * found.floor
        assert found.excess <= 1e-3
        assert found.skew <= 1e-4
        assert found.image.numpy() == pytest.approx(found.u.numpy().T @ wide, abs=1e-5 * float(values[0]))


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4, 1e-6])
def test_what_is_not_certified_to_be_good_enough_is_not_given(accuracy: float) -> None:
    """Values that fall fast: of what 60 directions leave, float32 knows less and less."""
    given = []
    for rate in (0.02, 0.05, 0.1, 0.2):
        w = with_spectrum(160, 120, torch.exp(-rate * INDEX)).to(torch.float32)
        found = single_precision_subspace(w, 60, accuracy=accuracy, energy=energy_of(w))
        given.append(found is not None)
        if found is not None:
            assert found.excess is not None
            assert found.excess <= accuracy
            assert found.floor <= float(np.linalg.norm(lapack_values(w)[60:])) * (1 + 1e-14)
    assert given == sorted(given, reverse=True)
    assert not given[-1]
    assert given[0] is (accuracy > 1e-5)


def swapped(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.arange(len(values))
    order[[0, -1]] = order[[-1, 0]]
    return values, vectors[:, order]


def skewed(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    return values, vectors * 1.01


def doubled(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    twice = vectors.clone()
    twice[:, 0] = vectors[:, -1]
    return values, twice


def shrunk(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    return values * 0.9, vectors


@pytest.mark.parametrize("wrong", [swapped, skewed, doubled, shrunk])
def test_wrong_eigenvectors_are_found_out(
    wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever LAPACK may do in float32: the bound stays below the optimum, and the result is refused."""
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: wrong(*eigh(a)))
    w = with_spectrum(120, 120, SPECTRA["k^-1/2"]).to(torch.float32)
    assert single_precision_subspace(w, 60, accuracy=2e-3, energy=energy_of(w)) is None
    found = single_precision_subspace(w, 60, accuracy=1e9, energy=energy_of(w))
    if found is not None:
        assert found.floor <= float(np.linalg.norm(lapack_values(w)[60:]))


def test_without_the_certificate_wrong_ones_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors of another matrix with a tenth less energy, and nothing that looks at them."""
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: shrunk(*eigh(a)))
    monkeypatch.setattr(single, "_misfit", lambda *_: 0.0)
    w = with_spectrum(120, 120, SPECTRA["k^-1/2"]).to(torch.float32)
    found = single_precision_subspace(w, 60, accuracy=1.0, energy=energy_of(w))
    assert found is not None
    assert found.floor > float(np.linalg.norm(lapack_values(w)[60:]))


def test_hopeless_cases_cost_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr(single, "_misfit", unwanted)
    w = with_spectrum(160, 120, torch.exp(-0.2 * INDEX)).to(torch.float32)
    assert single_precision_subspace(w, 60, accuracy=2e-3, energy=energy_of(w)) is None
    assert single_precision_subspace(torch.zeros(30, 40), 20, accuracy=2e-3, energy=0.0) is None


# ---- as a route -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(120, 160), (160, 120)])
def test_large_ranks_of_plain_matrices_take_it(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = with_spectrum(*shape, SPECTRA["k^-1/2"]).to(torch.float32)
    fit = truncated_svd(w, 60)
    assert fit.how.startswith("a float64 Gram matrix, its eigenvectors in float32: at most ")
    bound, optimum = fit.bounds[0], float(np.linalg.norm(lapack_values(w)[60:]))
    assert bound.delta is None
    assert bound.lower is not None
    assert optimum / 1.002 <= bound.lower <= optimum
    assert bound.achieved <= 1.002 * bound.lower
    assert len(fit.bounds) == 1


def test_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = with_spectrum(120, 160, SPECTRA["k^-1/2"]).to(torch.float32)
    ways = {
        "third": truncated_svd(w.to(torch.float64), 60),
        "allowed": truncated_svd(w, 60, accuracy=0.0),
        "more than a third": truncated_svd(w, 60, spectral=True),
        "does not tell": truncated_svd(with_spectrum(120, 160, torch.exp(-0.2 * INDEX)).to(torch.float32), 60),
    }
    for why, fit in ways.items():
        assert fit.how.startswith("exact, by a float64 Gram matrix: ")
        assert why in fit.how


def test_a_random_matrix_is_certified_within_a_hundredth_of_a_percent() -> None:
    w = gaussian(300, 200).to(torch.float32)
    found = single_precision_subspace(w, 100, accuracy=2e-3, energy=energy_of(w))
    assert found is not None
    assert found.excess is not None
    assert found.excess <= 1e-4
    assert math.isclose(found.floor, float(np.linalg.norm(lapack_values(w)[100:])), rel_tol=1e-4)


def test_what_is_certified_is_given_up_to_the_accuracy_and_no_further() -> None:
    w = with_spectrum(120, 150, SPECTRA["k^-1/2"]).to(torch.float32)
    found = single_precision_subspace(w, 60, accuracy=1.0, energy=energy_of(w))
    assert found is not None
    assert found.steps == 0
    assert found.excess is not None
    assert single_precision_subspace(w, 60, accuracy=1.001 * found.excess, energy=energy_of(w)) is not None
    assert single_precision_subspace(w, 60, accuracy=0.999 * found.excess, energy=energy_of(w)) is None


def test_what_float32_knows_exactly_is_still_no_more_than_the_optimum() -> None:
    """Of the identity eigenvectors are axes and leave no misfit: only the allowance for rounding is between."""
    found = single_precision_subspace(torch.eye(40), 20, accuracy=1e-2, energy=40.0)
    assert found is not None
    assert found.floor < math.sqrt(20)
    assert found.floor == pytest.approx(math.sqrt(20), rel=1e-9, abs=0.0)


def test_of_nothing_left_nothing_is_said() -> None:
    w = (gaussian(60, 8) @ gaussian(8, 50, 1)).to(torch.float32)
    assert single_precision_subspace(w, 30, accuracy=1e9, energy=energy_of(w)) is None
