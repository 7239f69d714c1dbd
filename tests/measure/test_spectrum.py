import json
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, float64, gaussian, lapack_values, orthonormal, with_exact_spectrum, with_spectrum
from torch import Tensor

from eckart.linalg import singular_values
from eckart.measure import PowerTail, Spectrum, power_tail, spectrum
from eckart.operator import Dense, Factors

FIGURES = ("stable_rank", "effective_rank", "condition", "tail_exponent")


def of(*values: float, shape: tuple[int, int] | None = None) -> Spectrum:
    return Spectrum(shape or (len(values), len(values)), torch.tensor(values, dtype=torch.float64))


def figures(s: Spectrum) -> list[float]:
    return [getattr(s, name) for name in FIGURES]


def pareto(n: int, alpha: float, seed: int = 0) -> Tensor:
    """Independent draws with the density (alpha - 1) x^-alpha from 1 on."""
    uniform = np.random.default_rng(seed).uniform(size=n)
    return torch.from_numpy((1 - uniform) ** (-1 / (alpha - 1)))


def slow_tail(x: np.ndarray) -> tuple[float, float, int, float]:
    """The method as the paper words it, candidate by candidate, with SciPy's estimator and its distance."""
    best = (math.inf, math.nan, math.nan, 0)
    for start in np.unique(x):
        tail = x[x >= start]
        if len(tail) < 10 or tail.max() == start:
            continue
        shape, _, _ = scipy.stats.pareto.fit(tail, floc=0, fscale=start)
        distance = scipy.stats.kstest(tail, scipy.stats.pareto(shape, scale=start).cdf).statistic
        if distance < best[0] - 1e-9:
            best = (distance, shape + 1, start, len(tail))
    return best[1], best[2], best[3], best[0]


# ---- ranks and norms


@pytest.mark.parametrize("name", MATRICES)
def test_figures_are_their_formulas(name: str) -> None:
    a = MATRICES[name]()
    s, values = spectrum(a), lapack_values(a)
    assert s.shape == tuple(a.shape)
    assert s.values.dtype == torch.float64
    np.testing.assert_allclose(s.values.numpy(), values, atol=s.floor, rtol=0)
    if not values[0]:
        return
    assert s.frobenius == pytest.approx(np.linalg.norm(float64(a), "fro"), rel=1e-12)
    assert s.top == pytest.approx(np.linalg.norm(float64(a), 2), rel=1e-12)
    assert s.stable_rank == pytest.approx((np.linalg.norm(float64(a)) / np.linalg.norm(float64(a), 2)) ** 2, rel=1e-12)
    assert s.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(values)), rel=1e-9)
    assert s.numerical_rank == np.linalg.matrix_rank(float64(a))
    for energy in (0.5, 0.9, 0.99, 0.999):
        r = s.rank_for(energy)
        total = math.fsum(values**2)
        assert math.fsum(values[:r] ** 2) >= energy * total * (1 - 1e-12)
        assert math.fsum(values[: r - 1] ** 2) < energy * total
    if s.numerical_rank == len(values):
        assert s.condition == pytest.approx(np.linalg.cond(float64(a)), rel=1e-3)  # 1e12 is known to that
    else:
        assert s.condition == math.inf


@pytest.mark.parametrize("name", [n for n in MATRICES if n != "zero"])
def test_ranks_are_in_order(name: str) -> None:
    s = spectrum(MATRICES[name]())
    assert 1 - 1e-12 <= s.stable_rank <= s.numerical_rank * (1 + 1e-12)
    assert 1 - 1e-12 <= s.effective_rank <= len(s.values) * (1 + 1e-12)
    assert 1 <= s.rank_for(0.9) <= s.rank_for(0.99) <= s.rank_for(0.999) <= s.numerical_rank
    # sum(s)^2 / sum(s^2) is a Renyi entropy of the same shares, of a higher order: below; and it exceeds the stable rank.
    assert s.effective_rank >= float(s.values.sum() ** 2 / s.values.square().sum()) * (1 - 1e-12)


def test_ranks_of_a_spectrum_without_rounding() -> None:
    a, values = with_exact_spectrum(16, (4, 4, 2, 1))
    s = spectrum(a)
    assert s.stable_rank == pytest.approx(37 / 16, rel=1e-12)
    assert s.numerical_rank == 4
    assert [s.rank_for(e) for e in (16 / 37, 0.44, 32 / 37, 0.9, 0.99, 1.0)] == [1, 2, 2, 3, 4, 4]
    assert s.frobenius == pytest.approx(math.hypot(*values), rel=1e-12)
    assert s.effective_rank == pytest.approx(math.exp(scipy.stats.entropy([4, 4, 2, 1])), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 30, 100])
