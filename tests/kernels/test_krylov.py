"""Block Krylov iteration against the same span, made and searched by NumPy in float64."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from market import float64, gaussian, generator, lapack_values, with_spectrum
from torch import Tensor

from eckart.kernels.krylov import block_krylov
from eckart.kernels.randomized import InMemory


@dataclass(frozen=True)
class Noted(InMemory):
    """Products that note how many columns they were asked for, and whether they might be narrow."""

    asked: list[tuple[str, int, bool]] = field(default_factory=list)

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        self.asked.append(("times", x.shape[1], narrow))
        return super().times(x, narrow=narrow)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        self.asked.append(("transposed", y.shape[1], narrow))
        return super().transposed_times(y, narrow=narrow)


def best_within(a: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
    """The singular values of ``a`` seen from the span of ``a start, (a a^T) a start, …`` with so many powers."""
    blocks = [np.linalg.qr(a @ start)[0]]
    for _ in range(steps):
        blocks.append(np.linalg.qr(a @ (a.T @ blocks[-1]))[0])
    basis = np.linalg.svd(np.concatenate(blocks, axis=1), full_matrices=False)[0]
    return np.linalg.svd(basis.T @ a, compute_uv=False)


@pytest.mark.parametrize("shape", [(70, 50), (50, 70)])
@pytest.mark.parametrize(("steps", "oversampling"), [(1, 0), (1, 3), (2, 1), (4, 2)])
def test_it_finds_the_best_directions_of_its_span(shape: tuple[int, int], steps: int, oversampling: int) -> None:
    a = with_spectrum(*shape, torch.arange(1, 51, dtype=torch.float64) ** -0.3)
    found = block_krylov(InMemory(a), 5, steps=steps, oversampling=oversampling, rng=generator(3))
    start = torch.randn(shape[1], 5 + oversampling, generator=generator(3))
    assert float64(found.s) == pytest.approx(best_within(float64(a), float64(start), steps)[:5], rel=1e-5)
    assert found.basis.shape == (shape[0], (5 + oversampling) * (steps + 1))
    assert (found.steps, found.excess) == (steps, None)
    assert np.abs(float64(found.u.T @ found.u) - np.eye(5)).max() <= 1e-5
    assert np.abs(float64(found.image) - float64(found.u).T @ float64(a)).max() <= 1e-5


def test_every_product_is_of_one_block_in_full_precision() -> None:
    a = Noted(gaussian(40, 30))
    block_krylov(a, 4, steps=3, oversampling=2, rng=generator())
    there_and_back = [("transposed", 6, False), ("times", 6, False)]
    # The last one, of all blocks, tells how good each direction is.
    assert a.asked == [("times", 6, False), *there_and_back * 3, ("transposed", 24, False)]


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
@pytest.mark.parametrize(("rank", "oversampling"), [(3, 2), (5, 9), (7, 1)])
def test_blocks_beyond_the_shorter_side_are_cut(shape: tuple[int, int], rank: int, oversampling: int) -> None:
    """With as many directions as there are nothing is missed."""
    a = Noted(gaussian(*shape, 2))
    found = block_krylov(a, rank, steps=2, oversampling=oversampling, rng=generator())
    assert a.asked[0] == ("times", min(rank + oversampling, *shape), False)
    assert found.basis.shape == (shape[0], min(3 * (rank + oversampling), *shape))
    assert float64(found.s) == pytest.approx(lapack_values(a.matrix)[:rank], rel=1e-5)


def test_less_than_one_step_is_refused() -> None:
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"takes at least one step, not {steps}"):
            block_krylov(InMemory(gaussian(4, 4)), 1, steps=steps, oversampling=1, rng=generator())
