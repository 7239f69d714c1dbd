"""What a function of matrices asks of its argument."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eckart.kernels.checked import finite_matrix, finite_square


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.bool])
@pytest.mark.parametrize("shape", [(2, 2), (1, 1), (0, 0)])
def test_a_real_square_matrix_passes_as_it_is(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = torch.zeros(shape, dtype=dtype)
    assert finite_matrix(a) is a
    assert finite_square(a) is a


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (0, 2)])
def test_a_matrix_that_is_not_square_passes_as_a_matrix_only(shape: tuple[int, int]) -> None:
    a = torch.zeros(shape)
    assert finite_matrix(a) is a
    with pytest.raises(ValueError, match=f"a square matrix is wanted, not one of shape {shape[0]} x {shape[1]}"):
        finite_square(a)


@pytest.mark.parametrize("check", [finite_matrix, finite_square])
def test_what_is_no_finite_real_matrix_is_named(check: Callable[[Tensor], Tensor]) -> None:
    for shape in ((), (4,), (2, 2, 2)):
        with pytest.raises(
            ValueError, match=rf"a matrix is wanted, not a tensor of shape \({', '.join(map(str, shape))}"
        ):
            check(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"a real matrix is wanted, not one of torch\.complex64: give its real and"):
        check(torch.zeros(2, 2, dtype=torch.complex64))
    for bad in (math.nan, math.inf, -math.inf):
        a = torch.zeros(3, 3)
        a[2, 1] = bad
        with pytest.raises(ValueError, match="the 3 x 3 matrix holds NaN or infinity"):
            check(a)