def test_equal_values_have_full_rank(n: int) -> None:
    s = spectrum(torch.eye(n))
    assert s.stable_rank == pytest.approx(n, rel=1e-12)
    assert s.effective_rank == pytest.approx(n, rel=1e-12)
    assert s.condition == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(s.tail_exponent)
    for percent in range(1, 101):  # ties: the sum of r equal squares meets the share exactly, in real numbers
        assert s.rank_for(percent / 100) == -(-percent * n // 100)


@pytest.mark.parametrize("seed", range(5))
def test_orthogonal_matrix_has_no_tail_made_of_rounding(seed: int) -> None:
    assert spectrum(orthonormal(50, 50, seed)).tail is None


@pytest.mark.parametrize("name", [n for n in MATRICES if n not in {"zero", "one entry"}])
def test_scale_changes_nothing(name: str) -> None:
    a = MATRICES[name]().to(torch.float64)
    assert figures(spectrum(a * 2.0**-20)) == figures(spectrum(a))  # a power of two is exact
    assert figures(spectrum(a * -1e7)) == pytest.approx(figures(spectrum(a)), rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("name", MATRICES)
def test_transpose_changes_nothing(name: str) -> None:
    a = MATRICES[name]()
    assert figures(spectrum(a.T)) == pytest.approx(figures(spectrum(a)), rel=1e-9, nan_ok=True)
    assert spectrum(a.T).shape == spectrum(a).shape[::-1]


@pytest.mark.parametrize("name", [n for n in MATRICES if n != "ill-conditioned"])
def test_rotation_changes_nothing(name: str) -> None:
    a = MATRICES[name]().to(torch.float64)
    m, n = a.shape
    rotated = orthonormal(m, m, 91) @ a @ orthonormal(n, n, 92)
    assert figures(spectrum(rotated)) == pytest.approx(figures(spectrum(a)), rel=1e-6, nan_ok=True)


def test_zero_matrix_has_no_figures() -> None:
    s = spectrum(torch.zeros(12, 30))
    assert [math.isnan(v) for v in (s.stable_rank, s.effective_rank, s.tail_exponent)] == [True] * 3
    assert (s.condition, s.numerical_rank, s.frobenius, s.top, s.rank_for(0.9)) == (math.inf, 0, 0.0, 0.0, 0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrix(shape: tuple[int, int]) -> None:
    s = spectrum(torch.zeros(shape))
    assert (s.shape, s.numerical_rank, s.rank_for(1.0), s.top) == (shape, 0, 0, 0.0)
    assert s.to_json()["stable_rank"] is None


@pytest.mark.parametrize("shape", [(1, 17), (17, 1)])
def test_vector(shape: tuple[int, int]) -> None:
    s = spectrum(gaussian(*shape))
    assert s.values.shape == (1,)
    assert [s.stable_rank, s.effective_rank, s.condition] == [1.0, 1.0, 1.0]
    assert s.rank_for(0.9) == s.numerical_rank == 1
    assert math.isnan(s.tail_exponent)


@pytest.mark.parametrize("power", [-200, 200])
def test_squares_neither_vanish_nor_overflow(power: int) -> None:
    s, t = of(*(v * 10.0**power for v in (4.0, 2.0, 1.0))), of(4.0, 2.0, 1.0)
    assert figures(s) == pytest.approx(figures(t), rel=1e-12, nan_ok=True)
    assert s.rank_for(0.9) == t.rank_for(0.9)
    assert s.frobenius == pytest.approx(math.sqrt(21) * 10.0**power, rel=1e-12)


@pytest.mark.parametrize("cond", [1.0, 1e3, 1e9])
def test_condition_number(cond: float) -> None:
    values = torch.logspace(0, -math.log10(cond), 12, dtype=torch.float64)
    assert spectrum(with_spectrum(30, 12, values)).condition == pytest.approx(cond, rel=1e-5)


def test_condition_is_infinite_only_below_the_rounding() -> None:
    below, above = (with_spectrum(20, 20, torch.tensor([1.0] * 19 + [v], dtype=torch.float64)) for v in (1e-15, 1e-12))
    assert spectrum(below).condition == math.inf
    assert spectrum(above).condition == pytest.approx(1e12, rel=1e-2)


@pytest.mark.parametrize("name", MATRICES)
def test_floor_is_where_the_decomposition_is_certain(name: str) -> None:
    a = MATRICES[name]()
    s, exact = spectrum(a), singular_values(a)
    certain = sum(exact.value_floor(i) > 0 for i in range(len(exact.s)))
    assert s.numerical_rank == certain


def test_gram_route_knows_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(singular_values.__globals__, "LAPACK_SIDE", 0)
    s = spectrum(gaussian(30, 6) @ gaussian(6, 40, 1))
    assert s.numerical_rank == 6
    assert s.condition == math.inf
    assert s.floor > 1e-9


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_rank_for_is_the_smallest(values: list[float], energy: float) -> None:
    values = sorted(values, reverse=True)
    r = of(*values).rank_for(energy)
    heads = [math.fsum(v * v for v in values[:k]) for k in range(len(values) + 1)]
    assert heads[r] >= energy * heads[-1] * (1 - 1e-12)
    assert heads[r - 1] < energy * heads[-1]


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.0001, math.nan])
def test_rank_for_refuses_what_is_no_share(energy: float) -> None:
    with pytest.raises(ValueError, match="share"):
        of(1.0).rank_for(energy)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, -1.0], [math.nan, 1.0], [math.inf, 1.0], [1.0]])
