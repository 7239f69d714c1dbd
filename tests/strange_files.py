"""A folder of strange and hostile files: each case turns a sound model directory into one that must be refused.

Files are generated, so that nobody has to trust or store binaries; ``python tests/strange_files.py FOLDER MODEL`` writes
one copy of MODEL (a directory with one weight file) a case to look at.
"""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Edit = Callable[[Path], object]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ALL = ("compress", "inspect", "eval", "verify", "densify")
DAMAGED = "it may be truncated or damaged, fetch it again"
ANSI = "\x1b[31mred\x1b]0;title\x07\r\n\x00\u202e"


@dataclass(frozen=True)
class Case:
    """``edit`` makes a model directory strange; ``words`` must stand in the sentence of each of the ``commands``."""

    name: str
    edit: Edit
    words: tuple[str, ...]
    commands: tuple[str, ...] = ALL
    large: bool = False  # announces or holds so much that memory is watched
    slow: bool = False  # and does hold it


# ---- weight files ---------------------------------------------------------------------------------------------------


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The table at the head of a safetensors file, and its data."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(table: object, data: bytes, *, ascii_only: bool = True) -> bytes:
    """A safetensors file of a table (or of bytes for one) and data."""
    head = table if isinstance(table, bytes) else json.dumps(table, ensure_ascii=ascii_only).encode()
    return struct.pack("<Q", len(head)) + head + data


def with_header(change: Callable[[dict[str, Any]], object], extra: bytes = b"") -> Edit:
    """Edits the table in the header, and appends to the data."""

    def edit(folder: Path) -> None:
        table, data = parts(folder / WEIGHTS)
        change(table)
        (folder / WEIGHTS).write_bytes(joined(table, data + extra))

    return edit


def with_tensor(name: str, dtype: object = "F32", shape: object = (2, 3), size: int = 24) -> Edit:
    """Adds a tensor of zeros after the others."""

    def change(table: dict[str, Any]) -> None:
        end = max((entry["data_offsets"][1] for key, entry in table.items() if key != "__metadata__"), default=0)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}

    return with_header(change, bytes(size))


def with_entry(**fields: object) -> Edit:
    """Changes what the header says of the tensor that comes first in the data."""

    def change(table: dict[str, Any]) -> None:
        first(table).update(fields)

    return with_header(change)


def first(table: dict[str, Any]) -> dict[str, Any]:
    return min((entry for key, entry in table.items() if key != "__metadata__"), key=lambda e: e["data_offsets"])


def sparse(name: str, size: int, head: bytes = b"") -> Edit:
    """A file that looks large and takes no room."""

    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as handle:
            handle.write(head)
            handle.truncate(size)

    return edit


def text(name: str, make: Callable[[], str]) -> Edit:
    """A file of this text, made only when it is wanted."""
    return lambda folder: (folder / name).write_text(make(), encoding="utf-8")


def header_of(make: Callable[[], bytes]) -> Edit:
    return lambda folder: (folder / WEIGHTS).write_bytes(joined(make(), b""))


def raw_header(change: Callable[[bytes], bytes]) -> Edit:
    """Edits the text of the header."""

    def edit(folder: Path) -> None:
        table, data = parts(folder / WEIGHTS)
        (folder / WEIGHTS).write_bytes(joined(change(json.dumps(table).encode()), data))

    return edit


def shifted(by: int) -> Edit:
    """Moves the second tensor and all after it: over the first one, or away from it."""

    def change(table: dict[str, Any]) -> None:
        for entry in table.values():
            if "data_offsets" in entry and entry["data_offsets"][0] > 0:
                entry["data_offsets"] = [place + by for place in entry["data_offsets"]]

    return with_header(change, bytes(max(by, 0)))


def twice(head: bytes) -> bytes:
    """The last entry of the header once more: the same place under the same name, as other numbers."""
    table = json.loads(head)
    name = list(table)[-1]
    again = table[name] | {"dtype": "I32"}
    return head[:-1] + b", " + json.dumps(name).encode() + b": " + json.dumps(again).encode() + b"}"


def no_data(count: int) -> bytes:
    """A header of many tensors of size zero."""
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(f'"t{i}":{entry}' for i in range(count)) + "}").encode()


