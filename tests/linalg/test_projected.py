"""The error of an iterated projection by inner products, and what is certain below it, against float64."""

import math

import numpy as np
import pytest
import torch
from market import as_if_large, gaussian, generator, lapack_values, with_spectrum
from torch import Tensor

from eckart.bound import Bound
from eckart.kernels.randomized import InMemory, Subspace, ritz_subspace
from eckart.linalg import SubspaceIteration, bounds_of, certified, projected, truncated_svd
from eckart.linalg.factors import lengths
from eckart.linalg.projected import Projected, frobenius_bound
from eckart.operator import Factors

INDEX = torch.arange(1, 121, dtype=torch.float64)
SPECTRA = {
    "fast": 1 / INDEX,
    "slow": INDEX**-0.2,
    "step": torch.where(INDEX <= 12, 1.0, 1e-3).to(torch.float64),
    "exponential": torch.exp(-INDEX / 2),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def subspace(w: Tensor, rank: int, more: int, off: float = 0.0) -> Subspace:
    """The leading directions and ``more`` of them, or directions away from these."""
    u = torch.linalg.svd(w.double()).U[:, : rank + more]
    q = torch.linalg.qr(u + off * gaussian(*u.shape)).Q.to(torch.float32)
    return ritz_subspace(InMemory(w), q, rank, 1, None)


def error_of(w: Tensor, part: Projected) -> float:
    return float(np.linalg.norm((w.double() - part.op.left.double() @ part.op.right.double()).numpy()))


@pytest.mark.parametrize("off", [0.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16])
def test_inner_products_tell_the_error_up_to_their_doubt(
    source: torch.dtype, name: str, dtype: torch.dtype, off: float
) -> None:
    w = with_spectrum(160, 120, SPECTRA[name]).to(source)
    size = float(torch.linalg.norm(w.double()))
    for rank in (1, 9, 40):
        found = subspace(w, rank, 8, off)
        part = Projected.on(found, w, size, dtype)
        assert {t.dtype for t in part.op.tensors().values()} == {dtype}
        error = error_of(w, part)
        assert abs(part.energy - error**2) <= part.doubt
        achieved, slack = part.error(w, size)
        assert abs(achieved - error) <= slack * (1 + 1e-9) + 1e-14 * size
        bound = frobenius_bound(part, found, w, size)
        assert bound.delta is None
        assert bound.lower is not None
        assert bound.lower <= float(np.linalg.norm(lapack_values(w)[rank:])) + 1e-14 * size
        assert error <= bound.upper + 1e-14 * size


def test_the_doubt_is_small_where_most_is_left_and_great_where_little_is() -> None:
    """Half a percent of the error is what is allowed for: with values that hardly fall, a thousandth of that comes out."""
    slow, fast = (with_spectrum(160, 120, SPECTRA[name]).to(torch.float32) for name in ("slow", "exponential"))
    parts = [Projected.on(subspace(w, 9, 8), w, float(w.norm()), torch.float32) for w in (slow, fast)]
    assert parts[0].doubt < 1e-4 * parts[0].energy
    assert parts[1].doubt > 1e-2 * parts[1].energy


def test_a_skewed_basis_costs_no_doubt() -> None:
    """Inner products of the columns are known, so that what they take from being orthonormal is reckoned instead of feared."""
    w = with_spectrum(160, 120, SPECTRA["slow"]).to(torch.float32)
    size, u = float(torch.linalg.norm(w.double())), torch.linalg.svd(w.double()).U[:, :17]
    parts = []
    for off in (0.0, 2.5e-4):
        q = (u + off * gaussian(*u.shape)).to(torch.float32)
        found = ritz_subspace(InMemory(w), q, 9, 1, None)
        parts.append(Projected.on(found, w, size, torch.float32))
        assert abs(parts[-1].energy - error_of(w, parts[-1]) ** 2) <= parts[-1].doubt
    assert found.skew > 1e-3
    assert parts[1].doubt <= 1.2 * parts[0].doubt


def test_a_small_error_is_not_told_by_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an error of 1e-4 of the norm inner products in float32 know nothing: it is formed."""
    w = with_spectrum(160, 120, torch.where(INDEX <= 12, 1.0, 1e-5).to(torch.float64)).to(torch.float32)
    size, found = float(torch.linalg.norm(w.double())), subspace(w, 12, 8)
    part = Projected.on(found, w, size, torch.float32)
    error = error_of(w, part)
    assert part.error(w, size)[0] == pytest.approx(error, rel=5e-3)
    monkeypatch.setattr(projected, "COARSE", 1e9)  # without the guard
    blind = math.sqrt(max(part.energy, 0.0))
    assert blind != pytest.approx(error, rel=5e-3)


def test_columns_that_rounding_made_dependent_are_solved_for_all_the_same() -> None:
    """Directions that differ by less than bfloat16 can tell."""
    w = with_spectrum(160, 120, SPECTRA["slow"]).to(torch.float32)
    found = subspace(w, 3, 8)
    twin = Subspace(
        u=torch.stack([found.u[:, 0], found.u[:, 0], found.u[:, 1]], dim=1),
        s=found.s,
        image=torch.stack([found.image[0], found.image[0], found.image[1]]),
        basis=found.basis,
        beyond=0.0,
        steps=1,
        excess=None,
    )
    part = Projected.on(twin, w, float(w.norm()), torch.bfloat16)
    best = float(w.double().square().sum() - found.s[:2].square().sum())
    assert part.error(w, float(w.norm()))[0] == pytest.approx(math.sqrt(best), rel=1e-3)


def test_what_the_basis_holds_beyond_the_rank_is_certain_by_hand() -> None:
    """diag(4, 3, 2, 1) seen through three axes: behind the first, at least 3 and 2 are left of what is 3, 2 and 1."""
    w = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    found = ritz_subspace(InMemory(w), torch.eye(4)[:, :3], 1, 1, None)
    size = math.sqrt(30.0)
    bound = frobenius_bound(Projected.on(found, w, size, torch.float32), found, w, size)
    assert bound.lower == pytest.approx(math.sqrt(13), rel=1e-3)
    assert bound.lower <= math.sqrt(13)
    assert bound.achieved == pytest.approx(math.sqrt(14), rel=1e-6)


def test_a_basis_that_is_not_orthonormal_proves_nothing() -> None:
    """The check without which a failed orthogonalisation would go unseen: its directions count the same energy twice."""
    w = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    size = math.sqrt(30.0)
    twice = torch.eye(4)[:, [0, 1, 1]]
    found = ritz_subspace(InMemory(w), twice, 1, 1, None)
    bound = frobenius_bound(Projected.on(found, w, size, torch.float32), found, w, size)
    assert bound.lower == 0.0


@pytest.mark.parametrize("spectral", [True, False])
def test_only_bounds_that_were_asked_for_are_there(spectral: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(60, 50).to(torch.float32)
    names = ["frobenius", "spectral"] if spectral else ["frobenius"]
    assert [b.norm for b in truncated_svd(w, 5, spectral=spectral).bounds] == names
    as_if_large(monkeypatch)
    for route in (None, SubspaceIteration(steps=2)):
        chosen = {} if route is None else {"route": route}
        fits = [truncated_svd(w, 5, spectral=spectral, rng=generator(3), **chosen) for _ in range(2)]  # type: ignore[arg-type]
        assert [b.norm for b in fits[0].bounds] == names
        assert fits[0].bounds == fits[1].bounds


def test_of_two_equal_lower_bounds_the_certain_one_stays() -> None:
    certain = Bound(norm="frobenius", lower=1.0, achieved=2.0, upper=2.0, scale=3.0)
    probable = Bound(norm="frobenius", lower=1.0, achieved=1.5, upper=1.5, scale=3.0, delta={"lower": 1e-10})
    assert certified._raised(certain, probable) == certain
    higher = Bound(norm="frobenius", lower=1.2, achieved=1.5, upper=1.5, scale=3.0, delta={"lower": 1e-10})
    raised = certified._raised(certain, higher)
    assert (raised.lower, raised.achieved, raised.delta) == (1.2, 2.0, {"lower": 1e-10})
    both = Bound(norm="frobenius", lower=1.0, achieved=2.0, upper=2.0, scale=3.0, delta={"lower": 1e-3, "upper": 1e-9})
    assert certified._raised(both, higher).delta == {"lower": 1e-10, "upper": 1e-9}


def test_what_is_zero_has_a_length_to_be_divided_by() -> None:
    right = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert lengths(torch.zeros(2, 5), torch.float32).tolist() == [1.0, 1.0]
    assert lengths(right, torch.float32)[0] == pytest.approx(5.0**0.5)
    assert float(lengths(right, torch.float32)[1]) > 0


def test_bounds_of_what_others_made_are_those_of_the_seed_0(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = with_spectrum(160, 120, SPECTRA["slow"]).to(torch.float32)
    op = Factors(gaussian(160, 5).to(torch.float32), gaussian(5, 120).to(torch.float32))
    own = bounds_of(w, op)
    assert own == bounds_of(w, op, rng=generator(0))
    assert own != bounds_of(w, op, rng=generator(1))
