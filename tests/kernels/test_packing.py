import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import generator

from eckart.kernels.packing import WIDTHS, pack, packed_bytes, unpack


def as_one_number(row: list[int], bits: int) -> bytes:
    """The bytes of a row by Python's integers: code j stands for ``code * 2^(bits j)``."""
    number = sum(code << (bits * j) for j, code in enumerate(row))
    return number.to_bytes(-(-bits * len(row) // 8), "little")


@given(st.sampled_from(WIDTHS), st.integers(1, 5), st.integers(1, 40), st.integers(0, 10**6))
def test_a_row_is_one_stream_of_bits(bits: int, m: int, n: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (m, n), generator=generator(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert [bytes(row.tolist()) for row in packed] == [as_one_number(row, bits) for row in codes.tolist()]
    assert unpack(packed, bits, n).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integers_and_any_layout(bits: int, dtype: torch.dtype) -> None:
    largest = min(2**bits, torch.iinfo(dtype).max + 1)
    codes = torch.randint(0, largest, (11, 6), generator=generator(bits)).to(dtype)
    expected = [as_one_number(row, bits) for row in codes.T.tolist()]
    packed = pack(codes.T, bits)
    assert [bytes(row.tolist()) for row in packed] == expected
    assert unpack(packed.T.contiguous().T, bits, 11).tolist() == codes.T.tolist()
    assert torch.equal(unpack(packed[2:4], bits, 11), unpack(packed, bits, 11)[2:4])


def test_three_bits_by_hand() -> None:
    """Codes 5, 2, 7, 0, 1, 6, 3, 4, 7: from the right 111 | 100 011 110 001 000 111 010 101, in bytes from the right."""
    packed = pack(torch.tensor([[5, 2, 7, 0, 1, 6, 3, 4, 7]]), 3)
    assert packed.tolist() == [[0b11_010_101, 0b0_001_000_1, 0b100_011_11, 0b00000_111]]


@pytest.mark.parametrize(
    ("bits", "columns", "wanted"),
    [(3, 8, 3), (3, 9, 4), (3, 10, 4), (3, 11, 5), (2, 5, 2), (4, 3, 2), (8, 7, 7), (3, 0, 0)],
)
def test_less_than_a_byte_of_a_row_is_unused(bits: int, columns: int, wanted: int) -> None:
    assert packed_bytes(bits, columns) == wanted
    assert pack(torch.full((2, columns), 2**bits - 1), bits).shape == (2, wanted)
    ones = np.unpackbits(pack(torch.full((1, columns), 2**bits - 1), bits).numpy(), bitorder="little")
    assert ones.tolist() == [1] * (bits * columns) + [0] * (8 * wanted - bits * columns)


@pytest.mark.parametrize("bits", WIDTHS)
def test_no_rows_and_no_columns(bits: int) -> None:
    for shape in [(0, 5), (3, 0), (0, 0)]:
        empty = torch.zeros(shape, dtype=torch.int64)
        assert pack(empty, bits).shape == (shape[0], packed_bytes(bits, shape[1]))
        assert unpack(pack(empty, bits), bits, shape[1]).shape == shape


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("wrong", [-1, "2^bits"])
def test_codes_out_of_range_are_refused(bits: int, wrong: int | str) -> None:
    value = 2**bits if wrong == "2^bits" else -1
    with pytest.raises(
        ValueError, match=rf"codes of {bits} bits lie in \[0, {2**bits}\), these from {min(0, value)} to"
    ):
        pack(torch.tensor([[0, value]]), bits)


def test_what_is_no_matrix_of_integers_is_refused() -> None:
    for codes in [torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool), torch.zeros(2, 2, 2).long()]:
        with pytest.raises(ValueError, match="codes are a matrix of integers, not"):
            pack(codes, 4)
    for bits in (0, 5, 6, 7, 16):
        with pytest.raises(ValueError, match=f"codes take 1, 2, 3, 4, 8 bits, not {bits}"):
            pack(torch.zeros(1, 1, dtype=torch.int64), bits)
        with pytest.raises(ValueError, match=f"not {bits}"):
            unpack(torch.zeros(1, 1, dtype=torch.uint8), bits, 1)
    for packed in [
        torch.zeros(2, 3).byte(),
        torch.zeros(2, 5).byte(),
        torch.zeros(4).byte(),
        torch.zeros(2, 4).short(),
    ]:
        with pytest.raises(ValueError, match="10 codes of 3 bits take rows of 4 bytes, not"):
            unpack(packed, 3, 10)
