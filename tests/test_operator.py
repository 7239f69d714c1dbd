from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import float64, gaussian
from torch import Tensor

from eckart.operator import KINDS, Dense, Factors, Operator, kind_of, nbytes

# What every kind of operator must be able to do is tested below; a new kind joins by a line here.
MAKERS: Mapping[str, Callable[[int, int, torch.dtype], Operator]] = {
    "dense": lambda m, n, dtype: Dense(gaussian(m, n).to(dtype)),
    "factors": lambda m, n, dtype: Factors(gaussian(m, 2, 1).to(dtype), gaussian(2, n, 2).to(dtype)),
}
SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)]


def test_every_kind_is_in_this_table() -> None:
    assert set(MAKERS) == set(KINDS)


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., Operator]:
    return lambda m=5, n=3, dtype=torch.float64: MAKERS[request.param](m, n, dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_dense_matrix(make: Callable[..., Operator], shape: tuple[int, int]) -> None:
    op = make(*shape)
    assert op.shape == shape
    assert op.dense().shape == shape
    for x in (gaussian(shape[1], 7, 3), gaussian(shape[1], 1, 4)[:, 0]):
        expected = float64(op.dense()) @ float64(x)
        assert (op @ x).shape == expected.shape
        assert float64(op @ x) == pytest.approx(expected, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transpose_is_an_operator_of_the_same_kind_on_the_same_storage(
    make: Callable[..., Operator], shape: tuple[int, int]
) -> None:
    op = make(*shape)
    assert op.T.shape == shape[::-1]
    assert kind_of(op.T) == kind_of(op)
    assert float64(op.T.dense()) == pytest.approx(float64(op.dense()).T, rel=1e-13, abs=1e-13)
    assert torch.equal(op.T.T.dense(), op.dense())
    storage = {t.untyped_storage().data_ptr() for t in op.tensors().values()}
    assert {t.untyped_storage().data_ptr() for t in op.T.tensors().values()} == storage


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_stored_tensors_are_all_there_is(make: Callable[..., Operator], dtype: torch.dtype) -> None:
    """An operator is rebuilt from its kind and its tensors, and its bytes are theirs."""
    op = make(dtype=dtype)
    again = KINDS[kind_of(op)](**op.tensors())
    assert type(again) is type(op)
    assert again.shape == op.shape
    assert torch.equal(again.dense(), op.dense())
    assert nbytes(op) == sum(len(t.contiguous().view(torch.uint8).flatten()) for t in op.tensors().values())
    assert all(t.dtype == dtype for t in op.tensors().values())


def test_bytes_of_known_sizes() -> None:
    assert nbytes(Dense(torch.zeros(3, 5, dtype=torch.bfloat16))) == 30
    assert nbytes(Factors(torch.zeros(3, 2), torch.zeros(2, 5))) == 64
    mixed = Factors(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float16))
    assert nbytes(mixed) == 48 + 20


def test_operators_cannot_be_changed(make: Callable[..., Operator]) -> None:
    op = make()
    for name in op.tensors():
        with pytest.raises(AttributeError):
            setattr(op, name, torch.zeros(1))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_factors_multiply_from_the_right(m: int, r: int, n: int, seed: int) -> None:
    left, right = gaussian(m, r, seed), gaussian(r, n, seed + 1)
    op = Factors(left, right)
    assert op.rank == r == op.T.rank
    expected: Tensor = left @ right
    assert float((op.dense() - expected).abs().max()) <= 1e-12
    assert torch.linalg.matrix_rank(op.dense()) <= r


def test_a_product_with_factors_never_forms_the_matrix() -> None:
    """A hundred thousand rows and columns: 80 GB as a dense matrix."""
    side = 100_000
    op = Factors(torch.ones(side, 1, dtype=torch.float64), torch.ones(1, side, dtype=torch.float64))
    assert float((op @ torch.ones(side, dtype=torch.float64))[-1]) == side
    assert float((op.T @ torch.ones(side, 1, dtype=torch.float64))[0, 0]) == side
