import math
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import torch
from market import MATRICES, float64, gaussian, orthonormal
from torch import Tensor

from eckart.linalg import inverse_root, newton_inverse_root

MODULE = import_module("eckart.kernels.roots")
EPS = 2.0**-52
POWERS = (1, 2, 3, 4, 7)


def gram_of(name: str) -> Tensor:
    """The smaller Gram matrix of a member of the market, in float64."""
    a = MATRICES[name]().to(torch.float64)
    a = a / max(float(a.abs().max()), 1e-300)
    return a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a


def with_values(values: Tensor, seed: int = 0) -> Tensor:
    q = orthonormal(len(values), len(values), seed)
    gram = q * values @ q.T
    return (gram + gram.T) / 2


def projection(gram: np.ndarray, share: float) -> tuple[np.ndarray, int]:
    """Onto the eigenvectors whose values are above this share of the largest; by SciPy's QR iteration."""
    values, vectors = scipy.linalg.eigh(gram, driver="ev")
    kept = vectors[:, values > share * np.abs(values).max()] if len(values) else vectors
    return kept @ kept.T, kept.shape[1]


# ---- eigenvectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("name", MATRICES)
def test_the_power_of_the_root_inverts_on_the_range(name: str, p: int) -> None:
    gram = gram_of(name)
    found = inverse_root(gram, p, tolerance=1e-6)
    onto, rank = projection(float64(gram), 1e-6)
    assert found.rank == rank
    assert found.steps is None
    assert found.root.dtype == torch.float64
    assert torch.equal(found.root, found.root.T)
    root = float64(found.root)
    # Eigenvectors are off by EPS of the norm over the gap, here at least the smallest kept value: 1e6 EPS n.
    assert np.abs(np.linalg.matrix_power(root, p) @ float64(gram) - onto).max() <= 1e-8
    assert scipy.linalg.eigvalsh(root).min() >= -1e-10 * np.abs(root).max()


@pytest.mark.parametrize("p", POWERS)
def test_agrees_with_the_schur_method_of_scipy(p: int) -> None:
    gram = with_values(torch.linspace(0.1, 3, 12, dtype=torch.float64))
    expected = np.linalg.inv(scipy.linalg.fractional_matrix_power(gram.numpy(), 1 / p))
    assert np.abs(inverse_root(gram, p).root.numpy() - expected).max() <= 1e-12
    assert np.abs(newton_inverse_root(gram, p).root.numpy() - expected).max() <= 1e-11


@pytest.mark.parametrize("p", POWERS)
def test_a_worked_example(p: int) -> None:
    """Rotated by the angle of (3, 4); the values are p-th powers, so that the root is exact in fractions."""
    c, s = Fraction(3, 5), Fraction(4, 5)
    values, roots = (Fraction(2**p), Fraction(3**p)), (Fraction(1, 2), Fraction(1, 3))

    def turned(d: tuple[Fraction, Fraction]) -> Tensor:
        entries = [
            [c * c * d[0] + s * s * d[1], c * s * (d[0] - d[1])],
            [c * s * (d[0] - d[1]), s * s * d[0] + c * c * d[1]],
        ]
        return torch.tensor([[float(e) for e in row] for row in entries], dtype=torch.float64)

    for run in (inverse_root, newton_inverse_root):
        found = run(turned(values), p)
        assert float((found.root - turned(roots)).abs().max()) <= 1e-12
        assert found.rank == 2


def test_values_that_rounding_made_zero_or_negative_are_left_out() -> None:
    values = torch.tensor([4.0, 1.0, 1e-16, 0.0, -1e-16, -3e-16], dtype=torch.float64)
    gram = with_values(values, 3)
    found = inverse_root(gram, 2)
    assert found.rank == 2
    q = float64(orthonormal(6, 6, 3))
    expected = q[:, :2] * [0.5, 1.0] @ q[:, :2].T
    assert np.abs(found.root.numpy() - expected).max() <= 1e-13


@pytest.mark.parametrize(("tolerance", "rank"), [(0.0, 3), (1e-7, 3), (1e-5, 2), (0.3, 1), (1.0, 0)])
def test_the_tolerance_says_what_counts_as_zero(tolerance: float, rank: int) -> None:
    gram = torch.diag(torch.tensor([1.0, 0.25, 1e-6], dtype=torch.float64))
    found = inverse_root(gram, 2, tolerance=tolerance)
    assert found.rank == rank
    expected = [v**-0.5 if i < rank else 0.0 for i, v in enumerate((1.0, 0.25, 1e-6))]
    assert found.root.diagonal().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_default_tolerance_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    """A matrix of rank 3 whose entries were rounded to the dtype is found to have rank 3, in spite of them."""
    x = gaussian(3, 16, 4)
    gram = (x.T @ x).to(dtype)
    found = inverse_root(gram, 2)
    assert found.rank == 3
    # Had those of rounding been inverted, the root would have entries of their inverse.
    assert float(found.root.abs().max()) <= 2 * float(np.sort(scipy.linalg.eigvalsh(float64(gram)))[-3]) ** -0.5
    with_noise = inverse_root(gram, 2, tolerance=0.0, damping=0.1)
    assert with_noise.rank == 16


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("name", MATRICES)
def test_damping_is_added_to_every_value(name: str, p: int) -> None:
    gram, damping = gram_of(name), 0.03
    values, vectors = scipy.linalg.eigh(float64(gram), driver="ev")
    expected = vectors * (np.maximum(values, 0) + damping) ** (-1 / p) @ vectors.T
    for run in (inverse_root, newton_inverse_root):
        found = run(gram, p, damping=damping)
        assert found.rank == len(gram)
        # The condition is the largest value over the damping; what rounding does to a value grows by it.
        assert np.abs(found.root.numpy() - expected).max() <= 1e-13 * (1 + values[-1] / damping) * damping ** (-1 / p)


