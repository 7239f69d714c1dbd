"""Arbitrary and mutated files: a right result or an ``EckartError``, never another exception.

Forty examples a test in every run, the same ones each time; ``make fuzz`` takes thousands of new ones.
"""

import contextlib
import json
import struct
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from runs import cli, tiny
from safetensors import SafetensorError
from safetensors.torch import load, save

import eckart
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import Checkpoint
from eckart.model.densify import OperatorModules
from eckart.model.journal import Journal, _sealed
from eckart.model.tensorfile import TensorFile

INDEX = "model.safetensors.index.json"
TEXT = st.text(st.characters(codec=None, categories=None), max_size=12)
NUMBERS = st.integers(-(2**65), 2**65) | st.integers(-2, 40) | st.floats() | st.booleans()
JSON = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a JSON value, the top left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in inner for place in [(*path, key), *places(entry, (*path, key))]]


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with a few entries replaced, removed, renamed or added."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        table = value
        for key in way:
            table = table[key]
        kind = draw(st.sampled_from(["replace", "replace", "nudge", "remove", "rename", "add"]))
        if kind == "remove":
            del table[last]
        elif kind == "nudge" and type(table[last]) is int:
            table[last] += draw(st.sampled_from([-8, -4, -1, 1, 4, 8, 2**63]))
        elif kind == "rename" and isinstance(table, dict):
            table[draw(TEXT)] = table.pop(last)
        elif kind == "add" and isinstance(table, dict):
            table[draw(TEXT)] = draw(JSON)
        else:
            table[last] = draw(JSON)
    return value


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few of them changed, removed, doubled or put in, or the end cut off."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(found)))
        end = min(len(found), begin + draw(st.integers(0, 20)))
        kind = draw(st.sampled_from(["change", "change", "remove", "double", "insert", "truncate"]))
        if kind == "change" and begin < len(found):
            found[begin] ^= draw(st.integers(1, 255))
        elif kind == "remove":
            del found[begin:end]
        elif kind == "double":
            found[begin:begin] = found[begin:end]
        elif kind == "insert":
            found[begin:begin] = draw(st.binary(max_size=8))
        elif kind == "truncate":
            del found[begin:]
    return bytes(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of a test are written, one over the other."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    tiny(folder / "model", sharded=True)
    line = ["compress", folder / "model", "-o", folder / "out", "--keep", "0.7", "--recipe", "svd"]
    assert cli(*line).code == 0
    return folder / "out"


def answer(call: Callable[[], Any]) -> Any:
    """What a call gives, or ``None`` where it refuses with a sentence that a terminal may show."""
    try:
        return call()
    except EckartError as error:
        sentence = str(error)
    assert sentence.isprintable()
    assert 0 < len(sentence) < 1000
    return None


# ---- headers --------------------------------------------------------------------------------------------------------

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.arange(4, dtype=torch.int32), "c": torch.ones(())}
WHOLE = save(TENSORS, {"format": "pt"})
HEAD = 8 + struct.unpack("<Q", WHOLE[:8])[0]


def check_tensors(path: Path, data: bytes) -> None:
    """Whatever opens is what the format's own library reads; what that library refuses is refused."""
    path.write_bytes(data)
    opened = answer(lambda: TensorFile(path))
    try:
        expected = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        expected = None
    if opened is not None:
        assert expected is not None
        assert {name: (spec.dtype, spec.shape) for name, spec in opened.specs.items()} == {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in expected.items()
        }
        for name, tensor in expected.items():
            assert opened.read(name).numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes()


def test_the_sound_file_opens(place: Path) -> None:
    check_tensors(place / "sound", WHOLE)
    assert set(TensorFile(place / "sound").specs) == set(TENSORS)


@given(st.binary(max_size=200))
def test_any_bytes_for_a_weight_file(place: Path, data: bytes) -> None:
    check_tensors(place / "bytes", data)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))
def test_any_header(place: Path, head: bytes, data: bytes) -> None:
    check_tensors(place / "head", struct.pack("<Q", len(head)) + head + data)


@given(cut(WHOLE))
def test_a_mutated_weight_file(place: Path, data: bytes) -> None:
    check_tensors(place / "mutated", data)