HEADERS = (
    Case("length of 2^40", lambda f: patch(f, struct.pack("<Q", 2**40)), ("header", DAMAGED), large=True),
    Case("length of 2^64 - 1", lambda f: patch(f, b"\xff" * 8), ("header", DAMAGED), large=True),
    Case("header of 200 MB", sparse(WEIGHTS, 300_000_000, struct.pack("<Q", 2 * 10**8)), ("header",), large=True),
    Case("header of zeros", sparse(WEIGHTS, 100_000_000, struct.pack("<Q", 99_000_000)), ("header",), large=True),
    Case("header of brackets", header_of(lambda: b'{"a":' + b"[" * 9 * 10**7), ("values",), large=True),
    Case("header of tables", header_of(lambda: b'{"a":[' + b"{}," * 10**7 + b"{}]}"), ("values",), large=True),
    Case("deep header", header_of(lambda: b'{"a":' * 70 + b"1" + b"}" * 70), ("header", "deeper"), large=True),
    Case("deepest header", header_of(lambda: b'{"a":' * 10**5), ("header", "not valid JSON"), large=True),
    Case("million empty tensors", header_of(lambda: no_data(10**6)), ("values",), large=True),
    Case("one key of 50 MB", header_of(lambda: b'{"' + b"k" * 5 * 10**7 + b'": 1}'), ("long",), large=True, slow=True),
    Case(
        "metadata of 50 MB",
        header_of(lambda: b'{"__metadata__": ["' + b"v" * 5 * 10**7 + b'"]}'),
        (),
        large=True,
        slow=True,
    ),
    Case("many digits", with_entry(shape=[10**4000]), (DAMAGED,), large=True),
    Case("too many digits", raw_header(lambda h: h.replace(b'"shape": [', b'"shape": [' + b"9" * 5000)), (DAMAGED,)),
    Case("shape that overflows", with_entry(shape=[2**32, 2**32]), ("beyond all memory", DAMAGED), large=True),
    Case("shape that wraps around", with_entry(shape=[2**32, 2**32, 16]), ("beyond all memory",), large=True),
    Case("shape of nothing that overflows", with_tensor("x", shape=[2**40, 0, 2**40], size=0), ("tensor x",)),
    Case("shape beyond 64 bit", with_entry(shape=[2**63]), ("shape",), large=True),
    Case("shape of a terabyte", with_entry(shape=[2**38]), ("bytes hold",), large=True),
    Case("a million dimensions", with_entry(shape=[1] * 10**6), ("shape",), large=True, slow=True),
    Case("negative shape", with_entry(shape=[-16, -18]), ("shape",)),
    Case("shape with a fraction", with_entry(shape=[16.0, 18]), ("shape",)),
    Case("shape in words", with_entry(shape=["16", "18"]), ("shape",)),
    Case("shape of truths", with_tensor("x", shape=[True, True], size=4), ("tensor x", "shape")),
    Case("shape no list", with_entry(shape={"0": 1}), ("shape",)),
    Case("offsets with a fraction", with_entry(data_offsets=[0.0, 4.0]), ("data_offsets",)),
    Case("offsets in words", with_entry(data_offsets=["0", "4"]), ("data_offsets",)),
    Case("offsets of truths", with_entry(data_offsets=[False, True]), ("data_offsets",)),
    Case("offsets negative", with_entry(data_offsets=[-4, 0]), ("data_offsets",)),
    Case("three offsets", with_entry(data_offsets=[0, 4, 8]), ("data_offsets",)),
    Case("offsets null", with_entry(data_offsets=None), ("data_offsets",)),
    Case("offsets that do not fit the shape", with_entry(shape=[1]), ("bytes hold", DAMAGED)),
    Case("two tensors overlap", shifted(-4), ("overlaps", DAMAGED)),
    Case("a gap between tensors", shifted(8), ("gap", DAMAGED)),
    Case("data that no tensor names", with_header(lambda t: None, b"hidden"), ("bytes of data",)),
    Case("the same data twice", with_header(lambda t: t.update(x=first(t))), ("overlaps",)),
    Case("a name twice", raw_header(twice), ("twice", DAMAGED)),
    Case(
        "a field twice", raw_header(lambda h: h.replace(b'"dtype"', b'"dtype": "I32", "dtype"', 1)), ("'dtype' twice",)
    ),
    Case("metadata no table", with_header(lambda t: t.update(__metadata__=[1])), ("__metadata__",)),
    Case("metadata of numbers", with_header(lambda t: t.update(__metadata__={"a": 1})), ("__metadata__",)),
    Case("an entry no table", with_header(lambda t: t.update(x=[1, 2])), ("tensor x",)),
    Case("dtype a number", with_entry(dtype=7), ("dtype",)),
    Case("dtype a list", with_entry(dtype=["F32"]), ("dtype",)),
    Case("dtype of escapes", with_entry(dtype=ANSI), ("dtype", "\\x1b", "not supported")),
    Case("dtype of 1 MB", with_entry(dtype="F" * 10**6), ("dtype", "not supported")),
    *(
        Case(f"rare dtype {kind}", with_tensor("x", kind, [2, 4], size), ("tensor x", kind, "convert it to one of"))
        for kind, size in (
            ("F4", 4),
            ("F6_E2M3", 6),
            ("F8_E8M0", 8),
            ("C64", 64),
            ("U16", 16),
            ("U32", 32),
            ("U64", 64),
        )
    ),
    Case("a tensor without name", with_tensor(""), ("without a name",)),
    Case("a name of escapes", with_tensor(ANSI), ("control characters", "\\x1b")),
    Case("a name with NUL", with_tensor("a\x00b"), ("control characters", "\\x00")),
    Case("a name with line breaks", with_tensor("a\neckart: all is well\u2028"), ("control characters", "\\n")),
    Case("a name of 100 kB", with_tensor("n" * 100_000), ("very long", "nnn")),
    Case("half a character in a name", with_tensor("\ud800"), ("\\ud800",)),
)