def test_a_matrix_that_is_not_semidefinite_is_refused() -> None:
    gram = torch.diag(torch.tensor([1.0, -0.1]))
    with pytest.raises(ValueError, match=r"not positive semidefinite: it has the eigenvalue -0\.1 beside 1"):
        inverse_root(gram, 2)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        newton_inverse_root(gram, 2)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        inverse_root(torch.diag(torch.tensor([-1.0, -2.0])), 2)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        inverse_root(gram, 2, damping=0.05)
    # Larger than the negative value, a damping or tolerance is the caller's word that rounding made it; it counts as zero.
    assert inverse_root(gram, 2, damping=0.25).root.diagonal().tolist() == pytest.approx([1.25**-0.5, 2.0])
    assert inverse_root(gram, 2, tolerance=0.2).root.diagonal().tolist() == pytest.approx([1.0, 0.0])


def test_a_zero_matrix() -> None:
    for run in (inverse_root, newton_inverse_root):
        assert run(torch.zeros(3, 3), 2).root.tolist() == [[0.0] * 3] * 3
        assert run(torch.zeros(3, 3), 2).rank == 0
        damped = run(torch.zeros(3, 3), 2, damping=0.25)
        assert float((damped.root.double() - 2 * torch.eye(3)).abs().max()) <= 1e-6
        assert run(torch.zeros(0, 0), 2).root.shape == (0, 0)
        assert run(torch.zeros(0, 0), 2).rank == 0


@pytest.mark.parametrize("run", [inverse_root, newton_inverse_root])
def test_only_the_lower_triangle_is_read(run: object) -> None:
    gram = with_values(torch.linspace(0.5, 2, 8, dtype=torch.float64))
    run = inverse_root if run is inverse_root else newton_inverse_root
    assert torch.equal(run(gram.tril(), 3).root, run(gram, 3).root)


# ---- products alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_the_iteration_agrees_with_eigenvectors(p: int, condition: float) -> None:
    values = torch.logspace(0, -math.log10(condition), 20, dtype=torch.float64)
    gram = 37.0 * with_values(values, 5)
    found, exact = newton_inverse_root(gram, p), inverse_root(gram, p)
    assert found.steps is not None  # by products, not by the fall-back
    assert found.rank == 20
    assert torch.equal(found.root, found.root.T)
    # The last step squares an error of 1e-8 sqrt(n); rounding counts as often as the condition says.
    assert float((found.root - exact.root).norm() / exact.root.norm()) <= 20 * EPS * (20 + condition) + 1e-14


@pytest.mark.parametrize("p", POWERS)
def test_it_takes_a_doubling_per_step_and_then_converges_quadratically(p: int) -> None:
    """From the recurrence of a single eigenvalue, in plain numbers; an iteration that converges linearly takes many more."""
    values = torch.logspace(0, -4, 12, dtype=torch.float64)
    gram = with_values(values, 6)
    found = newton_inverse_root(gram, p)
    bound = min(float(gram.abs().sum(1).max()), float(gram.norm()))
    m = [float(v) * (p + 1) / 2 / bound for v in values]
    steps = 0
    while math.dist(m, [1.0] * 12) > math.sqrt(EPS) * math.sqrt(12):
        m, steps = [x * ((p + 1 - x) / p) ** p for x in m], steps + 1
    assert found.steps == steps + 1
    assert steps <= 14 + 6


def test_the_smaller_bound_on_the_norm_is_taken() -> None:
    """Of a multiple of the identity the row sums are the norm itself: there is nothing to iterate on for p = 1."""
    assert newton_inverse_root(4 * torch.eye(64), 1).steps == 1
    assert newton_inverse_root(torch.ones(1, 1), 1).root.tolist() == [[1.0]]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_matrices_of_any_size_of_entries(scale: float, p: int) -> None:
    gram = (with_values(torch.linspace(0.5, 2, 8, dtype=torch.float64)) * scale).to(torch.float32)
    found, exact = newton_inverse_root(gram, p), inverse_root(gram, p)
    assert found.steps is not None
    assert found.root.dtype == torch.float32
    assert float((found.root.double() - exact.root).norm() / exact.root.norm()) <= 1e-5


