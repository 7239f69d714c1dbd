"""Selection rules against LAPACK, exhaustive search and the theorems that name them."""

import itertools
import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, float64, gaussian, generator, lapack_values, orthonormal, with_spectrum
from torch import Tensor

from eckart.kernels.pivoting import interpolation_points, pivoted_qr, strong_pivots
from eckart.kernels.selection import (
    DEIM,
    Candidates,
    Entries,
    Given,
    Largest,
    LeadingVectors,
    PivotedQR,
    RidgeVectors,
    Rule,
    Sampled,
    StrongRRQR,
    View,
    chosen,
)

PIVOTING = import_module("eckart.kernels.pivoting")
EPS = 2.0**-52

VIEWS: dict[str, View] = {
    "entries": Entries(),
    "vectors": LeadingVectors(),
    "three vectors": LeadingVectors(3),
    "ridge": RidgeVectors(),
    "ridge of two": RidgeVectors(2),
}
# Every way to choose on every view: pairs that nobody would name are among them.
RULES: dict[str, Rule] = {
    f"{name} on {view}": make(on)
    for view, on in VIEWS.items()
    for name, make in {
        "deim": DEIM,
        "pivoted qr": PivotedQR,
        "strong rrqr": StrongRRQR,
        "largest": Largest,
        "sampled": Sampled,
        "inverted": lambda on: Sampled(on, power=-2.0),
        "even": lambda on: Sampled(on, power=0.0),
    }.items()
}
DETERMINISTIC = {name: rule for name, rule in RULES.items() if not isinstance(rule, Sampled)}


def kahan(n: int, angle: float) -> Tensor:
    """Kahan's matrix, on which column pivoting sees nothing to exchange and misses a tiny singular value."""
    s, c = math.sin(angle), math.cos(angle)
    upper = torch.eye(n, dtype=torch.float64) - c * torch.ones(n, n, dtype=torch.float64).triu(1)
    return s ** torch.arange(n, dtype=torch.float64)[:, None] * upper * (1 - 1e-10 * torch.arange(n)).to(torch.float64)


def largest_coefficient(a: Tensor, indices: Tensor) -> float:
    """The largest entry of R11^-1 R12, by NumPy's least squares."""
    others = sorted(set(range(a.shape[1])) - set(indices.tolist()))
    w = float64(a)
    return float(np.abs(np.linalg.lstsq(w[:, indices.numpy()], w[:, others], rcond=None)[0]).max(initial=0.0))


# ---- pivoted QR -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_pivoted_qr_is_that_of_lapack(name: str) -> None:
    a = MATRICES[name]()
    w = float64(a)
    found = pivoted_qr(a, min(a.shape))
    r, order = scipy.linalg.qr(w, mode="r", pivoting=True)
    diagonal, norm = np.abs(np.diag(r)), np.linalg.norm(w)
    rank = int((diagonal > 1e-13 * max(norm, 1e-300)).sum())
    assert found.rank == rank
    if (
        name != "repeated values"
    ):  # columns of equal lengths: which comes first is rounding's choice there, ours is the first
        assert found.order[:rank].tolist() == order[:rank].tolist()
    assert np.abs(float64(found.r.diagonal()) - diagonal[:rank]).max(initial=0) <= 1e-14 * norm
    assert np.linalg.norm(float64(found.q @ found.r) - w[:, found.order.numpy()]) <= 1e-14 * norm
    assert np.abs(float64(found.q.T @ found.q) - np.eye(rank)).max(initial=0) <= 1e-14
    assert bool((found.r.diagonal() > 0).all())
    assert float(found.r.tril(-1).abs().max() if rank else 0) == 0.0
    assert sorted(found.order.tolist()) == list(range(a.shape[1]))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6), st.floats(0.0, 8.0))
def test_each_pivot_is_the_column_of_which_most_is_left(m: int, n: int, seed: int, grading: float) -> None:
    """By NumPy's projection beside the columns chosen before, whatever the lengths of columns are."""
    a = gaussian(m, n, seed) * 10 ** (-grading * torch.rand(n, generator=generator(seed), dtype=torch.float64))
    w = float64(a)
    found = pivoted_qr(a, min(m, n))
    for step in range(found.rank):
        q = np.linalg.qr(w[:, found.order.numpy()[:step]])[0]
        left = np.linalg.norm(w - q @ (q.T @ w), axis=0)
        assert left[found.order[step]] >= left.max() * (1 - 1e-9) - 1e-13 * np.linalg.norm(w)


