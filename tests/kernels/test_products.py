"""The pieces of an iteration by hand: products, Ritz values, bases, and what decides in which precision they are computed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from market import float64, gaussian, orthonormal, with_spectrum
from torch import Tensor

from eckart.kernels import randomized
from eckart.kernels.randomized import (
    InMemory,
    Subspace,
    conditioned,
    most_steps,
    oversampling,
    ritz_subspace,
    ritz_values,
)

EPS32 = 2.0**-23


def singles(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_narrow_products_round_both_factors_to_bfloat16(dtype: torch.dtype) -> None:
    """Of nine binary digits it keeps eight: 257 becomes 256 and 259 becomes 260."""
    a, x = InMemory(singles((257.0, 0.0), (0.0, 1.0))), singles((1.0, 0.0), (0.0, 259.0)).to(dtype)
    assert a.times(x, narrow=True).tolist() == [[256.0, 0.0], [0.0, 260.0]]
    assert a.transposed_times(x, narrow=True).tolist() == [[256.0, 0.0], [0.0, 260.0]]
    assert a.times(x, narrow=False).tolist() == [[257.0, 0.0], [0.0, 259.0]]
    assert a.transposed_times(x, narrow=False).tolist() == [[257.0, 0.0], [0.0, 259.0]]
    for narrow in (True, False):
        assert a.times(x, narrow=narrow).dtype == a.transposed_times(x, narrow=narrow).dtype == dtype


@pytest.mark.parametrize("m", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_numpy(dtype: torch.dtype, m: int) -> None:
    w, x, y = gaussian(m, 5).to(dtype), gaussian(5, 3, 1), gaussian(m, 3, 2)
    a = InMemory(w)
    assert a.shape == (m, 5)
    assert float64(a.times(x, narrow=False)) == pytest.approx(float64(w) @ float64(x), abs=1e-13)
    back = a.transposed_times(y, narrow=False)
    assert back.is_contiguous()
    assert float64(back) == pytest.approx(float64(w).T @ float64(y), abs=1e-12)
    rough = float64(a.transposed_times(y.to(torch.float32), narrow=False))
    assert (np.abs(rough - float64(w).T @ float64(y)) <= 10 * m * EPS32).all()


def test_sums_are_added_up_by_chains_of_128(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    addmm = Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda self, a, b: (seen.append(tuple(b.shape)), addmm(self, a, b))[1])
    InMemory(torch.ones(300, 2)).transposed_times(torch.ones(300, 1), narrow=False)
    assert seen == [(128, 2), (128, 2), (44, 2)]


def test_rows_that_do_not_fit_are_refused() -> None:
    """Also where their number is one at which the rows are divided."""
    with pytest.raises(ValueError, match="shorter"):
        InMemory(torch.ones(300, 2)).transposed_times(torch.ones(256, 1), narrow=False)


def test_a_matrix_is_rounded_once_for_all_products(monkeypatch: pytest.MonkeyPatch) -> None:
    a, made = InMemory(gaussian(6, 5).to(torch.float32)), []
    cast = Tensor.to
    monkeypatch.setattr(
        Tensor, "to", lambda self, *args: (made.append(self.shape) if self is a.matrix else None, cast(self, *args))[1]
    )
    for _ in range(3):
        a.times(torch.ones(5, 1), narrow=True)
        a.transposed_times(torch.ones(6, 1), narrow=True)
        a.times(torch.ones(5, 1), narrow=False)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("device", "supported", "narrows"), [("cuda", True, True), ("cuda", False, False), ("meta", True, False)]
)
def test_bfloat16_on_a_device_is_taken_where_it_is_not_emulated(
    device: str, supported: bool, narrows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def answer(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    monkeypatch.setattr(randomized, "_cpu_has_bfloat16", lambda: pytest.fail("another device is not the processor"))
    assert randomized._has_bfloat16(torch.device(device)) is narrows
    assert not any(asked)


# ---- how many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "side", "more"),
    [
        (1, 100, 8),
        (15, 100, 8),
        (16, 100, 8),
        (17, 100, 8),
        (18, 100, 9),
        (64, 4096, 32),
        (2, 10, 8),
        (3, 10, 7),
        (9, 9, 0),
    ],
)
def test_half_as_many_directions_are_taken_along_and_eight_at_least(rank: int, side: int, more: int) -> None:
    assert oversampling(rank, side) == more


@pytest.mark.parametrize(
    ("columns", "side", "steps"),
    [(1, 4096, 32), (64, 4096, 32), (66, 4096, 31), (24, 1024, 21), (228, 4096, 8), (200, 4096, 10), (1536, 4096, 8)],
)
def test_steps_cost_no_more_than_an_exact_way_and_are_eight_to_thirty_two(columns: int, side: int, steps: int) -> None:
    assert most_steps(columns, side) == steps


# ---- Ritz values ----------------------------------------------------------------------------------------------------


def with_energies(*energies: float) -> Tensor:
    """Columns (9, k) in float32 whose Gram matrix has about these eigenvalues."""
    return with_spectrum(9, len(energies), doubles(*energies).sqrt(), 4).to(torch.float32)


def in_single_precision(x: Tensor) -> bool:
    return torch.equal(x, x.to(torch.float32).to(torch.float64))


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ritz_values_are_squared_singular_values(dtype: torch.dtype, fine: bool) -> None:
    z = (5 * with_energies(9.0, 4.0, 3.0, 1.0)).to(dtype)
    energies, turn = ritz_values(z, fine=fine)
    _, s, vt = np.linalg.svd(float64(z), full_matrices=False)
    assert energies.dtype == turn.dtype == torch.float64
    assert float64(energies) == pytest.approx(s**2, rel=1e-5)
    assert np.abs(vt @ float64(turn)) == pytest.approx(np.eye(4), abs=1e-5)
    assert in_single_precision(energies) is (not fine and dtype == torch.float32)
    assert in_single_precision(turn) is (not fine and dtype == torch.float32)


@pytest.mark.parametrize(("last", "rough"), [(1.5e-4, True), (0.7e-4, False), (0.0, False)])
def test_energies_below_a_ten_thousandth_are_not_had_in_single_precision(last: float, rough: bool) -> None:
    z = with_energies(1.0, 0.5, last)
    energies, _ = ritz_values(z, fine=False)
    assert in_single_precision(energies) is rough
    assert float(energies[2]) == pytest.approx(np.linalg.svd(float64(z))[1][2] ** 2, rel=1e-2, abs=1e-14)


@pytest.mark.parametrize("power", [-60, -8, 1, 8, 60])
def test_a_power_of_two_changes_no_digit_of_ritz_values(power: int) -> None:
    """Their squares would leave the range of float32."""
    z = with_energies(1.0, 0.5, 1e-3)
    energies, turn = ritz_values(z, fine=False)
    scaled, same = ritz_values(z * 2.0**power, fine=False)
    assert torch.equal(scaled, energies * 4.0**power)
    assert torch.equal(same, turn)


def test_ritz_values_of_rounding_are_zero() -> None:
    z = torch.ones(5, 6, dtype=torch.float32)
    for fine in (True, False):
        energies, _ = ritz_values(z, fine=fine)
        assert float(energies[0]) == pytest.approx(30.0)
        assert bool((energies[1:] >= 0).all())
        assert float(energies[1:].sum()) <= 1e-12


# ---- bases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pivot", "by_cholesky"), [(1.5e-2, True), (1.02e-2, True), (0.98e-2, False), (1e-9, False)])
def test_a_pivot_below_a_hundredth_is_left_to_householder(pivot: float, by_cholesky: bool) -> None:
    """Cholesky's first column is that of the matrix, Householder's points the other way."""
    first, second = np.array([0.6, 0.8]), np.array([0.8, -0.6])
    y = torch.from_numpy(np.stack([3 * first, 5 * (math.sqrt(1 - pivot**2) * first + pivot * second)], axis=1))
    q = float64(conditioned(y.to(torch.float32)))
    assert q[:, 0] == pytest.approx(first if by_cholesky else -first, abs=1e-6)
    assert q.T @ q == pytest.approx(np.eye(2), abs=2e-3)


def test_the_skew_of_a_basis_is_what_its_gram_matrix_is_off_by() -> None:
    def of(basis: Tensor) -> Subspace:
        none = torch.zeros(0, 0)
        return Subspace(u=none, s=none, image=none, basis=basis, beyond=0.0, steps=0, excess=None)

    assert of(orthonormal(9, 4).to(torch.float32)).skew <= 1e-6
    assert of(singles((1.0, 0.0), (0.0, 1.5), (0.0, 0.0))).skew == 1.25
    assert of(singles((1.0, 0.5), (0.0, 1.0))).skew == pytest.approx(math.sqrt(2 * 0.25 + 0.0625), rel=1e-12)
    assert of(singles((1.0,))).floor == 0.0


def test_a_subspace_holds_the_best_directions_within_a_basis() -> None:
    """By LAPACK's decomposition of ``Q^T A``, with the energies of further directions added up."""
    a, q = gaussian(12, 8).to(torch.float32), orthonormal(12, 5, 1).to(torch.float32)
    found = ritz_subspace(InMemory(a), q, 3, 7, 0.25)
    left, s, right = np.linalg.svd(float64(q).T @ float64(a), full_matrices=False)
    assert float64(found.s) == pytest.approx(s[:3], rel=1e-5)
    assert found.beyond == pytest.approx(float(np.sum(s[3:] ** 2)), rel=1e-5)
    assert np.abs((float64(q) @ left[:, :3]).T @ float64(found.u)) == pytest.approx(np.eye(3), abs=1e-5)
    assert float64(found.u) @ float64(found.image) == pytest.approx(
        float64(q) @ left[:, :3] * s[:3] @ right[:3], abs=1e-5
    )
    # The values are as fine as the image: its rows have these lengths, and are orthogonal.
    rows = float64(found.image) @ float64(found.image).T
    assert rows == pytest.approx(np.diag(float64(found.s) ** 2), rel=1e-12, abs=1e-12)
    assert torch.equal(found.basis, q)
    assert (found.steps, found.excess, found.floor) == (7, 0.25, 0.0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_shifted_product_and_what_of_it_is_beside_the_basis(rank: int) -> None:
    """``(A A^T - e_k / 2) Q`` over the root of e_1, and squared lengths of ``(1 - Q Q^T) A A^T u`` for the leading u within Q."""
    a, q = gaussian(12, 9), orthonormal(12, 4, 1)
    z = a.T @ q
    energies, turn = ritz_values(z, fine=True)
    y, beside = randomized._shifted(InMemory(a), q, z, energies, turn, rank, narrow=False)
    w, basis = float64(a), float64(q)
    left, s, _ = np.linalg.svd(basis.T @ w, full_matrices=False)
    expected = (w @ w.T @ basis - s[-1] ** 2 / 2 * basis) / s[0]
    assert float64(y) == pytest.approx(expected, abs=1e-12)
    image = w @ w.T @ basis @ left[:, :rank]
    outside = image - basis @ (basis.T @ image)
    assert float64(beside) == pytest.approx(np.sum(outside**2, axis=0), rel=1e-9)


# ---- which precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "range_sq", "share"),
    [(torch.float32, 1e-8, 1e-6), (torch.float64, 1e-12, 1e-12)],
    ids=["single", "double"],
)
def test_rounding_hides_weak_directions_and_small_remainders(dtype: torch.dtype, range_sq: float, share: float) -> None:
    """Of the wanted energies the last one counts, beside the largest; of what remains twice the accuracy, beside the whole."""

    def hidden(last: float, tail: float, accuracy: float) -> bool:
        energies = doubles(3.0, 0.5, last, last / 2)
        return randomized._hidden(energies, 3, 3.5 + last + tail, accuracy, dtype)

    assert hidden(3 * range_sq * 0.99, 1.0, 0.1)
    assert not hidden(3 * range_sq * 1.01, 1.0, 0.1)
    assert randomized._hidden(doubles(2.0**20, 0.0, 0.0), 2, 2.0**21, 0.1, dtype)
    assert randomized._hidden(doubles(0.0, 0.0), 1, 0.0, 0.1, dtype)
    accuracy = 100 * share
    for tail, buried in ((0.0249, True), (0.0253, False)):  # 2 * 100 * 0.025 is 5, and the whole about 5
        assert hidden(1.5 - tail, tail, accuracy) is buried
    # More than the whole can't be there: what rounding takes below nothing counts as nothing.
    assert randomized._hidden(doubles(1.0, 1.0), 2, 1.99, 0.1, dtype)


