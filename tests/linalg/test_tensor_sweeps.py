"""How long Tucker's decomposition iterates, against alternating least squares by NumPy, and in which order it multiplies."""

import math
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from market import float64, gaussian
from torch import Tensor

from eckart.linalg import tucker

TENSOR = import_module("eckart.linalg.tensor")
SHAPE, RANKS = (7, 6, 5), (3, 2, 3)


def cube(seed: int) -> Tensor:
    return gaussian(math.prod(SHAPE), 1, seed).reshape(SHAPE)


def unfolded(w: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def in_bases(w: np.ndarray, bases: list[np.ndarray], leave: int | None = None) -> np.ndarray:
    for axis, basis in enumerate(bases):
        if axis != leave:
            w = np.moveaxis(np.tensordot(basis.T, w, axes=([1], [axis])), 0, axis)
    return w


def left_after(w: np.ndarray, ranks: tuple[int, ...], sweeps: int) -> list[float]:
    """The squared error of the truncated higher-order SVD and after each sweep."""
    bases = [np.linalg.svd(unfolded(w, axis))[0][:, :rank] for axis, rank in enumerate(ranks)]
    left = [float(np.sum(w**2) - np.sum(in_bases(w, bases) ** 2))]
    for _ in range(sweeps):
        for axis, rank in enumerate(ranks):
            others = unfolded(in_bases(w, bases, axis), axis)
            bases[axis] = np.linalg.svd(others, full_matrices=False)[0][:, :rank]
        left.append(float(np.sum(w**2) - np.sum(in_bases(w, bases) ** 2)))
    return left


@pytest.mark.parametrize("seed", [2, 8, 13])
def test_a_sweep_that_gains_less_than_a_millionth_of_what_is_left_is_the_last(seed: int) -> None:
    """Of each of these some sweep gains between one and two millionths."""
    a = cube(seed)
    left = left_after(float64(a), RANKS, 20)
    shares = [(before - after) / after for before, after in pairwise(left)]
    last = next(i for i, share in enumerate(shares) if share <= 1e-6)
    assert 1e-6 < shares[last - 1] < 2e-6
    found = tucker(a, RANKS).bounds[0].achieved ** 2
    assert found == pytest.approx(left[last + 1], rel=1e-12)
    assert found < left[last] * (1 - 1e-7)
    assert found > left[last + 2] * (1 + 1e-8)


def test_after_fifty_sweeps_it_ends() -> None:
    """A long way between two saddles: this one gains a ten-thousandth in each of the sweeps around the fiftieth."""
    a = cube(28)
    left = left_after(float64(a), RANKS, 51)
    assert left[49] > left[50] * (1 + 1e-5) > left[51] * (1 + 2e-5)
    assert tucker(a, RANKS).bounds[0].achieved ** 2 == pytest.approx(left[50], rel=1e-9)


@pytest.mark.parametrize("exponent", [-40, -20, 20, 40])
def test_units_of_the_tensor_do_not_matter(exponent: int) -> None:
    """Powers of two scale every number on the way without rounding."""
    a = cube(2)
    one, other = tucker(a, RANKS), tucker(a * 2.0**exponent, RANKS)
    assert torch.equal(one.op.dense() * 2.0**exponent, other.op.dense())
    assert other.bounds[0].achieved == one.bounds[0].achieved * 2.0**exponent


@pytest.mark.parametrize(
    "a", [torch.zeros(SHAPE), torch.ones(SHAPE), 1e-9 * torch.ones(SHAPE), 1e9 * torch.ones(SHAPE)]
)
def test_where_nothing_is_to_be_gained_one_sweep_is_made(a: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three decompositions of the unfoldings, and three of the sweep."""
    made = []

    def counted(matrix: Tensor) -> object:
        made.append(tuple(matrix.shape))
        return import_module("eckart.kernels.svd").svd(matrix)

    monkeypatch.setattr(TENSOR, "svd", counted)
    assert tucker(a.to(torch.float64), (1, 1, 1)).bounds[0].achieved <= 1e-12 * float(a.norm())
    assert made == [(7, 30), (6, 35), (5, 42), (7, 1), (6, 1), (5, 1)]


def test_the_axis_that_shrinks_most_is_multiplied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 20 x 4 x 30 to 20 x 2 x 1: the last axis, then the second, then the first, which stays as long as it is."""
    bases = [torch.ones(20, 20), torch.ones(4, 2), torch.ones(30, 1)]
    seen, product = [], torch.tensordot

    def watched(basis: Tensor, tensor: Tensor, **dims: Any) -> Tensor:
        seen.append(tuple(tensor.shape))
        return product(basis, tensor, **dims)

    monkeypatch.setattr(torch, "tensordot", watched)
    assert torch.equal(TENSOR._core(torch.ones(20, 4, 30), bases), torch.full((20, 2, 1), 2400.0))
    assert seen == [(20, 4, 30), (20, 4, 1), (20, 2, 1)]