def test_a_worked_example_of_pivoted_qr() -> None:
    """Columns (3, 4), (6, 0), (0, 1): the second is longest, beside it 4 is left of the first."""
    found = pivoted_qr(torch.tensor([[3.0, 6.0, 0.0], [4.0, 0.0, 1.0]]), 2)
    assert found.order.tolist() == [1, 0, 2]
    assert found.r.tolist() == [[6.0, 3.0, 0.0], [0.0, 4.0, 1.0]]


def test_fewer_steps_give_the_beginning_of_more() -> None:
    a = gaussian(20, 15)
    full = pivoted_qr(a, 15)
    for steps in (0, 1, 7):
        part = pivoted_qr(a, steps)
        assert part.order[:steps].tolist() == full.order[:steps].tolist()
        assert torch.equal(part.q, full.q[:, :steps])


def nearly_parallel(count: int, apart: float) -> Tensor:
    """Columns that differ by ``apart`` from one direction, each in another by an amount of its own."""
    a = torch.zeros(count + 1, count, dtype=torch.float64)
    a[0] = 1.0
    a[1:] = torch.diag(apart * torch.linspace(1, 2, count, dtype=torch.float64))
    return a


def test_cancelled_norms_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the first pivot 1e-9 is left of columns of length 1: of its square the downdated norm holds no digit."""
    a = nearly_parallel(12, 1e-9)
    truth = pivoted_qr(a, 12).order.tolist()
    # By hand: the lengths can't tell the columns apart, the first is taken; what is left of the others grows with their number.
    assert truth == [0, *range(11, 0, -1)]
    monkeypatch.setattr(PIVOTING, "CANCELLED", -1.0)
    assert pivoted_qr(a, 12).order.tolist() != truth


def test_what_rounding_leaves_is_no_pivot(monkeypatch: pytest.MonkeyPatch) -> None:
    a = gaussian(20, 4, 4) @ gaussian(4, 30, 5)
    found = pivoted_qr(a, 10)
    assert (found.rank, found.q.shape, found.r.shape) == (4, (20, 4), (4, 30))
    assert found.order[4:].tolist() == sorted(found.order[4:].tolist())
    monkeypatch.setattr(PIVOTING, "NOISE", 0.0)
    assert pivoted_qr(a, 10).rank > 4


def test_a_column_that_is_small_as_a_whole_is_no_rounding() -> None:
    a = torch.diag(torch.tensor([1e-30, 1.0, 1e-18], dtype=torch.float64))
    assert pivoted_qr(a, 3).rank == 3
    assert pivoted_qr(a, 3).order.tolist() == [1, 2, 0]


def test_twice_is_needed_to_make_a_column_orthogonal() -> None:
    """Lauchli's matrix: one projection leaves 1e-8 of the earlier columns in the later ones."""
    a = nearly_parallel(10, 1e-8)
    q = float64(pivoted_qr(a, 10).q)
    assert np.abs(q.T @ q - np.eye(10)).max() <= 1e-14


# ---- strong rank-revealing QR ---------------------------------------------------------------------------------------


def assert_reveals_rank(a: Tensor, indices: Tensor, f: float) -> None:
    """Gu and Eisenstat's two inequalities and the bound on coefficients, by LAPACK's singular values."""
    n, k = a.shape[1], len(indices)
    w = float64(a)
    order = [*indices.tolist(), *sorted(set(range(n)) - set(indices.tolist()))]
    r = np.linalg.qr(w[:, order], mode="r")
    values = np.append(lapack_values(w), np.zeros(n))
    inside = scipy.linalg.svdvals(r[:k, :k])
    beside = scipy.linalg.svdvals(r[k:, k:]) if min(r[k:, k:].shape) else np.zeros(0)
    factor, grain = math.sqrt(1 + f**2 * k * (n - k)), 1e-13 * np.linalg.norm(w)
    assert (inside * factor >= values[:k] - grain).all()
    assert (beside <= values[k : k + len(beside)] * factor + grain).all()