@given(edited(json.loads(WHOLE[8:HEAD])))
def test_an_edited_header(place: Path, table: object) -> None:
    head = json.dumps(table).encode()
    check_tensors(place / "edited", struct.pack("<Q", len(head)) + head + WHOLE[HEAD:])


# ---- tables ---------------------------------------------------------------------------------------------------------


def put(result: Path, place: Path, file: str, data: bytes) -> Path:
    """The result with one file replaced; the others are links to it."""
    for path in result.iterdir():
        target = place / path.name
        target.unlink(missing_ok=True)
        if path.name == file:
            target.write_bytes(data)
        else:
            target.symlink_to(path)
    return place


def opened(folder: Path) -> list[str]:
    """The tensors of a checkpoint and the modules with operators, as every command opens them first."""
    checkpoint = Checkpoint(folder)
    return [*checkpoint.tensors, *OperatorModules(checkpoint, optional=True).names]


READERS: dict[str, Callable[[Path], object]] = {"config.json": opened, INDEX: opened, "eckart.json": Certificate.read}


@pytest.mark.parametrize("file", READERS)
@given(data=st.data())
def test_a_mutated_table(result: Path, place: Path, file: str, data: st.DataObject) -> None:
    mutated = data.draw(cut((result / file).read_bytes()))
    answer(lambda: READERS[file](put(result, place, file, mutated)))


@given(data=st.data())
def test_an_edited_index(result: Path, place: Path, data: st.DataObject) -> None:
    table = data.draw(edited(json.loads((result / INDEX).read_text())))
    answer(lambda: opened(put(result, place, INDEX, json.dumps(table).encode())))


@given(data=st.data())
def test_an_edited_certificate(result: Path, place: Path, data: st.DataObject) -> None:
    """Its sentences may quote texts of the file as they stand; the command line shows them escaped."""
    table = data.draw(edited(json.loads((result / "eckart.json").read_text())))
    folder = put(result, place, "eckart.json", json.dumps(table).encode())
    with contextlib.suppress(EckartError):
        Certificate.read(folder)


@pytest.mark.parametrize("file", READERS)
@given(value=JSON)
def test_any_table(result: Path, place: Path, file: str, value: object) -> None:
    folder = put(result, place, file, json.dumps(value).encode())
    answer(lambda: READERS[file](folder))


@pytest.mark.parametrize("file", READERS)
@given(data=st.binary(max_size=60))
def test_any_bytes_for_a_table(result: Path, place: Path, file: str, data: bytes) -> None:
    folder = put(result, place, file, data)
    assert answer(lambda: READERS[file](folder)) is None or data.strip() == b"{}"


# ---- recipes --------------------------------------------------------------------------------------------------------

RECIPE = b"""statistics = "compressed"
[metric]
part = "ActivationScale"
power = 0.75
[approx]
part = "LowRank"
[allocate]
part = "EqualMarginalLoss"
"""
WORDS = st.sampled_from(
    ["statistics", "metric", "approx", "allocate", "part", "power", "Gram", "Plain", "LowRank", "Uniform", "original"]
) | st.sampled_from(
    ["[", "]", "=", "'", '"', '"""', ".", ",", "#", "{", "}", "\n", "\r", "\x00", "\u00e9", "\\u0000", "[[metric]]", "nan"]
) | st.sampled_from(["1", "-1e400", "true", "1979-05-27", "0x" + "f" * 5000, "0b" + "1" * 2000])  # fmt: skip


def check_recipe(path: Path, data: bytes) -> None:
    """A recipe that is read describes what the file says."""
    path.write_bytes(data)
    found = answer(lambda: eckart.read_recipe(path))
    if found is not None:
        table = tomllib.loads(data.decode())
        told = found.describe()
        assert {role: told[role]["part"] for role in ("metric", "approx", "allocate")} == {
            role: table[role]["part"] for role in ("metric", "approx", "allocate")
        }
        assert told["statistics"] == table.get("statistics", "original")


