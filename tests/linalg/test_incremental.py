"""Directions of rows that arrive bit by bit, against the decomposition of all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from market import MATRICES, float64, gaussian, lapack_values, with_spectrum

from eckart.linalg import RowStream, truncated_svd
from eckart.metric import Metric


def streamed(w: torch.Tensor, keep: int, size: int) -> RowStream:
    stream = RowStream.start(w.shape[1], keep=keep)
    for batch in w.split(size):
        stream = stream.add(batch)
    return stream


def left_over(w: torch.Tensor, v: torch.Tensor) -> float:
    dense, directions = float64(w), float64(v)
    return float(np.linalg.norm(dense - dense @ directions @ directions.T))


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", MATRICES)
def test_nothing_is_lost_where_all_directions_are_kept(name: str, size: int) -> None:
    w = MATRICES[name]()
    stream = streamed(w, keep=w.shape[1], size=size)
    values = lapack_values(w)
    norm = float(np.linalg.norm(values))
    for rank in range(1, min(w.shape) + 1):
        found = stream.directions(rank)
        optimum = float(np.linalg.norm(values[rank:]))
        assert float64(found.s) == pytest.approx(values[:rank], abs=1e-13 * norm)
        assert left_over(w, found.v) <= optimum + 1e-7 * norm
        assert found.bound.lower is not None
        assert found.bound.lower <= optimum + 1e-15 * norm
        assert optimum <= found.bound.upper
        assert found.bound.lower >= optimum - 1e-6 * norm


@given(
    st.integers(2, 40),
    st.integers(2, 20),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.floats(0, 3),
)
@settings(max_examples=100)
def test_bounds_hold_whatever_was_dropped(m: int, n: int, keep: int, size: int, seed: int, decay: float) -> None:
    w = with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay, seed)
    stream = streamed(w, keep, size)
    values = lapack_values(w)
    for rank in {1, (len(stream.rows) + 1) // 2, len(stream.rows)}:
        found = stream.directions(rank)
        true = left_over(w, found.v)
        optimum = float(np.linalg.norm(values[rank:]))
        assert found.bound.lower is not None
        assert found.bound.lower <= optimum * (1 + 1e-12) + 1e-7
        assert optimum <= true * (1 + 1e-12) + 1e-14
        assert true <= found.bound.upper * (1 + 1e-12)
        assert float64(found.v.T @ found.v) == pytest.approx(np.eye(rank), abs=1e-10)


def test_what_is_kept_beyond_the_rank_makes_the_bounds_narrow() -> None:
    w = with_spectrum(300, 60, torch.arange(1, 61, dtype=torch.float64) ** -1.0)
    ratios = []
    for keep in (8, 16, 32):
        bound = streamed(w, keep, 20).directions(8).bound
        assert bound.lower is not None
        ratios.append(bound.upper / max(bound.lower, 1e-9))
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 1.2


def test_streams_merge_as_if_one_had_seen_all() -> None:
    w = gaussian(60, 12)
    one, other = streamed(w[:25], 12, 5), streamed(w[25:], 12, 7)
    together, whole = one + other, streamed(w, 12, 60)
    assert (together.seen, together.energy) == (60, pytest.approx(whole.energy, rel=1e-14))
    assert float64(together.directions(5).v) == pytest.approx(float64(whole.directions(5).v), abs=1e-10)
    few = streamed(w[:25], 4, 5) + streamed(w[25:], 4, 7)
    true = left_over(w, few.directions(4).v)
    assert few.directions(4).bound.lower is not None
    assert (
        few.directions(4).bound.lower
        <= float(np.linalg.norm(lapack_values(w)[4:]))
        <= true
        <= few.directions(4).bound.upper
    )


def test_a_value_is_not_changed_by_what_follows() -> None:
    first = streamed(gaussian(10, 6), 3, 10)
    before = first.rows.clone()
    first.add(gaussian(5, 6, 1))
    assert torch.equal(first.rows, before)
    assert first.seen == 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_rows_are_taken_in_float64(dtype: torch.dtype) -> None:
    w = gaussian(30, 8).to(dtype)
    assert streamed(w, 8, 7).energy == pytest.approx(float(w.double().square().sum()), rel=1e-14)
    assert streamed(w, 8, 7).directions(2).v.dtype == torch.float64


def test_rows_may_come_with_any_leading_axes() -> None:
    w = gaussian(24, 6)
    assert torch.equal(
        RowStream.start(6, keep=3).add(w.reshape(2, 3, 4, 6)).rows, RowStream.start(6, keep=3).add(w).rows
    )
    assert RowStream.start(6, keep=3).add(w[0]).seen == 1


def test_bad_rows_are_refused() -> None:
    stream = RowStream.start(6, keep=3)
    with pytest.raises(ValueError, match=r"rows of 6 entries are expected, not a tensor of shape \(4, 5\)"):
        stream.add(gaussian(4, 5))
    with pytest.raises(ValueError, match="the batch of 2 rows holds NaN or infinity"):
        stream.add(torch.tensor([[math.nan] * 6, [1.0] * 6]))
    with pytest.raises(ValueError, match="at least one direction must be kept, not 0"):
        RowStream.start(6, keep=0)
    with pytest.raises(ValueError, match="rank 3: 2 directions are known, of 3 that would be kept"):
        stream.add(gaussian(2, 6)).directions(3)
    with pytest.raises(ValueError, match="streams of rows of 6 and 5 entries do not merge"):
        _ = stream + RowStream.start(5, keep=3)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6))
def test_an_error_counts_in_what_is_kept_as_in_all_rows_but_for_what_was_dropped(
    keep: int, count: int, seed: int
) -> None:
    x, e = gaussian(count, 12, seed) * torch.logspace(0, -1.5, 12, dtype=torch.float64), gaussian(5, 12, seed + 1)
    stream = streamed(x, keep, 7)
    kept, whole = stream.metric("inputs").norm(e), Metric.gram("inputs", x.T @ x, count).norm(e)
    assert kept <= whole * (1 + 1e-12)
    assert whole**2 <= (kept**2 + stream.dropped / count * float(e.square().sum())) * (1 + 1e-12)
    if keep == 12:
        assert kept == pytest.approx(whole, rel=1e-12)


def test_a_truncation_in_what_is_kept_is_nearly_the_best_in_all_rows() -> None:
    x = gaussian(600, 40, 2) * torch.arange(1, 41, dtype=torch.float64) ** -1.5
    w = gaussian(30, 40, 3)
    whole = Metric.gram("inputs", x.T @ x, len(x))
    best = truncated_svd(w, 6, metric=whole, dtype=torch.float64).bounds[0].achieved
    errors = []
    for keep in (8, 20, 40):
        op = truncated_svd(w, 6, metric=streamed(x, keep, 50).metric("inputs"), dtype=torch.float64).op
        errors.append(whole.norm(w - op.dense()))
    assert errors[2] == pytest.approx(best, rel=1e-9)
    assert best <= errors[1] <= 1.01 * best
    assert errors[0] <= 1.5 * best


def test_of_no_rows_there_is_no_metric() -> None:
    with pytest.raises(ValueError, match="no row was seen yet, so the inputs metric would count nothing"):
        RowStream.start(4, keep=2).metric("inputs")
