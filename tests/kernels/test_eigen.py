from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, float64, gaussian, generator, hadamard, orthonormal, with_exact_spectrum
from torch import Tensor

from eckart.linalg import pivoted_qr, qr, symmetric_eigen

MODULE = import_module("eckart.kernels.eigen")
EPS = 2.0**-52
# Integers, some of them repeated, of both signs, far apart or zero.
EXACT = {
    "flat": (3,) * 16,
    "both signs": (7, 7, 2, 0, -1, -1, -5, -9, 4, 3, 2, 1, 0, 0, -2, -3),
    "wide range": (10**6, 10**3, 1, *[0] * 13),
    "negative": tuple(range(-16, 0)),
}


def exact(values: tuple[int, ...]) -> tuple[Tensor, list[float]]:
    """A symmetric matrix of integers and its eigenvalues without any rounding, descending."""
    h = hadamard(16)
    return h * torch.tensor(values, dtype=torch.float64) @ h.T, sorted((16.0 * v for v in values), reverse=True)


def symmetric(name: str) -> Tensor:
    """A symmetric matrix with eigenvalues of both signs, from the top rows and columns of one of the market."""
    a = MATRICES[name]()
    k = min(a.shape)
    return (a[:k, :k] + a[:k, :k].T) if a.dtype.itemsize > 2 else a[:k, :k].to(torch.float32).tril().to(a.dtype)


def whole(a: Tensor) -> np.ndarray:
    """The symmetric matrix whose lower triangle is that of ``a``."""
    w = float64(a)
    return np.tril(w) + np.tril(w, -1).T


# ---- eigenvectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_slack_and_residuals_cover_spectra_known_without_rounding(name: str) -> None:
    a, truth = exact(EXACT[name])
    found = symmetric_eigen(a)
    assert max(abs(x - t) for x, t in zip(found.values.tolist(), truth, strict=True)) <= found.slack
    for value, residual in zip(found.values.tolist(), found.residuals.tolist(), strict=True):
        assert min(abs(value - t) for t in truth) <= residual
    # An infinite slack would cover as well: both are of the size of rounding.
    size = float(a.norm())
    assert found.slack <= 300 * EPS * size
    assert float(found.residuals.max()) <= 50 * EPS * size


@pytest.mark.parametrize("order", [2, 4])
def test_residuals_cover_what_their_own_rounding_hides(order: int) -> None:
    """Small matrices have vectors whose residual comes out as zero beside a value that is not quite the true one."""
    h, hidden = hadamard(order), 0
    for seed in range(100):
        values = torch.randint(-1000, 1000, (order,), generator=generator(seed)).to(torch.float64)
        a = h * values @ h.T
        found = symmetric_eigen(a)
        off = (found.values[:, None] - order * values).abs().min(1).values
        assert bool((off <= found.residuals).all())
        measured = torch.linalg.vector_norm(a @ found.vectors - found.vectors * found.values, dim=0)
        hidden += int((off > measured).any())
    assert hidden > 0


@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_lapack_qr_iteration(name: str) -> None:
    a = symmetric(name)
    found = symmetric_eigen(a)
    truth = np.sort(scipy.linalg.eigh(whole(a), eigvals_only=True, driver="ev"))[::-1]
    assert found.values.dtype == found.vectors.dtype == torch.float64
    assert np.abs(found.values.numpy() - truth).max() <= found.slack
    assert bool((found.values.diff() <= 0).all())
    v, size = found.vectors.numpy(), np.linalg.norm(whole(a))
    assert np.abs(v.T @ v - np.eye(len(a))).max() <= 1e-13
    assert np.linalg.norm(whole(a) @ v - v * found.values.numpy()) <= 1e-13 * size
    largest = np.take_along_axis(v, np.abs(v).argmax(0)[None], 0)
    assert (largest > 0).all()