@pytest.mark.parametrize(("share", "blurs"), [(0.99, True), (1.0, False), (1.01, False)])
def test_noise_of_a_quarter_of_what_may_be_missed_blurs(share: float, blurs: bool) -> None:
    """The noise is in every column, a sixth of 2^-16 of all that is in it; wanted is one of eight directions."""
    noise = 2.0**-16 / 6 * 8.0
    assert randomized._blurs(torch.ones(8, dtype=torch.float64), 1, share * (4 * noise)) is blurs


@pytest.mark.parametrize(("share", "blurs"), [(0.99, True), (1.0, False), (1.01, False)])
def test_energies_are_as_good_as_products_in_bfloat16(share: float, blurs: bool) -> None:
    """To 5e-5 of those that are wanted."""
    assert randomized._blurs(doubles(10.0, 6.0, 1.0, 1.0), 2, share * (5e-5 * 16.0)) is blurs


def test_a_remainder_that_is_just_to_be_told_from_rounding_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(randomized.ENERGY, torch.float32, 2.0**-20)
    for energy, hides in ((1.0, False), (1.0 - 2.0**-40, True)):
        assert randomized._hidden(doubles(1 - 2.0**-20), 1, energy, 0.5, torch.float32) is hides


@pytest.mark.parametrize("decompose", [conditioned, lambda y: ritz_values(y, fine=False)[1]])
def test_arguments_are_left_alone(decompose: Callable[[Tensor], Tensor]) -> None:
    y = gaussian(9, 4).to(torch.float32)
    before = y.clone()
    decompose(y)
    assert torch.equal(y, before)


