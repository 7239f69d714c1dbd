"""Nyström approximations against Schur complements and pseudo-inverses by LAPACK, and against their theorems."""

import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, as_if_large, float64, gaussian, generator, lapack_values, orthonormal, with_spectrum
from torch import Tensor

from eckart.fit import Fit
from eckart.linalg import (
    DEIM,
    Given,
    Largest,
    LeadingVectors,
    PivotedQR,
    Rule,
    Sampled,
    StrongRRQR,
    generalised_nystrom,
    nystrom,
    select,
)
from eckart.operator import Factors

NYSTROM = import_module("eckart.linalg.nystrom")
EPS = 2.0**-52
RULES: dict[str, Rule] = {
    "deim": DEIM(),
    "pivoted qr": PivotedQR(),
    "strong rrqr": StrongRRQR(),
    "largest": Largest(),
    "leverage": Sampled(LeadingVectors()),
    "inverted": Sampled(power=-2.0),
}


def product(fit: Fit) -> np.ndarray:
    assert isinstance(fit.op, Factors)
    return float64(fit.op.left) @ float64(fit.op.right)


def semidefinite(name: str) -> Tensor:
    """The second moment of the rows of a matrix of the market, in float64 and symmetric to the last bit."""
    a = MATRICES[name]().to(torch.float64)
    gram = a.T @ a
    return gram.tril() + gram.tril(-1).T


def assert_enclosed(a: Tensor, fit: Fit, rank: int) -> None:
    values, error = lapack_values(a), float64(a) - product(fit)
    frobenius, spectral = fit.bounds
    grain = EPS * len(values) * float(np.linalg.norm(values))
    assert frobenius.lower is not None
    assert spectral.lower is not None
    assert frobenius.lower <= np.linalg.norm(values[rank:]) + grain
    assert spectral.lower <= (values[rank] if rank < len(values) else 0.0) + grain
    assert np.linalg.norm(error) <= frobenius.upper + grain
    assert np.linalg.norm(error, 2) <= spectral.upper + grain
    assert frobenius.achieved == pytest.approx(
        np.linalg.norm(error), rel=1e-9, abs=100 * grain + frobenius.upper - frobenius.achieved
    )


