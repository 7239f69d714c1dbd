"""A journal of finished pieces, so that a killed run goes on where it was and ends in the same bytes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from eckart.errors import EckartError
from eckart.model.files import cannot_write, make_folder, sha256_of, shown, sync_folder

Json = dict[str, object]
LOCK = "lock"
JOURNAL = "journal.jsonl"
MOST_TOLD = 3  # differences that a refusal spells out


class Journal:
    """A folder of work files and an append-only list of the pieces that are finished, one JSON object a line.

    Every line carries a checksum of itself; a last line that a kill left torn is cut off. The first line records what is
    being made (``header``); a run with another header is refused with a sentence that names what differs, unless
    ``restart`` throws away what is there.
    """

    def __init__(self, folder: Path, header: Mapping[str, object], *, restart: bool = False) -> None:
        self.folder = folder
        try:
            make_folder(folder)
            _check_own(folder, folder / LOCK)
            self._lock = (folder / LOCK).open("a+b", buffering=0)
        except OSError as error:
            raise cannot_write(folder, error, "choose another output") from error
        self._done: dict[str, Json] = {}
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._lock.fileno()), (folder / LOCK).stat()):
                raise BlockingIOError  # the run that held it ended and took the folder away, and there is a new one
            _check_own(*folder.rglob("*"))
            if restart:
                (folder / JOURNAL).unlink(missing_ok=True)
            self._file = self._resume(json.loads(json.dumps(header)))
            self._sign()
        except BaseException as error:
            holder = _holder(self._lock.fileno())
            self._lock.close()  # whoever keeps the exception can still run again
            if isinstance(error, BlockingIOError):
                raise EckartError(
                    f"{folder} is in use by another run{holder}: wait for it, or choose another output"
                ) from error
            if isinstance(error, OSError):
                raise cannot_write(folder, error, "choose another output") from error
            raise

    def _resume(self, header: Json) -> IO[bytes]:
        path = self.folder / JOURNAL
        good = 0
        lines: list[Json] = []
        if path.exists():
            for raw in path.read_bytes().splitlines(keepends=True):
                entry = _unsealed(raw)
                if entry is None:
                    break
                lines.append(entry)
                good += len(raw)
        handle = path.open("ab")
        handle.truncate(good)
        if not lines:
            self._clear()  # what lies here is not on record; a result among it could be another model's
            self._append(handle, {"header": header})
            return handle
        recorded = lines[0].get("header")
        if recorded != header:
            handle.close()
            raise EckartError(
                f"{self.folder} holds an unfinished run with another {_difference(recorded, header)}: "
                "repeat that run as it was, or begin anew with --restart"
            )
        for entry in lines[1:]:
            if "dropped" in entry:
                self._forget(str(entry["dropped"]))
            elif "undone" in entry:
                self._done.pop(str(entry["undone"]), None)
            elif isinstance(entry.get("step"), str) and "value" in entry and isinstance(entry.get("files"), dict):
                self._done[str(entry["step"])] = entry
            else:  # whole, but of another kind: an edited line with a checksum of its own
                handle.close()
                raise EckartError(f"{path} holds a line that no run writes: begin anew with --restart")
        return handle

    def _sign(self) -> None:
        """Note in the lock file who holds it: a run that is refused can say so."""
        with suppress(OSError):  # a full disk is told where something is lost by it
            self._lock.truncate(0)
            self._lock.write(str(os.getpid()).encode())

    def _append(self, handle: IO[bytes], entry: Json) -> None:
        try:
            handle.write(_sealed(entry))
            handle.flush()
            os.fsync(handle.fileno())
        except OSError as error:
            raise cannot_write(self.folder, error, "free space and run again") from error

    def path(self, name: str) -> Path:
        """Where a work file of this name lies."""
        return self.folder / name

    def is_done(self, step: str) -> bool:
        """Whether this piece was finished, by this run or by one before it."""
        return step in self._done

    def once(self, step: str, make: Callable[[], tuple[object, list[str]]]) -> object:
        """The value of a piece: made now and recorded, or, if it was finished before, read from the journal.

        ``make`` returns a JSON value and the names of the work files that it wrote. Files of a finished piece are checked
        against their hashes; raises ``EckartError`` if one was changed since.
        """
        if step in self._done:
            self._check(step)
            return self._done[step]["value"]
        value, files = make()
        hashes = {}
        try:
            for name in files:
                _sync(self.folder / name)
                hashes[name] = sha256_of(self.folder / name)
            sync_folder(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error, "free space and run again") from error
        entry: Json = {"step": step, "value": json.loads(json.dumps(value)), "files": hashes}
        self._append(self._file, entry)
        self._done[step] = entry
        return entry["value"]

    def _check(self, step: str) -> None:
        for name, digest in self._files(step).items():
            path = self.folder / name
            if not path.is_file() or sha256_of(path) != digest:
                raise EckartError(f"{path} is not as the unfinished run left it: begin anew with --restart")

    def _files(self, step: str) -> dict[str, str]:
        files = self._done[step]["files"]
        assert isinstance(files, dict)
        return files

    def drop(self, name: str) -> None:
        """Delete a work file that no later piece needs; the journal knows that it is gone on purpose."""
        if any(name in self._files(step) for step in self._done):
            self._append(self._file, {"dropped": name})
            self._forget(name)
        (self.folder / name).unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        """The pieces so far no longer promise this file; a later one may write it again."""
        for step in self._done:
            self._files(step).pop(name, None)

    def undo(self, step: str) -> None:
        """Let a finished piece be made again, because files of it that were dropped are wanted after all."""
        if step in self._done:
            self._append(self._file, {"undone": step})
            del self._done[step]

    def close(self) -> None:
        """Let go of the folder; it can be resumed later."""
        with suppress(OSError):  # what a full disk kept from being written was told when it happened
            self._file.close()
        with suppress(OSError, ValueError):  # closed before
            self._lock.truncate(0)
        self._lock.close()

    def remove(self) -> None:
        """Let go of the folder and delete it.

        The journal comes last of what it tells of, so that a kill in between leaves a folder that says what it was, and the
        lock is held to the end.
        """
        self._clear()
        (self.folder / JOURNAL).unlink()
        (self.folder / LOCK).unlink()
        with suppress(OSError):  # another run came in: it will find the result in its way
            self.folder.rmdir()
        self.close()

    def _clear(self) -> None:
        """Delete the work files, for good."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, JOURNAL):
                path.unlink()
        sync_folder(self.folder)