@pytest.mark.parametrize("f", [1.05, 2.0])
@pytest.mark.parametrize("name", MATRICES)
def test_strong_rrqr_reveals_the_rank(name: str, f: float) -> None:
    a = MATRICES[name]()
    rank = int((lapack_values(a) > 1e-13 * max(float(a.double().norm()), 1e-300)).sum())
    for k in sorted({1, 2, rank // 2, rank - 1} & set(range(1, min(a.shape)))):
        indices = strong_pivots(a, k, f)
        assert len(set(indices.tolist())) == k
        assert_reveals_rank(a, indices, f)
        if k <= rank:
            assert largest_coefficient(a, indices) <= f * (1 + 1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6), st.floats(0.0, 4.0), st.data())
def test_strong_rrqr_on_random_matrices(m: int, n: int, seed: int, decay: float, data: st.DataObject) -> None:
    a = with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay, seed)
    k = data.draw(st.integers(1, min(m, n)))
    indices = strong_pivots(a, k, 1.1)
    assert_reveals_rank(a, indices, 1.1)
    assert largest_coefficient(a, indices) <= 1.1 * (1 + 1e-9)


def test_exchanges_are_what_makes_it_strong() -> None:
    """On Kahan's matrix column pivoting keeps the order, and the last but one column is made of the others with 1e5."""
    a = kahan(30, 1.2)
    weak = pivoted_qr(a, 29).order[:29]
    assert weak.tolist() == list(range(29))
    assert largest_coefficient(a, weak) > 50
    strong = strong_pivots(a, 29, 2.0)
    assert largest_coefficient(a, strong) <= 2.0
    assert_reveals_rank(a, strong, 2.0)


def test_no_exchange_gains_more_than_f() -> None:
    """By the volumes themselves, of every exchange of one column."""
    for seed in range(5):
        a = gaussian(6, 9, seed)
        inside = strong_pivots(a, 4, 1.1).tolist()
        volume = volume_of(a, inside)
        for i, j in itertools.product(range(4), set(range(9)) - set(inside)):
            assert volume_of(a, [*inside[:i], j, *inside[i + 1 :]]) <= 1.1 * volume * (1 + 1e-9)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 9)])
def test_the_gain_of_an_exchange_is_the_ratio_of_volumes(shape: tuple[int, int]) -> None:
    """Every exchange by LAPACK's singular values; from poor columns both terms of the formula count."""
    for seed in range(5):
        a = gaussian(*shape, seed)
        a[:, 1] = a[:, 0] + 0.1 * a[:, 1]
        ratios = {
            (i, j): volume_of(a, [*range(i), 4 + j, *range(i + 1, 4)]) / volume_of(a, [0, 1, 2, 3])
            for i, j in itertools.product(range(4), range(shape[1] - 4))
        }
        i, j, gain = PIVOTING._best_exchange(a[:, :4], a[:, 4:])
        assert gain == pytest.approx(max(ratios.values()), rel=1e-9)
        assert ratios[i, j] == pytest.approx(gain, rel=1e-9)


def volume_of(a: Tensor, indices: list[int]) -> float:
    return float(np.prod(scipy.linalg.svdvals(float64(a)[:, indices])))


def test_exchanges_that_only_rounding_sees_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain that is promised again and again without the volume growing: without the check this goes on for ever."""
    calls = []

    def promised(inside: Tensor, outside: Tensor) -> tuple[int, int, float]:
        calls.append(1)
        if len(calls) > 50:
            raise RecursionError
        return 0, 0, 3.0

    a = gaussian(5, 8)
    expected = strong_pivots(a, 3, 2.0)
    monkeypatch.setattr(PIVOTING, "_best_exchange", promised)
    found = strong_pivots(a, 3, 2.0)
    assert len(calls) < 10
    assert volume_of(a, found.tolist()) >= volume_of(a, pivoted_qr(a, 3).order[:3].tolist()) * (1 - 1e-12)
    assert len(set(expected.tolist())) == 3


@pytest.mark.parametrize("f", [1.0, 0.5, -2.0, math.nan])
def test_an_f_that_is_no_limit_is_refused(f: float) -> None:
    with pytest.raises(ValueError, match="give a number above 1"):
        strong_pivots(gaussian(3, 3), 1, f)
    with pytest.raises(ValueError, match="give a number above 1"):
        StrongRRQR(f=f)


# ---- interpolation points -------------------------------------------------------------------------------------------


@given(st.integers(1, 15), st.integers(0, 25), st.integers(0, 10**6))
def test_interpolation_points_are_the_pivots_of_elimination(k: int, more: int, seed: int) -> None:
    """LAPACK's LU with partial pivoting of the vectors as columns picks the same rows."""
    basis = orthonormal(k + more, k, seed)
    permutation, _, _ = scipy.linalg.lu(float64(basis))
    assert interpolation_points(basis.T, k).tolist() == permutation.argmax(0)[:k].tolist()


