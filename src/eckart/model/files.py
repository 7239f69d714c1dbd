"""Files that are either whole or absent: write aside, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from eckart.errors import EckartError

CHUNK = 1 << 22


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that appears under ``path`` only once it is complete and on the disk."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise cannot_write(path, error, "free space or choose another output") from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def cannot_write(place: Path, error: OSError, way_out: str) -> EckartError:
    """The sentence for a file or folder that the system does not let us write."""
    return EckartError(f"{place} cannot be written: {error.strerror or error}; {way_out}")


def sync_folder(folder: Path) -> None:
    """Make renames within ``folder`` last over a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write JSON with sorted keys and a final newline: the same value always gives the same bytes."""
    with written_whole(path) as handle:
        handle.write(json_bytes(value))


def json_bytes(value: Mapping[str, object]) -> bytes:
    """The bytes that ``write_json`` writes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON table; raises ``EckartError`` naming the file if it is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise EckartError(f"{path} is missing: is {path.parent} a complete Hugging Face model directory?") from error
    except OSError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise EckartError(f"{path} is not valid JSON ({error}): restore it from where the model came from") from error
    if not isinstance(value, dict):
        raise EckartError(f"{path} holds no JSON object: restore it from where the model came from")
    return value


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; errors are those of ``chunks``."""
    digest = hashlib.sha256()
    for chunk in chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """A file piece by piece; raises ``EckartError`` if it can't be read."""
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                yield chunk
    except OSError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error


def human_bytes(count: float) -> str:
    """A size for people, in decimal units.

    >>> human_bytes(999), human_bytes(16_275_520), human_bytes(13e9)
    ('999 B', '16.3 MB', '13.0 GB')
    """
    if count < 1e3:
        return f"{count:.0f} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.95 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"
