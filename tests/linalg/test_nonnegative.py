"""Semi-nonnegative factorisations against one sweep by hand in NumPy, the singular value decomposition, and planted factors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from market import gaussian
from torch import Tensor

from eckart.linalg import semi_nmf
from eckart.linalg.nonnegative import begun, error_of, free_factor, swept
from eckart.operator import Factors


def drawn(r: int, n: int, seed: int = 0) -> Tensor:
    return torch.rand(r, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tail(a: Tensor, rank: int) -> float:
    values = np.linalg.svd(a.double().numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum()))


def planted(m: int, n: int, r: int, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """A product with a right factor of nonnegative entries, some of them zero."""
    right = drawn(r, n, 1) * (drawn(r, n, 2) < share)
    return gaussian(m, r) @ right, right


@pytest.mark.parametrize("shape", [(30, 12), (9, 20), (8, 8)])
def test_one_sweep_by_hand(shape: tuple[int, int]) -> None:
    """The rule entry by entry, F by the normal equations."""
    a, right = gaussian(*shape), drawn(4, shape[1])
    x, g = a.numpy(), right.numpy()
    f = x @ g.T @ np.linalg.inv(g @ g.T)
    assert np.abs(free_factor(a, right).numpy() - f).max() < 1e-10
    xf, ff = x.T @ f, f.T @ f
    expected = np.zeros_like(g)
    for k in range(4):
        for j in range(shape[1]):
            above, below = max(xf[j, k], 0.0), max(-xf[j, k], 0.0)
            for i in range(4):
                above += g[i, j] * max(-ff[i, k], 0.0)
                below += g[i, j] * max(ff[i, k], 0.0)
            expected[k, j] = g[k, j] * np.sqrt(above / below)
    assert np.abs(swept(a, right).numpy() - expected).max() < 1e-10


def test_rows_that_take_no_part_stay() -> None:
    right = drawn(2, 4)
    assert torch.equal(swept(torch.zeros(3, 4, dtype=torch.float64), right), right)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("shape", [(40, 12), (9, 20)])
def test_no_sweep_raises_the_error(shape: tuple[int, int], rank: int) -> None:
    a = gaussian(*shape, seed=rank)
    for right in (drawn(rank, shape[1]), begun(a, rank)):
        errors = [error_of(a, right)]
        for _ in range(100):
            right = swept(a, right)
            assert float(right.min()) >= 0
            errors.append(error_of(a, right))
        assert all(after <= before * (1 + 1e-10) for before, after in itertools.pairwise(errors))
        if float(errors[0]) > tail(a, rank) * (1 + 1e-3):
            assert errors[-1] < errors[0] * (1 - 1e-4)
        assert errors[-1] >= tail(a, rank) * (1 - 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 5, 11])
def test_what_it_costs_is_less_than_one_rank(rank: int) -> None:
    """Of the best matrix of rank r - 1 the start has all but one direction, and a sweep only gains."""
    a = gaussian(60, 12, seed=rank) * torch.linspace(2, 0.2, 12)
    assert error_of(a, begun(a, rank)) <= tail(a, rank - 1) * (1 + 1e-12)
    assert float(begun(a, rank).min()) >= 0
    fit = semi_nmf(a, rank)
    bound = fit.bounds[0]
    assert isinstance(fit.op, Factors)
    assert float(fit.op.right.min()) >= 0
    assert torch.allclose(fit.op.right.norm(dim=1), torch.ones(rank, dtype=torch.float64))
    formed = float((a - fit.op.left @ fit.op.right).norm())
    assert bound.lower is not None
    assert bound.lower == pytest.approx(tail(a, rank), rel=1e-9)
    assert bound.achieved == pytest.approx(formed, rel=1e-9)
    assert tail(a, rank) <= formed <= tail(a, rank - 1)


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_what_has_such_factors_is_found(share: float) -> None:
    a, _ = planted(50, 20, 4, share)
    fit = semi_nmf(a, 4)
    assert fit.bounds[0].achieved < 1e-6 * float(a.norm())
    assert float(fit.op.right.min()) >= 0  # type: ignore[attr-defined]
    narrow = semi_nmf(a.float(), 4)
    assert narrow.op.right.dtype == torch.float32  # type: ignore[attr-defined]
    assert narrow.bounds[0].achieved < 1e-5 * float(a.norm())


def test_where_it_ends_nothing_can_be_gained_nearby() -> None:
    """First-order conditions in G: no gradient where an entry is above zero, and none below zero where it is zero."""
    # Within reach of one leading direction with both signs: the positive part of it is what counts.
    a = gaussian(30, 8, seed=3)
    right = drawn(2, 8)
    for _ in range(20000):
        right = swept(a, right)
    left = free_factor(a, right)
    slope = (left.T @ (left @ right - a)).numpy()
    size = float((left.T @ a).abs().max())
    g = right.numpy()
    assert np.abs(slope * g).max() < 1e-4 * size * g.max()
    assert slope[g < 1e-3 * g.max()].min(initial=0.0) > -1e-3 * size
    assert (g < 1e-3 * g.max()).any()


def test_a_mixed_direction_costs_what_its_smaller_part_has() -> None:
    """Rank one by reasoning: of ``u v^T`` with signs in v a nonnegative row holds the larger of its positive and its negative part."""
    v = torch.tensor([3.0, -1.0, 2.0, -0.5, 0.0], dtype=torch.float64)
    a = torch.outer(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), v)
    fit = semi_nmf(a, 1)
    missed = float(a.norm() / v.norm()) * (1.0 + 0.25) ** 0.5
    assert fit.bounds[0].achieved == pytest.approx(missed, rel=1e-3)


@pytest.mark.parametrize("a", [torch.zeros(4, 3), torch.ones(4, 3), torch.eye(3)[:, :2], -torch.ones(2, 5)])
def test_degenerate_matrices(a: Tensor) -> None:
    for rank in (1, 2):
        fit = semi_nmf(a, rank)
        assert float(fit.op.right.min()) >= 0  # type: ignore[attr-defined]
        formed = float((a - fit.op.dense()).norm())
        assert formed <= tail(a, rank - 1) * (1 + 1e-5)
        assert fit.bounds[0].upper >= formed - 1e-6


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="rank 4 of a matrix of 5 x 3: give one from 1 to 3"):
        semi_nmf(torch.ones(5, 3), 4)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        semi_nmf(torch.full((3, 3), float("nan")), 1)
    with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted"):
        semi_nmf(torch.ones(3), 1)


@pytest.mark.data
def test_a_trained_embedding_is_nearly_as_near_as_can_be(data_dir: Path) -> None:
    from safetensors.torch import load_file

    table = load_file(data_dir / "wikitext2_llama_8m" / "model.safetensors")["model.embed_tokens.weight"]
    bound = semi_nmf(table.float(), 100).bounds[0]
    best, one_less = (tail(table, rank) / float(table.double().norm()) for rank in (100, 99))
    assert best <= bound.relative <= one_less
    assert bound.relative <= best * 1.001