def test_interpolation_points_by_the_definition() -> None:
    """Sorensen and Embree's algorithm with its oblique projector, solved anew at every step."""
    v = float64(orthonormal(18, 7))
    points = [int(np.abs(v[:, 0]).argmax())]
    for j in range(1, 7):
        weights = np.linalg.solve(v[points, :j], v[points, j])
        points.append(int(np.abs(v[:, j] - v[:, :j] @ weights).argmax()))
    assert interpolation_points(torch.from_numpy(v.T), 7).tolist() == points


def test_a_dependent_vector_eliminates_nothing() -> None:
    """Its row is zero after elimination; dividing by the entry of its point would make every later row NaN."""
    basis = torch.tensor([[1.0, 2.0, 0.0], [0.5, 1.0, 0.0], [0.0, 1.0, 3.0]])
    assert interpolation_points(basis, 3).tolist() == [1, 0, 2]


def test_more_points_than_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="4 interpolation points from 3 vectors of 9 entries"):
        interpolation_points(gaussian(3, 9), 4)
    with pytest.raises(ValueError, match="4 interpolation points from 4 vectors of 3 entries"):
        interpolation_points(gaussian(4, 3), 4)
    with pytest.raises(ValueError, match="31 pivots of a 9 x 30 matrix"):
        pivoted_qr(gaussian(9, 30), 31)


# ---- views ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_vectors_are_those_of_lapack(name: str) -> None:
    """By projectors, where a gap to the next value makes them well defined; and they are orthonormal in any case."""
    a = MATRICES[name]()
    both = Candidates(a)
    left, s, right = scipy.linalg.svd(float64(a), lapack_driver="gesvd")
    assert float64(both.values) == pytest.approx(s, rel=1e-12, abs=1e-13 * s[0])
    for k in range(1, len(s) + 1):
        v, u = float64(both.vectors(k)), float64(both.T.vectors(k))
        assert all((np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1) > 0).all() for x in (v, u))
        assert np.abs(v @ v.T - np.eye(k)).max() <= 1e-13
        assert np.abs(u @ u.T - np.eye(k)).max() <= 1e-13
        gap = s[k - 1] - (s[k] if k < len(s) else 0.0)
        if gap > 1e-9 * s[0]:
            assert np.abs(v.T @ v - right[:k].T @ right[:k]).max() <= 1e-12 * s[0] / gap
            assert np.abs(u.T @ u - left[:, :k] @ left[:, :k].T).max() <= 1e-12 * s[0] / gap


def test_rows_and_columns_share_one_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("eckart.kernels.selection")
    calls, decompose = [], module.svd
    monkeypatch.setattr(module, "svd", lambda a: (calls.append(1), decompose(a))[1])
    both = Candidates(gaussian(7, 9))
    assert both.vectors(2).shape == (2, 9)
    assert both.T.vectors(3).shape == (3, 7)
    assert both.T.T is both
    assert torch.equal(both.T.values, both.values)
    assert len(calls) == 1
    Entries()(Candidates(gaussian(7, 9)), 2)
    assert len(calls) == 1  # who does not ask does not pay