@pytest.mark.parametrize("power", [-40, -20, -1, 30])
def test_columns_count_alike_however_long_they_are(power: int) -> None:
    y = gaussian(30, 4).to(torch.float32)
    assert torch.equal(conditioned(y * torch.tensor([1.0, 2.0**power, 1.0, 0.5])), conditioned(y))


@pytest.mark.parametrize("power", [-100, -70, 70, 100])
def test_a_power_of_two_changes_no_digit_of_a_basis(power: int) -> None:
    """Also where squares of its entries leave the range of float32; of numbers near the largest of float64 neither."""
    y = gaussian(30, 5).to(torch.float32)
    assert torch.equal(conditioned(y * 2.0**power), conditioned(y))
    assert 2 <= float(y.abs().max()) < 4
    assert torch.equal(conditioned(y.double() * 2.0**1022), conditioned(y.double()))


@pytest.mark.parametrize("power", [-100, -70, 60, 100])
def test_a_power_of_two_changes_no_digit_of_a_shifted_product(power: int) -> None:
    """The squared parts beside a basis are of the fourth power of the scale."""
    a, q = gaussian(12, 9).to(torch.float32), orthonormal(12, 4, 1).to(torch.float32)
    found = []
    for scale in (1.0, 2.0**power):
        z = InMemory(a * scale).transposed_times(q, narrow=False)
        energies, turn = ritz_values(z, fine=True)
        found.append(randomized._shifted(InMemory(a * scale), q, z, energies, turn, 2, narrow=False))
    (y, beside), (scaled, beyond) = found
    assert float64(scaled) / 2.0**power == pytest.approx(float64(y), abs=1e-5)
    assert float64(beyond) / 2.0 ** (4 * power) == pytest.approx(float64(beside), rel=1e-4)