def patch(folder: Path, start: bytes) -> None:
    """Overwrites the first bytes of the weight file."""
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(start + raw[len(start) :])


# ---- pipes, devices, links ------------------------------------------------------------------------------------------


def pipe(name: str) -> Edit:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def link(name: str, target: str) -> Edit:
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target))


PLACES = (
    *(Case(f"{name} a pipe", pipe(name), (name, "pipe or a device")) for name in (WEIGHTS, INDEX, "config.json")),
    *(Case(f"{name} endless", link(name, "/dev/zero"), (name, "device")) for name in (WEIGHTS, INDEX, "config.json")),
    Case("weights in a circle", link(WEIGHTS, WEIGHTS), ("holds no model.safetensors",)),
    Case("config in a circle", link("config.json", "config.json"), ("config.json", "cannot be read")),
    Case("weights another file", link(WEIGHTS, "/etc/hostname"), (WEIGHTS, DAMAGED)),
    Case("weights a folder", link(WEIGHTS, "/etc"), (WEIGHTS, "directory")),
    Case("certificate a pipe", pipe("eckart.json"), ("eckart.json", "pipe or a device"), ("verify",)),
    Case("certificate endless", link("eckart.json", "/dev/zero"), ("pipe or a device",), ("verify",)),
)


# ---- the index ------------------------------------------------------------------------------------------------------


def index(places: Callable[[dict[str, str]], object]) -> Edit:
    """Adds an index that names the one weight file, and edits it."""

    def edit(folder: Path) -> None:
        table, _ = parts(folder / WEIGHTS)
        shards = dict.fromkeys((name for name in table if name != "__metadata__"), WEIGHTS)
        places(shards)
        (folder / INDEX).write_text(json.dumps({"weight_map": shards}), encoding="utf-8")

    return edit


def pointing(name: str) -> Edit:
    return index(lambda shards: shards.update({"model.norm.weight": name}))


def named_otherwise(name: str) -> Edit:
    """The weight file under a name that means something else in the result."""

    def edit(folder: Path) -> None:
        index(lambda shards: shards.update(dict.fromkeys(shards, name)))(folder)
        (folder / WEIGHTS).rename(folder / name)

    return edit


