"""Masks of every pattern against all masks there are, and what they leave out against the masks themselves."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import gaussian
from masks import PATTERNS, count_of, every_mask, left_out
from torch import Tensor

from eckart.linalg.patterns import OfGroup, Pattern, PerMatrix, Tiles

SHAPES = ((1, 1), (1, 5), (2, 3), (2, 4), (3, 3), (4, 1), (2, 5))
each = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def few(m: int, n: int, seed: int) -> Tensor:
    """Whole numbers from 0 to 3: sums are exact, and most scores have an equal."""
    return (gaussian(m, n, seed).abs() * 1.5).floor().clamp(max=3)


@cache
def masks(pattern: Pattern, m: int, n: int, size: int) -> np.ndarray:
    return np.stack(list(every_mask(pattern, m, n, size)))


@each
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [few, gaussian], ids=["ties", "none"])
def test_no_mask_has_a_higher_sum_and_of_ties_the_first_stay(
    pattern: Pattern, shape: tuple[int, int], make: Callable[[int, int, int], Tensor]
) -> None:
    for seed in range(6):
        scores = make(*shape, seed).abs()
        for size in range(1, pattern.sizes(shape[1]) + 1):
            found = masks(pattern, *shape, size)
            sums = (found * scores.numpy()).sum((1, 2))
            best = found[sums >= sums.max() * (1 - 1e-15)]
            first = max(best.reshape(len(best), -1).tolist())  # True is above False, the first place counts most
            mask = pattern.mask(scores, size)
            assert (mask.dtype, mask.shape) == (torch.bool, shape)
            assert mask.flatten().tolist() == first


@each
@given(m=st.integers(1, 6), n=st.integers(1, 11), seed=st.integers(0, 50))
def test_what_is_left_out_at_every_size_is_what_the_masks_leave_out(
    pattern: Pattern, m: int, n: int, seed: int
) -> None:
    for scores in (few(m, n, seed), gaussian(m, n, seed).square().to(torch.float32)):
        tails = pattern.tails(scores)
        assert (tails.dtype, tails.shape) == (torch.float64, (pattern.sizes(n) + 1,))
        assert float(tails[0]) == pytest.approx(float(scores.double().sum()), rel=1e-13)
        for size in range(1, pattern.sizes(n) + 1):
            mask = pattern.mask(scores, size)
            assert int(mask.sum()) == pattern.kept(m, n, size)
            assert count_of(pattern, m, n, size) == pattern.kept(m, n, size)
            assert float(tails[size]) == pytest.approx(float(scores[~mask].double().sum()), rel=1e-13, abs=1e-13)
            assert float(tails[size]) == pytest.approx(left_out(scores.double().numpy(), pattern, size), rel=1e-13)


@each
@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 9])
def test_the_largest_size_keeps_everything_and_sizes_rise(pattern: Pattern, n: int) -> None:
    most = pattern.sizes(n)
    counts = [pattern.kept(3, n, size) for size in range(1, most + 1)]
    assert counts[-1] == 3 * n
    assert bool(pattern.mask(torch.zeros(3, n), most).all())
    assert all(a < b for a, b in pairwise(counts))
    assert float(pattern.tails(gaussian(3, n).square())[most]) == 0


@each
@given(
    m=st.integers(1, 4),
    groups=st.integers(1, 4),
    rest=st.integers(0, 3),
    cuts=st.sets(st.integers(1, 4)),
    seed=st.integers(0, 20),
)
def test_parts_of_a_matrix_keep_as_many_as_the_whole(
    pattern: Pattern, m: int, groups: int, rest: int, cuts: set[int], seed: int
) -> None:
    """Each part keeps its highest scores, in each row, group or band, or wherever."""
    step = _step(pattern, 3)
    n = groups * step + min(rest, step - 1)
    scores = few(m, n, seed) + torch.arange(n) / 64  # no ties in a row
    edges = [0, *sorted(cut * step for cut in cuts if cut * step < n), n]
    for size in range(1, pattern.sizes(n) + 1):
        made = [pattern.mask(scores[:, a:b], size, a, n) for a, b in pairwise(edges)]
        assert sum(int(mask.sum()) for mask in made) == pattern.kept(m, n, size)
        if isinstance(pattern, OfGroup):
            assert torch.equal(torch.cat(made, 1), pattern.mask(scores, size))
            continue
        if isinstance(pattern, Tiles):
            count = n // step  # tiles are shared out as columns are, and what stands behind them stays
            for mask, (a, b) in zip(made, pairwise(edges), strict=True):
                share = size * (b // step) // count - size * (a // step) // count if count else 0
                tail = (b - a) % step
                assert mask.sum(1).tolist() == [share * step + tail] * m
                assert bool(mask[:, mask.shape[1] - tail :].all())
            continue
        before = 0
        for mask, (a, b) in zip(made, pairwise(edges), strict=True):
            share = size * b // n - before
            before += share
            part = scores[:, a:b]
            if isinstance(pattern, PerMatrix):
                assert int(mask.sum()) == m * share
                assert float(part[mask].sum()) == float(part.flatten().sort(descending=True).values[: m * share].sum())
            else:
                assert mask.sum(1).tolist() == [share] * m
                assert torch.equal((part * mask).sum(1), part.sort(1, descending=True).values[:, :share].sum(1))


def _step(pattern: Pattern, otherwise: int) -> int:
    """How many columns are chosen together."""
    if isinstance(pattern, OfGroup):
        return pattern.group
    return pattern.columns if isinstance(pattern, Tiles) else otherwise


def test_a_part_begins_with_a_tile_and_tiles_have_sides() -> None:
    with pytest.raises(ValueError, match="column 2 is not the first of a tile of 4"):
        Tiles(2, 4).mask(torch.ones(2, 4), 1, start=2, columns=8)
    for sides in ((0, 2), (2, 0), (-1, 1)):
        with pytest.raises(ValueError, match=f"tiles of {sides[0]} x {sides[1]} must have sides of at least 1"):
            Tiles(*sides)
    assert (Tiles(2, 4).chosen_at_once(12), Tiles(2, 5).chosen_at_once(12)) == (12, 5)
    assert [Tiles(2, 4).sizes(n) for n in (1, 3, 4, 9)] == [1, 1, 1, 2]


def test_a_part_begins_with_a_group() -> None:
    with pytest.raises(ValueError, match="column 2 is not the first of a group of 4"):
        OfGroup(4).mask(torch.ones(2, 4), 2, start=2, columns=8)


def test_a_last_group_that_is_shorter_keeps_its_own_entries() -> None:
    """Also where all that it holds is 0: what fills it up never takes a place."""
    mask = OfGroup(4).mask(torch.zeros(2, 7), 2)
    assert mask.int().tolist() == [[1, 1, 0, 0, 1, 1, 0]] * 2
    assert OfGroup(4).mask(torch.zeros(1, 5), 3).int().tolist() == [[1, 1, 1, 0, 1]]


def test_groups_have_at_least_two_entries() -> None:
    for group in (1, 0, -4):
        with pytest.raises(ValueError, match=f"group {group} must be at least 2"):
            OfGroup(group)
    assert [OfGroup(4).sizes(n) for n in (1, 3, 4, 9)] == [1, 3, 4, 4]


@each
def test_how_many_columns_are_chosen_at_once(pattern: Pattern) -> None:
    assert pattern.chosen_at_once(12) == (pattern.group if isinstance(pattern, OfGroup) else 12)
