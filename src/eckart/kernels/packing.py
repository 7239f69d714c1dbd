"""Small unsigned integers packed bit by bit into bytes, row by row."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (1, 2, 3, 4, 8)  # bits per code


def packed_bytes(bits: int, columns: int) -> int:
    """The bytes of one packed row, ``ceil(bits columns / 8)``: only what is left of its last byte is unused.

    >>> packed_bytes(3, 8), packed_bytes(3, 9)
    (3, 4)
    """
    return -(-bits * columns // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers (m, n) in [0, 2^bits) as bytes (m, ceil(bits n / 8)), uint8.

    A row is one stream of bits, the lowest bit first: code j lies in the bits ``bits j`` to ``bits (j + 1) - 1``, and bit i of the
    stream is bit ``i mod 8`` of byte ``i // 8``. Unused bits at the end of a row are 0.

    >>> pack(torch.tensor([[1, 2, 3, 4]]), 3).tolist()  # 100 011 010 001, read from the right
    [[209, 8]]

    Raises ``ValueError`` if ``bits`` is none of ``WIDTHS``, the codes are no matrix of integers, or one needs more bits.
    """
    _check(bits)
    if codes.ndim != 2 or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes are a matrix of integers, not {tuple(codes.shape)} of {codes.dtype}")
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < 2**bits):
        raise ValueError(
            f"codes of {bits} bits lie in [0, {2**bits}), these from {int(codes.min())} to {int(codes.max())}"
        )
    m, n = codes.shape
    per_word, word_bytes = _word(bits)
    padded = F.pad(codes.to(torch.int32), (0, -n % per_word))
    grid = padded.reshape(m, padded.shape[1] // per_word, per_word)
    words = (grid << _steps(per_word, bits, codes)).sum(-1, dtype=torch.int32)
    split = words[..., None] >> _steps(word_bytes, 8, codes) & 255
    return split.to(torch.uint8).flatten(1)[:, : packed_bytes(bits, n)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The integers (m, columns), int32, of which ``pack`` made these bytes.

    >>> unpack(torch.tensor([[209, 8]], dtype=torch.uint8), 3, 4).tolist()
    [[1, 2, 3, 4]]

    Raises ``ValueError`` if ``bits`` is none of ``WIDTHS`` or the bytes are not those of so many columns.
    """
    _check(bits)
    if packed.ndim != 2 or packed.dtype != torch.uint8 or packed.shape[1] != packed_bytes(bits, columns):
        raise ValueError(
            f"{columns} codes of {bits} bits take rows of {packed_bytes(bits, columns)} bytes, "
            f"not {tuple(packed.shape)} of {packed.dtype}"
        )
    per_word, word_bytes = _word(bits)
    padded = F.pad(packed, (0, -packed.shape[1] % word_bytes)).to(torch.int32)
    grid = padded.reshape(len(packed), padded.shape[1] // word_bytes, word_bytes)
    words = (grid << _steps(word_bytes, 8, packed)).sum(-1, dtype=torch.int32)
    split = words[..., None] >> _steps(per_word, bits, packed) & (2**bits - 1)
    return split.flatten(1)[:, :columns]


def _check(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"codes take {', '.join(map(str, WIDTHS))} bits, not {bits}")


def _word(bits: int) -> tuple[int, int]:
    """How many codes fill how many bytes without a rest; at most three bytes, so that an int32 holds them."""
    common = gcd(bits, 8)
    return 8 // common, bits // common


def _steps(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int32, device=like.device)
