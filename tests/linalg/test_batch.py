"""Batches of small matrices, against one at a time."""

import math
from typing import Any

import pytest
import torch
from market import MATRICES, gaussian, with_spectrum
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.fit import Fit
from eckart.linalg import truncated_svd, truncated_svds


def figures(fit: Fit) -> list[float | None]:
    return [x for bound in fit.bounds for x in (bound.lower, bound.achieved, bound.upper, bound.scale)]


def agree(one: Fit, other: Fit) -> None:
    size = max(one.bounds[0].scale, 1e-30)
    assert figures(one) == pytest.approx(figures(other), abs=1e-11 * size)
    assert [bound.norm for bound in one.bounds] == [bound.norm for bound in other.bounds]
    assert [bound.certain for bound in one.bounds] == [bound.certain for bound in other.bounds]


@pytest.mark.parametrize("name", MATRICES)
def test_a_batch_of_one_is_the_matrix(name: str) -> None:
    w = MATRICES[name]()
    for rank in {1, (min(w.shape) + 1) // 2, min(w.shape)}:
        (fit,) = truncated_svds(w[None], rank, spectral=True)
        alone = truncated_svd(w, rank, spectral=True)
        agree(fit, alone)
        for one, other in zip(fit.op.tensors().values(), alone.op.tensors().values(), strict=True):
            assert one.dtype == other.dtype == w.dtype


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_matrix_of_a_batch_has_its_own_fit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    k = min(shape)
    spectra = [torch.arange(1, k + 1, dtype=torch.float64) ** -d for d in (0.0, 0.5, 2.0)] + [torch.zeros(k).double()]
    batch = torch.stack([with_spectrum(*shape, s, seed) for seed, s in enumerate(spectra)]).to(dtype)
    fits = truncated_svds(batch, 4, spectral=True)
    assert len(fits) == len(batch)
    for w, fit in zip(batch, fits, strict=True):
        agree(fit, truncated_svd(w, 4, spectral=True))
        assert float((fit.op.dense().double() - w.double()).norm()) == pytest.approx(
            fit.bounds[0].achieved, rel=0.3 if dtype == torch.bfloat16 else 1e-5, abs=1e-12
        )
    turned = truncated_svds(batch.flip(0), 4, spectral=True)
    for fit, other in zip(fits, reversed(turned), strict=True):
        agree(fit, other)


def test_what_is_no_batch_is_refused() -> None:
    batch = gaussian(3, 20).reshape(3, 4, 5)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank {rank} of 4 x 5 matrices: give one from 1 to 4"):
            truncated_svds(batch, rank)
    with pytest.raises(ValueError, match=r"a batch .* is wanted, not"):
        truncated_svds(batch[0], 1)
    with pytest.raises(ValueError, match=r"a batch .* is wanted, not"):
        truncated_svds(batch.long(), 1)
    batch[1, 2, 3] = math.inf
    with pytest.raises(ValueError, match="matrix 1 of the batch holds NaN or infinity"):
        truncated_svds(batch, 1)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest result has."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple) else (found,):
            self.most = max(self.most, part.numel() if isinstance(part, torch.Tensor) else 0)
        return found


def test_tall_matrices_make_nothing_larger_than_themselves() -> None:
    batch = gaussian(3 * 200, 4).reshape(3, 200, 4)
    with Largest() as seen:
        truncated_svds(batch, 2)
    assert seen.most <= batch.numel()