def test_residuals_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vectors that are a little wrong they grow to what the error really is."""
    a, truth = exact(EXACT["both signs"])
    real = torch.linalg.eigh

    def tilted(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = real(matrix)
        return values + 0.5, 2.0 * (vectors + 1e-3 * orthonormal(16, 16, 5))

    monkeypatch.setattr(MODULE.torch.linalg, "eigh", tilted)
    found = symmetric_eigen(a)
    for i, (value, residual) in enumerate(zip(found.values.tolist(), found.residuals.tolist(), strict=True)):
        v = found.vectors[:, i] / found.vectors[:, i].norm()
        assert residual == pytest.approx(float((a @ v - value * v).norm()), rel=1e-9)
        assert min(abs(value - t) for t in truth) <= residual
        assert residual >= 0.4


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_count_keeps_the_largest(count: int) -> None:
    a, truth = exact(EXACT["both signs"])
    found, everything = symmetric_eigen(a, count), symmetric_eigen(a)
    assert found.values.tolist() == pytest.approx(truth[:count], abs=1e-10)
    assert torch.equal(found.values, everything.values[:count])
    assert torch.equal(found.vectors, everything.vectors[:, :count])
    # The product with fewer columns may be summed in another order.
    assert torch.allclose(found.residuals, everything.residuals[:count], rtol=0.5, atol=1e-12)
    assert found.slack == everything.slack


def test_only_the_lower_triangle_is_read() -> None:
    a = gaussian(9, 9)
    found, other = symmetric_eigen(a), symmetric_eigen(a.tril())
    assert torch.equal(found.values, other.values)
    assert torch.equal(found.residuals, other.residuals)
    assert found.values.tolist() == pytest.approx(scipy.linalg.eigvalsh(whole(a))[::-1].tolist(), abs=1e-13)


def test_eigen_refuses() -> None:
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"a 3 x 3 matrix has no {count} eigenvalues: give a count from 0 to 3"):
            symmetric_eigen(torch.eye(3), count)
    with pytest.raises(ValueError, match="a square matrix is wanted"):
        symmetric_eigen(torch.ones(2, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        symmetric_eigen(torch.full((2, 2), float("nan")))
    assert symmetric_eigen(torch.zeros(0, 0)).values.shape == (0,)


# ---- QR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_qr_is_the_unique_one(name: str) -> None:
    a = MATRICES[name]()
    q, r = qr(a)
    w, k = float64(a), min(a.shape)
    assert q.dtype == r.dtype == torch.float64
    assert (q.shape, r.shape) == ((a.shape[0], k), (k, a.shape[1]))
    assert np.abs(q.numpy().T @ q.numpy() - np.eye(k)).max() <= 1e-13
    assert np.linalg.norm(q.numpy() @ r.numpy() - w) <= 1e-14 * a.shape[1] * np.linalg.norm(w)
    assert torch.equal(r, r.triu())
    assert bool((r.diagonal() >= 0).all())
    assert not bool(torch.signbit(r.tril(-1)).any())  # no zeros of negative sign
    # r^T r is the Gram matrix, whose Cholesky factor is unique.
    s = np.linalg.svd(w[:, :k], compute_uv=False)
    if s[-1] > 1e-3 * s[0]:
        cholesky = scipy.linalg.cholesky(w[:, :k].T @ w[:, :k])
        assert np.abs(r.numpy()[:, :k] - cholesky).max() <= 1e-14 * k * (s[0] / s[-1]) ** 2 * s[0]


def test_qr_by_hand() -> None:
    q, r = qr(torch.tensor([[0.0, 5.0], [-2.0, 7.0], [0.0, 0.0]]))
    assert r.tolist() == [[2.0, -7.0], [0.0, 5.0]]
    assert q.tolist() == [[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]


# ---- with pivots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_pivoted_qr_is_a_factorisation_with_the_law_of_businger_and_golub(name: str) -> None:
    a = MATRICES[name]()
    found = pivoted_qr(a)
    w, k, (m, n) = float64(a), min(a.shape), a.shape
    q, r, size = found.q.numpy(), found.r.numpy(), np.linalg.norm(float64(a))
    assert (q.shape, r.shape) == ((m, k), (k, n))
    assert sorted(found.pivots.tolist()) == list(range(n))
    assert np.abs(q.T @ q - np.eye(k)).max() <= 1e-13
    assert np.linalg.norm(q @ r - w[:, found.pivots.numpy()]) <= 1e-14 * n * size
    assert np.array_equal(r, np.triu(r))
    assert found.residual <= 1e-14 * n * size
    diagonal = np.diag(r)
    assert (diagonal >= 0).all()
    # At step i no column had more left than the pivot.
    for i in range(k):
        assert (np.linalg.norm(r[i:, i:], axis=0) <= diagonal[i] * (1 + 1e-7) + 1e-14 * size).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_pivots_and_triangle_are_those_of_scipy(m: int, n: int, seed: int) -> None:
    """Of Gaussian matrices, whose norms do not tie."""
    a = gaussian(m, n, seed)
    found = pivoted_qr(a)
    _, r, pivots = scipy.linalg.qr(a.numpy(), mode="economic", pivoting=True)
    k = min(m, n)
    assert found.pivots.tolist()[:k] == pivots.tolist()[:k]
    assert np.abs(np.abs(found.r.numpy()[:, :k]) - np.abs(r[:, :k])).max() <= 1e-12 * max(1.0, np.abs(r).max())
    q, plain = qr(a[:, found.pivots[:k]])
    assert float((found.q - q).abs().max()) <= 1e-9
    assert float((found.r[:, :k] - plain).abs().max()) <= 1e-11


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_fewer_steps_are_the_first_of_all_and_the_residual_is_what_they_leave(name: str, rank: int) -> None:
    a = MATRICES[name]()
    k = min(rank, *a.shape)
    found, everything = pivoted_qr(a, k), pivoted_qr(a)
    assert found.q.shape == (a.shape[0], k)
    assert found.pivots.tolist()[:k] == everything.pivots.tolist()[:k]
    w = float64(a)[:, found.pivots.numpy()]
    off = w - found.q.numpy() @ found.r.numpy()
    size = np.linalg.norm(w)
    assert np.linalg.norm(off[:, :k]) <= 1e-13 * size
    assert found.residual == pytest.approx(float(np.linalg.norm(off)), rel=1e-9, abs=1e-13 * size)
    assert float((found.q - everything.q[:, :k]).norm()) <= 1e-12


def test_the_first_of_tied_columns_is_taken() -> None:
    assert pivoted_qr(torch.eye(5)).pivots.tolist() == [0, 1, 2, 3, 4]
    assert pivoted_qr(torch.zeros(3, 4)).pivots.tolist() == [0, 1, 2, 3]
    assert pivoted_qr(torch.tensor([[1.0, 2.0, 2.0, 1.0]])).pivots.tolist()[0] == 1
    assert pivoted_qr(torch.zeros(3, 4)).r.tolist() == [[0.0] * 4] * 3


def test_the_rank_shows_in_the_diagonal() -> None:
    a = gaussian(20, 6, 1) @ gaussian(6, 30, 2)
    diagonal = pivoted_qr(a).r.diagonal()
    assert float(diagonal[5]) > 0.1
    assert float(diagonal[6:].max()) <= 1e-13 * float(diagonal[0])
    assert pivoted_qr(a, 6).residual <= 1e-13 * float(a.norm())


def best_pivots(a: np.ndarray) -> list[int]:
    """By Gram and Schmidt twice over in extended precision, every norm computed anew in every step."""
    rest, chosen = a.astype(np.longdouble), []
    for _ in range(min(a.shape)):
        norms = (rest**2).sum(0)
        chosen.append(int(norms.argmax()))
        q = rest[:, chosen[-1]] / np.sqrt(norms[chosen[-1]])
        for _ in range(2):
            rest = rest - np.outer(q, q @ rest)
        rest[:, chosen[-1]] = 0
    return chosen


def nearly_parallel(seed: int) -> Tensor:
    """Columns that differ by 1e-9 of their length: what is left after one step is 1e-18 of the squares, below rounding."""
    return gaussian(12, 1, seed) + 1e-9 * gaussian(12, 8, seed + 1) * torch.linspace(0.2, 1, 8, dtype=torch.float64)


def wrong_pivots(make: Callable[[int], Tensor]) -> int:
    return sum(pivoted_qr(make(seed)).pivots.tolist()[:3] != best_pivots(make(seed).numpy())[:3] for seed in range(10))


def test_norms_lost_to_cancellation_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_pivots(nearly_parallel) == 0
    monkeypatch.setattr(MODULE, "CANCELLED", -1.0)
    assert wrong_pivots(nearly_parallel) >= 5


@pytest.mark.parametrize("exponent", [-900, -600, 600, 1000])
def test_entries_whose_squares_leave_the_range_of_float64(exponent: int) -> None:
    plain = gaussian(7, 5, 3)
    found, expected = pivoted_qr(plain * 2.0**exponent, 3), pivoted_qr(plain, 3)
    assert torch.equal(found.pivots, expected.pivots)
    assert torch.equal(found.q, expected.q)
    assert torch.equal(found.r, expected.r * 2.0**exponent)
    assert found.residual == expected.residual * 2.0**exponent
    largest = torch.tensor([[1.7e308]], dtype=torch.float64)
    assert torch.equal(pivoted_qr(largest).r, largest)


def test_the_same_matrix_gives_the_same_bits_and_is_left_alone() -> None:
    a = gaussian(9, 12)
    before = a.clone()
    first, second = pivoted_qr(a), pivoted_qr(a)
    assert torch.equal(first.r, second.r)
    assert torch.equal(first.q, second.q)
    qr(a)
    symmetric_eigen(a[:9, :9])
    assert torch.equal(a, before)


def test_an_exact_matrix() -> None:
    """Of orthogonal columns the longest come first, and r is diagonal."""
    a, _ = with_exact_spectrum(16, (3,) * 16)
    lengths = torch.tensor([5.0, 1.0, 16.0, 2.0, *[4.0] * 12], dtype=torch.float64)
    found = pivoted_qr(hadamard(16) * lengths)
    assert found.pivots.tolist()[:3] == [2, 0, 4]
    assert found.pivots.tolist()[-2:] == [3, 1]
    assert found.r.diagonal().tolist() == pytest.approx([4 * x for x in (16, 5, *[4] * 12, 2, 1)])
    assert float((found.r - found.r.diagonal().diag()).abs().max()) <= 1e-12
    assert pivoted_qr(a, 16).residual == 0.0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    found = pivoted_qr(torch.zeros(shape))
    assert (found.q.shape, found.r.shape) == ((shape[0], 0), (0, shape[1]))
    assert found.pivots.tolist() == list(range(shape[1]))
    assert found.residual == 0.0
    assert qr(torch.zeros(shape))[0].shape == (shape[0], 0)


def test_qr_refuses() -> None:
    for rank in (-1, 3):
        with pytest.raises(ValueError, match=f"a 2 x 5 matrix has no {rank} pivots: give a rank from 0 to 2"):
            pivoted_qr(torch.ones(2, 5), rank)
    for run in (qr, pivoted_qr):
        with pytest.raises(ValueError, match="2 x 2 matrix holds NaN or infinity"):
            run(torch.full((2, 2), float("inf")))
        with pytest.raises(ValueError, match="a matrix is wanted"):
            run(torch.ones(2))