INDEXES = (
    Case("index of a million names", text(INDEX, lambda: many_places(10**6)), (INDEX, "it is not"), large=True, slow=True),
    Case("index of many values", text(INDEX, lambda: '{"weight_map": {}, "x": [' + "1," * 6 * 10**6 + "1]}"), ("values",), large=True),
    Case("index of 1 TB", sparse(INDEX, 10**12), (INDEX, "larger than"), large=True),
    Case("deep index", text(INDEX, lambda: '{"weight_map":' * 900 + "1" + "}" * 900), (INDEX,), large=True),
    Case("deepest index", text(INDEX, lambda: "[" * 10**6), (INDEX, "not valid JSON"), large=True),
    Case("index with a name twice", text(INDEX, lambda: '{"weight_map": {"a": "b", "a": "c"}}'), (INDEX, "'a' twice")),
    Case("index with two maps", text(INDEX, lambda: '{"weight_map": {}, "weight_map": {}}'), (INDEX, "twice")),
    *(
        Case(f"shard {ascii(name)[:30]}", pointing(name), (INDEX, "points outside", "refused"))
        for name in ("./" + WEIGHTS, "../" + WEIGHTS, "a/../" + WEIGHTS, "/etc/passwd", "//x", "~/../x", "")
    ),
    Case("shard of another case", pointing(WEIGHTS.upper()), (WEIGHTS.upper(),)),
    Case("shard with a space", pointing(WEIGHTS + " "), ("is missing",)),
    Case("shard with NUL", pointing("a\x00.safetensors"), (INDEX, "control characters", "\\x00")),
    Case("shard of escapes", pointing(ANSI.replace("/", "")), (INDEX, "control characters", "\\x1b")),
    Case("shard of 100 kB", pointing("s" * 100_000), (INDEX, "very long")),
    Case("shard half a character", pointing("\ud800.safetensors"), (INDEX,)),
    Case("tensor of escapes", index(lambda shards: shards.update({ANSI: WEIGHTS})), (INDEX, "\\x1b")),
    Case("tensor of 100 kB", index(lambda shards: shards.update({"t" * 10**5: WEIGHTS})), (INDEX, "very long")),
    *(
        Case(f"shard called {name}", named_otherwise(name), (INDEX, name, "no safetensors file by its name"))
        for name in ("README.md", "tokenizer.json", "LICENSE", "weights.py")
    ),
    Case("shard called like the config", pointing("config.json"), (INDEX, "config.json")),
)  # fmt: skip


def many_places(count: int) -> str:
    return '{"weight_map": {' + ",".join(f'"tensor.{i}.weight":"{WEIGHTS}"' for i in range(count)) + "}}"


# ---- config, certificate, tokenizer ---------------------------------------------------------------------------------


def entries(name: str, **changes: object) -> Edit:
    """Changes entries of a JSON file."""

    def edit(folder: Path) -> None:
        table = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps(table), encoding="utf-8")

    return edit


def config(**changes: object) -> Edit:
    return entries("config.json", **changes)


def many_keys(count: int) -> str:
    return "{" + ",".join(f'"k{i}":{{}}' for i in range(count)) + "}"


CONFIG = "config.json"
OURS = {"quant_method": "eckart"}
LOOKING = ("inspect", "verify", "densify")
SIZES = ("hidden_size", "intermediate_size", "vocab_size", "head_dim")
CONFIGS = (
    *(
        case
        for name, commands in ((CONFIG, ALL), ("eckart.json", ("verify",)))
        for case in (
            Case(f"{name} of 1 TB", sparse(name, 10**12), (name, "larger than"), commands, large=True),
            Case(f"{name} of zeros", sparse(name, 9 * 10**7), (name, "not valid JSON"), commands, large=True, slow=True),
            Case(f"{name} of tables", text(name, lambda: many_keys(3 * 10**6)), (name, "values"), commands, large=True, slow=True),
            Case(f"{name} deep", text(name, lambda: '{"a":' * 900 + "1" + "}" * 900), (name,), commands, large=True),
            Case(f"{name} deepest", text(name, lambda: '{"a":' * 10**6), (name,), commands, large=True),
            Case(f"{name} in UTF-16", lambda f, n=name: (f / n).write_bytes("{}".encode("utf-16")), (name,), commands),
            Case(f"{name} with a name twice", text(name, lambda: '{"a": 1, "a": 2}'), (name, "twice"), commands),
            Case(f"{name} with escapes", text(name, lambda: json.dumps({ANSI: 1})), (name, "\\x1b"), commands),
            Case(f"{name} half a character", text(name, lambda: r'{"a": "\ud800"}'), (name,), commands),
        )
    ),
    *(Case(f"{key} of 2^40", config(**{key: 2**40}), (CONFIG, key, "side"), large=True) for key in SIZES),
    *(Case(f"{key} of 400 digits", config(**{key: 10**400}), (CONFIG, key), large=True) for key in SIZES),
    Case("a billion layers", config(num_hidden_layers=10**9), (CONFIG, "num_hidden_layers"), large=True),
    Case("layers in an inner table", config(text_config={"num_hidden_layers": 10**9}), (CONFIG, "layers"), large=True),
    Case("an adapter", text("adapter_config.json", lambda: '{"base_model_name_or_path": "org/other"}'), ("adapter",)),
    Case("a kernel of the hub", config(attn_implementation="org/kernel"), (CONFIG, "attn_implementation", "not run")),
    Case("a kernel under its inner name", config(_attn_implementation="org/kernel:f"), (CONFIG, "not run")),
    Case("a kernel for a part", config(attn_implementation={"text_config": "org/k"}), (CONFIG, "not run")),
    Case("a kernel inside", config(text_config={"attn_implementation": "org/k"}), (CONFIG, "not run")),
    Case("experts of the hub", config(experts_implementation="org/kernel"), (CONFIG, "not run")),
    *(
        Case(f"quantised as {ascii(value)[:30]}", config(quantization_config=value), ("quantised",), ("compress",))
        for value in ([], "x", 3, {}, {"quant_method": []}, {"quant_method": "gptq"}, {"quant_method": ANSI})
    ),
    *(
        Case(f"not compressed as {ascii(value)[:30]}", config(quantization_config=value), (CONFIG,), ("verify", "densify"))
        for value in ([], "x", 3, {}, {"quant_method": []}, {"quant_method": ANSI}, OURS)
    ),
    *(
        Case(f"modules {ascii(value)[:30]}", config(quantization_config=OURS | {"modules": value}), (CONFIG,), LOOKING)
        for value in ([], "x", 3, {"a": 1}, {"a": {"shapes": []}}, {ANSI: {}}, {"a": {"operator": ANSI, "shapes": {}}})
    ),
)  # fmt: skip

