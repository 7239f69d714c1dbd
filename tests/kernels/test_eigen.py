from importlib import import_module
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from market import MATRICES, float64, gaussian, generator, hadamard, orthonormal
from torch import Tensor

from eckart.linalg import qr, symmetric_eigen

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


def test_residuals_cover_what_their_own_rounding_hides() -> None:
    """Small matrices have vectors whose residual comes out as zero beside a value that is not quite the true one."""
    hidden = 0
    for order, seed in product((2, 4, 8), range(100)):
        h = hadamard(order)
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


def test_qr_refuses() -> None:
    with pytest.raises(ValueError, match="2 x 2 matrix holds NaN or infinity"):
        qr(torch.full((2, 2), float("inf")))
    with pytest.raises(ValueError, match="a matrix is wanted"):
        qr(torch.ones(2))


def test_residuals_that_are_nothing_leave_their_own_rounding() -> None:
    """Of a diagonal matrix nothing is off but what measuring that may hide: n products, a sum and a difference, in units of its size."""
    found = symmetric_eigen(torch.diag(torch.tensor([4.0, 3.0], dtype=torch.float64)))
    assert found.residuals.tolist() == pytest.approx([4 * 2.0**-52 * 5] * 2, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("n", [2, 5])
def test_the_slack_is_sixteen_units_for_every_row(n: int) -> None:
    a = torch.zeros(n, n, dtype=torch.float64)
    a[0, 0], a[1, 0], a[1, 1] = 1.0, 2.0, 4.0  # with its mirror image of a norm of 5
    assert symmetric_eigen(a).slack == pytest.approx(16 * EPS * n * 5, rel=1e-12, abs=0.0)
    assert symmetric_eigen(a, 0).slack == symmetric_eigen(a).slack


def test_signs_of_qr_are_kept_where_the_diagonal_is_zero() -> None:
    """Of dependent columns the last row of r is zero: nothing there asks for a sign to be turned."""
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    q, r = qr(a)
    assert r.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert not bool(torch.signbit(r).any())
    assert q[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert float(q[1, 1]) == 1.0  # Householder's second reflection is none