def test_what_is_no_spectrum_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        of(*values, shape=(2, 3))


def test_spectrum_needs_float64() -> None:
    with pytest.raises(ValueError, match="float64"):
        Spectrum((2, 2), torch.ones(2))


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, math.nan]]), torch.ones(3), torch.ones(2, 2, 2)])
def test_what_is_no_matrix_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="matrix"):
        spectrum(bad)


# ---- products


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (12, 12), (1, 9), (9, 1)])
@pytest.mark.parametrize("rank", [1, 3, 12, 25, 40])
def test_product_from_its_factors(shape: tuple[int, int], rank: int) -> None:
    m, n = shape
    op = Factors(gaussian(m, rank, 1), gaussian(rank, n, 2))
    s = spectrum(op)
    assert s.shape == shape
    np.testing.assert_allclose(s.values.numpy(), lapack_values(op.dense()), atol=s.floor + 1e-12, rtol=1e-10)
    assert s.numerical_rank == min(m, n, rank)
    assert math.isinf(s.condition) == (rank < min(shape))
    assert figures(spectrum(op.T)) == pytest.approx(figures(s), rel=1e-9, nan_ok=True)


def test_product_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Factors, "dense")
    monkeypatch.delattr(Factors, "__matmul__")
    assert spectrum(Factors(gaussian(2000, 2).float(), gaussian(2, 3000, 1).float())).numerical_rank == 2


def test_product_that_cancels_is_not_given_a_rank() -> None:
    """Large factors, small product: what rounding of the factors' size makes is no rank."""
    left = torch.cat([gaussian(20, 3), gaussian(20, 3)], 1) * 1e6
    right = torch.cat([gaussian(3, 25, 1), -gaussian(3, 25, 1)]) * 1e6
    assert spectrum(Factors(left, right)).numerical_rank == 0


def test_product_keeps_small_values_that_the_dense_matrix_loses() -> None:
    """Scaled orthonormal factors in float32: the core sees 1e-9 of the top exactly, the rounded product does not."""
    scales = torch.logspace(0, -9, 7, dtype=torch.float64)
    left, right = orthonormal(40, 7).float() * scales.float(), orthonormal(50, 7, 1).float().T
    found = spectrum(Factors(left, right)).values[:7]
    np.testing.assert_allclose(found.numpy(), lapack_values(left.double() @ right.double())[:7], rtol=1e-8)
    assert float(spectrum(left @ right).values[6]) > 2 * float(found[6])


def test_dense_operator_is_its_matrix() -> None:
    a = MATRICES["wide"]()
    assert torch.equal(spectrum(Dense(a)).values, spectrum(a).values)


# ---- tails


