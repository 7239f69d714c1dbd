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


def small_remainder(m: int, n: int) -> torch.Tensor:
    """Values 3, 2 and 2^-40, on a diagonal, where LAPACK makes no error: what bounds allow for rounding shows beside the last."""
    a = torch.zeros(m, n, dtype=torch.float64)
    a[0, 0], a[1, 1], a[2, 2] = 3.0, 2.0, 2.0**-40
    return a


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_bounds_allow_for_rounding_and_for_no_more(shape: tuple[int, int]) -> None:
    """The decomposition: 16 units for every row of the larger side; the remainder: rank + 3 half units of both factors and of W."""
    w = small_remainder(*shape)
    plain, spectral = truncated_svds(torch.stack([torch.eye(*shape).double(), w]), 2, spectral=True)[1].bounds
    eps, rest, size = 2.0**-52, 2.0**-40, math.sqrt(13)
    decomposed = 16 * eps * max(shape) * size
    # Factors of equal lengths: the product of their norms is the sum of the values.
    formed = 5 * eps / 2 * (5 + size)
    for bound, of_norm in ((plain, formed), (spectral, formed + decomposed)):
        assert bound.lower == pytest.approx(rest - decomposed, rel=1e-6, abs=0.0)
        assert bound.achieved == pytest.approx(rest, rel=1e-6, abs=0.0)
        assert bound.upper - bound.achieved == pytest.approx(of_norm, rel=1e-6, abs=0.0)
    assert (plain.norm, spectral.norm) == ("frobenius", "spectral")
    assert (plain.scale, spectral.scale) == (pytest.approx(size), pytest.approx(3.0))


def test_a_full_rank_leaves_nothing_that_is_certain() -> None:
    for bound in truncated_svds(gaussian(20, 4).reshape(4, 5, 4), 4, spectral=True)[0].bounds:
        assert bound.lower == 0.0
        assert 0.0 <= bound.achieved <= 1e-13


def test_what_is_achieved_is_never_below_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding takes the measured norm below the certain bound, the bound counts."""
    real = torch.linalg.vector_norm
    w = small_remainder(4, 4)

    def measured(x: torch.Tensor, **options: Any) -> torch.Tensor:
        found = real(x, **options)
        return found / 2 if options.get("dim") == (1, 2) and float(found.max()) < 1e-6 else found

    monkeypatch.setattr(torch.linalg, "vector_norm", measured)
    (fit,) = truncated_svds(w[None], 2)
    assert fit.bounds[0].achieved == fit.bounds[0].lower
    assert fit.bounds[0].lower == pytest.approx(2.0**-40, rel=0.1, abs=0.0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_factors_are_in_the_dtype_that_is_asked_for(dtype: torch.dtype | None) -> None:
    (fit,) = truncated_svds(gaussian(6, 5)[None], 2, dtype=dtype)
    assert {t.dtype for t in fit.op.tensors().values()} == {dtype or torch.float64}
    assert [bound.norm for bound in fit.bounds] == ["frobenius"]
    assert fit.how == "exact, by LAPACK, in a batch"


def test_the_first_bad_matrix_is_named() -> None:
    batch = gaussian(20, 6).reshape(5, 4, 6)
    batch[2, 0, 0], batch[4, 3, 5] = math.nan, math.inf
    with pytest.raises(ValueError, match="matrix 2 of the batch holds NaN or infinity"):
        truncated_svds(batch, 4)
    with pytest.raises(ValueError, match="rank 5 of 4 x 6 matrices: give one from 1 to 4"):
        truncated_svds(gaussian(24, 1).reshape(1, 4, 6), 5)


def test_of_no_matrices_there_are_no_fits() -> None:
    assert truncated_svds(torch.zeros(0, 4, 5), 2) == ()
    with pytest.raises(ValueError, match="rank 5 of 4 x 5 matrices"):
        truncated_svds(torch.zeros(0, 4, 5), 5)
