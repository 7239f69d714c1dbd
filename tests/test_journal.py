"""The journal alone: what it promises about finished pieces, damage, change and two runs at once."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eckart.errors import EckartError
from eckart.model.journal import Journal

HEADER = {"keep": 0.8, "seed": 0, "source": {"config.json": "ab", "model.safetensors": "cd"}}


def writing(journal: Journal, name: str, data: bytes = b"data") -> Callable[[], tuple[object, list[str]]]:
    """A piece that writes one work file and whose value is its size."""

    def make() -> tuple[object, list[str]]:
        journal.path(name).write_bytes(data)
        return len(data), [name]

    return make


def resumed(journal: Journal) -> bool:
    """Whether finished pieces were there when it was opened."""
    return bool(journal._done)


def never() -> tuple[object, list[str]]:
    raise AssertionError("a finished piece was made again")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., Journal]]:
    """Opens journals of the folder and closes them at the end."""
    journals: list[Journal] = []

    def open_one(**changes: object) -> Journal:
        journals.append(Journal(folder, HEADER | changes))
        return journals[-1]

    yield open_one
    for journal in journals:
        journal.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line.partition(" ")[2]) for line in (folder / "journal.jsonl").read_text().splitlines()]


# ---- finished pieces ------------------------------------------------------------------------------------------------


def test_a_piece_is_made_once_and_remembered(folder: Path, opened: Callable[..., Journal]) -> None:
    first = opened()
    assert not resumed(first)
    assert not first.is_done("a")
    assert first.once("a", writing(first, "a.bin")) == 4
    assert first.once("a", never) == 4
    first.close()
    again = opened()
    assert resumed(again)
    assert again.is_done("a")
    assert not again.is_done("b")
    assert again.once("a", never) == 4
    assert [set(line) for line in lines(folder)] == [{"header"}, {"step", "value", "files"}]


@pytest.mark.parametrize(
    "value",
    [None, 0.1 + 0.2, 1e-320, 2**53 + 1, "Ünïcode\n\t\x00\u2028", {"b": [1, {"a": None}], "a": 1.5}, [], True, ""],
)
def test_values_come_back_as_they_were(opened: Callable[..., Journal], value: object) -> None:
    first = opened()
    assert first.once("a", lambda: (value, [])) == value
    first.close()
    assert opened().once("a", never) == value


def test_the_value_is_the_same_in_the_run_that_made_it_and_in_a_resumed_one(opened: Callable[..., Journal]) -> None:
    first = opened()
    made = first.once("a", lambda: ({"pair": (1, 2), 3: "three"}, []))
    first.close()
    assert made == opened().once("a", never) == {"pair": [1, 2], "3": "three"}


def test_a_piece_that_fails_is_not_recorded(opened: Callable[..., Journal]) -> None:
    first = opened()
    with pytest.raises(ZeroDivisionError):
        first.once("a", lambda: (1 // 0, []))
    assert not first.is_done("a")
    assert first.once("a", lambda: (7, [])) == 7


def test_a_piece_that_promises_a_file_it_did_not_write_is_not_recorded(opened: Callable[..., Journal]) -> None:
    first = opened()
    with pytest.raises(EckartError, match="No such file"):
        first.once("a", lambda: (1, ["absent.bin"]))
    first.close()
    assert not opened().is_done("a")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 10, 45])
def test_a_torn_last_line_is_cut_off(folder: Path, opened: Callable[..., Journal], cut: int) -> None:
    first = opened()
    first.once("a", lambda: (1, []))
    whole = (folder / "journal.jsonl").read_bytes()
    first.once("b", lambda: (2, []))
    first.close()
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = opened()
    assert (again.is_done("a"), again.is_done("b")) == (True, False)
    assert path.read_bytes() == whole
    assert again.once("b", lambda: (3, [])) == 3
    again.close()
    third = opened()
    assert (third.once("a", never), third.once("b", never)) == (1, 3)


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_a_torn_header_begins_anew(folder: Path, opened: Callable[..., Journal], size: int) -> None:
    opened().close()
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert not resumed(opened())
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", [0, 5, 16, 17, 30, -2])
def test_a_damaged_line_ends_what_is_believed(folder: Path, opened: Callable[..., Journal], where: int) -> None:
    first = opened()
    for name in "abc":
        first.once(name, lambda: (1, []))
    first.close()
    path = folder / "journal.jsonl"
    raw = path.read_bytes().splitlines(keepends=True)
    damaged = bytearray(raw[2])  # the piece "b"
    damaged[where] ^= 1
    path.write_bytes(b"".join([*raw[:2], bytes(damaged), *raw[3:]]))
    again = opened()
    assert [again.is_done(name) for name in "abc"] == [True, False, False]
    assert path.read_bytes() == b"".join(raw[:2])


def test_a_line_with_a_right_checksum_of_something_else_is_no_entry(
    folder: Path, opened: Callable[..., Journal]
) -> None:
    opened().close()
    with (folder / "journal.jsonl").open("ab") as handle:
        handle.write(hashlib.sha256(b"[1]").hexdigest()[:16].encode() + b" [1]\n")
    assert not resumed(opened())


# ---- change ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"keep": 0.7}, ["keep", "0.8 then", "0.7 now"]),
        ({"seed": 1}, ["seed", "0 then", "1 now"]),
        ({"keep": 0.7, "seed": 1}, ["keep", "seed"]),
        ({"added": "x"}, ["added", "null then"]),
        ({"source": {"config.json": "ab", "model.safetensors": "other"}}, ["source"]),
    ],
)
def test_another_header_is_refused_and_named(
    folder: Path, opened: Callable[..., Journal], changes: dict[str, object], named: list[str]
) -> None:
    first = opened()
    first.once("a", lambda: (1, []))
    first.close()
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(EckartError) as refusal:
        opened(**changes)
    sentence = str(refusal.value)
    assert all(word in sentence for word in [*named, str(folder), "--restart"]), sentence
    assert not {"keep", "seed", "source"} - set(changes) & set(sentence.replace("(", " ").split())
    assert (folder / "journal.jsonl").read_bytes() == before
    del refusal
    assert opened().is_done("a")


def test_a_difference_deep_inside_is_told_apart(opened: Callable[..., Journal]) -> None:
    """The sentence must show what differs, not the same beginning of two long tables twice."""
    long = {f"model-{i:05d}.safetensors": "0123456789abcdef" * 4 for i in range(8)}
    opened(source=long).close()
    with pytest.raises(EckartError) as refusal:
        opened(source=long | {"model-00007.safetensors": "f" * 64})
    told = str(refusal.value)
    then, now = told.split("source (")[1].split(" then, ")
    assert then != now.split(" now)")[0]
    assert "model-00007" in told


def test_a_refusal_lets_go_of_the_folder(folder: Path, opened: Callable[..., Journal]) -> None:
    """Whoever still holds the exception (a notebook does) can run again with what was right."""
    opened().close()
    with pytest.raises(EckartError) as held:
        opened(seed=1)
    assert not resumed(opened())
    assert "seed" in str(held.value)


def test_a_changed_work_file_is_refused(folder: Path, opened: Callable[..., Journal]) -> None:
    first = opened()
    first.once("a", writing(first, "a.bin"))
    first.close()
    (folder / "a.bin").write_bytes(b"dat4")
    with pytest.raises(EckartError, match=r"a\.bin is not as the unfinished run left it: .*--restart"):
        opened().once("a", never)


@pytest.mark.parametrize("size", [0, 3])
def test_a_shortened_or_missing_work_file_is_refused(folder: Path, opened: Callable[..., Journal], size: int) -> None:
    first = opened()
    first.once("a", writing(first, "a.bin"))
    first.close()
    (folder / "a.bin").write_bytes(b"data"[:size]) if size else (folder / "a.bin").unlink()
    with pytest.raises(EckartError, match=r"a\.bin is not as"):
        opened().once("a", never)


def test_a_dropped_file_is_gone_on_purpose(folder: Path, opened: Callable[..., Journal]) -> None:
    first = opened()
    first.once("a", lambda: (writing(first, "a.bin")()[0] + writing(first, "b.bin")()[0], ["a.bin", "b.bin"]))
    first.drop("a.bin")
    first.drop("a.bin")
    assert sum("dropped" in line for line in lines(folder)) == 1
    assert not (folder / "a.bin").exists()
    assert (folder / "b.bin").exists()
    assert first.once("a", never) == 8
    first.close()
    again = opened()
    assert again.once("a", never) == 8
    (folder / "b.bin").unlink()
    with pytest.raises(EckartError, match=r"b\.bin"):
        again.once("a", never)


def test_a_kill_between_the_record_of_a_drop_and_the_drop(folder: Path, opened: Callable[..., Journal]) -> None:
    first = opened()
    first.once("a", writing(first, "a.bin"))
    first.drop("a.bin")
    first.close()
    (folder / "a.bin").write_bytes(b"data")
    again = opened()
    assert again.once("a", never) == 4
    again.drop("a.bin")
    assert not (folder / "a.bin").exists()


def test_a_file_that_is_written_again_after_its_drop_is_checked_again(
    folder: Path, opened: Callable[..., Journal]
) -> None:
    """A later piece may use the name of a dropped file; the file that it promises must be there then."""
    first = opened()
    first.once("a", writing(first, "x.bin"))
    first.drop("x.bin")
    first.once("b", writing(first, "x.bin", b"other"))
    first.close()
    (folder / "x.bin").write_bytes(b"wrong")
    with pytest.raises(EckartError, match=r"x\.bin"):
        opened().once("b", never)


# ---- the folder -----------------------------------------------------------------------------------------------------

HOLD = """
import fcntl, sys
handle = open(sys.argv[1], "a")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
TRY = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(9)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(folder: Path, opened: Callable[..., Journal]) -> None:
    opened().close()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        before = (folder / "journal.jsonl").read_bytes()
        with pytest.raises(EckartError, match=r"is in use by another run: wait for it, or choose another output"):
            opened()
        assert (folder / "journal.jsonl").read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    assert not resumed(opened())


