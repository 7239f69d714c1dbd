"""Matrices with a bit for each place against NumPy's own packing of bits, and what is no such matrix."""

import numpy as np
import pytest
import torch
from market import gaussian, generator

from eckart.operator import Masked


@pytest.mark.parametrize("shape", [(5, 7), (3, 8), (4, 17), (1, 1), (6, 1), (2, 64)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_are_bits_as_numpy_packs_them(shape: tuple[int, int], share: float) -> None:
    matrix, mask = gaussian(*shape, 1), torch.rand(shape, generator=generator(2)) < share
    op = Masked.of(matrix, mask)
    assert np.array_equal(op.mask.numpy(), np.packbits(mask.numpy(), axis=1, bitorder="little"))
    assert np.array_equal(op.values.numpy(), matrix.numpy()[mask.numpy()])
    assert np.array_equal(op.dense().numpy(), np.where(mask, matrix, 0.0))
    assert torch.equal(op.places, mask)
    assert op.shape == shape


@pytest.mark.parametrize(
    ("values", "mask", "width", "sentence"),
    [
        (torch.ones(2, 1), torch.zeros(3, 1), 8, r"has values \(nnz,\) and a mask \(m, 1\), not \(2, 1\) and \(3, 1\)"),
        (torch.ones(2), torch.zeros(3), 8, r"not \(2,\) and \(3,\)"),
        (torch.ones(2), torch.zeros(3, 1), 9, r"a masked matrix of width 9 has values \(nnz,\) and a mask \(m, 2\)"),
        (torch.ones(2), torch.zeros(3, 0), -1, "a masked matrix of width -1"),
        (
            torch.ones(2),
            torch.zeros(3, 1, dtype=torch.int32),
            8,
            "masks are uint8 and values floating, not torch.int32",
        ),
        (torch.ones(0, dtype=torch.int64), torch.zeros(3, 1), 8, "not torch.uint8 and torch.int64"),
        (torch.ones(2), torch.full((3, 1), 1), 8, "the mask has 3 places, and there are 2 values"),
        (torch.ones(3), torch.full((3, 1), 128), 7, "the mask has 0 places, and there are 3 values"),
    ],
)
def test_what_is_no_masked_matrix(values: torch.Tensor, mask: torch.Tensor, width: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Masked(values, mask if mask.dtype == torch.int32 else mask.to(torch.uint8), width)


@pytest.mark.parametrize(
    ("matrix", "mask"),
    [
        (torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)),
        (torch.ones(6), torch.ones(6, dtype=torch.bool)),
        (torch.ones(2, 3), torch.ones(2, 3)),
    ],
)
def test_a_mask_is_boolean_and_of_the_same_shape(matrix: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a matrix \(m, n\) and a boolean mask \(m, n\) are needed, not"):
        Masked.of(matrix, mask)


def test_nothing_is_counted_on_the_meta_device() -> None:
    op = Masked(torch.empty(9, device="meta"), torch.empty(3, 1, dtype=torch.uint8, device="meta"), 8)
    assert op.shape == (3, 8)


def test_operands_that_do_not_fit_are_refused() -> None:
    op = Masked.of(gaussian(3, 5), gaussian(3, 5, 1) > 0)
    for product, right, wrong in ((op.__matmul__, 5, 3), (op.transpose_matmul, 3, 5)):
        assert product(torch.ones(right, 2, dtype=torch.float64)).shape == (8 - right, 2)
        with pytest.raises(ValueError, match=f"{wrong}"):
            product(torch.ones(wrong, 2, dtype=torch.float64))
