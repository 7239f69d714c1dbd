import math
from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import (
    MATRICES,
    float64,
    gaussian,
    generator,
    lapack_values,
    orthonormal,
    with_exact_spectrum,
    with_spectrum,
)
from torch import Tensor

from eckart.linalg import SVD, fix_signs, singular_values, svd

# `eckart.kernels.svd` is also the name of the function, so the module is fetched by its path.
MODULE = import_module("eckart.kernels.svd")
ROUTES = {"lapack": 10**9, "gram": 0}
EPS = 2.0**-52

# Integers, some of them repeated, far apart or zero: the spectra of exact matrices.
EXACT = {
    "flat": (3,) * 16,
    "one": (5,),
    "repeated": (7, 7, 7, 2, 2, 2, 2, 1),
    "wide range": (10**6, 10**3, 1),
    "deficient": (9, 4, 0, 0, 1),
    "descending": tuple(range(16, 0, -1)),
}


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(MODULE, "LAPACK_SIDE", ROUTES[request.param])
    return request.param


def truth_of_tails(s: list[float]) -> list[float]:
    return [math.fsum(v * v for v in s[r:]) for r in range(len(s) + 1)]


def assert_slack_covers(f: SVD, truth: list[float]) -> None:
    """The three promises of ``SVD``, against true singular values."""
    s = f.s.tolist()
    truth = [*truth, *[0.0] * (len(s) - len(truth))]
    if f.slack_sq == 0.0:
        assert math.dist(s, truth) <= f.slack
    else:
        assert f.slack == 0.0
        off = [a * a - b * b for a, b in zip(s, truth, strict=True)]
        assert math.fsum(max(d, 0.0) for d in off) <= f.slack_sq  # the worst choice of squares to add up
        assert math.fsum(max(-d, 0.0) for d in off) <= f.slack_sq
    for rank, energy in enumerate(truth_of_tails(truth)):
        assert f.tail_floor(rank) <= math.sqrt(energy)
    for index, value in enumerate(truth):
        assert f.value_floor(index) <= value
    assert f.value_floor(len(s)) == 0.0


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_lapack_qr(name: str, route: str) -> None:
    a = MATRICES[name]()
    for f in (svd(a), singular_values(a)):
        assert f.s.dtype == torch.float64
        assert f.s.shape == (min(a.shape),)
        assert bool((f.s.diff() <= 0).all())
        assert_slack_covers(f, lapack_values(a).tolist())


@pytest.mark.parametrize("name", EXACT)
def test_slack_covers_spectra_known_without_rounding(name: str, route: str) -> None:
    a, truth = with_exact_spectrum(16, EXACT[name])
    assert_slack_covers(svd(a), truth)
    assert_slack_covers(singular_values(a), truth)


@pytest.mark.parametrize("name", EXACT)
def test_floors_are_not_idle(name: str, route: str) -> None:
    """A floor of zero would be certain as well: what is deducted must be of the size of rounding."""
    a, truth = with_exact_spectrum(16, EXACT[name])
    f = svd(a)
    norm = math.sqrt(truth_of_tails(truth)[0])
    grain = 1e-12 * norm if route == "lapack" else 1e-6 * norm  # the root of a rounding error on the Gram route
    for rank, energy in enumerate(truth_of_tails(truth)):
        assert f.tail_floor(rank) >= math.sqrt(energy) - grain
    for index, value in enumerate(truth):
        assert f.value_floor(index) >= value - grain


@pytest.mark.parametrize("name", MATRICES)
def test_vectors_are_orthonormal_and_span_the_matrix(name: str, route: str) -> None:
    a = MATRICES[name]()
    f = svd(a)
    w, u, k = float64(a), f.u.numpy(), min(a.shape)
    assert u.shape == (a.shape[0], k)
    assert np.abs(u.T @ u - np.eye(k)).max() <= 1e-13
    # The rows of u^T W are orthogonal, of the lengths s: the decomposition in full.
    rows = u.T @ w
    norm = np.linalg.norm(w)
    assert np.linalg.norm(u @ rows - w) <= 1e-7 * norm
    assert np.abs(rows @ rows.T - np.diag(float64(f.s) ** 2)).max() <= 1e-13 * norm**2