# ---- of positive semidefinite matrices ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MATRICES)
def test_nystrom_is_the_schur_complement(name: str, rule: str) -> None:
    """What is left is zero in the chosen rows and columns, and both it and the approximation are positive semidefinite."""
    a = semidefinite(name)
    n, size = len(a), float(a.norm())
    for rank in sorted({1, max(1, n // 3), n}):
        fit = nystrom(a, rank, RULES[rule], rng=generator(1))
        assert isinstance(fit.op, Factors)
        indices = select(a, rank, RULES[rule], rng=generator(1)).numpy()
        w, approximation = float64(a), product(fit)
        rest = w - approximation
        assert np.array_equal(approximation, approximation.T)
        assert torch.equal(fit.op.left, fit.op.right.T)
        # What is dropped of the core is below 16 r eps of the diagonal, and its root is what an entry may be off by.
        grain = math.sqrt(16 * rank * EPS) * size
        assert np.abs(rest[:, indices]).max() <= grain
        assert np.linalg.eigvalsh(rest).min() >= -grain
        assert_enclosed(a, fit, rank)


@given(st.integers(2, 14), st.integers(0, 10**6), st.data())
def test_nystrom_by_the_formula(n: int, seed: int, data: st.DataObject) -> None:
    """A[:, J] W^-1 A[J, :] by LAPACK, of well-conditioned matrices."""
    x = gaussian(n + 4, n, seed)
    a = x.T @ x + torch.eye(n, dtype=torch.float64)
    a = (a + a.T) / 2
    rank = data.draw(st.integers(1, n))
    indices = tuple(data.draw(st.permutations(range(n)))[:rank])
    w, j = float64(a), list(indices)
    expected = w[:, j] @ np.linalg.solve(w[np.ix_(j, j)], w[j])
    assert product(nystrom(a, rank, Given(indices))) == pytest.approx(expected, abs=1e-10 * np.linalg.norm(w))


def test_a_worked_example() -> None:
    """[[4, 2], [2, 3]] from its first coordinate: (4, 2)^T (4, 2) / 4 = [[4, 2], [2, 1]], and 2 is left."""
    a = torch.tensor([[4.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    fit = nystrom(a, 1, Given((0,)))
    assert product(fit) == pytest.approx(np.array([[4.0, 2.0], [2.0, 1.0]]), rel=1e-15)
    assert fit.bounds[0].achieved == pytest.approx(2.0, rel=1e-14)
    assert isinstance(fit.op, Factors)
    assert fit.op.left.tolist() == [[2.0], [1.0]]


def test_columns_of_the_factor_fall_with_the_core_and_their_signs_are_fixed() -> None:
    """[[8, 2], [2, 2]] with unit diagonal has values 3/2 along (1, 1) and 1/2 along (1, -1)."""
    fit = nystrom(torch.tensor([[8.0, 2.0], [2.0, 2.0]], dtype=torch.float64), 2)
    expected = np.array([[2.0, 2.0], [1.0, -1.0]]) * np.sqrt([1.5, 0.5])
    assert float64(fit.op.tensors()["left"]) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("extra", [0, 4])
def test_a_matrix_of_that_rank_is_recovered(rank: int, extra: int) -> None:
    """From as many coordinates and from more, whose core is singular."""
    x = gaussian(20, rank, 3)
    a = x @ x.T
    for rule in (*RULES.values(), Sampled(power=0.0)):
        fit = nystrom(a, rank + extra, rule)
        assert np.linalg.norm(float64(a) - product(fit)) <= 1e-10 * float(a.norm())
        assert f"{rank} of {rank + extra} independent" in fit.how


def test_without_the_tolerance_a_singular_core_spoils_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 5 but for rounding to float32, 20 coordinates: small values of the core are rounding, some of them negative."""
    x = gaussian(40, 5, 3)
    a = (x @ x.T).to(torch.float32)
    assert torch.equal(a, a.T)
    core = float64(a[:20, :20])
    assert np.linalg.eigvalsh(core).min() < 0

    def error() -> float:
        return float(np.linalg.norm(float64(a) - product(nystrom(a, 20, Given(tuple(range(20))), dtype=torch.float64))))

    careful = error()
    assert careful <= 1e-6 * float(a.norm())
    monkeypatch.setattr(NYSTROM, "NOISE", 0.0)
    assert error() > careful
    monkeypatch.setattr(NYSTROM, "NOISE", -1.0)
    with pytest.raises(ValueError, match="too large"):  # the root of a negative value is no number
        error()


def test_units_of_the_coordinates_do_not_matter() -> None:
    """Scaled by powers of two, 2^-80 to 2^80: what is independent stays so, and the factor is scaled alike."""
    x = gaussian(12, 6, 3)
    a = x @ x.T
    scale = 2.0 ** torch.linspace(-80, 80, 12, dtype=torch.float64).round()
    rule = Given((0, 11, 5, 7))
    plain, scaled = nystrom(a, 4, rule), nystrom(scale[:, None] * a * scale, 4, rule)
    assert isinstance(plain.op, Factors)
    assert isinstance(scaled.op, Factors)
    assert "4 of 4" in scaled.how
    restored = scaled.op.left / scale[:, None]
    assert float64(restored @ restored.T) == pytest.approx(
        float64(plain.op.left @ plain.op.left.T), abs=1e-12 * float(a.norm())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types(dtype: torch.dtype) -> None:
    x = gaussian(30, 24, 3) * torch.logspace(0, -3, 24, dtype=torch.float64)
    a = (x @ x.T / 10).to(dtype)
    a = torch.triu(a) + torch.triu(a, 1).T
    for rank in (3, 12):
        fit = nystrom(a, rank)
        assert {t.dtype for t in fit.op.tensors().values()} == {dtype}
        assert_enclosed(a, fit, rank)
        assert np.linalg.norm(float64(a) - product(fit)) <= 3 * np.linalg.norm(
            lapack_values(a)[rank:]
        ) + 3 * torch.finfo(dtype).eps ** 0.5 * float(a.double().norm())
        assert nystrom(a, rank, dtype=torch.float64).op.tensors()["left"].dtype == torch.float64


def test_what_is_not_symmetric_positive_semidefinite_is_refused() -> None:
    with pytest.raises(ValueError, match="a symmetric matrix is wanted, not one of 3 x 4"):
        nystrom(gaussian(3, 4), 1)
    with pytest.raises(ValueError, match="the 4 x 4 matrix is not symmetric"):
        nystrom(gaussian(4, 4), 1)
    with pytest.raises(ValueError, match="an entry is above the mean of its diagonal ones"):
        nystrom(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 1)
    with pytest.raises(ValueError, match="an entry is above the mean of its diagonal ones"):
        nystrom(torch.diag(torch.tensor([1.0, -1.0])), 1)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        nystrom(torch.tensor([[-1.0]]), 1)
    far = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    with pytest.raises(ValueError, match=r"its core has the eigenvalue -0\.8"):
        nystrom(far, 3)
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"{rank} of 2 columns: give a number from 1 to 2"):
            nystrom(torch.eye(2), rank)


# ---- of any matrix, from two sketches -------------------------------------------------------------------------------


def sketches(a: Tensor, columns: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The two Gaussian matrices that are drawn for this seed."""
    rng = NYSTROM.stream(generator(seed), NYSTROM.SKETCH)
    m, n = a.shape
    x = torch.randn(n, columns, generator=rng, dtype=torch.float64)
    return float64(x), float64(torch.randn(m, rows, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("name", MATRICES)
def test_generalised_nystrom_over_the_market(name: str) -> None:
    """The bounds enclose, and where the spectrum leaves nothing beyond the rank nothing is left."""
    a = MATRICES[name]()
    for rank in sorted({1, max(1, min(a.shape) // 2), min(a.shape)}):
        fit = generalised_nystrom(a, rank, rng=generator(1))
        assert isinstance(fit.op, Factors)
        assert {t.dtype for t in fit.op.tensors().values()} == {a.dtype}
        assert fit.op.rank == rank
        assert_enclosed(a, fit, rank)
        if rank == min(a.shape):
            stored = float(fit.op.left.double().norm()) * float(fit.op.right.double().norm())
            conditions = [np.linalg.cond(x) for x in sketches(a, rank, min(rank + (rank + 1) // 2, len(a)), 1)]
            rounding = max(a.shape) * EPS * math.prod(conditions) * float(a.double().norm())
            grain = 2 * torch.finfo(a.dtype).eps * stored + rounding
            assert np.linalg.norm(float64(a) - product(fit)) <= grain
        lengths = (
            torch.linalg.vector_norm(fit.op.left.double(), dim=0),
            torch.linalg.vector_norm(fit.op.right.double(), dim=1),
        )
        kept = lengths[1] > 0
        assert float64(lengths[0][kept]) == pytest.approx(float64(lengths[1][kept]), rel=0.02)


@pytest.mark.parametrize("panel", [5, 512])
def test_by_the_formula(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """AX (Y^T A X)^+ Y^T A with LAPACK's pseudo-inverse and the same sketches, whatever the panels are."""
    a = with_spectrum(40, 30, torch.logspace(0, -4, 30, dtype=torch.float64))
    monkeypatch.setattr(import_module("eckart.kernels.panels"), "PANEL", panel)
    x, y = sketches(a, 6, 10, 5)
    w = float64(a)
    expected = w @ x @ scipy.linalg.pinv(y.T @ w @ x) @ (y.T @ w)
    fit = generalised_nystrom(a, 6, oversampling=4, rng=generator(5))
    assert product(fit) == pytest.approx(expected, abs=1e-12 * np.linalg.norm(w))
    assert "6 columns and 10 rows, 6 of 6" in fit.how


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_the_mean_square_error_is_below_the_theorem(decay: float) -> None:
    """Tropp et al. 2017, theorem 4.3, over 100 seeds; the mean of them is known to about a tenth of their spread."""
    s = torch.arange(1, 41, dtype=torch.float64) ** -decay
    a = with_spectrum(40, 50, s)
    rank, more = 10, 6
    squares = []
    for seed in range(100):
        fit = generalised_nystrom(a, rank, oversampling=more, rng=generator(seed))
        squares.append(np.linalg.norm(float64(a) - product(fit)) ** 2)
    best = min((1 + k / (rank - k - 1)) * float(s[k:].square().sum()) for k in range(rank - 1))
    bound = (1 + rank / (more - 1)) * best
    assert np.mean(squares) - 3 * np.std(squares) / 10 <= bound
    assert np.mean(squares) >= float(s[rank:].square().sum())
    assert np.mean(squares) >= 0.1 * bound  # the theorem is no idle one: a factor or a scale lost would show


@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
def test_directions_that_are_rounding_are_left_out(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of rank 4 and sketches of 20: of the core's other values only rounding is known, and dividing by it spoils."""
    a = gaussian(shape[0], 4, 1) @ gaussian(4, shape[1], 2)
    fit = generalised_nystrom(a, 20)
    assert "4 of 20 directions" in fit.how
    careful = np.linalg.norm(float64(a) - product(fit))
    assert careful <= 1e-13 * float(a.norm())
    assert not fit.op.tensors()["right"][4:].any()
    monkeypatch.setattr(NYSTROM, "NOISE", 0.0)
    assert bool(generalised_nystrom(a, 20).op.tensors()["right"][4:].any(dim=1).all())


def test_a_zero_matrix_gives_zero() -> None:
    fit = generalised_nystrom(torch.zeros(6, 5), 3)
    assert not product(fit).any()
    assert fit.bounds[0].upper == 0.0
    assert not product(nystrom(torch.zeros(5, 5), 3)).any()


def test_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    a = with_spectrum(60, 50, torch.arange(1, 51, dtype=torch.float64) ** -1.0, 2).to(torch.float32)
    fit = generalised_nystrom(a, 8)
    optimum = float(np.linalg.norm(lapack_values(a)[8:]))
    assert fit.bounds[0].lower is not None
    assert fit.bounds[0].lower <= optimum <= np.linalg.norm(float64(a) - product(fit)) <= fit.bounds[0].upper
    q = orthonormal(50, 50)
    square = q * torch.arange(1, 51, dtype=torch.float64) ** -1.0 @ q.T
    square = (square + square.T) / 2
    assert_enclosed_large(square, nystrom(square, 8), 8)


def assert_enclosed_large(a: Tensor, fit: Fit, rank: int) -> None:
    values, bound = lapack_values(a), fit.bounds[0]
    assert bound.lower is not None
    assert bound.lower <= np.linalg.norm(values[rank:]) <= np.linalg.norm(float64(a) - product(fit)) <= bound.upper


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_the_seed_decides_and_not_the_state_of_the_generator() -> None:
    a = gaussian(20, 20)
    gram = a @ a.T

    def tensors(rng: torch.Generator | None) -> list[Tensor]:
        drawn = nystrom(gram, 5, Sampled(), rng=rng)
        return [*generalised_nystrom(a, 5, rng=rng).op.tensors().values(), *drawn.op.tensors().values()]

    used = generator(3)
    torch.randn(100, generator=used)
    assert all(torch.equal(x, y) for x, y in zip(tensors(generator(3)), tensors(used), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(tensors(None), tensors(generator(0)), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(tensors(generator(3)), tensors(generator(4)), strict=True))


def test_impossible_arguments_are_refused() -> None:
    for rank in (0, 6):
        with pytest.raises(ValueError, match=f"rank {rank} of a 5 x 7 matrix: give one from 1 to 5"):
            generalised_nystrom(gaussian(5, 7), rank)
    with pytest.raises(ValueError, match="not below 0: -1"):
        generalised_nystrom(gaussian(5, 7), 2, oversampling=-1)
    assert "2 columns and 5 rows" in generalised_nystrom(gaussian(5, 7), 2, oversampling=99).how
    assert "3 columns and 5 rows" in generalised_nystrom(gaussian(9, 7), 3).how
    for call in (lambda a: nystrom(a, 1), lambda a: generalised_nystrom(a, 1)):
        for bad in (math.nan, math.inf, -math.inf):
            a = torch.ones(3, 3)
            a[1, 1] = bad
            with pytest.raises(ValueError, match="3 x 3 matrix holds NaN or infinity"):
                call(a)
        with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted"):
            call(torch.ones(3, 3, dtype=torch.int64))


@pytest.mark.parametrize(("units", "independent"), [(1, 1), (3, 2)])
def test_what_rounding_may_have_made_is_dropped_and_no_more(units: int, independent: int) -> None:
    """The core ``[[1, 1 - d], [1 - d, 1]]`` has the value d; two units of rounding are what float32 may have made of zero."""
    off = 1.0 - units * torch.finfo(torch.float32).eps
    fit = nystrom(torch.tensor([[1.0, off], [off, 1.0]]), 2)
    assert f"{independent} of 2 independent" in fit.how
