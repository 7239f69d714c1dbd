"""Truncation by energy, error and bytes: what was asked for holds of the stored factors, at the least rank that can."""

import math

import numpy as np
import pytest
import torch
from market import (
    MATRICES,
    as_if_large,
    float64,
    gaussian,
    generator,
    lapack_values,
    metrics_for,
    whitened,
    with_spectrum,
)

from eckart.linalg import SubspaceIteration, truncated_svd
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Product, Sum, nbytes

INDEX = torch.arange(1, 121, dtype=torch.float64)


def share_left(w: torch.Tensor, fit_op: object, metric: Metric) -> float:
    """What remains of the norm in the metric, by NumPy."""
    assert isinstance(fit_op, Factors)
    error = torch.from_numpy(float64(w) - float64(fit_op.left) @ float64(fit_op.right))
    whole = np.linalg.norm(whitened(w, metric))
    return float(np.linalg.norm(whitened(error, metric)) / whole) if whole else 0.0


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram", "rank-deficient gram"])
@pytest.mark.parametrize("name", MATRICES)
def test_the_least_rank_that_keeps_the_energy(name: str, form: str) -> None:
    w = MATRICES[name]()
    metric = metrics_for(w.shape[1])[form]
    s = lapack_values(whitened(w, metric))
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    for energy in (0.3, 0.9, 0.999):
        fit = truncated_svd(w, energy=energy, metric=metric, dtype=torch.float64)
        least = max(1, int(np.argmax(tails <= (1 - energy) * tails[0])))
        assert isinstance(fit.op, Factors)
        assert fit.op.rank == least
        assert share_left(w, fit.op, metric) <= math.sqrt(1 - energy) * (1 + 1e-12)


@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
def test_the_search_by_iteration_comes_within_its_accuracy(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    s = INDEX**-decay
    w = with_spectrum(150, 120, s)
    tails = torch.cat([s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)])
    for error in (0.9, 0.6, 0.3):
        fit = truncated_svd(w, error=error, dtype=torch.float64, rng=generator(3))
        least = max(1, int((tails <= error**2 * tails[0]).nonzero()[0]))
        assert isinstance(fit.op, Factors)
        assert share_left(w, fit.op, Metric.plain()) <= error
        assert least <= fit.op.rank <= 1.05 * least + 1
        assert fit.bounds[0].upper <= error * fit.bounds[0].scale


def test_energy_and_error_are_two_names_of_one_size() -> None:
    w = gaussian(30, 20)
    for error in (0.1, 0.5, 0.9):
        one, other = truncated_svd(w, error=error), truncated_svd(w, energy=1 - error**2)
        assert one.op.tensors()["left"].shape == other.op.tensors()["left"].shape


def test_rounding_of_the_factors_counts() -> None:
    """In bfloat16 more directions are needed for the same error, and some errors cannot be met at all."""
    w = with_spectrum(64, 64, torch.logspace(0, -1.5, 64, dtype=torch.float64))
    wide, narrow = (truncated_svd(w, error=0.035, dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    assert isinstance(wide.op, Factors)
    assert isinstance(narrow.op, Factors)
    assert narrow.op.rank >= wide.op.rank
    assert share_left(w, narrow.op, Metric.plain()) <= 0.035
    with pytest.raises(
        ValueError, match=r"factors in torch.bfloat16 leave .* more than the 0\.0001 allowed: give a wider"
    ):
        truncated_svd(w, error=1e-4, dtype=torch.bfloat16)


def test_no_error_at_all_is_the_full_rank() -> None:
    w = gaussian(9, 7)
    for fit in (truncated_svd(w, error=0.0), truncated_svd(w, energy=1.0)):
        assert isinstance(fit.op, Factors)
        assert fit.op.rank == 7
        assert share_left(w, fit.op, Metric.plain()) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_an_upper_limit_that_is_used(dtype: torch.dtype) -> None:
    w = gaussian(30, 20)
    for limit in (50 * dtype.itemsize, 199, 1999, 10**9):
        if limit < 50 * dtype.itemsize:
            continue
        op = truncated_svd(w, bytes=limit, dtype=dtype).op
        assert isinstance(op, Factors)
        assert nbytes(op) <= limit
        assert op.rank == 20 or nbytes(op) + 50 * dtype.itemsize > limit
    with pytest.raises(ValueError, match="99 bytes hold no factors of a 30 x 20 matrix: rank 1 takes 100"):
        truncated_svd(w, bytes=99, dtype=torch.bfloat16)


def test_a_route_of_fixed_steps_takes_part() -> None:
    w = with_spectrum(150, 120, INDEX**-0.5)
    fit = truncated_svd(w, error=0.5, route=SubspaceIteration(steps=6), dtype=torch.float64)
    assert share_left(w, fit.op, Metric.plain()) <= 0.5
    assert "6 steps" in fit.how


def test_operators_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    base = with_spectrum(90, 70, torch.arange(1, 71, dtype=torch.float64) ** -0.7)
    low = Factors(gaussian(90, 3, 1) / 30, gaussian(3, 70, 2))
    for op in (Sum((Dense(base), low)), Product((Dense(base), Dense(gaussian(70, 70, 3)))), low):
        dense = op.dense()
        fit = truncated_svd(op, error=0.4, dtype=torch.float64)
        assert share_left(dense, fit.op, Metric.plain()) <= 0.4


@pytest.mark.parametrize(
    "size",
    [{}, {"rank": 2, "energy": 0.5}, {"energy": 0.5, "error": 0.5}, {"rank": 2, "bytes": 100}, {"rank": 2.0}],
)
def test_one_size_is_wanted(size: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="one size is to be given, and once: rank, energy, error or bytes"):
        truncated_svd(gaussian(5, 6), **size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"energy": 0.0}, "a share above 0 and up to 1: 0"),
        ({"energy": 1.1}, "a share above 0 and up to 1: 1.1"),
        ({"error": 1.0}, "a share of the norm from 0 to below 1: 1"),
        ({"error": -0.1}, "a share of the norm from 0 to below 1: -0.1"),
        ({"error": math.nan}, "a share of the norm from 0 to below 1: nan"),
    ],
)
def test_impossible_sizes_are_refused(size: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        truncated_svd(gaussian(5, 6), **size)  # type: ignore[arg-type]
