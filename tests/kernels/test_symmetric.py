import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import float64, gaussian, inputs, orthonormal
from torch import Tensor

from eckart.kernels.symmetric import BLOCK, EPS, add_gram, nearly_cholesky
from eckart.linalg import psd_root


def relative(root: Tensor, gram: np.ndarray) -> float:
    r = float64(root)
    return float(np.linalg.norm(r @ r.T - gram) / np.linalg.norm(gram))


@given(st.integers(1, 16), st.integers(1, 30), st.integers(0, 10**6))
def test_the_root_gives_the_matrix_back(n: int, count: int, seed: int) -> None:
    """Full rank or not: ``count`` inputs give a matrix of rank at most ``count``."""
    x = float64(gaussian(count, n, seed))
    root = psd_root(torch.from_numpy(x.T @ x))
    assert root.dtype == torch.float64
    assert root.shape[0] == n
    assert root.shape[1] <= n
    assert relative(root, x.T @ x) <= 1e-13


def test_ill_conditioned_and_outlying() -> None:
    x = float64(inputs(24, 60))
    assert relative(psd_root(torch.from_numpy(x.T @ x)), x.T @ x) <= 1e-13
    q, values = float64(orthonormal(24, 24)), np.logspace(0, -14, 24)
    gram = q * values @ q.T
    root = psd_root(torch.from_numpy(gram))
    assert relative(root, gram) <= 1e-13
    # Directions that count 1e-12 of the largest still count as they should.
    length = np.linalg.norm(q[:, 12] @ float64(root)) ** 2
    assert length == pytest.approx(values[12], rel=1e-3)


def test_a_deficient_matrix_gives_a_narrow_root_and_no_failure() -> None:
    exact = torch.diag(torch.tensor([4.0, 0.0, 9.0, 0.0]))
    assert psd_root(exact).shape == (4, 2)
    assert relative(psd_root(exact), float64(exact)) <= 1e-15
    assert psd_root(torch.zeros(3, 3)).shape == (3, 0)
    assert psd_root(torch.ones(5, 5)).shape[1] <= 5
    assert relative(psd_root(torch.ones(5, 5)), np.ones((5, 5))) <= 1e-14


def test_negative_eigenvalues_of_rounding_are_left_out() -> None:
    q = orthonormal(6, 6)
    values = torch.tensor([1.0, 0.5, 0.25, -1e-17, -1e-16, -1e-15], dtype=torch.float64)
    root = psd_root(q * values @ q.T)
    assert bool(torch.isfinite(root).all())
    assert relative(root, float64(q[:, :3] * values[:3] @ q[:, :3].T)) <= 1e-14


def test_only_the_lower_triangle_is_read() -> None:
    x = gaussian(20, 7)
    gram = x.T @ x
    assert torch.equal(psd_root(gram.tril()), psd_root(gram))
    assert relative(psd_root(gram.tril()), float64(gram)) <= 1e-13


def test_what_it_is_given_is_left_as_it_was() -> None:
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    psd_root(gram)
    assert gram.tolist() == [[2.0, 1.0], [1.0, 2.0]]


def test_narrow_types_are_taken_in_float64() -> None:
    gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.bfloat16)
    assert relative(psd_root(gram), float64(gram)) <= 1e-15


def test_what_a_cholesky_factor_adds_at_first_is_four_units_for_every_row() -> None:
    """Higham 2002, theorem 10.3: n + 1 units are what rounding may do. What it did is told on top, n (n + 2) units."""
    for n in (1, 2, 5, 16):
        gram = torch.diag(torch.arange(1, n + 1).to(torch.float64))
        c, share = nearly_cholesky(gram)
        assert share == pytest.approx((4 * n + n * (n + 2)) * EPS, rel=1e-12, abs=0.0)
        added = float64(c).diagonal() ** 2 / float64(gram.diagonal()) - 1
        assert added == pytest.approx(4 * n * EPS, abs=1.1 * EPS)


def deficient(n: int, count: int) -> Tensor:
    x = inputs(n, count)
    x[:, 0] = 0.0  # a channel that never fires
    return x.T @ x


@pytest.mark.parametrize("count", [1, 7, 24, 200])
@pytest.mark.parametrize("n", [1, 5, 24])
def test_a_cholesky_factor_is_off_by_no_more_than_it_says(n: int, count: int) -> None:
    gram = deficient(n, count)
    c, share = nearly_cholesky(gram)
    assert torch.equal(c, c.tril())
    off = np.abs(float64(c) @ float64(c).T - float64(gram))
    sizes = np.sqrt(float64(gram.diagonal()))
    assert share <= 1e-12
    assert (off <= share * np.outer(sizes, sizes) + 1e-20 * float(gram.max()) + 1e-299).all()
    w = gaussian(9, n, 3)
    energy = float((w * gram.diagonal().sqrt()).square().sum())
    assert abs(float(torch.trace(w @ (c @ c.T - gram) @ w.T))) <= share * energy + 1e-20 * float(gram.max()) + 1e-290