def test_a_singular_matrix_falls_back() -> None:
    x = gaussian(5, 12, 7)
    gram = x.T @ x
    found, exact = newton_inverse_root(gram, 4), inverse_root(gram, 4)
    assert found.steps is None
    assert found.rank == 5
    assert torch.equal(found.root, exact.root)
    assert newton_inverse_root(gram.to(torch.float32), 4).steps is None
    assert newton_inverse_root(gram, 4, damping=1e-2).steps is not None


def nearly_singular() -> Tensor:
    """Condition 1e13: rounding of size 1e-16 puts the weakest value off by a thousandth and more."""
    return with_values(torch.logspace(0, -13, 10, dtype=torch.float64), 8)


def test_a_converged_recurrence_with_a_wrong_root_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """M reaches the identity whatever rounding did to X; only the root itself shows that it is none."""
    gram = nearly_singular()
    found = newton_inverse_root(gram, 2)
    assert found.steps is None
    exact = inverse_root(gram, 2)
    real, calls = MODULE._deviation, []

    def forgiving(m: Tensor, unit: Tensor) -> float:
        """As before for M, which takes steps towards the identity; the check of the root, which comes last, is waved through."""
        left = real(m, unit)
        if calls and calls[-1] <= allowed:
            return 0.0
        calls.append(left)
        return left

    allowed = math.sqrt(EPS) * math.sqrt(10)
    monkeypatch.setattr(MODULE, "_deviation", forgiving)
    unguarded = newton_inverse_root(gram, 2)
    assert unguarded.steps is not None
    power = unguarded.root @ gram @ unguarded.root
    assert float((power - torch.eye(10)).norm()) > 1e-5
    assert float((unguarded.root - exact.root).norm() / exact.root.norm()) > 1e-6


def test_an_iteration_that_cannot_converge_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = with_values(torch.logspace(0, -4, 10, dtype=torch.float64), 9)
    assert newton_inverse_root(gram, 2).steps is not None
    monkeypatch.setattr(MODULE, "STEPS", 3)
    stopped = newton_inverse_root(gram, 2)
    assert stopped.steps is None
    assert torch.equal(stopped.root, inverse_root(gram, 2).root)
    assert torch.equal(newton_inverse_root(gram, 2, damping=1e-5).root, inverse_root(gram, 2, damping=1e-5).root)
    monkeypatch.undo()
    # Scaled by a figure that is no bound, values start beyond p + 1 and diverge: still no wrong result.
    monkeypatch.setattr(MODULE, "_norm_bound", lambda a: 0.01)
    assert torch.equal(newton_inverse_root(gram, 2).root, inverse_root(gram, 2).root)


def test_the_accuracy_asked_for_is_kept() -> None:
    gram = with_values(torch.linspace(0.01, 1, 16, dtype=torch.float64), 10)
    loose, tight = newton_inverse_root(gram, 2, accuracy=1e-2), newton_inverse_root(gram, 2, accuracy=1e-12)
    assert loose.steps is not None
    assert tight.steps is not None
    assert loose.steps < tight.steps
    for found, accuracy in ((loose, 1e-2), (tight, 1e-12)):
        off = float((found.root @ found.root @ gram - torch.eye(16)).norm())
        assert off <= (accuracy * 4) ** 2 * 3 + 1e-12  # of the last step, 3/2 is left at most for p = 2
    assert newton_inverse_root(gram, 2, accuracy=1e-17).steps is None  # more than float64 has


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_of_the_whole_market_both_routes_give_the_same(name: str, p: int) -> None:
    gram = gram_of(name)
    found, exact = newton_inverse_root(gram, p), inverse_root(gram, p)
    assert found.rank == exact.rank
    values = np.sort(scipy.linalg.eigvalsh(gram.numpy()))[::-1][: found.rank]
    condition = values[0] / values[-1] if found.rank else 1.0
    off = float((found.root - exact.root).norm())
    assert off <= 20 * EPS * (len(gram) + condition) * float(exact.root.norm())


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [inverse_root, newton_inverse_root])
def test_what_makes_no_sense_is_refused(run: object) -> None:
    run = inverse_root if run is inverse_root else newton_inverse_root
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="2 x 2 matrix holds NaN or infinity"):
            run(torch.tensor([[1.0, bad], [bad, 1.0]]), 2)
        with pytest.raises(ValueError, match="is not a finite number of at least zero"):
            run(torch.eye(2), 2, damping=bad)
    with pytest.raises(ValueError, match="a square matrix is wanted, not one of shape 2 x 3"):
        run(torch.ones(2, 3), 2)
    with pytest.raises(ValueError, match="no inverse root of order 0"):
        run(torch.eye(2), 0)
    with pytest.raises(ValueError, match="damping -1"):
        run(torch.eye(2), 2, damping=-1.0)
    with pytest.raises(ValueError, match="tolerance -1"):
        inverse_root(torch.eye(2), 2, tolerance=-1.0)


def test_the_argument_is_left_alone() -> None:
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    inverse_root(gram, 2, damping=0.5)
    newton_inverse_root(gram, 2, damping=0.5)
    assert gram.tolist() == [[2.0, 1.0], [1.0, 2.0]]
