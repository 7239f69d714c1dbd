"""What a run does to the disk, operation by operation, and what a crash after any of them may leave.

``recording`` notes every change below a folder while a run goes on in this process, and compares its notes with the disk
again and again, so that an operation that it does not know of is found. ``Disk`` repeats operations in memory. It keeps
apart what other processes see (``seen``: all that a killed process leaves) and what was synced (``after_a_power_cut``:
data of a file lasts from the sync of the file on, a name in a folder from the sync of the folder on).
"""

import contextlib
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Every file and folder by its path; a folder has no content.
Contents = dict[str, bytes | None]


@dataclass(frozen=True)
class Operation:
    """One change of the disk; paths are relative to the recorded folder.

    ``kind`` is create, resize (to ``offset`` bytes), write (``data`` at ``offset``), sync, rename (to ``to``), unlink, mkdir or
    rmdir.
    """

    kind: str
    path: str
    offset: int = 0
    data: bytes = b""
    to: str = ""

    def half(self) -> "Operation | None":
        """A write that was interrupted in the middle; ``None`` for what is done at once."""
        return replace(self, data=self.data[: len(self.data) // 2]) if len(self.data) > 1 else None


def contents(folder: Path) -> Contents:
    """What lies below a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def lay_out(folder: Path, found: Contents) -> None:
    """Write contents into a folder that is empty or missing."""
    folder.mkdir(exist_ok=True)
    for name, data in sorted(found.items()):  # a folder sorts before what is in it
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


# ---- the disk -------------------------------------------------------------------------------------------------------

Place = tuple[int, str]  # a folder and a name in it
Change = dict[Place, int | None]  # what names mean after one operation


class Disk:
    """A folder as operations leave it. Files and folders are numbered; a name in a folder stands for a number."""

    def __init__(self, found: Contents) -> None:
        self._data: dict[int, bytearray | None] = {0: None}  # a folder has none
        self._names: dict[Place, int] = {}
        self._synced_data: dict[int, bytes] = {}
        self._synced_names: dict[Place, int] = {}
        self._open_data: dict[int, list[Operation]] = {}  # since the last sync of the file
        self._open_names: list[Change] = []  # not synced yet, in their order
        for name, data in sorted(found.items()):
            self._add(name, None if data is None else bytearray(data))
        for change in self._open_names:
            _rename(self._synced_names, change)
        self._synced_data = {number: bytes(data) for number, data in self._data.items() if data is not None}
        self._open_names = []

    def _place(self, path: str) -> Place:
        folder = 0
        *outer, leaf = Path(path).parts
        for name in outer:
            folder = self._names[folder, name]
        return folder, leaf

    def _number(self, path: str) -> int:
        return self._names[self._place(path)] if path != "." else 0

    def _add(self, path: str, data: bytearray | None) -> None:
        number = len(self._data)
        self._data[number] = data
        self._name({self._place(path): number})

    def _name(self, change: Change) -> None:
        _rename(self._names, change)
        self._open_names.append(change)

    def do(self, operation: Operation) -> None:
        """Repeat an operation."""
        path = operation.path
        if operation.kind in ("create", "mkdir"):
            self._add(path, bytearray() if operation.kind == "create" else None)
        elif operation.kind in ("write", "resize"):
            data = self._data[self._number(path)]
            assert data is not None
            _apply(data, operation)
            self._open_data.setdefault(self._number(path), []).append(operation)
        elif operation.kind == "rename":
            source, target = self._place(path), self._place(operation.to)
            self._name({source: None, target: self._names[source]})
        elif operation.kind in ("unlink", "rmdir"):
            self._name({self._place(path): None})
        else:
            assert operation.kind == "sync", operation
            self._sync(self._number(path))

    def _sync(self, number: int) -> None:
        data = self._data[number]
        if data is not None:
            self._synced_data[number] = bytes(data)
            self._open_data.pop(number, None)
            return
        left: list[Change] = []
        for change in self._open_names:
            # A rename lasts as a whole, from the sync of the folder on in which the new name stands.
            new = [place for place, now in change.items() if now is not None] or list(change)
            if all(folder != number for folder, _ in new):
                left.append(change)
                continue
            _rename(self._synced_names, change)
            left = [{place: now for place, now in earlier.items() if place not in change} for earlier in left]
        self._open_names = left

    def seen(self) -> Contents:
        """What every process sees, and what a killed one leaves."""
        return self._tree(self._names, lambda number: bytes(self._data[number] or b""))

    def after_a_power_cut(self, names: str, data: str, draw: random.Random) -> Contents:
        """What may be there after the power was cut.

        Of the names and of the data that were not synced "all", "none" or "some" (a random choice) lasted; data may also
        be "torn": all of it but half of the last write to every file.
        """
        lasting = dict(self._synced_names)
        for change in self._open_names:
            if names == "all" or (names == "some" and draw.random() < 0.5):
                _rename(lasting, change)

        def content(number: int) -> bytes:
            made = bytearray(self._synced_data.get(number, b""))
            operations = self._open_data.get(number, [])
            if data == "none":
                operations = []
            elif data == "some":
                operations = operations[: draw.randrange(len(operations) + 1)]
            elif data == "torn" and operations:
                last = operations[-1].half()
                operations = [*operations[:-1], *([last] if last else [])]
            for operation in operations:
                _apply(made, operation)
            return bytes(made)

        return self._tree(lasting, content)

    def _tree(self, names: dict[Place, int], content: Callable[[int], bytes]) -> Contents:
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in names.items():
            inside.setdefault(folder, []).append((name, number))
        found: Contents = {}

        def walk(folder: int, prefix: str) -> None:
            for name, number in inside.get(folder, []):
                is_folder = self._data[number] is None
                found[prefix + name] = None if is_folder else content(number)
                if is_folder:
                    walk(number, f"{prefix}{name}/")

        walk(0, "")
        return found


def _rename(names: dict[Place, int], change: Change) -> None:
    for place, number in change.items():
        if number is None:
            names.pop(place, None)
        else:
            names[place] = number


def _apply(data: bytearray, operation: Operation) -> None:
    if operation.kind == "resize":
        del data[operation.offset :]
        data.extend(bytes(operation.offset - len(data)))
    else:
        data.extend(bytes(max(0, operation.offset - len(data))))
        data[operation.offset : operation.offset + len(operation.data)] = operation.data


# ---- the recorder ---------------------------------------------------------------------------------------------------


class _File(io.FileIO):
    """A file that notes what is written to it, as the system is told of it: after buffers."""

    def __init__(self, note: Callable[..., None], path: Path, mode: str) -> None:
        self._note, self._path = note, path
        existed = path.exists()
        super().__init__(path, mode)
        if not existed:
            note("create", path)
        elif "w" in mode:
            note("resize", path)

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        if self._is_named():
            self._note("write", self._path, self.tell() - written, bytes(memoryview(data).cast("B")[:written]))
        return written

    def truncate(self, size: int | None = None, /) -> int:
        size = super().truncate(size)
        if self._is_named():
            self._note("resize", self._path, size)
        return size

    def _is_named(self) -> bool:
        """Whether it was not deleted since it was opened."""
        return self._path.exists() and os.path.samestat(os.fstat(self.fileno()), self._path.stat())


@contextlib.contextmanager
def recording(root: Path) -> Iterator[list[Operation]]:
    """Note what this process does below ``root``; the list is complete when the context is left."""
    root = root.resolve()
    operations: list[Operation] = []
    disk = Disk(contents(root))

    def note(kind: str, path: Path, offset: int = 0, data: bytes = b"", to: Path | None = None) -> None:
        target = "" if to is None else to.relative_to(root).as_posix()
        operations.append(Operation(kind, path.relative_to(root).as_posix(), offset, data, target))
        disk.do(operations[-1])

    def agree() -> None:
        found, expected = contents(root), disk.seen()
        apart = [name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0)]
        assert apart == [], f"something was done to {sorted(apart)} that was not noted"

    def place(path: Any, folder: int | None = None) -> Path | None:
        """The path if it is below ``root``; ``folder`` is what a relative one is relative to."""
        if isinstance(path, int):
            return opened(path)
        start = Path.cwd() if folder is None else opened(folder)
        if start is None:
            return None
        found = start / os.fsdecode(path)
        found = found.parent.resolve() / found.name
        return found if found.is_relative_to(root) else None

    def opened(descriptor: int) -> Path | None:
        """What a descriptor stands for."""
        return next((p for p in [root, *root.rglob("*")] if os.path.samestat(os.fstat(descriptor), p.stat())), None)

    with pytest.MonkeyPatch.context() as patch:

        def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
            patch.setattr(owner, name, make(getattr(owner, name)))

        def opening(real: Any) -> Any:
            def open_file(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
                path = place(self)
                if path is None or not set(mode) & set("wax+"):
                    return real(self, mode, *args, **options)
                raw = _File(note, path, mode.replace("b", "").replace("t", ""))
                buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
                return buffered if "b" in mode else io.TextIOWrapper(buffered, *args[1:], **options)

            return open_file

        def changing(kind: str) -> Callable[[Any], Any]:
            def make(real: Any) -> Any:
                def change(path: Any, *args: Any, **options: Any) -> Any:
                    where = place(path, options.get("dir_fd"))
                    result = real(path, *args, **options)
                    if where is not None:
                        note(kind, where)
                    return result

                return change

            return make

        def renaming(real: Any) -> Any:
            def rename(source: Any, target: Any, **options: Any) -> None:
                where, to = place(source), place(target)
                real(source, target, **options)
                if where is not None and to is not None:
                    note("rename", where, to=to)
                    agree()

            return rename

        def syncing(real: Any) -> Any:
            def sync(descriptor: Any) -> None:
                real(descriptor)
                where = opened(descriptor if isinstance(descriptor, int) else descriptor.fileno())
                if where is not None:
                    note("sync", where)
                    agree()

            return sync

        def resizing(real: Any) -> Any:
            def resize(descriptor: int, *sizes: int) -> None:
                where = opened(descriptor)
                real(descriptor, *sizes)
                if where is not None:
                    note("resize", where, sum(sizes))

            return resize

        def flushing(real: Any) -> Any:
            def flush(self: np.memmap[Any, Any]) -> None:
                real(self)
                where = None if self.mode == "r" else place(self.filename)
                if where is not None:  # some of it may have been on the disk before
                    data = where.read_bytes()
                    middle = len(data) // 2
                    note("write", where, 0, data[:middle])
                    note("write", where, middle, data[middle:])

            return flush

        patched(Path, "open", opening)
        for name, kind in (("unlink", "unlink"), ("remove", "unlink"), ("mkdir", "mkdir"), ("rmdir", "rmdir")):
            patched(os, name, changing(kind))
        for name in ("rename", "replace"):
            patched(os, name, renaming)
        for name in ("fsync", "fdatasync"):
            if hasattr(os, name):
                patched(os, name, syncing)
        for name in ("posix_fallocate", "ftruncate"):
            if hasattr(os, name):
                patched(os, name, resizing)
        patched(np.memmap, "flush", flushing)
        yield operations
        agree()
