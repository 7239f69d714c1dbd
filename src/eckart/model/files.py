"""Files that are either whole or absent: write aside, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from eckart.errors import EckartError

CHUNK = 1 << 22
# What a table may be before it is taken for a trap: bytes (safetensors draws the same line for its headers), values,
# levels, and characters of a name in it. A value costs some hundred bytes once it is read, whatever it took in the file.
LARGEST = 100_000_000
MOST_VALUES = 5_000_000
DEEPEST = 64
LONGEST_NAME = 255


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


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they last over a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


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
    """Read a JSON table; raises ``EckartError`` naming the file if it is missing, too large or something else."""
    try:
        data = read_small(path)
    except FileNotFoundError as error:
        raise EckartError(f"{path} is missing: is {path.parent} a complete Hugging Face model directory?") from error
    return parse_table(data, str(path))


def read_small(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file that is read in one go; raises ``EckartError`` if it is no file, or too large for that.

    A missing file stays a ``FileNotFoundError``: what that means is for the caller to say.
    """
    try:
        if check_regular(path) > largest:
            raise EckartError(f"{path} is larger than {human_bytes(largest)}, which no file of its kind is: refused")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error


def check_regular(path: Path) -> int:
    """The size of a file; pipes and devices are refused, which keep a reader waiting or never end. Links are followed."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a directory is refused by the system
        raise EckartError(f"{path} is a pipe or a device: put a file there")
    return found.st_size


def parse_table(data: bytes, origin: str, kind: str = "JSON", way_out: str = "") -> dict[str, object]:
    """The table that JSON text holds; raises ``EckartError`` for anything else, and for what may not be what it seems.

    Refused are a name that stands twice (each reader would believe another one), names that a terminal would not show as
    they are, and text that would take far more memory than it has bytes.
    """
    way_out = way_out or "restore it from where the model came from"
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise EckartError(f"{origin} holds more than {MOST_VALUES:,} values, which no file of its kind does: refused")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be read, but never written
    except _StrangeNameError as error:
        raise EckartError(f"{origin} {error}: {way_out}") from error
    except (ValueError, RecursionError) as error:
        raise EckartError(f"{origin} is not valid {kind} ({str(error)[:200]}): {way_out}") from error
    if not isinstance(value, dict):
        raise EckartError(f"{origin} holds no JSON object: {way_out}")
    if _is_deep(value):
        raise EckartError(f"{origin} is not valid {kind} (nested deeper than {DEEPEST} levels): {way_out}")
    return value


class _StrangeNameError(Exception):
    """A name in a table that stands twice or can't be shown."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _StrangeNameError(f"holds {shown(twice)} twice")
    for name in table:
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise _StrangeNameError(f"holds a name with control characters, or a very long one ({shown(name)})")
    return table


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Iterable[object]] = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        level = [entry for table in inner for entry in table]
    return bool(level)


def shown(value: object, longest: int = 60) -> str:
    r"""A value of unknown origin as a sentence may show it: escaped, in one line, and short.

    >>> print(shown("a\nb"), shown("x" * 1000, 8), shown(16**9999))
    'a\nb' 'xxxxxxx... a very long number
    """
    if isinstance(value, str):
        value = value[: longest + 1]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not turn numbers of thousands of digits into text
        return "a very long number"
    return text if len(text) <= longest + 2 else f"{text[:longest]}..."


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; errors are those of ``chunks``."""
    digest = hashlib.sha256()
    for chunk in chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(path: Path) -> Iterator[bytes]:
    """A file piece by piece; raises ``EckartError`` if it can't be read."""
    try:
        check_regular(path)
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