def _holder(lock: int) -> str:
    """The process that holds a lock, where its file names one that is still there."""
    with suppress(OSError, ValueError, OverflowError):
        number = int(os.pread(lock, 20, 0))
        if number > 0:
            os.kill(number, 0)
            return f" (process {number})"
    return ""


def _sealed(entry: Json) -> bytes:
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()


def _unsealed(raw: bytes) -> Json | None:
    """The entry of a line, or ``None`` if the line is torn or damaged."""
    if not raw.endswith(b"\n"):
        return None
    digest, _, text = raw[:-1].partition(b" ")
    if hashlib.sha256(text).hexdigest()[:16].encode() != digest:
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _check_own(*paths: Path) -> None:
    """Refuse links, pipes and devices among work files: no run makes them, and files elsewhere would be written through."""
    for path in paths:
        if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
            raise EckartError(f"{shown(str(path), 300)} was not made by eckart: delete it, or choose another output")


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _difference(old: object, new: Json) -> str:
    """Which entries of a header differ, in words."""
    if not isinstance(old, dict):
        return "kind of record"
    told = []
    for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        then, now = old.get(key), new.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            apart = {name for name in {*then, *now} if then.get(name) != now.get(name)}
            then, now = ({name: table[name] for name in apart if name in table} for table in (then, now))
        # Whoever edits a journal may put anything there.
        name = key if key.isprintable() and len(key) < 40 else shown(key, 40)
        told.append(f"{name} ({_short(then)} then, {_short(now)} now)")
    more = [f"{len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    return " and ".join([*told[:MOST_TOLD], *more])


def _short(value: object) -> str:
    """JSON of a value, cut where it is long; hashes differ in their first digits."""
    if isinstance(value, dict):
        value = {
            key: f"{entry[:12]}..." if isinstance(entry, str) and len(entry) > 24 else entry
            for key, entry in value.items()
        }
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else f"{text[:157]}..."
