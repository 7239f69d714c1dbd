"""Safetensors files, read and written one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import LARGEST, check_regular, parse_table, shown, written_whole

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
MOST_DIMENSIONS = 64
# Bytes that are hashed and looked at together: a whole number of every dtype, and what the nearer caches hold.
PIECE = 1 << 20
DAMAGED = "it may be truncated or damaged, fetch it again"
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
    """One safetensors file; its header is checked before any data is touched.

    Tensors are read into memory of their own. A memory map would count as much against limits on a process's memory as
    the whole file, and end the process where the file is cut short or its disk fails.

    Raises ``EckartError`` if the file is missing, truncated, or its header lies about it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            table, room = _read_header(path)
            self.metadata = _metadata(path, table.pop("__metadata__", None))
            self.specs, self._begins = _specs(path, table, room)
        except FileNotFoundError as error:
            raise EckartError(f"{path} is missing: download the model again, all its shards") from error
        except OSError as error:
            raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error

    def read(self, name: str) -> Tensor:
        """The tensor of this name; raises ``EckartError`` if the file can't be read or was cut short since it was opened."""
        spec = self.specs[name]
        tensor = torch.empty(spec.shape, dtype=spec.dtype)
        with self._opened() as handle:
            handle.seek(self._begins[name])
            self._fill(handle, tensor_bytes(tensor), name)
        return tensor

    def sha256(self, look: Callable[[str, Tensor], None]) -> str:
        """The SHA-256 of the whole file, in hexadecimal, from one pass over it in which ``look`` sees every tensor.

        It sees them in flat pieces, which lie where the next ones will. Raises what ``read`` does.
        """
        digest, room = hashlib.sha256(), torch.empty(PIECE, dtype=torch.uint8)
        with self._opened() as handle:
            digest.update(handle.read(min(self._begins.values(), default=self.path.stat().st_size)))
            # One without entries begins where another does: all of them together fill the file, in this order.
            for name in sorted(self.specs, key=self._begins.__getitem__):
                spec = self.specs[name]
                for begin in range(0, spec.nbytes, PIECE):
                    piece = room[: spec.nbytes - begin]
                    data = tensor_bytes(piece)
                    self._fill(handle, data, name)
                    digest.update(data)
                    look(name, piece.view(spec.dtype))
        return digest.hexdigest()

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        try:
            with self.path.open("rb", buffering=0) as handle:
                yield handle
        except OSError as error:
            raise EckartError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _fill(self, handle: FileIO, room: memoryview, name: str) -> None:
        while room and (count := handle.readinto(room)):
            room = room[count:]
        if room:
            raise EckartError(f"{self.path} ends within tensor {name}: {DAMAGED}")


def _read_header(path: Path) -> tuple[dict[str, object], int]:
    """The table at the head of a file, and the bytes of data after it; nothing is read that the file could not hold."""
    size = check_regular(path) - 8
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= size:
            raise EckartError(f"{path} is no valid safetensors file (its header does not fit into it): {DAMAGED}")
        if length > LARGEST:
            raise EckartError(f"{path} is no valid safetensors file (its header has {length:,} bytes): {DAMAGED}")
        return parse_table(handle.read(length), str(path), "JSON in its header", DAMAGED), size - length


def _metadata(path: Path, table: object) -> dict[str, str]:
    if table is None:
        return {}
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise EckartError(f"{path}: its __metadata__ is no table of texts; {DAMAGED}")
    return table


def _specs(path: Path, table: Mapping[str, object], room: int) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """The tensors that a header announces, and where in the file they begin.

    Each takes the bytes of its dtype and shape, and all of them fill the file.
    """
    specs: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in sorted(table.items()):
        if not name:
            raise EckartError(f"{path} holds a tensor without a name; {DAMAGED}")
        fields = entry if isinstance(entry, dict) else {}
        kind, shape, span = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
        if not isinstance(kind, str) or shape is None or span is None or len(span) != 2:
            raise EckartError(f"{path}: tensor {name} has no proper dtype, shape and data_offsets; {DAMAGED}")
        if kind not in DTYPES:
            known = ", ".join(DTYPES)
            raise EckartError(
                f"{path}: tensor {name} has the dtype {shown(kind)}, which is not supported: convert it to one of {known}"
            )
        specs[name] = TensorSpec(name, DTYPES[kind], shape)
        if math.prod(size or 1 for size in shape) >= 1 << 63:  # strides are products of sizes, even where one is zero
            raise EckartError(f"{path}: tensor {name} has a shape beyond all memory; {DAMAGED}")
        if specs[name].nbytes != span[1] - span[0]:
            raise EckartError(
                f"{path}: tensor {name} is {kind} of shape {shown(list(shape))}, which is not what its "
                f"{shown(span[1] - span[0])} bytes hold; {DAMAGED}"
            )
        spans.append((*span, name))
    end = 0
    for begin, after, name in sorted(spans):
        if begin != end:
            raise EckartError(
                f"{path}: the data of tensor {name} {'overlaps' if begin < end else 'leaves a gap after'} "
                f"what stands before it; {DAMAGED}"
            )
        end = after
    if end != room:
        raise EckartError(f"{path} holds {room:,} bytes of data where its header announces {shown(end)}; {DAMAGED}")
    head = path.stat().st_size - room
    return specs, {name: head + begin for begin, _, name in spans}


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers that PyTorch could take for a shape; ``True`` is none of them."""
    fits = isinstance(value, list) and len(value) <= MOST_DIMENSIONS
    return tuple(value) if fits and all(type(size) is int and 0 <= size < 1 << 63 for size in value) else None  # type: ignore[attr-defined, arg-type]


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
