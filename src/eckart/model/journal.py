"""A journal of finished pieces, so that a killed run goes on where it was and ends in the same bytes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from eckart.errors import EckartError
from eckart.model.files import sha256_of, sync_folder

Json = dict[str, object]


class Journal:
    """A folder of work files and an append-only list of the pieces that are finished, one JSON object a line.

    Every line carries a checksum of itself; a last line that a kill left torn is cut off. The first line records what is
    being made (``header``); a run with another header is refused with a sentence that names what differs.
    """

    def __init__(self, folder: Path, header: Mapping[str, object]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EckartError(f"{folder} is in use by another run: wait for it, or choose another output") from error
        except OSError as error:
            raise EckartError(
                f"{folder} cannot be written: {error.strerror or error}; choose another output"
            ) from error
        self._done: dict[str, Json] = {}
        self._dropped: set[str] = set()
        self._file = self._resume(json.loads(json.dumps(header)))

    @property
    def resumed(self) -> bool:
        """Whether there were finished pieces when it was opened."""
        return bool(self._done)

    def _resume(self, header: Json) -> IO[bytes]:
        path = self.folder / "journal.jsonl"
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
                self._dropped.add(str(entry["dropped"]))
            else:
                self._done[str(entry["step"])] = entry
        return handle

    def _append(self, handle: IO[bytes], entry: Json) -> None:
        try:
            handle.write(_sealed(entry))
            handle.flush()
            os.fsync(handle.fileno())
        except OSError as error:
            raise EckartError(
                f"{self.folder} cannot be written: {error.strerror or error}; free space and run again"
            ) from error

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
        for name in files:
            _sync(self.folder / name)
            hashes[name] = sha256_of(self.folder / name)
        sync_folder(self.folder)
        entry: Json = {"step": step, "value": json.loads(json.dumps(value)), "files": hashes}
        self._append(self._file, entry)
        self._done[step] = entry
        return entry["value"]

    def _check(self, step: str) -> None:
        files = self._done[step]["files"]
        assert isinstance(files, dict)
        for name, digest in files.items():
            if name in self._dropped:
                continue
            path = self.folder / name
            if not path.is_file() or sha256_of(path) != digest:
                raise EckartError(f"{path} is not as the unfinished run left it: begin anew with --restart")

    def drop(self, name: str) -> None:
        """Delete a work file that no later piece needs; the journal knows that it is gone on purpose."""
        if name not in self._dropped:
            self._append(self._file, {"dropped": name})
            self._dropped.add(name)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder; it can be resumed later."""
        self._file.close()
        self._lock.close()

    def remove(self) -> None:
        """Let go of the folder and delete it."""
        self.close()
        shutil.rmtree(self.folder)


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
    entry = json.loads(text)
    return entry if isinstance(entry, dict) else None


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _difference(old: object, new: Json) -> str:
    """Which entries of a header differ, in words."""
    if not isinstance(old, dict):
        return "kind of record"
    names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    told = [f"{key} ({_short(old.get(key))} then, {_short(new.get(key))} now)" for key in names]
    return " and ".join(told)


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