@pytest.mark.parametrize("name", MATRICES)
def test_projections_are_optimal_to_rounding(name: str, route: str) -> None:
    a = MATRICES[name]()
    f, w, s = svd(a), float64(a), lapack_values(a)
    for rank in range(min(a.shape) + 1):
        u = f.u.numpy()[:, :rank]
        energy = np.linalg.norm(w - u @ (u.T @ w)) ** 2
        assert abs(energy - np.sum(s[rank:] ** 2)) <= 1e-12 * np.sum(s**2)


@pytest.mark.parametrize("shape", [(30, 18), (18, 30), (24, 24)])
def test_both_routes_agree_within_their_slack(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    a = with_spectrum(*shape, torch.logspace(0, -10, 18, dtype=torch.float64))
    both = {}
    for name, side in ROUTES.items():
        monkeypatch.setattr(MODULE, "LAPACK_SIDE", side)
        both[name] = svd(a)
    lapack, gram = both["lapack"], both["gram"]
    assert (lapack.slack > 0, lapack.slack_sq) == (True, 0.0)
    assert (gram.slack, gram.slack_sq > 0) == (0.0, True)
    for rank in range(len(lapack.s)):
        low = max(0.0, math.sqrt(float(lapack.tails()[rank])) - lapack.slack) ** 2
        high = (math.sqrt(float(lapack.tails()[rank])) + lapack.slack) ** 2
        assert low - gram.slack_sq <= float(gram.tails()[rank]) <= high + gram.slack_sq
    # Well above what a Gram matrix can tell in float64, 1e-8 of the norm, the vectors are the same.
    assert float((lapack.u[:, :10] - gram.u[:, :10]).abs().max()) <= 1e-5
    assert float((lapack.s - gram.s).abs().max()) <= 1e-7


def test_the_larger_side_does_not_decide_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "LAPACK_SIDE", 8)
    assert svd(gaussian(50, 8)).slack_sq == 0.0
    assert svd(gaussian(8, 50)).slack_sq == 0.0
    assert svd(gaussian(9, 50)).slack == 0.0
    assert singular_values(gaussian(9, 50)).slack == 0.0


def test_tails_are_sums_of_squares() -> None:
    s = torch.tensor([5.0, 3.0, 3.0, 1e-3, 0.0], dtype=torch.float64)
    f = SVD(u=torch.zeros(5, 0), s=s, slack=0.0, slack_sq=0.0)
    assert f.tails().tolist() == pytest.approx(truth_of_tails(s.tolist()), rel=1e-15, abs=0)
    assert [f.tail_floor(r) for r in range(6)] == pytest.approx(
        [math.sqrt(t) for t in truth_of_tails(s.tolist())], rel=1e-15, abs=0
    )


def test_floors_deduct_both_kinds_of_slack_and_stop_at_zero() -> None:
    s = torch.tensor([5.0, 4.0, 0.1], dtype=torch.float64)
    f = SVD(u=torch.zeros(3, 0), s=s, slack=0.5, slack_sq=7.0)
    assert f.value_floor(0) == pytest.approx(math.sqrt(25 - 7) - 0.5)
    assert f.tail_floor(1) == pytest.approx(math.sqrt(16.01 - 7) - 0.5)
    assert f.value_floor(2) == 0.0
    assert f.tail_floor(2) == 0.0
    assert f.tail_floor(3) == 0.0


# ---- signs ----------------------------------------------------------------------------------------------------------


def pivots(u: Tensor) -> Tensor:
    return u.gather(0, u.abs().argmax(0, keepdim=True))


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_fixed_signs_forget_the_signs_they_came_with(m: int, k: int, seed: int) -> None:
    u = gaussian(m, k, seed)
    flips = torch.randint(0, 2, (k,), generator=generator(seed)).to(torch.float64) * 2 - 1
    assert torch.equal(fix_signs(u * flips), fix_signs(u))
    assert torch.equal(fix_signs(u).abs(), u.abs())
    assert bool((pivots(fix_signs(u)) > 0).all())
    assert torch.equal(fix_signs(fix_signs(u)), fix_signs(u))