CASES = HEADERS + PLACES + INDEXES + CONFIGS


# ---- strange, but right ---------------------------------------------------------------------------------------------


def linked(folder: Path) -> None:
    """As the hub's cache lays a model out: links to files elsewhere that are named by their hashes."""
    blobs = folder.parent / f"{folder.name}-blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), folder))


SOUND: dict[str, Edit] = {
    "a number without dimensions": with_tensor("x.scale", shape=[], size=4),
    "an empty vector": with_tensor("x.empty", shape=[0], size=0),
    "an empty matrix": with_tensor("x.empty.weight", shape=[0, 4], size=0),
    "an empty matrix of many columns": with_tensor("x.empty.weight", shape=[0, 2**60], size=0),
    "a matrix of one entry": with_tensor("x.one.weight", shape=[1, 1], size=4),
    "64 dimensions": with_tensor("x", shape=[1] * 64, size=4),
    "a header of odd length": raw_header(lambda head: head + b" " * (4 - len(head) % 8)),
    "a header of many blanks": raw_header(lambda head: head + b" " * 10**6),
    "no metadata": with_header(lambda table: table.pop("__metadata__")),
    "metadata null": with_header(lambda table: table.update(__metadata__=None)),
    "metadata of much text": with_header(lambda table: table["__metadata__"].update(notes="v" * 10**6 + ANSI)),
    "a further field": with_header(lambda table: first(table).update(note="x")),
    "names that look like places": lambda f: [with_tensor(n)(f) for n in ("a/b", "../../x", "..", "/x", "-o", "c:\\x")],
    "names that look like modules": lambda f: [with_tensor(n)(f) for n in ("model..weight", "model.layers.0", "lm_head")],
    "names that look like code": lambda f: [with_tensor(n)(f) for n in ("%s", "{0}", "$(id)", "[bold]x", "' or 1")],
    "names that look the same": lambda f: [with_tensor(n)(f) for n in ("\u00e9", "e\u0301", "\u212b", "\u00c5", "X", "x")],
    "links": linked,
    "an index": index(lambda shards: None),
    "an index without all names": index(lambda shards: shards.pop("model.norm.weight")),
    "another name that the model had": config(_name_or_path="org/other", base_model_name_or_path="org/third"),
    "a config that trusts itself": config(trust_remote_code=True, custom_pipelines={"x": {"impl": "evil.T"}}),
    "a config that names a kernel of its own": config(attn_implementation="eager"),
    "a licence that is a pipe": pipe("LICENSE"),
    "a card that is a pipe": pipe("README.md"),
    "a licence that is no text": lambda f: (f / "LICENSE").write_bytes(b"\xff\x00"),
}  # fmt: skip


def write_folder(folder: Path, model: Path) -> None:
    """One directory a case, numbered, with a list of what is in them."""
    folder.mkdir(parents=True)
    for number, case in enumerate(CASES):
        case.edit(Path(shutil.copytree(model, folder / f"{number:03d}")))
    (folder / "LIST").write_text("".join(f"{n:03d} {case.name}\n" for n, case in enumerate(CASES)), encoding="utf-8")


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]), Path(sys.argv[2]))
