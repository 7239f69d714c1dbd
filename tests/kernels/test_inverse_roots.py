"""Inverse roots at their limits: tolerances to the last bit, how many steps are made, what takes none."""

import math
from importlib import import_module

import pytest
import torch
from market import gaussian
from torch import Tensor

from eckart.linalg import inverse_root, newton_inverse_root

MODULE = import_module("eckart.kernels.roots")
EPS = 2.0**-52


def diagonal(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "count", "share"),
    [
        (torch.float64, 4, 4 * EPS),  # n eps64 is more than the root of n
        (torch.float64, 9, 9 * EPS),
        (torch.float32, 4, 2 * 2.0**-23),
        (torch.float32, 9, 3 * 2.0**-23),
        (torch.bfloat16, 4, 2 * 2.0**-7),
    ],
)
def test_the_default_tolerance_to_the_last_bit(dtype: torch.dtype, count: int, share: float) -> None:
    for value, rank in ((share, count - 1), (0.75 * share, count - 1), (1.25 * share, count)):
        gram = diagonal(*[1.0] * (count - 1), value, dtype=dtype)
        found = inverse_root(gram, 2)
        assert found.rank == rank
        assert sorted(found.root.diagonal().tolist())[-1] == pytest.approx(value**-0.5 if rank == count else 1.0)


def test_integers_have_no_rounding_but_that_of_float64() -> None:
    gram = torch.tensor([[4, 0], [0, 9]])
    for run in (inverse_root, newton_inverse_root):
        assert run(gram, 2).root.diagonal().tolist() == pytest.approx([1 / 2, 1 / 3])
    assert inverse_root(torch.tensor([[10**12, 0], [0, 1]]), 1).rank == 2
    assert newton_inverse_root(gram, 2).root.dtype == torch.float32


def test_a_negative_value_of_the_size_that_is_covered_is_accepted() -> None:
    gram = diagonal(1.0, -0.25)
    assert inverse_root(gram, 2, tolerance=0.25).root.diagonal().tolist() == [1.0, 0.0]
    assert inverse_root(gram, 2, damping=0.25).root.diagonal().tolist() == pytest.approx([1.25**-0.5, 2.0])
    for covered in ({"tolerance": 0.24}, {"damping": 0.24}):
        with pytest.raises(ValueError, match=r"eigenvalue -0\.25 beside 1; give a damping or a tolerance"):
            inverse_root(gram, 2, **covered)


def test_order_one_is_the_inverse_and_no_lower_order_is_there() -> None:
    assert inverse_root(diagonal(4.0, 0.5), 1).root.diagonal().tolist() == pytest.approx([0.25, 2.0])
    for run in (inverse_root, newton_inverse_root):
        with pytest.raises(ValueError, match="no inverse root of order -1: give a positive integer"):
            run(torch.eye(2), -1)


@pytest.mark.parametrize("exponent", range(50, 59))
def test_sixty_steps_are_made_at_the_most(exponent: int) -> None:
    """For p = 1 a value 1 - e becomes 1 - e^2: 2^-53 takes 53 doublings and some; of a diagonal matrix nothing is rounded away."""
    values = (1.0, 2.0**-exponent)
    found = newton_inverse_root(diagonal(*values), 1)
    left = [math.exp(2.0**k * math.log1p(-values[1])) for k in range(100)]
    steps = next(k for k in range(100) if left[k] <= math.sqrt(2 * EPS)) + 1
    if exponent <= 55:
        assert found.steps == min(steps, 60)
        assert found.rank == 2
        assert found.root.diagonal().tolist() == pytest.approx([1.0, 2.0**exponent], rel=1e-12)
    else:
        assert steps > 61
        assert (found.steps, found.rank) == (None, 1)


def test_an_accuracy_of_zero_is_kept_by_what_is_exact() -> None:
    """Four times the identity, divided by its norm, is the identity: nothing is left to the last bit."""
    found = newton_inverse_root(4 * torch.eye(4, dtype=torch.float64), 1, accuracy=0.0)
    assert found.steps == 1
    assert found.root.tolist() == (torch.eye(4) / 4).tolist()
    assert newton_inverse_root(diagonal(1.0, 0.3), 3, accuracy=0.0).steps is None


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_accuracy_counts_from_the_root_of_the_size(n: int) -> None:
    """A multiple of the identity starts at (p + 1) / 2 = 3 / 2 for p = 2: after k steps every entry is off by the same."""

    def off(k: int) -> float:
        m = 1.5
        for _ in range(k):
            m *= ((3 - m) / 2) ** 2
        return abs(m - 1)

    for k in (1, 2):
        for share, extra in ((1.01, 1), (0.99, 2)):
            found = newton_inverse_root(7 * torch.eye(n, dtype=torch.float64), 2, accuracy=share * off(k))
            assert found.steps == k + extra


def test_what_has_no_entries_or_only_zeros_takes_no_step() -> None:
    for a in (torch.zeros(0, 0), torch.zeros(3, 3)):
        found = newton_inverse_root(a, 2)
        assert (found.steps, found.rank, found.root.dtype) == (None, 0, torch.float32)
        assert found.root.shape == a.shape


@pytest.mark.parametrize("p", [1, 2, 5])
def test_a_matrix_of_norm_one_goes_by_products(p: int) -> None:
    found = newton_inverse_root(diagonal(1.0, 0.5), p)
    assert found.steps is not None
    assert found.root.diagonal().tolist() == pytest.approx([1.0, 2 ** (1 / p)])


def test_the_smaller_of_row_sum_and_frobenius_norm_is_the_bound() -> None:
    """Of ones the row sum is the smaller or the same, of a row and column of ones the Frobenius norm."""
    assert MODULE._norm_bound(torch.eye(9) * -2) == 2.0
    arrow = torch.zeros(5, 5)
    arrow[0, 1:] = arrow[1:, 0] = 1.0
    assert MODULE._norm_bound(arrow) == pytest.approx(math.sqrt(8), rel=1e-15)
    assert MODULE._norm_bound(gaussian(3, 3).tril()[:0, :0]) == 0.0