def test_the_first_of_tied_entries_becomes_positive() -> None:
    u = torch.tensor([[0.0, -0.5], [-2.0, 0.5], [2.0, -0.5]])
    assert fix_signs(u).tolist() == [[0.0, 0.5], [2.0, -0.5], [-2.0, 0.5]]
    assert fix_signs(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_vectors_do_not_depend_on_how_the_matrix_was_put_together(shape: tuple[int, int], route: str) -> None:
    """Signs and order of the terms sigma u v^T, a sign of the whole and a rotation of its inputs change nothing."""
    k = min(shape)
    u, v, s = orthonormal(shape[0], k, 3), orthonormal(shape[1], k, 4), torch.arange(k, 0, -1, dtype=torch.float64)
    expected = fix_signs(u)
    flips = torch.randint(0, 2, (k,), generator=generator(5)).to(torch.float64) * 2 - 1
    order = torch.randperm(k, generator=generator(6))
    turn = orthonormal(shape[1], shape[1], 7)
    variants = {
        "as it is": u * s @ v.T,
        "signs of pairs": (u * flips) * s @ (v * flips).T,
        "order of pairs": u[:, order] * s[order] @ v[:, order].T,
        "sign of the whole": -(u * s @ v.T),
        "inputs turned": (u * s @ v.T) @ turn,
    }
    for name, a in variants.items():
        assert float((svd(a).u - expected).abs().max()) <= 1e-11, name
        assert bool((pivots(svd(a).u) > 0).all()), name


def test_the_same_matrix_gives_the_same_bits(route: str) -> None:
    a = gaussian(30, 20)
    first, second = svd(a), svd(a.clone())
    assert torch.equal(first.u, second.u)
    assert torch.equal(first.s, second.s)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("decompose", [svd, singular_values])
def test_empty_matrices_have_no_values(shape: tuple[int, int], decompose: object, route: str) -> None:
    f = svd(torch.zeros(shape)) if decompose is svd else singular_values(torch.zeros(shape))
    assert f.u.shape == (shape[0], 0)
    assert f.s.shape == (0,)
    assert f.u.dtype == f.s.dtype == torch.float64
    assert f.tails().tolist() == [0.0]
    assert f.tail_floor(0) == 0.0


@pytest.mark.parametrize("decompose", [svd, singular_values])
def test_what_is_no_finite_matrix_is_refused(decompose: object) -> None:
    run = svd if decompose is svd else singular_values
    for bad in (float("nan"), float("inf"), -float("inf")):
        a = torch.ones(3, 4)
        a[1, 2] = bad
        with pytest.raises(ValueError, match="3 x 4 matrix holds NaN or infinity"):
            run(a)
    with pytest.raises(ValueError, match="a matrix is wanted"):
        run(torch.ones(3))
    with pytest.raises(ValueError, match="a matrix is wanted"):
        run(torch.ones(2, 3, 4))


def test_the_argument_is_left_alone(route: str) -> None:
    a = gaussian(12, 9)
    before = a.clone()
    svd(a)
    singular_values(a)
    assert torch.equal(a, before)


def test_small_values_are_read_off_float64_not_float32() -> None:
    """A float32 decomposition stops at 1e-7 of the largest value; this one resolves 1e-13."""
    a, truth = with_exact_spectrum(16, (10**12, 10**6, 1))
    assert svd(a).s[:3].tolist() == pytest.approx(truth, rel=1e-2)
    assert scipy.linalg.svdvals(a.numpy().astype(np.float32))[2] != pytest.approx(truth[2], rel=1e-2)


# ---- which way, and how wrong it may be ------------------------------------------------------------------------------


@pytest.mark.parametrize("decompose", [svd, singular_values])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (8, 8)])
def test_up_to_the_side_that_is_given_it_is_lapack(shape: tuple[int, int], decompose: Callable[..., SVD]) -> None:
    for side, by_lapack in ((0, False), (7, False), (8, True), (9, True)):
        f = decompose(gaussian(*shape), side)
        assert (f.slack > 0, f.slack_sq > 0) == (by_lapack, not by_lapack)