def test_a_cholesky_factor_is_had_of_what_is_not_quite_semidefinite() -> None:
    gram = torch.eye(6, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 1 + 1e-6
    c, share = nearly_cholesky(gram)
    off = float((c @ c.T - gram).abs().max())
    assert 1e-7 < off <= share < 1e-3


def test_a_cholesky_factor_of_nothing() -> None:
    c, share = nearly_cholesky(torch.zeros(3, 3))
    assert float(c.abs().max()) <= 1e-140
    assert share < 1e-12


@pytest.mark.parametrize("n", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_a_gram_matrix_adds_up_by_halves(n: int) -> None:
    parts = [gaussian(k, n, k) for k in (3, 1, 20)]
    start = gaussian(n, n, 9)
    start = start + start.T
    found = add_gram(start.clone(), iter(parts))
    expected = float64(start) + sum(float64(x).T @ float64(x) for x in parts)
    assert np.allclose(float64(found), expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    assert torch.equal(found, found.T)


def test_a_gram_matrix_of_nothing_is_as_before() -> None:
    start = torch.eye(3)
    assert torch.equal(add_gram(start, []), torch.eye(3))


@pytest.mark.parametrize("below", [1e-12, 1e-9, 1e-6, 1e-3])
def test_a_cholesky_factor_adds_sixteen_times_as_much_until_it_succeeds(below: float) -> None:
    """A matrix with an eigenvalue of ``-below``: the first of 8, 8 * 16, 8 * 256, … units that is more than that."""
    gram = torch.tensor([[1.0, 1 + below], [1 + below, 1.0]], dtype=torch.float64)
    added = next(a for a in (8 * EPS * 16.0**k for k in range(16)) if a > below * (1 + 1e-3))
    c, share = nearly_cholesky(gram)
    assert share == pytest.approx(added + 8 * EPS, rel=1e-12, abs=0.0)
    assert float64(c @ c.T).diagonal() == pytest.approx(1 + added, rel=1e-15)
    assert float((c @ c.T)[1, 0]) == pytest.approx(1 + below, rel=1e-15)


def test_entries_of_zero_count_as_tiny_ones() -> None:
    """1e-30 of the largest, so that directions that never occur stay without weight; and of nothing at all 1e-300."""
    c, _ = nearly_cholesky(torch.diag(torch.tensor([0.0, 4.0, 1e-20], dtype=torch.float64)))
    assert float64(c).diagonal() ** 2 == pytest.approx([4e-30, 4.0, 1e-20], rel=1e-12, abs=0.0)
    c, _ = nearly_cholesky(torch.zeros(2, 2))
    assert float64(c).diagonal() == pytest.approx([1e-150] * 2, rel=1e-12, abs=0.0)


def test_a_cholesky_factor_reads_only_the_lower_triangle_and_leaves_it_alone() -> None:
    x = gaussian(20, 7)
    gram = x.T @ x
    before = gram.tril()
    c, share = nearly_cholesky(before)
    assert torch.equal(before, gram.tril())
    assert torch.equal(c, nearly_cholesky(gram)[0])
    assert share == nearly_cholesky(gram)[1]
    assert relative(c, float64(gram)) <= 1e-14
    assert nearly_cholesky(gram.to(torch.float32))[0].dtype == torch.float64


def test_a_gram_matrix_is_computed_by_blocks_on_and_below_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At little more than half the cost: rows of blocks that end at the diagonal."""
    seen: list[tuple[int, ...]] = []
    addmm = Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda self, a, b: (seen.append(tuple(self.shape)), addmm(self, a, b))[1])
    add_gram(torch.zeros(500, 500), [gaussian(2, 500).to(torch.float32)])
    assert seen == [(192, 192), (192, 384), (116, 500)]


def test_a_root_leaves_out_eigenvalues_that_are_not_positive() -> None:
    """Exact ones of a matrix of blocks: those of [[1, 2], [2, 1]] are 3 and -1, and the last is zero."""
    gram = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    root = psd_root(gram)
    assert root.shape == (3, 1)
    assert float64(root @ root.T) == pytest.approx(np.array([[1.5, 1.5, 0], [1.5, 1.5, 0], [0, 0, 0]]), abs=1e-14)


@pytest.mark.parametrize("n", [5, BLOCK, 2 * BLOCK + 7])
def test_the_upper_triangle_is_that_of_the_lower_one(n: int) -> None:
    """Whatever was there before: what counts is below the diagonal, in blocks of the diagonal as well."""
    start, x = gaussian(n, n, 9), gaussian(3, n)
    start = start + start.T
    assert torch.equal(add_gram(start.tril(), [x]), add_gram(start.clone(), [x]))
    assert torch.equal(add_gram(start.tril(), []), start)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(2, 2), (2, 0)])
def test_no_cholesky_factor_of_what_is_not_finite_is_looked_for(bad: float, place: tuple[int, int]) -> None:
    """Whatever is added to the diagonal, it would fail for ever; above the diagonal nothing is read."""
    gram = torch.eye(3, dtype=torch.float64)
    gram[place] = bad
    with pytest.raises(ValueError, match="the 3 x 3 Gram matrix holds NaN or infinity"):
        nearly_cholesky(gram)
    if place == (2, 0):
        assert nearly_cholesky(gram.T)[0].tolist() == nearly_cholesky(torch.eye(3))[0].tolist()
