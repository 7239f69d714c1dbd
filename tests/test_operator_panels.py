"""Operators row by row, in other types, and matrices that are converted a panel at a time."""

import numpy as np
import pytest
import torch
from market import float64, gaussian
from operators import OPERATORS, Largest, codes, dense, factors, sparse
from torch import Tensor

from eckart.operator import (
    Dense,
    Factors,
    Operator,
    Panelled,
    Product,
    Shuffle,
    Sum,
    device_of,
    in_dtype,
    rows,
)


@pytest.fixture(params=OPERATORS)
def op(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param](torch.float64)


# ---- a panel at a time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1100, 3), (3, 1100), (512, 4), (513, 1), (1, 600), (600, 600)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_panelled_matrix_multiplies_in_the_type_of_the_other(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = gaussian(*shape, 1).to(dtype)
    for op in (Panelled(matrix), Panelled(matrix.T.contiguous()).T, Panelled(matrix).T):
        m, n = op.shape
        assert op.dense().shape == (m, n)
        assert torch.equal(op.T.dense(), op.dense().T)
        for x in (gaussian(n, 2, 2), gaussian(n, 1, 3)[:, 0]):
            found = op @ x
            assert found.dtype == torch.float64
            assert found.shape == (m, *x.shape[1:])
            assert float64(found) == pytest.approx(float64(op.dense()) @ float64(x), abs=1e-12)
    assert list(Panelled(matrix).tensors()) == ["matrix"]
    assert Panelled(matrix).tensors()["matrix"] is Panelled(matrix).dense() is matrix or dtype != torch.float64


@pytest.mark.parametrize("size", [511, 513, 1024, 1])
@pytest.mark.parametrize("op", [Panelled(torch.ones(3, 512)), Panelled(torch.ones(512, 3)).T], ids=["rows", "columns"])
def test_operands_that_fill_other_panels_are_refused(op: Panelled, size: int) -> None:
    for x in (torch.ones(size), torch.ones(size, 2)):
        with pytest.raises((ValueError, RuntimeError)):  # torch's own sentence
            op @ x


