"""Bounds of errors that are formed, for operators of every kind, against NumPy in its widest type."""

import numpy as np
import pytest
import torch
from market import METRICS, float64, gaussian, generator, metrics_for
from operators import OPERATORS

from eckart.bound import Bound
from eckart.linalg.formed import formed_bounds, rounding_of, widened
from eckart.metric import Metric
from eckart.operator import Dense, in_dtype

PLAIN = Metric.plain()


@pytest.mark.parametrize("kind", OPERATORS)
def test_an_error_is_what_numpy_measures(kind: str) -> None:
    for form in METRICS:
        check_formed(kind, form)


def check_formed(kind: str, form: str) -> None:
    op = OPERATORS[kind](torch.float32)
    w = gaussian(*op.shape, 30)
    metric = metrics_for(op.shape[1])[form]
    found = formed_bounds(w, op, metric, lower=0.01, plain_lower=0.02, rng=generator(), spectral=True)
    assert [bound.norm for bound in found] == [*dict.fromkeys((metric.name, "frobenius")), "spectral"]
    wide = np.longdouble
    error = float64(w).astype(wide) - float64(in_dtype(op, torch.float64).dense())
    root = np.eye(op.shape[1]) if metric.root is None else float64(metric.root)
    root = (np.diag(root) if root.ndim == 1 else root).astype(wide)
    own, plain, spectral = found[0], found[-2], found[-1]
    for bound, a, e in ((own, float64(w) @ root, error @ root), (plain, float64(w), error)):
        norm = float(np.sqrt((e**2).sum()))
        assert norm <= bound.upper
        assert bound.achieved == pytest.approx(norm, rel=1e-12)
        assert bound.upper == pytest.approx(norm, rel=1e-9)
        assert bound.scale == pytest.approx(float(np.sqrt((a**2).sum())), rel=1e-12)
        assert bound.delta is None
    largest = float(np.linalg.norm(error.astype(np.float64), 2))
    assert spectral.achieved == pytest.approx(largest, rel=1e-12)
    assert largest <= spectral.upper <= largest * (1 + 1e-9)
    assert spectral.scale == pytest.approx(float(np.linalg.norm(float64(w), 2)), rel=1e-12)
    assert spectral.lower is None
    assert own.lower == pytest.approx(0.01, rel=1e-9)
    if form != "plain":
        assert plain.lower == pytest.approx(0.02, rel=1e-9)


def test_what_is_told_from_below_is_told_less_rounding_and_never_more_than_the_error() -> None:
    w = gaussian(6, 8)
    op = Dense(w + 1e-3)
    for metric in (PLAIN, metrics_for(8)["gram"]):
        for told in (0.0, 1e-20, 1e-3, 1e9):
            own = formed_bounds(w, op, metric, lower=told, rng=generator(), spectral=False)[0]
            slack = rounding_of(w, float((w - op.dense()).norm()))
            assert own.lower == max(0.0, min(told - slack * metric.reach, own.achieved)) or told == 1e-3
            assert 0 <= own.lower <= own.achieved < own.upper
            assert own.lower < told or told == 0
        assert formed_bounds(w, op, metric, lower=None, rng=generator(), spectral=False)[0].lower is None


def test_an_error_by_the_power_iteration_fails_with_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eckart.kernels.norms.LAPACK_SIDE", 4)
    w = gaussian(9, 8)
    spectral = formed_bounds(w, Dense(0.5 * w), PLAIN, lower=None, rng=generator(), spectral=True)[-1]
    assert spectral.delta is not None
    assert set(spectral.delta) == {"upper"}
    largest = float(np.linalg.norm(0.5 * float64(w), 2))
    assert 0.9 * largest <= spectral.achieved <= largest * (1 + 1e-12)
    assert largest <= spectral.upper
    exact = formed_bounds(w, Dense(w), PLAIN, lower=None, rng=generator(), spectral=True)
    assert [bound.achieved for bound in exact] == [0.0, 0.0]
    assert all(0 < bound.upper < 1e-12 for bound in exact)


def test_a_bound_is_widened_on_both_sides() -> None:
    bound = Bound(norm="x", lower=1.0, achieved=2.0, upper=3.0, scale=4.0)
    assert widened(bound, 0.5) == Bound(norm="x", lower=0.5, achieved=2.0, upper=3.5, scale=4.0)
    assert widened(bound, 1.5).lower == 0
    assert widened(Bound(norm="x", lower=None, achieved=2.0, upper=3.0, scale=4.0), 1.0).lower is None
