"""Matrices stored by some of their entries: worked examples, and SciPy as the oracle."""

import numpy as np
import pytest
import scipy.sparse
import torch
from market import float64, gaussian, generator

from eckart.operator import Sparse


@pytest.mark.parametrize("shape", [(5, 7), (7, 4), (1, 6), (6, 1), (40, 30)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_sparse_matrices_are_those_of_scipy(shape: tuple[int, int], share: float) -> None:
    matrix, mask = gaussian(*shape, 1), torch.rand(shape, generator=generator(2)) < share
    op, expected = Sparse.of(matrix, mask), scipy.sparse.csr_array(np.where(mask, matrix, 0.0))
    assert np.array_equal(op.dense().numpy(), expected.toarray())
    assert np.array_equal(op.values.numpy(), expected.data)
    assert np.array_equal(op.columns.numpy(), expected.indices)
    assert np.array_equal(op.offsets.numpy(), expected.indptr)
    x, y = gaussian(shape[1], 3, 4), gaussian(shape[0], 3, 5)
    assert float64(op @ x) == pytest.approx(expected @ x.numpy(), abs=1e-13)
    assert float64(op.T @ y) == pytest.approx(expected.T @ y.numpy(), abs=1e-13)


def test_a_masked_zero_is_an_entry_and_an_unmasked_nan_is_none() -> None:
    op = Sparse.of(torch.tensor([[0.0, torch.nan], [torch.inf, 2.0]]), torch.tensor([[True, False], [False, True]]))
    assert op.values.tolist() == [0.0, 2.0]
    assert (op @ torch.ones(2)).tolist() == [0.0, 2.0]


def test_entries_in_any_order_and_twice_add_up() -> None:
    index = {"columns": torch.tensor([2, 0, 2, 1]), "offsets": torch.tensor([0, 3, 3, 4])}
    op = Sparse(torch.tensor([1.0, 2.0, 4.0, 8.0]), **index, width=3)
    expected = [[2.0, 0.0, 5.0], [0.0, 0.0, 0.0], [0.0, 8.0, 0.0]]
    assert op.dense().tolist() == (op @ torch.eye(3)).tolist() == (op.T @ torch.eye(3)).T.tolist() == expected


@pytest.mark.parametrize(("count", "dtype"), [(2**15 - 1, torch.int16), (2**15, torch.int32)])
def test_indices_are_as_narrow_as_they_may_be(count: int, dtype: torch.dtype) -> None:
    op = Sparse.of(torch.ones(count, 1), torch.ones(count, 1, dtype=torch.bool))
    assert (op.columns.dtype, op.offsets.dtype) == (torch.int16, dtype)
    assert Sparse.of(torch.ones(2, count), torch.ones(2, count, dtype=torch.bool)).offsets.tolist() == [
        0,
        count,
        2 * count,
    ]
    wide = Sparse.of(torch.ones(1, count + 1), torch.arange(count + 1)[None] == count)
    assert wide.columns.tolist() == [count]
    assert wide.columns.dtype == dtype
    assert float((wide @ torch.arange(count + 1.0))[0]) == count


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("columns", "offsets", "sentence"),
    [
        ([0, 1, 3], [0, 1, 3], r"columns of a sparse matrix lie in \[0, 3\), these from 0 to 3"),
        ([0, -1, 2], [0, 1, 3], r"columns of a sparse matrix lie in \[0, 3\), these from -1 to 2"),
        ([0, 1, 2], [0, 2, 1, 3], "rise from 0 to its 3 values"),
        ([0, 1, 2], [1, 2, 3], "rise from 0 to its 3 values"),
        ([0, 1, 2], [0, 1, 2], "rise from 0 to its 3 values"),
        ([0, 1, 2], [0, 4, 3], "rise from 0 to its 3 values"),
        ([0, 1, 2], [], r"offsets \(m \+ 1,\), not \(3,\), \(3,\), \(0,\)"),
        ([0, 1], [0, 1, 3], r"not \(3,\), \(2,\), \(3,\)"),
    ],
)
def test_indices_that_make_no_matrix_are_refused(
    columns: list[int], offsets: list[int], sentence: str, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sparse(torch.ones(3), torch.tensor(columns, dtype=dtype), torch.tensor(offsets, dtype=dtype), 3)


def test_on_the_meta_device_indices_say_nothing() -> None:
    """There are none to look at, but their shapes and types are known."""
    values, index = torch.empty(3, device="meta"), torch.empty(3, dtype=torch.int16, device="meta")
    assert Sparse(values, index, index, 7).shape == (2, 7)
    with pytest.raises(ValueError, match="the width is not negative"):
        Sparse(values, index, index, -1)


def test_other_indices_masks_and_widths_are_refused() -> None:
    values, columns, offsets = torch.ones(1), torch.tensor([0]), torch.tensor([0, 1])
    for wrong in [(columns.float(), offsets, 2), (columns, offsets.byte(), 2), (columns, offsets, -1)]:
        with pytest.raises(ValueError, match="int16, int32 or int64 and the width is not negative, not"):
            Sparse(values, *wrong)
    for mask in [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)]:
        with pytest.raises(ValueError, match=r"a boolean mask \(m, n\) are needed, not \(2, 3\) and"):
            Sparse.of(torch.ones(2, 3), mask)
