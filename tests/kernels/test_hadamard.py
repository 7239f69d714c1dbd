import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import float64, gaussian, generator
from torch import Tensor

from eckart.linalg import RandomHadamard, hadamard, hadamard_transform, nearest_supported, supported

MODULE = import_module("eckart.kernels.hadamard")
SUPPORTED = [n for n in range(1, 1001) if supported(n)]
# One of every make: powers of two up to several radices, a factor alone, one with few and many powers, squares and cubes of primes.
LENGTHS = (1, 2, 4, 8, 32, 64, 1024, 4096, 12, 20, 24, 28, 36, 40, 52, 100, 244, 344, 384, 1792, 688, 5120)


def primes(limit: int) -> list[int]:
    return [p for p in range(2, limit) if all(p % d for d in range(2, p))]


def test_four_entries_by_two_factors_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "RADIX_BITS", 1)
    assert hadamard_transform(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [5.0, -1.0, -2.0, 0.0]


# ---- the matrices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2**k for k in range(11)])
def test_powers_of_two_are_sylvesters(n: int) -> None:
    assert np.array_equal(hadamard(n).numpy(), scipy.linalg.hadamard(n))


def test_rows_of_all_supported_sizes_are_orthogonal_in_integers() -> None:
    for n in SUPPORTED:
        h = hadamard(n)
        assert h.dtype == torch.int8
        assert bool((h.abs() == 1).all()), n
        # Sums of at most 1000 terms of size one: float32 holds these integers exactly.
        assert torch.equal(h.float() @ h.float().T, n * torch.eye(n)), n


def test_all_sizes_that_primes_give_are_there() -> None:
    """From the theorem's own words, with primes by trial division; squares and cubes by their list."""
    fields = [p for p in primes(1000) if p > 2]
    fields += [p**k for p in fields for k in (2, 3) if p**k < 1000]
    factors = {q + 1 for q in fields if q % 4 == 3} | {2 * (q + 1) for q in fields if q % 4 == 1} | {1}
    expected = {f << k for f in factors for k in range(11)} & set(range(1, 1001))
    assert set(SUPPORTED) == expected
    assert {12, 20, 24, 28, 36, 40, 44, 48, 52, 56, 60, 72, 80, 100, 344} <= expected
    assert not {3, 6, 10, 92, 116, 156, 172, 184} & set(SUPPORTED)


@pytest.mark.parametrize("n", [11008, 13824, 14336, 18944, 28672, 29568, 5504, 8960, 4864])
def test_widths_of_language_models_have_a_transform(n: int) -> None:
    assert supported(n)


# ---- the transform --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_it_is_the_product_with_the_dense_matrix(n: int, transpose: bool) -> None:
    x = gaussian(3, n, n)
    h = hadamard(n).double().numpy()
    expected = x.numpy() @ (h if transpose else h.T) / math.sqrt(n)
    found = hadamard_transform(x, transpose=transpose)
    assert found.dtype == torch.float64
    # Sums of n terms of size n^-1/2 |x|: what rounding does to one is below log2(n) EPS of the length of x, amply.
    assert np.abs(found.numpy() - expected).max() <= 2.0**-52 * 4 * (1 + math.log2(n)) * float(x.norm(dim=1).max())
    there_and_back = hadamard_transform(found, transpose=not transpose)
    assert float((there_and_back - x).abs().max()) <= 2.0**-52 * 8 * (1 + math.log2(n)) * float(x.norm(dim=1).max())


@pytest.mark.parametrize("n", [16, 64, 256, 1024, 4096])
def test_powers_of_two_against_scipy_exactly(n: int) -> None:
    """n is a power of four and its root one of two: with integers nothing is rounded, not even in float32."""
    x = torch.randint(-8, 9, (5, n), generator=generator(n)).to(torch.float32)
    expected = float64(x) @ scipy.linalg.hadamard(n, dtype=np.float64)  # integers far below 2^53
    assert np.array_equal(float64(hadamard_transform(x) * math.isqrt(n)), expected)
    assert torch.equal(hadamard_transform(x, transpose=True), hadamard_transform(x))


@given(st.sampled_from(LENGTHS), st.integers(0, 10**6))
def test_lengths_and_inner_products_stay(n: int, seed: int) -> None:
    x = gaussian(2, n, seed)
    y = hadamard_transform(x)
    assert np.abs((y @ y.T - x @ x.T).numpy()).max() <= 1e-13 * float(x.norm()) ** 2


@pytest.mark.parametrize("n", [12, 344, 1024])
def test_a_unit_vector_becomes_a_column(n: int) -> None:
    x = torch.zeros(n)
    x[n // 3] = math.sqrt(n)
    assert torch.equal(hadamard_transform(x).round().to(torch.int8), hadamard(n)[:, n // 3])
    assert torch.equal(hadamard_transform(x, transpose=True).round().to(torch.int8), hadamard(n)[n // 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = gaussian(4, 384, 3).to(dtype)
    exact = hadamard_transform(x.to(torch.float64))
    found = hadamard_transform(x)
    assert found.dtype == dtype
    grain = 1e-5 if dtype != torch.float32 else 0.0  # at a tie of the narrow type float32 may round the other way
    off = (found.to(torch.float64) - exact).abs()
    assert bool((off <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 + grain).all())
    assert (
        float(hadamard_transform(torch.full((4,), 30000.0, dtype=torch.float16))[0]) == 60000.0
    )  # sums beyond 65504 between


def test_no_partial_sum_overflows() -> None:
    x = torch.full((1024,), 2.0**122)
    assert hadamard_transform(x)[0] == 2.0**127
    assert float(hadamard_transform(x)[1:].abs().max()) == 0.0


@pytest.mark.parametrize("shape", [(12,), (2, 12), (2, 3, 4, 12), (0, 12), (3, 0, 12)])
def test_it_acts_on_the_last_axis_whatever_the_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=generator())
    expected = x.double() @ hadamard(12).double().T / math.sqrt(12)
    found = hadamard_transform(x)
    assert found.shape == x.shape
    assert torch.allclose(found.double(), expected, atol=1e-6)
    other = torch.randn(12, 5, generator=generator(1)).T  # not contiguous
    assert torch.allclose(hadamard_transform(other), hadamard_transform(other.contiguous()), atol=1e-6)


def test_panels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(11, 48)
    expected = hadamard_transform(x)
    for panel in (1, 100, 48 * 4):
        monkeypatch.setattr(MODULE, "PANEL", panel)
        assert float((hadamard_transform(x) - expected).abs().max()) <= 1e-14


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_the_radix_changes_nothing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(2, 12 * 128)
    expected = hadamard_transform(x)
    monkeypatch.setattr(MODULE, "RADIX_BITS", bits)
    assert float((hadamard_transform(x) - expected).abs().max()) <= 1e-14 * 10


def test_factors_stay_small_and_the_work_is_of_order_n_log_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplications of one vector, counted from the factors that are in fact used."""
    seen: list[int] = []
    real = MODULE._transformed

    def counted(x: Tensor, odd: Tensor, factors: list[Tensor]) -> Tensor:
        seen.append(x.shape[1] * sum(len(f) for f in (odd, *factors) if len(f) > 1))
        return real(x, odd, factors)

    monkeypatch.setattr(MODULE, "_transformed", counted)
    for n, q in ((1024, 1), (4096, 1), (14336, 28), (11264, 44), (11008, 344)):
        hadamard_transform(torch.zeros(n))
        assert seen[-1] <= n * (q + 32 * math.log2(n / q) / 5)
        assert seen[-1] < n * n / 15


def test_gradients_pass_through() -> None:
    x = gaussian(2, 12).requires_grad_()
    (hadamard_transform(x)[0, 3] + 0 * x.sum()).backward()
    expected = hadamard(12)[3].double() / math.sqrt(12)
    assert x.grad is not None
    assert torch.allclose(x.grad[0], expected)
    assert float(x.grad[1].abs().max()) == 0.0


# ---- with random signs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 12, 64, 344])
def test_random_signs_turn_and_turn_back(n: int) -> None:
    turn = RandomHadamard.draw(n, generator(3))
    x = gaussian(4, n, 1)
    matrix = hadamard(n).double() * turn.signs.double() / math.sqrt(n)
    assert float((turn(x) - x @ matrix.T).abs().max()) <= 1e-13
    assert float((turn.inverse(x) - x @ matrix).abs().max()) <= 1e-13
    assert float((turn.inverse(turn(x)) - x).abs().max()) <= 1e-13


def test_signs_come_from_the_generator_alone_and_are_fair() -> None:
    first, same, other = (RandomHadamard.draw(4096, generator(seed)).signs for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert set(first.tolist()) == {-1, 1}
    assert abs(int(first.sum())) <= 5 * 64  # five standard deviations
    rng = generator(1)
    assert torch.equal(RandomHadamard.draw(4096, rng).signs, first)
    assert not torch.equal(RandomHadamard.draw(4096, rng).signs, first)


def test_random_signs_spread_what_the_transform_alone_gathers() -> None:
    """A row of H is gathered in one coordinate; with signs no coordinate gets more than a few times its share."""
    x = hadamard(1024)[5].double()
    assert float(hadamard_transform(x).abs().max()) == 32.0
    assert float(RandomHadamard.draw(1024, generator())(x).abs().max()) <= 6.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_random_signs_keep_the_dtype(dtype: torch.dtype) -> None:
    turn = RandomHadamard.draw(12, generator())
    assert turn(torch.ones(12, dtype=dtype)).dtype == dtype
    assert turn.inverse(torch.ones(12, dtype=dtype)).dtype == dtype


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 10, 92, 1030, 13696])
def test_a_length_that_is_not_supported_names_the_nearest_that_are(n: int) -> None:
    below, above = nearest_supported(n)
    assert below < n < above
    assert supported(below)
    assert supported(above)
    assert not any(supported(size) for size in range(below + 1, above))
    message = f"no Hadamard transform of length {n} here.*the nearest lengths are {below} and {above}"
    for run in (
        hadamard,
        lambda n: hadamard_transform(torch.ones(2, n)),
        lambda n: RandomHadamard.draw(n, generator()),
    ):
        with pytest.raises(ValueError, match=message):
            run(n)


def test_other_refusals() -> None:
    assert not supported(0)
    assert not supported(-4)
    for n in (0, -4):
        with pytest.raises(ValueError, match=f"no Hadamard transform of length {n}: give a positive length"):
            hadamard(n)
    with pytest.raises(ValueError, match="length 0"):
        hadamard_transform(torch.ones(3, 0))
    for bad in (torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.complex64), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="a transform is of real floating vectors"):
            hadamard_transform(bad)
    for value in (float("nan"), float("inf")):
        x = torch.ones(3, 12)
        x[2, 5] = value
        with pytest.raises(ValueError, match="vectors of length 12 hold NaN or infinity"):
            hadamard_transform(x)
    turn = RandomHadamard.draw(12, generator())
    for run in (turn, turn.inverse):
        with pytest.raises(ValueError, match=r"length 12 are wanted, not a tensor of shape \(2, 24\)"):
            run(torch.ones(2, 24))
        with pytest.raises(ValueError, match=r"length 12 are wanted, not a tensor of shape \(1,\)"):
            run(torch.ones(1))


def test_the_argument_is_left_alone() -> None:
    x = gaussian(3, 24)
    before = x.clone()
    hadamard_transform(x)
    RandomHadamard.draw(24, generator())(x)
    assert torch.equal(x, before)
    unchanged = torch.ones(4, 1)
    hadamard_transform(unchanged).add_(1)
    assert unchanged.tolist() == [[1.0]] * 4


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_the_nearest_lengths_by_trying_all() -> None:
    for n in range(1, 200):
        below, above = max(m for m in range(1, n + 1) if supported(m)), min(m for m in range(n, 257) if supported(m))
        assert nearest_supported(n) == (below, above)
    assert nearest_supported(1) == (1, 1)
    assert nearest_supported(5) == (4, 8)


@pytest.mark.parametrize(("n", "rows"), [(4096, [64, 64, 1]), (2816, [93, 7])])
def test_a_panel_holds_as_many_vectors_as_fit_into_262144_entries(
    n: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], MODULE._transformed
    monkeypatch.setattr(MODULE, "_transformed", lambda x, *rest: (seen.append(len(x)), real(x, *rest))[1])
    hadamard_transform(torch.zeros(sum(rows), n))
    assert seen == rows
    monkeypatch.setattr(MODULE, "PANEL", n - 1)  # at least one, however long they are
    seen.clear()
    hadamard_transform(torch.zeros(3, n))
    assert seen == [1, 1, 1]


def test_what_leaves_the_range_is_infinite_and_no_mistake() -> None:
    """Finite vectors, whose transform float32 does not hold."""
    largest = torch.finfo(torch.float32).max
    found = hadamard_transform(torch.tensor([[largest] * 4, [1.0] * 4]))
    assert found[0, 0] == math.inf
    assert found[1].tolist() == [2.0, 0.0, 0.0, 0.0]


def test_the_scale_comes_before_the_sums_of_the_dense_factor() -> None:
    """12 times 2^125 is beyond float32, the root of 24 times as much is not."""
    found = hadamard_transform(torch.full((24,), 2.0**125))
    assert float(found[0]) / 2.0**125 == pytest.approx(math.sqrt(24), rel=1e-6)
    assert float(found[1:].abs().max()) <= 1e-6 * 2.0**125


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (1, []),
        (32, [32]),
        (64, [8, 8]),
        (1024, [32, 32]),
        (2048, [8, 16, 16]),
        (4096, [16, 16, 16]),
        (12 * 4, [4]),
        (12 * 128, [8, 16]),
    ],
)
def test_factors_are_few_and_even(n: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as sizes up to 32 allow, as products are faster than butterflies, and none larger than it must be."""
    seen, real = [], MODULE._transformed

    def noted(x: Tensor, odd: Tensor, factors: list[Tensor]) -> Tensor:
        seen.append([len(factor) for factor in factors])
        return real(x, odd, factors)

    monkeypatch.setattr(MODULE, "_transformed", noted)
    hadamard_transform(torch.ones(n))
    assert seen == [sizes]