@pytest.mark.parametrize("alpha", [1.5, 2.0, 2.5, 3.5, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_known_exponent_is_recovered(alpha: float, seed: int) -> None:
    fit = power_tail(7.0 * pareto(3000, alpha, seed))
    assert fit is not None
    assert fit.exponent == pytest.approx(alpha, abs=5 * (alpha - 1) / math.sqrt(fit.count))
    assert fit.count > 300  # the whole sample follows the law: little of it is left out
    assert fit.start >= 7.0
    assert fit.distance < 1.2 / math.sqrt(fit.count)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_tail_above_a_body_is_found(alpha: float) -> None:
    body = torch.from_numpy(np.random.default_rng(5).uniform(0.01, 1.0, size=3000))
    fit = power_tail(torch.cat([body, pareto(1500, alpha, 6)]))
    assert fit is not None
    assert fit.exponent == pytest.approx(alpha, rel=0.1)
    assert 0.8 < fit.start < 2.0


@pytest.mark.parametrize("decay", [0.3, 0.5, 1.0])
def test_values_that_fall_by_a_power(decay: float) -> None:
    """k^-b for the singular values is an exponent 1 + 1 / (2 b) of the eigenvalue density."""
    values = torch.arange(1, 1001, dtype=torch.float64) ** -decay
    assert spectrum(torch.diag(values)).tail_exponent == pytest.approx(1 + 1 / (2 * decay), rel=0.01)


def test_law_and_sample_never_agree_at_the_start() -> None:
    """There the law is 0 and one of k values is counted: 1 / k is the least distance, which quantiles reach."""
    fit = power_tail((1 - (torch.arange(500, dtype=torch.float64) + 0.5) / 500) ** (-1 / 1.5))
    assert fit is not None
    assert fit.distance == pytest.approx(1 / 500, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["pareto", "lognormal", "uniform", "gaussian matrix"])
def test_fit_is_that_of_the_paper(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = {
        "pareto": lambda: pareto(120, 2.2, seed).numpy(),
        "lognormal": lambda: rng.lognormal(sigma=1.5, size=150),
        "uniform": lambda: rng.uniform(0.5, 3.0, size=100),
        "gaussian matrix": lambda: np.linalg.svd(rng.normal(size=(90, 140)), compute_uv=False) ** 2,
    }[kind]()
    fit = power_tail(torch.from_numpy(x))
    assert fit is not None
    exponent, start, count, distance = slow_tail(x)
    assert fit.exponent == pytest.approx(exponent, rel=1e-9)
    assert fit.start == pytest.approx(start, rel=1e-12)
    assert fit.count == count
    assert fit.distance == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_fit_with_ties_is_that_of_the_paper(seed: int) -> None:
    x = np.ceil(pareto(200, 2.2, seed).numpy() * 2)
    fit = power_tail(torch.from_numpy(x))
    assert fit is not None
    assert (fit.exponent, fit.start, fit.count, fit.distance) == pytest.approx(slow_tail(x), rel=1e-9)


def test_panels_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pareto(500, 2.3)
    want = power_tail(x)
    for size in (1, 7, 10_000):
        monkeypatch.setitem(power_tail.__globals__, "PANEL", size)
        assert power_tail(x) == want


@given(st.permutations(range(30)), st.floats(1e-8, 1e8))
def test_order_and_scale_do_not_matter(order: list[int], scale: float) -> None:
    x = pareto(30, 2.5, 3)
    want, got = power_tail(x), power_tail(x[list(order)] * scale)
    assert want is not None
    assert got is not None
    assert got.exponent == pytest.approx(want.exponent, rel=1e-9)
    assert got.start == pytest.approx(want.start * scale, rel=1e-9)
    assert got.count == want.count


def test_rounding_does_not_split_ties() -> None:
    """Five equal values above seven: one rounded a little must not give a tail that begins among the seven."""
    exact = torch.tensor([2.0] * 7 + [4.0] * 5, dtype=torch.float64)
    split = exact * (1 + 1e-13 * torch.arange(12, dtype=torch.float64))
    want = PowerTail(exponent=1 + 12 / (5 * math.log(2)), start=2.0, count=12, distance=7 / 12)
    for x in (exact, split):
        fit = power_tail(x)
        assert fit is not None
        assert fit.to_json() == pytest.approx(want.to_json(), rel=1e-9)


@pytest.mark.parametrize("x", [torch.ones(50), torch.arange(1, 10), torch.ones(0)])
def test_too_little_for_a_tail(x: Tensor) -> None:
    assert power_tail(x) is None


def test_ten_values_are_enough() -> None:
    fit = power_tail(torch.arange(1, 11))
    assert fit is not None
    assert fit.count == 10
    assert fit.exponent == pytest.approx(1 + 10 / math.log(math.factorial(10)), rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_power_law_refuses_what_is_not_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        power_tail(torch.tensor([1.0] * 20 + [bad]))


def test_zeros_made_by_rounding_are_no_part_of_the_tail() -> None:
    core = gaussian(40, 40, 3)
    padded = torch.zeros(60, 70, dtype=torch.float64)
    padded[:40, :40] = core
    rotated = orthonormal(60, 60, 4) @ padded @ orthonormal(70, 70, 5)
    assert spectrum(rotated).tail_exponent == pytest.approx(spectrum(core).tail_exponent, rel=1e-6)


def test_tail_of_a_large_spectrum_takes_no_second() -> None:
    x = pareto(4096, 2.5)
    power_tail(x[:100])
    began = time.process_time()
    power_tail(x)
    assert time.process_time() - began < 2.0  # 0.15 s where it was written


# ---- the table


def test_json_holds_no_number_that_json_lacks() -> None:
    for name in MATRICES:
        table = spectrum(MATRICES[name]()).to_json()
        assert json.loads(json.dumps(table, allow_nan=False)) == table
    ranks = spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).to_json()["rank_for"]
    assert ranks == {"0.9": 2, "0.99": 3, "0.999": 3}