@pytest.mark.parametrize("name", MATRICES)
def test_ridge_scores_are_those_of_their_definition(name: str) -> None:
    a = MATRICES[name]()
    w, k = float64(a), max(1, min(a.shape) // 3)
    s = lapack_values(a)
    ridge = float(np.sum(s[k:] ** 2)) / k
    scores = float64(RidgeVectors()(Candidates(a), k).square().sum(0))
    if ridge > 1e-20 * float(np.sum(s**2)):
        expected = np.sum(w * np.linalg.solve(w @ w.T + ridge * np.eye(len(w)), w), axis=0)
        assert scores == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert scores.sum() <= 2 * k * (1 + 1e-9)  # Cohen, Musco and Musco 2017, lemma 4


def test_directions_that_are_rounding_have_no_ridge_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of rank 4: what rounding left of the other values must not count beside a ridge that is rounding as well."""
    a = gaussian(20, 4, 4) @ gaussian(4, 30, 5)
    scores = RidgeVectors(4)(Candidates(a), 4).square().sum(0)
    assert float64(scores) == pytest.approx((scipy.linalg.orth(float64(a.T)) ** 2).sum(1), abs=1e-3)
    monkeypatch.setattr(Candidates, "noise", 0.0)
    assert float(RidgeVectors(4)(Candidates(a), 4).square().sum()) > 4.5
    assert not RidgeVectors(1)(Candidates(torch.zeros(3, 4)), 1).any()


@pytest.mark.parametrize("make", [LeadingVectors, RidgeVectors])
def test_no_vectors_are_refused(make: type) -> None:
    with pytest.raises(ValueError, match="0 leading singular vectors: give at least 1"):
        make(0)


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_chooses_different_columns_of_every_matrix(name: str) -> None:
    rule = RULES[name]
    for matrix in MATRICES.values():
        candidates = Candidates(matrix())
        n = candidates.matrix.shape[1]
        for count in {1, max(1, min(candidates.matrix.shape) // 2), min(candidates.matrix.shape)}:
            rows = len(rule.on(candidates, count))
            if isinstance(rule, DEIM) and rows < count:
                with pytest.raises(ValueError, match="one for each vector at most"):
                    chosen(candidates, count, rule, generator())
                continue
            indices = chosen(candidates, count, rule, generator())
            assert indices.dtype == torch.int64
            assert indices.shape == (count,)
            assert len(set(indices.tolist()) & set(range(n))) == count
            assert torch.equal(indices, chosen(Candidates(matrix()), count, rule, generator()))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_permuted_columns_are_chosen_where_they_went(name: str) -> None:
    a = gaussian(9, 14, 3) * torch.linspace(1, 2, 14, dtype=torch.float64)
    order = torch.randperm(14, generator=generator(4))
    plain = chosen(Candidates(a), 3, DETERMINISTIC[name], generator())
    permuted = chosen(Candidates(a[:, order]), 3, DETERMINISTIC[name], generator())
    assert order[permuted].tolist() == plain.tolist()


@pytest.mark.parametrize("name", RULES)
def test_scale_and_rotation_of_the_whole_change_nothing(name: str) -> None:
    """Also for those that draw: the probabilities are the same, and so are the random numbers."""
    a = with_spectrum(9, 14, torch.linspace(3, 1, 9, dtype=torch.float64), 3)
    plain = chosen(Candidates(a), 3, RULES[name], generator(1))
    others = [2.0**20 * a, 2.0**-20 * a, -a]
    if name != "deim on entries":  # interpolates row after row, so that rotated rows are others
        others.append(orthonormal(9, 9, 8) @ a)
    for other in others:
        assert chosen(Candidates(other), 3, RULES[name], generator(1)).tolist() == plain.tolist()


def test_largest_norms_and_leverage_scores_by_hand() -> None:
    a = torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert chosen(Candidates(a), 2, Largest(), generator()).tolist() == [2, 0]
    # Singular vectors (3, 0, 4, 0) / 5 and (0, 1, 0, 0): scores 9/25, 1, 16/25, 0.
    assert chosen(Candidates(a), 2, Largest(LeadingVectors()), generator()).tolist() == [1, 2]
    assert chosen(Candidates(a), 2, Largest(LeadingVectors(1)), generator()).tolist() == [2, 0]
    assert chosen(Candidates(torch.ones(2, 5)), 3, Largest(), generator()).tolist() == [0, 1, 2]


def expected_of(weights: list[float], count: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence when one is drawn after another."""
    found = {}
    for sequence in itertools.permutations(range(len(weights)), count):
        probability, rest = 1.0, math.fsum(weights)
        for index in sequence:
            probability *= weights[index] / rest
            rest -= weights[index]
        found[sequence] = probability
    return found


@pytest.mark.parametrize("power", [2.0, 1.0, 0.0, -1.0, -2.0])
def test_draws_have_the_probabilities_that_are_said(power: float) -> None:
    """Sequences of two of four columns, 5000 draws: the chi-square statistic of 12 outcomes (11 degrees) stays below 31.3 (0.1 %)."""
    norms = [1.0, 2.0, 0.5, 1.5]
    shown, rng, draws = torch.tensor([norms]), generator(7), 5000
    rule = Sampled(power=power)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        sequence = tuple(rule(shown, 2, rng).tolist())
        counts[sequence] = counts.get(sequence, 0) + 1
    expected = expected_of([norm**power for norm in norms], 2)
    assert sum((counts.get(s, 0) - draws * p) ** 2 / (draws * p) for s, p in expected.items()) < 31.3


def test_zeros_are_drawn_last_or_first_and_in_random_order() -> None:
    shown = torch.tensor([[0.0, 1e-30, 0.0, 5.0, 0.0]])
    last = [Sampled()(shown, 5, generator(seed)).tolist() for seed in range(30)]
    first = [Sampled(power=-2.0)(shown, 5, generator(seed)).tolist() for seed in range(30)]
    assert all(set(order[:2]) == {1, 3} for order in last)
    assert all(order[3:] == [1, 3] for order in first)
    assert {tuple(order[2:]) for order in last} == set(itertools.permutations((0, 2, 4)))
    assert {tuple(order[:3]) for order in first} == set(itertools.permutations((0, 2, 4)))


def test_given_columns_are_given_or_refused() -> None:
    a = gaussian(3, 5)
    assert chosen(Candidates(a), 3, Given((4, 0, 2)), generator()).tolist() == [4, 0, 2]
    for indices in ((4, 0), (4, 4, 0), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match="3 different columns are wanted"):
            chosen(Candidates(a), 3, Given(indices), generator())
    for bad in (5, -1):
        with pytest.raises(ValueError, match="columns are numbered from 0 to 4"):
            chosen(Candidates(a), 2, Given((0, bad)), generator())


@pytest.mark.parametrize("rule", [DEIM(), PivotedQR(), StrongRRQR(), Largest(), Sampled(), Given((0,))])
def test_bad_arguments_are_refused(rule: Rule) -> None:
    for bad in (math.nan, math.inf):
        shown = gaussian(3, 4)
        shown[1, 2] = bad
        with pytest.raises(ValueError, match="3 x 4 matrix holds NaN or infinity"):
            rule(shown, 1, generator())
    for shown, count in ((gaussian(3, 4), 0), (gaussian(3, 4), 5), (torch.ones(3), 1)):
        with pytest.raises(ValueError, match="give at least 1, and a matrix of as many"):
            rule(shown, count, generator())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_chosen_from_in_float64(dtype: torch.dtype) -> None:
    a = gaussian(12, 16, 5).to(dtype)
    for name, rule in RULES.items():
        if name not in {"deim on three vectors"}:
            narrow = chosen(Candidates(a), 5, rule, generator())
            assert narrow.tolist() == chosen(Candidates(a.to(torch.float64)), 5, rule, generator()).tolist(), name


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_choice_is_within_its_factor_of_the_best_subset(seed: int, k: int) -> None:
    """Strong RRQR against all subsets, in the Frobenius norm: its bound holds for each value that is left."""
    a = with_spectrum(5, 8, torch.arange(1, 6, dtype=torch.float64) ** -2.0, seed)
    w = float64(a)

    def error(indices: tuple[int, ...]) -> float:
        q = np.linalg.qr(w[:, list(indices)])[0]
        return float(np.linalg.norm(w - q @ (q.T @ w)))

    best = min(error(subset) for subset in itertools.combinations(range(8), k))
    optimum = float(np.linalg.norm(lapack_values(a)[k:]))
    assert best <= math.sqrt(k + 1) * optimum * (
        1 + 1e-9
    )  # Deshpande, Rademacher, Vempala and Wang 2006: such columns exist
    found = error(tuple(strong_pivots(a, k, 2.0).tolist()))
    assert best * (1 - 1e-9) <= found <= math.sqrt(1 + 4 * k * (8 - k)) * best