@pytest.mark.parametrize(("side", "by_lapack"), [(1024, True), (1025, False)])
def test_up_to_a_side_of_1024_it_is_lapack(side: int, by_lapack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for what would take long."""
    monkeypatch.setattr(torch.linalg, "svdvals", lambda a: a.new_zeros(min(a.shape)))
    monkeypatch.setattr(MODULE, "smaller_gram", lambda a: torch.eye(2, dtype=torch.float64))
    assert (singular_values(torch.ones(side, 1200)).slack > 0) is by_lapack
    assert (singular_values(torch.ones(1200, side)).slack > 0) is by_lapack


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_lapack_is_given_the_tall_orientation(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half as long there; and nothing is made that is larger than the matrix."""
    given: list[tuple[int, ...]] = []
    whole, values = torch.linalg.svd, torch.linalg.svdvals

    def watched(a: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        given.append(tuple(a.shape))
        u, s, vh = whole(a, full_matrices=full_matrices)
        assert max(u.numel(), vh.numel()) <= a.numel()
        return u, s, vh

    monkeypatch.setattr(torch.linalg, "svd", watched)
    monkeypatch.setattr(torch.linalg, "svdvals", lambda a: (given.append(tuple(a.shape)), values(a))[1])
    a = gaussian(*shape)
    svd(a)
    singular_values(a)
    assert given == [(30, 7), (30, 7)]


def test_who_asks_for_values_does_not_pay_for_vectors(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    for name in ("eigh", "svd"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("vectors were computed"))
    a, truth = with_exact_spectrum(8, (5, 3, 2, 1))
    assert_slack_covers(singular_values(a), truth)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_slack_of_lapack_is_sixteen_units_for_every_row_of_the_larger_side(shape: tuple[int, int]) -> None:
    a = torch.zeros(shape)
    a[0, 0], a[1, 2] = 3.0, 4.0
    expected = 16 * EPS * max(shape) * 5
    for f in (svd(a), singular_values(a)):
        assert f.slack == pytest.approx(expected, rel=1e-12, abs=0.0)
        assert f.slack_sq == 0.0


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_slack_of_the_gram_route_adds_the_product_to_its_eigenvalues(shape: tuple[int, int]) -> None:
    """Of energies 9 and 16: one unit of the trace for each summand, and 16 units of the norm for each row, times the root of k."""
    a = torch.zeros(shape)
    a[0, 0], a[1, 2] = 3.0, 4.0
    k = min(shape)
    expected = math.sqrt(k) * (max(shape) * EPS * 25 + 16 * EPS * k * math.hypot(9, 16))
    for f in (svd(a, 0), singular_values(a, 0)):
        assert f.slack == 0.0
        assert f.slack_sq == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_a_gram_matrix_is_decomposed_as_the_matrix_behind_it() -> None:
    """Only the lower triangle is read; what rounding did to the product before is added to the slack."""
    a = with_spectrum(6, 9, torch.linspace(3, 1, 6, dtype=torch.float64))
    gram = a @ a.T
    left, s = scipy.linalg.svd(float64(a))[:2]
    found = MODULE.gram_svd(gram.tril(), 0.0)
    assert float64(found.s) == pytest.approx(s, rel=1e-13)
    assert np.abs(float64(found.u).T @ left) == pytest.approx(np.eye(6), abs=1e-12)
    assert bool((pivots(found.u) > 0).all())
    assert found.slack_sq == pytest.approx(math.sqrt(6) * 16 * EPS * 6 * float(gram.tril().norm()), rel=1e-12, abs=0.0)
    values = MODULE.gram_svd(gram, 0.25, vectors=False)
    assert values.u.shape == (6, 0)
    assert float64(values.s) == pytest.approx(s, rel=1e-13)
    assert values.slack_sq == pytest.approx(math.sqrt(6) * 0.25, rel=1e-10)


def test_negative_energies_of_rounding_are_no_values() -> None:
    gram = torch.diag(torch.tensor([4.0, -1e-17, 1.0], dtype=torch.float64))
    assert MODULE.gram_svd(gram, 0.0).s.tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vectors", [True, False])
def test_a_gram_matrix_that_is_not_finite_is_refused(bad: float, vectors: bool) -> None:
    gram = torch.eye(3, dtype=torch.float64)
    gram[2, 0] = bad
    with pytest.raises(ValueError, match="the 3 x 3 Gram matrix holds NaN or infinity"):
        MODULE.gram_svd(gram, 0.0, vectors=vectors)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_is_known_without_slack(shape: tuple[int, int], route: str) -> None:
    for f in (svd(torch.zeros(shape)), singular_values(torch.zeros(shape))):
        assert (f.slack, f.slack_sq) == (0.0, 0.0)


def test_zeros_keep_their_sign() -> None:
    assert not bool(torch.signbit(fix_signs(torch.zeros(3, 2))).any())
