"""Safetensors files, read and written one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import written_whole

# The format's names of dtypes; safetensors itself offers no such table to read.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a stored tensor.

    >>> TensorSpec("w", torch.bfloat16, (2, 3)).nbytes
    12
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


class TensorFile:
    """One safetensors file, opened by memory map; its header is checked before any data is touched.

    Raises ``EckartError`` if the file is missing, truncated, or its header lies about it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise EckartError(f"{path} is missing: download the model again, all its shards") from error
        except OSError as error:
            raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise EckartError(
                f"{path} is no valid safetensors file ({error}): it may be truncated or damaged, fetch it again"
            ) from error
        self.specs: dict[str, TensorSpec] = {}
        for name in sorted(self._handle.keys()):
            view = self._handle.get_slice(name)
            kind = view.get_dtype()
            if kind not in DTYPES:
                raise EckartError(f"{path}: tensor {name} has the dtype {kind}, which is not supported")
            self.specs[name] = TensorSpec(name, DTYPES[kind], tuple(view.get_shape()))
        self.metadata: dict[str, str] = dict(self._handle.metadata() or {})

    def read(self, name: str) -> Tensor:
        """The tensor of this name."""
        return self._handle.get_tensor(name)


def header(specs: Sequence[TensorSpec], metadata: dict[str, str]) -> bytes:
    """The length and header that a file of these tensors begins with, in the order in which ``stored_order`` puts them."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for spec in stored_order(specs):
        table[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data starts aligned, as the format asks
    return struct.pack("<Q", len(text)) + text


def stored_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Widest dtype first, then by name: every tensor starts at a multiple of its item size."""
    return sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))


def file_bytes(specs: Sequence[TensorSpec], metadata: dict[str, str]) -> int:
    """The size of the file that ``write`` makes.

    >>> file_bytes([TensorSpec("w", torch.float32, (2, 3))], {"format": "pt"})
    120
    """
    return len(header(specs, metadata)) + sum(spec.nbytes for spec in specs)


def write(
    path: Path, specs: Sequence[TensorSpec], metadata: dict[str, str], produce: Callable[[str], Tensor]
) -> dict[str, str]:
    """Write a safetensors file, asking for one tensor at a time; the SHA-256 of each tensor's bytes.

    The file appears under ``path`` only when it is whole. Raises ``EckartError`` if the disk is full or read-only.
    """
    hashes: dict[str, str] = {}
    with written_whole(path) as handle:
        handle.write(header(specs, metadata))
        for spec in stored_order(specs):
            tensor = produce(spec.name)
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise ValueError(f"{spec.name} came as {tensor.dtype} {tuple(tensor.shape)}, announced was {spec}")
            data = tensor_bytes(tensor)
            hashes[spec.name] = hashlib.sha256(data).hexdigest()
            handle.write(data)
    return hashes


def write_all(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that are at hand; errors are those of ``write``."""
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write(path, specs, {}, tensors.__getitem__)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a tensor, row by row, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