def test_a_panelled_matrix_is_of_its_shape() -> None:
    op = Panelled(torch.zeros(3, 5))
    assert (op.shape, op.T.shape, op.T.T.shape) == ((3, 5), (5, 3), (3, 5))
    assert op.dense().data_ptr() == op.T.dense().data_ptr() == op.matrix.data_ptr()


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_dense_matrix(op: Operator) -> None:
    m, n = op.shape
    matrix = float64(op.dense())
    for start, stop in {(0, m), (0, 1), (m - 1, m), (m // 3, m // 2 + 1), (1, 1)}:
        found = rows(op, start, stop)
        assert found.shape == matrix[start:stop].shape
        assert float64(found) == pytest.approx(matrix[start:stop], rel=1e-12, abs=1e-12)
    assert float64(rows(op, 0, m + 5)) == pytest.approx(matrix, rel=1e-12, abs=1e-12)
    assert rows(op, 0, m).shape == (m, n)


@pytest.mark.parametrize(
    "op",
    [
        Panelled(gaussian(6, 4)),
        Sum((Panelled(gaussian(6, 4)), dense(6, 4, torch.float64), factors(6, 4, torch.float64))),
        Product((Panelled(gaussian(6, 3)), Dense(gaussian(3, 5)), Dense(gaussian(5, 4)))),
        Product((dense(6, 4, torch.float64),)),
        Product((sparse(6, 5, 0.5, torch.float64), codes(5, 4, 3, 2, torch.float64))),
    ],
    ids=["panelled", "sum", "product", "one factor", "product of others"],
)
def test_rows_of_what_holds_panels(op: Operator) -> None:
    assert float64(rows(op, 2, 5)) == pytest.approx(float64(op.dense())[2:5], rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factors", [1, 2, 3])
def test_rows_of_what_stores_nothing_are_in_the_type_of_the_others(dtype: torch.dtype, factors: int) -> None:
    shuffle, other = Shuffle(2, 3), Dense(gaussian(6, 6).to(dtype))
    for op in (
        Product((*[shuffle] * factors, other)),
        Product((Product((shuffle, shuffle.T)), *[other] * factors)),
        Sum((*[shuffle] * factors, other)),
        Sum((other, *[shuffle] * factors)),
    ):
        found = rows(op, 1, 4)
        assert found.dtype == dtype
        assert float64(found) == pytest.approx(float64(op.dense())[1:4], rel=0.05, abs=0.05)
    assert rows(shuffle, 1, 4).dtype == torch.get_default_dtype()


def test_rows_of_what_stores_nothing_are_where_the_others_are() -> None:
    meta = Dense(torch.empty(6, 6, device="meta"))
    assert rows(Product((Shuffle(2, 3), meta)), 1, 4).device == torch.device("meta")
    assert rows(Sum((Shuffle(2, 3), meta)), 1, 4).device == torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_in_the_type_of_what_is_stored(dtype: torch.dtype) -> None:
    for op in (dense(4, 3, dtype), sparse(4, 3, 0.5, dtype), codes(4, 3, 3, 2, dtype), codes(4, 3, 3, 2, dtype).T):
        assert rows(op, 1, 3).dtype == dtype
    assert rows(Shuffle(2, 3), 1, 3).tolist() == Shuffle(2, 3).dense()[1:3].tolist()


# ---- types and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floating_tensors_change_their_type_and_nothing_else_does(op: Operator, dtype: torch.dtype) -> None:
    made = in_dtype(op, dtype)
    assert type(made) is type(op)
    assert made.shape == op.shape
    assert list(made.tensors()) == list(op.tensors())
    for one, other in zip(made.tensors().values(), op.tensors().values(), strict=True):
        assert one.dtype == (dtype if other.is_floating_point() else other.dtype)
        assert torch.equal(one, other.to(one.dtype))


def test_a_panelled_matrix_converts_by_itself() -> None:
    op = Panelled(torch.ones(2, 2, dtype=torch.bfloat16))
    assert in_dtype(op, torch.float64) is op
    both = in_dtype(Sum((op, Dense(torch.ones(2, 2)))), torch.float64)
    assert [term.dense().dtype for term in both.terms] == [torch.bfloat16, torch.float64]


def test_an_operator_is_where_its_tensors_are() -> None:
    assert device_of(Dense(torch.empty(2, 2, device="meta"))) == torch.device("meta")
    assert device_of(Sum((Shuffle(1, 2), Dense(torch.empty(2, 2, device="meta"))))) == torch.device("meta")
    assert device_of(Dense(torch.ones(2, 2))) == device_of(Shuffle(2, 3)) == torch.device("cpu")


def test_what_was_made_of_integers_is_exact() -> None:
    """Panels of a product of integers, whose sums float64 holds."""
    matrix: Tensor = torch.arange(1500.0, dtype=torch.float64).reshape(750, 2) - 700
    assert np.array_equal((Panelled(matrix).T @ torch.ones(750, dtype=torch.float64)).numpy(), matrix.numpy().sum(0))


# ---- room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_of_a_stored_matrix_512_rows_are_converted_at_once_whichever_way_it_is_read(transposed: bool) -> None:
    op = Panelled(torch.ones(2048, 8, dtype=torch.bfloat16))
    op = op.T if transposed else op
    with Largest(op) as largest:
        found = op @ torch.ones(op.shape[1], 1, dtype=torch.float64)
    assert bool((found == op.shape[1]).all())
    assert largest.numbers == 512 * 8


def test_rows_of_factors_are_made_without_the_others() -> None:
    op = Factors(torch.ones(4096, 2), torch.ones(2, 512))
    with Largest(op) as largest:
        assert bool((rows(op, 7, 9) == 2.0).all())
    assert largest.numbers == 2 * 512