def test_an_open_journal_keeps_other_processes_out(folder: Path, opened: Callable[..., Journal]) -> None:
    journal = opened()

    def attempt() -> int:
        return subprocess.run([sys.executable, "-c", TRY, str(folder / "lock")], check=False).returncode

    assert attempt() == 9
    journal.close()
    assert attempt() == 0


def test_the_process_that_holds_a_folder_is_named(folder: Path, opened: Callable[..., Journal]) -> None:
    first = opened()
    with pytest.raises(EckartError, match=rf"is in use by another run \(process {os.getpid()}\): wait for it"):
        opened()
    first.close()
    assert (folder / "lock").read_bytes() == b""
    opened()


@pytest.mark.parametrize("left", ["dead", "", "x", "9" * 30, "-1", "0"])
def test_no_process_is_named_that_is_not_there(folder: Path, opened: Callable[..., Journal], left: str) -> None:
    opened()
    if left == "dead":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        left = str(gone.pid)
    (folder / "lock").write_text(left)
    with pytest.raises(EckartError, match=r"is in use by another run: wait for it, or choose another output"):
        opened()


def test_a_lock_that_was_taken_away_meanwhile_locks_nothing(
    folder: Path, opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends deletes its lock; whoever had opened it just before must not work beside a third run."""
    opened().close()
    real = fcntl.flock

    def late(handle: Any, how: int) -> None:
        (folder / "lock").unlink()
        (folder / "lock").write_text("")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(EckartError, match=r"is in use by another run"):
        opened()


def test_work_files_without_a_record_are_deleted(folder: Path, opened: Callable[..., Journal]) -> None:
    (folder / "result").mkdir(parents=True)
    (folder / "result" / "old.bin").write_bytes(b"data")
    (folder / "old.bin").write_bytes(b"data")
    opened()
    assert sorted(path.name for path in folder.iterdir()) == ["journal.jsonl", "lock"]


def test_the_folder_goes_when_it_is_removed(folder: Path, opened: Callable[..., Journal]) -> None:
    journal = opened()
    journal.once("a", writing(journal, "a.bin"))
    journal.remove()
    assert not folder.exists()
    journal.close()  # the caller's own close, afterwards


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EckartError, match=r"cannot be written: .*; choose another output"):
        Journal(tmp_path / "file" / "work", HEADER)
    with pytest.raises(EckartError, match=r"cannot be written: .*; choose another output"):
        Journal(tmp_path / "file", HEADER)


def test_a_journal_that_cannot_be_opened_is_refused(folder: Path, opened: Callable[..., Journal]) -> None:
    (folder / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(EckartError, match=r"cannot be (read|written)"):
        opened()


@pytest.mark.parametrize("failing", ["write", "fsync", "hash"])
def test_a_full_disk_is_told_and_nothing_is_lost(
    folder: Path, opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    first = opened()
    first.once("a", writing(first, "a.bin"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr("os.fsync", full)
        elif failing == "hash":
            patch.setattr("eckart.model.journal.sync_folder", full)
        else:
            patch.setattr("eckart.model.journal._sealed", full)
        with pytest.raises(EckartError, match=r"cannot be written: No space left on device; free space and run again"):
            first.once("b", writing(first, "b.bin"))
    first.close()
    again = opened()
    assert again.once("a", never) == 4
    assert again.once("b", writing(again, "b.bin")) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_closing_after_a_full_disk_hides_no_error(folder: Path, opened: Callable[..., Journal]) -> None:
    journal = opened()
    journal._file.close()
    journal._file = Path("/dev/full").open("ab")  # noqa: SIM115
    with pytest.raises(EckartError, match=r"No space left on device; free space and run again"):
        journal.once("a", lambda: (1, []))
    journal.close()
