"""What a stream of rows remembers of what it dropped, and how its bounds follow, on examples that are exact in float64."""

import math

import numpy as np
import pytest
import torch
from market import float64, gaussian
from torch import Tensor

from eckart.linalg import RowStream

GRAIN = 16 * 2.0**-52  # of the energy, for each of the rows or of their entries, whichever are more


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def remembered(stream: RowStream) -> tuple[float, float, float, int]:
    return stream.energy, stream.lost, stream.dropped, stream.seen


def test_before_anything_is_seen_nothing_is_known() -> None:
    start = RowStream.start(4, keep=2)
    assert remembered(start) == (0.0, 0.0, 0.0, 0)
    assert start.rows.shape == (0, 4)
    with pytest.raises(ValueError, match="rank 1: 0 directions are known, of 2 that would be kept"):
        start.directions(1)


def test_one_direction_is_enough_to_keep_and_none_are_found_below_the_first() -> None:
    stream = RowStream.start(4, keep=1).add(diagonal(1.0, 3.0, 2.0, 0.0))
    assert stream.directions(1).v.tolist() == [[0.0], [1.0], [0.0], [0.0]]
    with pytest.raises(ValueError, match="rank 0: 1 directions are known"):
        stream.directions(0)


def test_what_was_dropped_is_added_up() -> None:
    """Of 16, 9, 4 and 1 two are kept; then 25 and 36 come, and the 16 and 9 go: 5 and 25 by trace, 4 and 16 by norm."""
    stream = RowStream.start(6, keep=2).add(diagonal(4.0, 3.0, 2.0, 1.0, 0.0, 0.0))
    assert remembered(stream) == pytest.approx((30.0, 5.0, 4.0, 6), rel=1e-14)
    more = stream.add(diagonal(0.0, 0.0, 0.0, 0.0, 5.0, 6.0))
    assert remembered(more) == pytest.approx((91.0, 30.0, 20.0, 12), rel=1e-14)
    few = stream.add(torch.zeros(1, 6))
    assert remembered(few) == pytest.approx((30.0, 5.0, 4.0, 7), rel=1e-14)
    both = more + stream  # which drops 16 and 9 once again
    assert remembered(both) == pytest.approx((121.0, 60.0, 40.0, 18), rel=1e-14)


def test_where_nothing_goes_nothing_is_lost() -> None:
    stream = RowStream.start(3, keep=3).add(diagonal(3.0, 2.0, 1.0))
    assert remembered(stream) == (14.0, 0.0, 0.0, 3)
    assert remembered(RowStream.start(3, keep=5).add(diagonal(3.0, 2.0, 1.0)))[1:3] == (0.0, 0.0)
    assert remembered(stream + stream)[1:] == (0.0, 0.0, 6)


@pytest.mark.parametrize(
    ("values", "keep", "rank", "left", "least"),
    [
        ((4.0, 3.0, 2.0, 1.0), 2, 1, 14.0, 10.0),  # at most the largest of what was dropped can belong to one direction
        ((4.0, 3.0, 2.0, 1.0), 2, 2, 5.0, 0.0),  # of two all of it
        ((4.0, 3.0, 2.0, 1.0), 3, 1, 14.0, 13.0),
        ((4.0, 3.0, 2.0, 1.0), 4, 1, 14.0, 14.0),
        ((3.0, 2.0, 1.0), 1, 1, 5.0, 1.0),
        ((8.0, 1.0, 1.0, 1.0, 1.0, 1.0), 2, 2, 4.0, 2.0),
    ],
)
def test_bounds_by_hand(values: tuple[float, ...], keep: int, rank: int, left: float, least: float) -> None:
    """Squares, with 16 units of rounding of the energy for each entry of a row taken off below and added above."""
    stream = RowStream.start(len(values), keep=keep).add(diagonal(*values))
    energy = sum(value**2 for value in values)
    grain = GRAIN * len(values) * energy
    found = stream.directions(rank)
    bound = found.bound
    assert found.s.tolist() == pytest.approx(values[:rank], rel=1e-15)
    assert bound.scale == pytest.approx(math.sqrt(energy), rel=1e-15)
    assert bound.achieved == pytest.approx(math.sqrt(left), rel=1e-15)
    assert bound.lower == pytest.approx(math.sqrt(max(least - grain, 0.0)), rel=1e-14, abs=0.0)
    assert bound.upper == pytest.approx(math.sqrt(left + grain), rel=1e-15)
    assert bound.upper > bound.achieved
    if least:
        assert bound.lower is not None
        assert bound.lower < math.sqrt(least)


@pytest.mark.parametrize(("width", "rows"), [(2, 2), (5, 2), (2, 7)])
@pytest.mark.parametrize("size", [2.0**-30, 1.0, 2.0**30])
def test_where_all_is_captured_rounding_alone_is_left(width: int, rows: int, size: float) -> None:
    batch = torch.zeros(rows, width, dtype=torch.float64)
    batch[0, 0], batch[1, 1] = 4 * size, 2 * size
    bound = RowStream.start(width, keep=2).add(batch).directions(2).bound
    assert (bound.lower, bound.achieved) == (0.0, 0.0)
    assert bound.upper == pytest.approx(math.sqrt(GRAIN * max(width, rows) * 20) * size, rel=1e-14, abs=0.0)
    assert bound.scale == pytest.approx(math.sqrt(20.0) * size, rel=1e-15, abs=0.0)


@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])
def test_units_of_rows_do_not_matter(size: float) -> None:
    x = gaussian(30, 8, 3)
    one, other = (RowStream.start(8, keep=4).add(x[:20] * s).add(x[20:] * s) for s in (1.0, size))
    assert torch.equal(one.rows * size, other.rows)
    assert (other.energy, other.lost, other.dropped) == tuple(
        value * size**2 for value in (one.energy, one.lost, one.dropped)
    )
    mine, theirs = one.directions(3), other.directions(3)
    assert float64(theirs.v) == pytest.approx(float64(mine.v), abs=1e-15)
    for name in ("lower", "achieved", "upper", "scale"):
        assert getattr(theirs.bound, name) == pytest.approx(getattr(mine.bound, name) * size, rel=1e-14, abs=0.0)


def test_directions_of_no_length_are_zero() -> None:
    found = RowStream.start(3, keep=3).add(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])).directions(2)
    assert found.s.tolist() == [0.5, 0.0]
    assert found.v[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert np.isfinite(float64(found.v)).all()


def test_a_single_number_is_no_row() -> None:
    with pytest.raises(ValueError, match=r"rows of 1 entries are expected, not a tensor of shape \(\)"):
        RowStream.start(1, keep=1).add(torch.tensor(1.0))


def test_the_metric_is_that_of_the_mean_of_all_rows_seen() -> None:
    """Four rows of length 2 along one axis and twelve zeros: a mean square of 1, whose root is 1."""
    rows = torch.zeros(16, 3)
    rows[:4, 1] = 2.0
    metric = RowStream.start(3, keep=2).add(rows).metric("inputs")
    assert metric.norm(torch.tensor([[7.0, 3.0, 5.0]])) == pytest.approx(3.0, rel=1e-14)
    assert metric.name == "inputs"