@given(st.binary(max_size=100) | st.lists(WORDS, max_size=30).map(lambda words: " ".join(words).encode()))
@example(RECIPE)
@example(RECIPE.replace(b"0.75", b"0x" + b"f" * 5000))
@example(RECIPE.replace(b"0.75", b"[0x" + b"f" * 5000 + b"]"))
@example(RECIPE.replace(b'"compressed"', b"0x" + b"f" * 5000))
@example(RECIPE.replace(b"power", b'"' + b"p" * 9000 + b'"'))
@example(b'"' + b"r" * 9000 + b'" = 1\n' + RECIPE)
@example(b"# " + b"x" * 200_000 + b"\n" + RECIPE)
def test_any_bytes_for_a_recipe(place: Path, data: bytes) -> None:
    check_recipe(place / "any.toml", data)


@given(cut(RECIPE))
def test_a_mutated_recipe(place: Path, data: bytes) -> None:
    check_recipe(place / "mutated.toml", data)


# ---- journals -------------------------------------------------------------------------------------------------------

STEPS = ["survey", "curves/0001", "curves/0002", "fit", "last"]
HEADER = {"keep": 0.8, "source": {"config.json": "ab"}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a journal: its header and five pieces."""
    folder = tmp_path_factory.mktemp("journal") / "work"
    journal = Journal(folder, HEADER)
    for number, step in enumerate(STEPS):
        journal.once(step, lambda number=number: ({"value": [number, "é\n", 0.1]}, []))
    journal.close()
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def believed(folder: Path, data: bytes) -> list[str] | None:
    """The finished pieces of a journal of these bytes, their values checked; ``None`` where it is refused."""
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_bytes(data)
    journal = answer(lambda: Journal(folder, HEADER))
    if journal is None:
        return None
    found = [step for step in STEPS if journal.is_done(step)]
    values = [journal.once(step, never) for step in found]
    count = len(journal._done)
    journal.close()
    assert values == [{"value": [STEPS.index(step), "é\n", 0.1]} for step in found]
    assert count == len(found), "an entry that nobody wrote"
    return found


def never() -> tuple[object, list[str]]:
    raise AssertionError("a finished piece was made again")


def test_every_truncation_of_a_journal_leaves_a_prefix(place: Path, written: list[bytes]) -> None:
    whole = b"".join(written)
    ends = [sum(map(len, written[: count + 1])) for count in range(1, len(written))]
    for size in range(len(whole) + 1):
        assert believed(place / "truncated journal", whole[:size]) == STEPS[: sum(end <= size for end in ends)]


@given(data=st.data())
def test_any_byte_change_in_a_journal_leaves_a_prefix(place: Path, written: list[bytes], data: st.DataObject) -> None:
    """What stands before the changed line, and nothing else: neither the line itself nor any after it."""
    changed = bytearray(b"".join(written))
    where = data.draw(st.integers(0, len(changed) - 1))
    changed[where] ^= data.draw(st.integers(1, 255))
    line = next(n for n in range(len(written)) if where < sum(map(len, written[: n + 1])))
    assert believed(place / "changed journal", bytes(changed)) == STEPS[: max(0, line - 1)]


@given(data=st.data())
def test_a_mutated_journal_invents_nothing(place: Path, written: list[bytes], data: st.DataObject) -> None:
    believed(place / "mutated journal", data.draw(cut(b"".join(written))))


@given(st.binary(max_size=200))
def test_any_bytes_for_a_journal(place: Path, data: bytes) -> None:
    assert believed(place / "bytes journal", data) == []


SEALED = st.lists(
    st.dictionaries(st.sampled_from(["header", "step", "value", "files", "dropped", "undone"]), JSON | st.just({})),
    max_size=4,
)


@given(SEALED, st.booleans())
def test_lines_that_no_run_writes(
    place: Path, written: list[bytes], entries: list[dict[str, object]], begun: bool
) -> None:
    """With checksums of their own, as whoever edits a journal on purpose would give them."""
    folder = place / "sealed journal"
    folder.mkdir(exist_ok=True)
    lines = [written[0]] * begun + [_sealed(entry) for entry in entries]
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    journal = answer(lambda: Journal(folder, HEADER))
    if journal is not None:
        journal.drop("absent")
        journal.close()
