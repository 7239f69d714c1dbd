import itertools
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, float64, gaussian, generator, orthonormal

from eckart.linalg import assignment, procrustes

# ---- rotations ------------------------------------------------------------------------------------------------------


def least_error(a: np.ndarray, b: np.ndarray) -> float:
    """The optimum by its formula: ||a||^2 + ||b||^2 - 2 (sum of the singular values of a^T b)."""
    nuclear = scipy.linalg.svd(a.T @ b, compute_uv=False, lapack_driver="gesvd").sum()
    return float(np.sqrt(max(0.0, np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2 - 2 * nuclear)))


@pytest.mark.parametrize("proper", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_it_is_orthogonal_and_its_error_is_what_it_leaves(name: str, proper: bool) -> None:
    a = MATRICES[name]()
    b = gaussian(*a.shape, 3) * float(a.to(torch.float64).abs().max() + 1e-30)
    found = procrustes(a, b, proper=proper)
    q, n = found.q.numpy(), a.shape[1]
    size = np.linalg.norm(float64(a)) + np.linalg.norm(b.numpy())
    assert found.q.dtype == torch.float64
    assert np.abs(q.T @ q - np.eye(n)).max() <= 1e-13
    assert found.error == pytest.approx(float(np.linalg.norm(float64(a) @ q - b.numpy())), abs=1e-13 * size)
    if proper:
        assert np.linalg.det(q) == pytest.approx(1.0, abs=1e-12)
    else:
        assert found.error == pytest.approx(least_error(float64(a), b.numpy()), abs=1e-13 * size, rel=1e-7)


@pytest.mark.parametrize("shape", [(20, 6), (6, 6), (9, 4)])
def test_agrees_with_scipy(shape: tuple[int, int]) -> None:
    a, b = gaussian(*shape, 1), gaussian(*shape, 2)
    expected, _ = scipy.linalg.orthogonal_procrustes(a.numpy(), b.numpy())
    assert np.abs(procrustes(a, b).q.numpy() - expected).max() <= 1e-12


@pytest.mark.parametrize("shape", [(20, 6), (6, 6), (4, 9)])
def test_a_planted_rotation_is_found(shape: tuple[int, int]) -> None:
    a, q = gaussian(*shape, 1), orthonormal(shape[1], shape[1], 2)
    found = procrustes(a, a @ q)
    assert found.error <= 1e-13 * float(a.norm())
    if shape[0] >= shape[1]:
        assert float((found.q - q).abs().max()) <= 1e-12


def angles(count: int) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


@given(st.integers(0, 10**6))
def test_in_the_plane_no_angle_does_better(seed: int) -> None:
    """All rotations, and all reflections, on a grid: brute force."""
    a, b = gaussian(5, 2, seed), gaussian(5, 2, seed + 1)
    t = angles(720)
    turns = np.stack([np.stack([np.cos(t), -np.sin(t)], 1), np.stack([np.sin(t), np.cos(t)], 1)], 1)
    proper = np.linalg.norm(a.numpy() @ turns - b.numpy(), axis=(1, 2)).min()
    mirrored = np.linalg.norm(a.numpy() @ turns @ np.diag([1, -1]) - b.numpy(), axis=(1, 2)).min()
    # Half a step of the grid away from the best angle the square of the error is more by less than this.
    miss = float(a.norm() * b.norm()) * (np.pi / 720) ** 2
    for best, found in ((proper, procrustes(a, b, proper=True)), (min(proper, mirrored), procrustes(a, b))):
        assert best**2 - miss - 1e-12 <= found.error**2 <= best**2 + 1e-12


@pytest.mark.parametrize("n", [3, 4])
def test_the_proper_one_turns_the_weakest_direction(n: int) -> None:
    """The optimum among rotations by its formula: the smallest singular value counts with the sign of the determinant."""
    mirrored = 0
    for seed in range(20):
        a, b = gaussian(8, n, seed), gaussian(8, n, seed + 100)
        cross = a.numpy().T @ b.numpy()
        s = scipy.linalg.svd(cross, compute_uv=False)
        sign = np.sign(np.linalg.det(cross))
        mirrored += int(sign < 0)
        best = np.sqrt(float(a.norm()) ** 2 + float(b.norm()) ** 2 - 2 * (s[:-1].sum() + sign * s[-1]))
        found = procrustes(a, b, proper=True)
        assert found.error == pytest.approx(best, rel=1e-12)
        assert np.linalg.det(found.q.numpy()) == pytest.approx(1.0, abs=1e-12)
        if sign > 0:
            assert torch.equal(found.q, procrustes(a, b).q)
    assert 0 < mirrored < 20


@pytest.mark.parametrize("exponent", [-200, 200, 300])
def test_products_that_leave_the_range_of_float64(exponent: int) -> None:
    a, q = gaussian(6, 4, 1), orthonormal(4, 4, 2)
    found = procrustes(a * 10.0**exponent, a @ q * 10.0**exponent)
    assert float((found.q - q).abs().max()) <= 1e-12


def test_without_information_any_rotation_will_do() -> None:
    found = procrustes(torch.zeros(3, 2), torch.ones(3, 2))
    assert float((found.q.T @ found.q - torch.eye(2)).abs().max()) <= 1e-15
    assert found.error == pytest.approx(6**0.5)
    assert procrustes(torch.zeros(3, 0), torch.zeros(3, 0), proper=True).q.shape == (0, 0)
    assert procrustes(torch.zeros(0, 2), torch.zeros(0, 2)).error == 0.0


def test_procrustes_refuses() -> None:
    with pytest.raises(ValueError, match=r"of one shape are wanted, not \(2, 3\) and \(3, 3\)"):
        procrustes(torch.ones(2, 3), torch.ones(3, 3))
    for bad in (float("nan"), float("inf")):
        for pair in ((torch.full((2, 2), bad), torch.ones(2, 2)), (torch.ones(2, 2), torch.full((2, 2), bad))):
            with pytest.raises(ValueError, match="2 x 2 matrix holds NaN or infinity"):
                procrustes(*pair)


# ---- pairings -------------------------------------------------------------------------------------------------------


def cheapest(cost: np.ndarray) -> int:
    """Over every injection of the shorter side into the longer one, in integers."""
    table = cost if cost.shape[0] <= cost.shape[1] else cost.T
    m, n = table.shape
    return min(sum(int(table[i, j]) for i, j in enumerate(js)) for js in itertools.permutations(range(n), m))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_no_pairing_is_cheaper(m: int, n: int, seed: int) -> None:
    cost = torch.randint(-20, 21, (m, n), generator=generator(seed))
    found = assignment(cost)
    assert found.total == cheapest(cost.numpy())
    assert found.total == int(cost[found.rows, found.columns].sum())
    assert len(set(found.rows.tolist())) == len(set(found.columns.tolist())) == min(m, n)
    assert found.rows.tolist() == sorted(found.rows.tolist())
    assert assignment(-cost).total == -max(
        sum(int(c[i, j]) for i, j in enumerate(js))
        for c in [cost if m <= n else cost.T]
        for js in itertools.permutations(range(max(m, n)), min(m, n))
    )


def test_a_planted_permutation_is_found() -> None:
    order = torch.randperm(40, generator=generator())
    cost = torch.ones(40, 40)
    cost[torch.arange(40), order] = 0.0
    found = assignment(cost.to(torch.bfloat16))
    assert torch.equal(found.columns, order)
    assert found.rows.tolist() == list(range(40))
    assert found.total == 0.0


@pytest.mark.parametrize("name", MATRICES)
def test_transposing_swaps_rows_and_columns_at_the_same_total(name: str) -> None:
    cost = MATRICES[name]()
    there, back = assignment(cost), assignment(cost.T)
    assert there.total == pytest.approx(back.total, rel=1e-12, abs=1e-12 * float(cost.to(torch.float64).abs().max()))


def test_edges_of_assignment() -> None:
    empty = assignment(torch.zeros(0, 3))
    assert (empty.rows.tolist(), empty.columns.tolist(), empty.total) == ([], [], 0.0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="2 x 2 matrix holds NaN or infinity"):
            assignment(torch.full((2, 2), bad))
    with pytest.raises(ValueError, match="a matrix is wanted"):
        assignment(torch.ones(3))
    assert assignment(torch.eye(2).requires_grad_()).total == 0.0


def test_without_scipy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="an assignment needs SciPy, which is not installed: pip install scipy"):
        assignment(torch.eye(2))
