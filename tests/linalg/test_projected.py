"""The error of an iterated projection by inner products, and what is certain below it, against float64."""

import math
from dataclasses import replace

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


# ---- worked by hand -------------------------------------------------------------------------------------------------

WORKED = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
LENGTH = math.sqrt(30.0)
SINGLE, DOUBLE = 2.0**-23, 2.0**-52
# Four rows in float32: a chain of 128 sums, a share of a second one, and two conversions more.
OFF = (128 + 4 / 128 + 2) * SINGLE / 2
FOUR_ROWS = 16 * DOUBLE * 4 * 30.0


def first_axis(skewed: float = 0.0, sign: float = 1.0) -> Subspace:
    """That of the worked matrix, in a basis of three axes of which the second one is so much longer than 1."""
    basis = torch.eye(4)[:, :3].clone()
    basis[1, 1] += skewed
    return Subspace(
        u=sign * torch.eye(4, 1, dtype=torch.float64),
        s=torch.tensor([4.0], dtype=torch.float64),
        image=sign * torch.tensor([[4.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
        basis=basis,
        beyond=13.0,
        steps=1,
        excess=None,
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inner_products_of_an_axis_worked_by_hand(dtype: torch.dtype, sign: float) -> None:
    """Of the 30 of all squares 14 are left; products with the three columns are as coarse as float32 is."""
    part = Projected.on(first_axis(sign=sign), WORKED, LENGTH, dtype)
    assert part.op.left.tolist() == [[2.0], [0.0], [0.0], [0.0]]
    assert part.op.right.tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert part.energy == pytest.approx(14.0, rel=1e-14)
    assert part.doubt == pytest.approx(2 * OFF * math.sqrt(3) * LENGTH * 4.0 + FOUR_ROWS, rel=1e-7, abs=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inner_products_of_a_narrow_axis_worked_by_hand(dtype: torch.dtype) -> None:
    """The product is one with the left factor as stored, of one column."""
    part = Projected.on(first_axis(), WORKED, LENGTH, dtype)
    assert part.op.left.tolist() == [[2.0], [0.0], [0.0], [0.0]]
    assert part.op.right.tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert part.energy == pytest.approx(14.0, rel=1e-14)
    assert part.doubt == pytest.approx(2 * OFF * LENGTH * 4.0 + FOUR_ROWS, rel=1e-11, abs=0.0)


def test_a_narrow_axis_whose_length_is_rounded_is_met_all_the_same() -> None:
    """The root of three is 1.734375 in bfloat16, and the right factor is solved for that."""
    w = torch.diag(torch.tensor([3.0, 2.0]))
    found = Subspace(
        u=torch.eye(2, 1, dtype=torch.float64),
        s=torch.tensor([3.0], dtype=torch.float64),
        image=torch.tensor([[3.0, 0.0]], dtype=torch.float64),
        basis=torch.eye(2, 1),
        beyond=0.0,
        steps=1,
        excess=None,
    )
    part = Projected.on(found, w, math.sqrt(13.0), torch.bfloat16)
    (left,), (right, _) = part.op.left[:1].tolist()[0], part.op.right.tolist()[0]
    assert left == 1.734375
    assert right == float(torch.tensor(3.0 / 1.734375).to(torch.bfloat16))
    assert part.energy == pytest.approx(4.0 + (3.0 - left * right) ** 2, rel=1e-9)
    unit = 1.734375 / math.sqrt(3.0)
    off = (128 + 2 / 128 + 2) * SINGLE / 2
    kept = (right * math.sqrt(3.0)) ** 2
    doubt = 2 * off * unit * math.sqrt(13.0 * kept) + 16 * DOUBLE * 2 * 13.0
    doubt += (1 + 3) * SINGLE * (unit**2 - 1) * kept
    assert part.doubt == pytest.approx(doubt, rel=1e-9, abs=0.0)


def test_what_rounding_does_to_a_column_is_part_of_the_doubt() -> None:
    """In the products, in which the column stands for the one that was multiplied, and in its length."""
    angle = 0.3
    u = torch.tensor([[math.cos(angle)], [math.sin(angle)], [0.0], [0.0]], dtype=torch.float64)
    image = (u.T @ WORKED.double()).contiguous()
    found = replace(first_axis(), u=u, image=image, s=image.norm(dim=1))
    part = Projected.on(found, WORKED, LENGTH, torch.float32)
    root = float(image.norm()) ** 0.5
    away = float(np.linalg.norm(part.op.left.double().numpy() / root - u.numpy()))
    kept = float(part.op.right.double().square().sum()) * root**2
    assert away > 1e-9
    doubt = 2 * (OFF * math.sqrt(3) + away) * LENGTH * math.sqrt(kept) + FOUR_ROWS + (2 * away + away**2) * kept
    assert part.doubt == pytest.approx(doubt, rel=1e-7, abs=0.0)


def test_a_basis_and_columns_that_are_off_add_up() -> None:
    """A column of length 6e-44, of which float32 holds two figures, within a basis that is off by a fifth."""
    u = torch.tensor([[math.cos(0.3)], [math.sin(0.3)], [0.0], [0.0]], dtype=torch.float64)
    image = 1e-87 * torch.tensor([[4.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    found = replace(first_axis(0.1), u=u, image=image)
    assert found.skew == pytest.approx(0.21, rel=1e-6)
    part = Projected.on(found, WORKED, 1e-85, torch.float32)
    root = float(image.norm()) ** 0.5
    away = float(np.linalg.norm(part.op.left.double().numpy() / root - u.numpy()))
    assert away > 1e-3
    kept = float(part.op.right.double().square().sum()) * root**2
    # What the columns of a basis that is off by s are off by, and what those off by d from them are.
    skew = (1 + found.skew) * (1 + away) ** 2 - 1 - found.skew * away**2
    doubt = 2 * (OFF * math.sqrt(2 + 1.1**2) + away) * 1e-85 * math.sqrt(kept) + 16 * DOUBLE * 4 * 1e-170
    assert part.doubt == pytest.approx(doubt + skew * kept, rel=1e-7, abs=0.0)


# A basis that is off by this share is feared as long as that is less than a twentieth of a percent of what is left, 16 times it here.
FEARED = 5e-4 * 14.0 / 16.0


@pytest.mark.parametrize(("share", "feared"), [(0.96, True), (1.04, False)])
def test_a_skew_is_feared_where_it_is_small_and_reckoned_where_it_is_not(share: float, feared: bool) -> None:
    """The one column that is used has a length of 1: reckoned, the skew is nothing."""
    found = first_axis(math.sqrt(1 + share * FEARED) - 1)
    assert found.skew == pytest.approx(share * FEARED, rel=1e-3)
    part = Projected.on(found, WORKED, LENGTH, torch.float64)
    grain = OFF * float(np.linalg.norm(found.basis.double().numpy())) * LENGTH
    expected = 2 * grain * 4.0 + FOUR_ROWS + (16.0 * found.skew if feared else 0.0)
    assert part.doubt == pytest.approx(expected, rel=1e-7, abs=0.0)
    assert part.energy == pytest.approx(14.0, rel=1e-14)


def test_a_skew_that_is_just_small_enough_is_feared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second axis of length 1.5 is off by 1.25; 16 times that are 20 of the 20 that are left."""
    monkeypatch.setattr(projected, "COARSE", 10.0)
    assert Projected.on(first_axis(0.5), WORKED, 6.0, torch.float64).doubt > 20.0


def test_columns_that_are_not_orthogonal_are_reckoned_with() -> None:
    """A second column at a cosine of 0.6 to the first: twice 0.6 of the product of both rows is left more."""
    u = torch.tensor([[1.0, 0.6], [0.0, 0.8], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    image = (u.T @ WORKED.double()).contiguous()
    found = replace(first_axis(), u=u, image=image, s=image.norm(dim=1), basis=u.to(torch.float32))
    part = Projected.on(found, WORKED, LENGTH, torch.float64)
    assert part.energy == pytest.approx(14.0, rel=1e-6)
    assert part.energy == pytest.approx(error_of(WORKED, part) ** 2, rel=1e-6)
    kept = 16.0 + 2 * 2.4**2
    doubt = 2 * OFF * math.sqrt(2.0) * LENGTH * math.sqrt(kept) + FOUR_ROWS + 5 * SINGLE * 0.6 * math.sqrt(2.0) * kept
    assert part.doubt == pytest.approx(doubt, rel=1e-6, abs=0.0)


def test_of_columns_that_are_the_same_inner_products_tell_nothing() -> None:
    """Each meets half of what both have in common, and the error is formed."""
    one = first_axis()
    found = replace(one, u=one.u.repeat(1, 2), image=one.image.repeat(2, 1), s=one.s.repeat(2))
    part = Projected.on(found, WORKED, LENGTH, torch.bfloat16)
    assert part.op.left.tolist() == [[2.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert part.op.right.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    assert (part.energy, part.doubt) == (0.0, LENGTH**2)
    assert part.error(WORKED, LENGTH)[0] == pytest.approx(math.sqrt(14.0), rel=1e-14)


def test_an_energy_in_doubt_by_more_than_a_hundredth_is_not_taken() -> None:
    op = Factors(torch.eye(4, 1), 4 * torch.eye(1, 4))
    assert Projected(op, 4.0, 0.01 * 4.0).error(WORKED, LENGTH) == (2.0, 0.02)
    size, slack = Projected(op, 4.0, 0.0401).error(WORKED, LENGTH)
    assert size == pytest.approx(math.sqrt(14.0), rel=1e-14)
    assert slack == pytest.approx(4 * DOUBLE / 2 * (4.0 + LENGTH), rel=1e-12, abs=0.0)


def test_what_is_certain_below_is_lessened_by_what_products_and_the_basis_are_off_by() -> None:
    part = Projected.on(first_axis(), WORKED, LENGTH, torch.float64)
    for skewed in (0.0, 2.0**-12):
        found = first_axis(skewed)
        length = math.sqrt(2 + (1 + skewed) ** 2)
        bound = frobenius_bound(part, found, WORKED, LENGTH)
        expected = math.sqrt(13.0) - (OFF * length + ((1 + skewed) ** 2 - 1)) * LENGTH
        assert bound.lower == pytest.approx(expected, rel=1e-12)
        assert bound.achieved == pytest.approx(math.sqrt(14.0), rel=1e-12)
        assert bound.upper - bound.achieved == pytest.approx(part.doubt / math.sqrt(14.0), rel=1e-6, abs=0.0)
        assert (bound.norm, bound.scale, bound.delta) == ("frobenius", LENGTH, None)


def test_a_better_floor_that_came_with_the_basis_is_taken() -> None:
    part = Projected.on(first_axis(), WORKED, LENGTH, torch.float64)
    for floor, lower in ((3.65, 3.65), (3.0, math.sqrt(13.0) - OFF * math.sqrt(3) * LENGTH), (4.0, 4.0)):
        bound = frobenius_bound(part, replace(first_axis(), floor=floor), WORKED, LENGTH)
        assert bound.lower == pytest.approx(lower, rel=1e-12)
        assert bound.achieved == pytest.approx(max(lower, math.sqrt(14.0)), rel=1e-12)
    nothing = frobenius_bound(part, replace(first_axis(), beyond=0.0), WORKED, LENGTH)
    assert nothing.lower == 0.0
