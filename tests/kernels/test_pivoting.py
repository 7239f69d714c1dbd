"""Where elimination stops, and what it does with columns of which little or nothing is left."""

from importlib import import_module

import pytest
import torch
from market import gaussian, orthonormal
from torch import Tensor

from eckart.kernels.pivoting import interpolation_points, pivoted_qr, strong_pivots

PIVOTING = import_module("eckart.kernels.pivoting")
EPS = 2.0**-52


def double(entries: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 2), (6, 2), (3, 5)])
@pytest.mark.parametrize(("share", "rank"), [(0.75, 1), (1.0, 1), (1.25, 2)])
def test_what_is_left_counts_from_one_rounding_of_the_longer_side(
    shape: tuple[int, int], share: float, rank: int
) -> None:
    """Beside (1, 0) there is left of (1, c) just c, which no rounding touches; all other columns are zero."""
    a = torch.zeros(shape, dtype=torch.float64)
    a[0, :2] = 1.0
    a[1, 1] = share * max(shape) * EPS
    found = pivoted_qr(a, 2)
    assert found.rank == rank
    assert found.order.tolist() == list(range(shape[1]))
    assert found.r.diagonal().tolist() == [1.0, float(a[1, 1])][:rank]


def test_columns_of_which_nothing_is_left_stay_behind_in_their_order() -> None:
    """Zero columns, and multiples of a chosen one, whose rest is exactly zero: neither becomes a pivot or NaN."""
    a = torch.tensor([[0.0, 4.0, 2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]])
    found = pivoted_qr(a, 6)
    assert found.order.tolist() == [1, 3, 5, 0, 2, 4]
    assert found.r.tolist() == [
        [4.0, 0.0, 0.0, 0.0, 2.0, 1.0],
        [0.0, 3.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
    ]


def test_steps_from_none_to_all_columns_are_allowed() -> None:
    a = gaussian(3, 5)
    assert pivoted_qr(a, 0).order.tolist() == [0, 1, 2, 3, 4]
    assert pivoted_qr(a, 5).rank == 3
    for steps in (-1, 6):
        with pytest.raises(ValueError, match=f"{steps} pivots of a 3 x 5 matrix: give a number from 0 to 5"):
            pivoted_qr(a, steps)


@pytest.mark.parametrize(
    ("left", "computed", "anew"),
    [
        (2.0**-13, 1.0, True),  # of the square 2^-26 is left, the root of eps: half of the digits are lost
        (2.0**-13 * (1 + EPS), 1.0, False),
        (2.0**-13 * 1024, 1024.0, True),
        (2.0**-12 * 1024, 1024.0, False),
        (2.0**-13 / 1024, 1.0 / 1024, True),
        (2.0**-12 / 1024, 1.0 / 1024, False),
        (0.0, 1.0, True),
        (0.0, 0.0, True),
    ],
)
def test_a_length_is_computed_anew_where_half_of_its_digits_are_lost(left: float, computed: float, anew: bool) -> None:
    """Nothing of the column lies along the new direction; what is left of it in truth is 5, whatever was said before."""
    a, q, r = double([[0.0], [5.0]]), double([[1.0], [0.0]]), double([[0.0]])
    before = double([left]), double([computed])
    kept = PIVOTING._downdated(a, q, r, torch.tensor([False]), *before)
    assert [part.tolist() for part in kept] == [[left], [computed]]
    found, last = PIVOTING._downdated(a, q, r, torch.tensor([True]), *before)
    assert found.tolist() == [5.0 if anew else left]
    assert last.tolist() == [5.0 if anew else computed]


@pytest.mark.parametrize("size", [2.0**-40, 1.0, 2.0**40])
def test_a_length_is_downdated_by_what_lies_along_the_new_direction(size: float) -> None:
    """Of a column of length 5 with 3 along the direction 4 is left, and what was computed last is remembered."""
    a, q = double([[3.0], [7.0]]) * size, double([[1.0], [0.0]])
    before = double([5.0]) * size, double([6.0]) * size
    found, last = PIVOTING._downdated(a, q, a[:1], torch.tensor([True]), *before)
    assert found.tolist() == pytest.approx([4.0 * size], rel=1e-15, abs=0.0)
    assert last.tolist() == [6.0 * size]


@pytest.mark.parametrize(("shape", "seen"), [((9, 4), (4, 4)), ((5, 4), (4, 4)), ((4, 4), (4, 4)), ((4, 9), (4, 9))])
def test_a_tall_matrix_is_chosen_from_by_its_triangle(
    shape: tuple[int, int], seen: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has the same lengths and angles in fewer numbers; of any other shape there is nothing to save."""
    a, given = gaussian(*shape), []
    monkeypatch.setattr(PIVOTING, "pivoted_qr", lambda b, steps: (given.append(b), pivoted_qr(b, steps))[1])
    expected = strong_pivots(a, 2, 2.0)
    assert [tuple(b.shape) for b in given] == [seen]
    assert float((given[0].T @ given[0] - a.T @ a).abs().max()) <= 1e-13
    assert torch.equal(given[0], a) == (shape == seen)
    assert sorted(expected.tolist()) == sorted(strong_pivots(orthonormal(12, shape[0]) @ a, 2, 2.0).tolist())


def test_an_exchange_must_gain_more_than_f() -> None:
    """The gain of the best one is itself no reason; a limit that is lower by a hair is."""
    a = gaussian(6, 9, 13)
    weak = pivoted_qr(a, 4).order
    gain = PIVOTING._best_exchange(a[:, weak[:4]], a[:, sorted(weak[4:].tolist())])[2]
    assert gain > 1.0
    assert strong_pivots(a, 4, gain).tolist() == weak[:4].tolist()
    assert len(set(strong_pivots(a, 4, gain * (1 - 1e-12)).tolist()) & set(weak[:4].tolist())) == 3


def test_an_exchange_that_leaves_the_volume_as_it_is_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two equal columns either will do, whatever gain is promised: else they would take turns for ever."""
    promised = iter([(0, 0, 3.0)] * 3)
    monkeypatch.setattr(PIVOTING, "_best_exchange", lambda inside, outside: next(promised))
    assert strong_pivots(torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), 2, 2.0).tolist() == [0, 2]


def test_strong_pivots_of_all_columns_and_of_none() -> None:
    a = gaussian(5, 3)
    assert strong_pivots(a, 0, 2.0).tolist() == []
    assert strong_pivots(a, 3, 2.0).tolist() == pivoted_qr(a, 3).order.tolist()


def test_columns_beyond_the_rank_fill_up_in_their_order() -> None:
    a = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0]])
    assert strong_pivots(a, 2, 2.0).tolist() == [3, 2]
    assert strong_pivots(a, 4, 2.0).tolist() == [3, 2, 0, 1]


def test_interpolation_points_of_equal_size_are_taken_from_the_left_and_once() -> None:
    assert interpolation_points(torch.zeros(3, 4), 3).tolist() == [0, 1, 2]
    assert interpolation_points(torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), 3).tolist() == [
        1,
        0,
        2,
    ]
    # One at the first point: beside it the second row has only its last entry.
    assert interpolation_points(torch.tensor([[1.0, 0.5, 0.0], [4.0, 2.0, 1.0]]), 2).tolist() == [0, 2]
    assert interpolation_points(torch.ones(2, 3), 0).tolist() == []
    with pytest.raises(ValueError, match="-1 interpolation points from 2 vectors of 3 entries"):
        interpolation_points(torch.ones(2, 3), -1)


def test_the_point_of_a_tiny_entry_is_eliminated_as_well() -> None:
    """The first row is 1e-200 of (1, 1, 0): beside its first point the second row has only the last two entries."""
    basis = torch.tensor([[1e-200, 1e-200, 0.0], [3.0, 1.0, 1.0]], dtype=torch.float64)
    assert interpolation_points(basis, 2).tolist() == [0, 1]  # 0, -2 and 1 are left
