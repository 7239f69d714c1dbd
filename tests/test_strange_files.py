"""The folder of strange files: each is refused with one sentence, before it takes memory, runs code or writes anything."""

import builtins
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import CALIBRATED, TESTS, Killer, Outcome, calibration_text, cli, left_behind, refused, tiny, tree
from strange_files import ANSI, CASES, SOUND, WEIGHTS, Case, entries, with_tensor

LONGEST_SENTENCE = 700
MEMORY = 700_000_000  # bytes a command may take for a strange file of at most 100 MB
SECONDS = 60  # after which a command counts as hanging


class Ground:
    """A sound model in one file, what it was compressed to, and a text."""

    def __init__(self, folder: Path) -> None:
        self.model = tiny(folder / "model")
        self.text = calibration_text(folder / "text.txt")
        self.compressed = folder / "compressed"
        assert cli("compress", self.model, "-o", self.compressed, "--keep", "0.7", "--recipe", "svd").code == 0

    def base(self, command: str) -> Path:
        """The sound directory that a command takes."""
        return self.compressed if command in ("verify", "densify") else self.model

    def line(self, command: str, folder: Path, out: Path) -> list[object]:
        return {
            "compress": ["compress", folder, "-o", out, "--keep", "0.7", "--calibration", self.text, *CALIBRATED],
            "inspect": ["inspect", folder],
            "eval": ["eval", folder, "--text", self.text],
            "verify": ["verify", folder, "--against", self.model],
            "densify": ["densify", folder, "-o", out],
        }[command]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whoever is asked says yes, and nobody reaches a network; what was tried is noted and must be nothing."""
    tried: list[str] = []

    def say_yes(*question: object) -> str:
        tried.append(f"asked {question}")
        return "y"

    def no_network(*target: object, **_: object) -> None:
        tried.append(f"called {target[-2:]}")
        raise OSError("no network in a test")

    def too_long(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} seconds")

    monkeypatch.setattr(builtins, "input", say_yes)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    yield tried
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert tried == []


def told(sentence: str, *words: str) -> None:
    """A sentence for a person: these words, short, and nothing that a terminal would act on."""
    missing = [word for word in words if word not in sentence]
    assert not missing, f"{missing} not in: {sentence[:1000]!r}"
    assert len(sentence) <= LONGEST_SENTENCE
    assert sentence.isprintable(), sentence


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder: what is written shows, without reading sparse files."""
    found = {p: p.lstat() for p in folder.rglob("*")}
    return {p.relative_to(folder).as_posix(): (s.st_size, s.st_mtime_ns) for p, s in found.items() if not p.is_dir()}


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=lambda case: case.name)
def test_a_strange_file_is_refused(ground: Ground, tmp_path: Path, case: Case) -> None:
    out = tmp_path / "out"
    for command in case.commands:
        folder = Path(shutil.copytree(ground.base(command), tmp_path / f"{command}-model"))
        case.edit(folder)
        before = sizes(tmp_path)
        outcome = cli(*ground.line(command, folder, out))
        assert outcome.code == 2, (command, outcome)
        told(outcome.sentence, str(folder), *case.words)
        assert sizes(tmp_path) == before
        assert left_behind(out) == []


class Limited(Killer):
    """Runs commands that get ``MEMORY`` bytes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "limited.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    made = Limited()
    yield made
    made.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on memory that the system keeps")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES if case.large],
)
def test_a_strange_file_takes_no_memory(ground: Ground, limited: Limited, tmp_path: Path, case: Case) -> None:
    """Every command begins by opening the directory in the same way, so one stands for the others."""
    command = "inspect" if "inspect" in case.commands else case.commands[-1]
    folder = Path(shutil.copytree(ground.base(command), tmp_path / "model"))
    case.edit(folder)
    outcome = limited(*ground.line(command, folder, tmp_path / "out"), memory=MEMORY)
    assert outcome.code == 2, (command, outcome.code, outcome.err[-1000:])
    told(outcome.sentence, str(folder), *case.words)
    shutil.rmtree(tmp_path)  # some of the files are large


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on memory that the system keeps")
def test_the_limit_on_memory_is_kept(ground: Ground, limited: Limited) -> None:
    """The check above can fail: with too little memory even a sound model is told to be too large."""
    command = ground.line("eval", ground.model, ground.model.parent / "out")
    assert limited(*command, memory=MEMORY).code == 0
    assert limited(*command, memory=100_000).code != 0


# ---- what is strange, but right -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_only_strange_works(ground: Ground, tmp_path: Path, kind: str) -> None:
    """Compressed, looked at, checked, multiplied out and loaded, with every tensor still there."""
    folder, out, dense = tmp_path / "model", tmp_path / "out", tmp_path / "dense"
    shutil.copytree(ground.model, folder)
    SOUND[kind](folder)
    lines: list[list[object]] = [
        ["compress", folder, "-o", out, "--keep", "0.7", "--recipe", "svd"],
        ["inspect", folder],
        ["inspect", out],
        ["verify", out, "--against", folder],
        ["densify", out, "-o", dense],
        ["eval", dense, "--text", ground.text],
    ]
    for line in lines:
        outcome = cli(*line)
        assert (outcome.code, outcome.err) == (0, ""), line
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and "blobs" not in p.name) == [
        "dense",
        "model",
        "out",
    ]
    assert names_in(dense) == names_in(folder)
    assert not any(p.is_symlink() for place in (out, dense) for p in place.rglob("*"))


def names_in(folder: Path) -> set[str]:
    raw = (folder / WEIGHTS).read_bytes()
    return {*json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])} - {"__metadata__"}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.\u00b2.x",
        "[/x].weight",
        "[/]",
        "model.layers.\u0663.x",
        "model.layers.99999999999999999999.x.weight",
    ],
    ids=ascii,
)
def test_a_strange_name_ends_in_no_other_error(ground: Ground, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(ground.model, tmp_path / "model"))
    with_tensor(name)(folder)
    assert cli("inspect", folder).code == 0
    assert cli("compress", folder, "-o", tmp_path / "out", "--keep", "0.7", "--recipe", "svd").code == 0


def test_a_file_without_permission(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may read everything; so the system's answer is played."""
    real = Path.open

    def closed_to_us(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == WEIGHTS:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", closed_to_us)
    for command in ("compress", "inspect", "eval", "verify", "densify"):
        sentence = refused(*ground.line(command, ground.base(command), tmp_path / "out"), out=tmp_path / "out")
        told(sentence, str(ground.base(command) / WEIGHTS), "cannot be read", "Permission denied")


def test_a_weight_file_that_looks_like_a_licence_is_not_copied_over(ground: Ground, tmp_path: Path) -> None:
    """Files beside the weights are copied by pattern; a pattern may fit a weight file."""
    folder, name = Path(shutil.copytree(ground.model, tmp_path / "model")), "LICENSE.safetensors"
    shards = dict.fromkeys(names_in(folder), name)
    (folder / WEIGHTS).rename(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert cli("compress", folder, "-o", tmp_path / "out", "--keep", "0.7", "--recipe", "svd").code == 0
    assert cli("verify", tmp_path / "out", "--against", folder).code == 0
    assert (tmp_path / "out" / name).stat().st_size < (folder / name).stat().st_size


# ---- work folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["journal.jsonl", "lock", ".curves-0001.safetensors.part", "result", "x/y"])
@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_nothing_is_written_through_a_work_folder(ground: Ground, tmp_path: Path, name: str, kind: str) -> None:
    """Someone else's folder under the name of ours must not make us write elsewhere, nor wait for ever."""
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "precious").write_text("data")
    planted = tmp_path / ".out.eckart-work" / name
    planted.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(outside / "precious" if kind == "file" else outside)
    for options in ((), ("--restart",)):
        outcome = cli(*ground.line("compress", ground.model, out), *options)
        assert outcome.code == 2
        told(outcome.sentence, str(planted), "not made by eckart")
    assert tree(outside) == {"precious": b"data"}
    assert not out.exists()


def test_a_work_folder_that_is_a_link(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / ".out.eckart-work").symlink_to(tmp_path / "outside")
    sentence = refused(*ground.line("compress", ground.model, tmp_path / "out"))
    told(sentence, ".out.eckart-work", "not made by eckart")
    assert list((tmp_path / "outside").iterdir()) == []


# ---- code from the checkpoint ---------------------------------------------------------------------------------------

CODE = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass T: pass\ndef generate(*args): pass\n"
REMOTE = "org/repo--evil.T"


def tokenizer_code(place: str) -> dict[str, object]:
    return {"auto_map": {"AutoTokenizer": [place, place]}, "tokenizer_class": "EvilTokenizer"}


AUTO = {"AutoConfig": "evil.T", "AutoModelForCausalLM": "evil.T", "AutoTokenizer": ["evil.T", "evil.T"]}
CODES: dict[str, tuple[str, dict[str, object]]] = {
    "model": ("config.json", {"auto_map": AUTO}),
    "trusted model": ("config.json", {"auto_map": AUTO, "trust_remote_code": True}),
    "model of unknown type": ("config.json", {"auto_map": AUTO, "model_type": "evil"}),
    "tokenizer": ("tokenizer_config.json", {"auto_map": AUTO, "trust_remote_code": True}),
    "tokenizer of unknown class": ("tokenizer_config.json", tokenizer_code("evil.T")),
    "tokenizer from the hub": ("tokenizer_config.json", tokenizer_code(REMOTE)),
    "class": ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
    "generation": ("generation_config.json", {"custom_generate": "evil", "trust_remote_code": True}),
    "pipeline": ("config.json", {"custom_generate": "org/repo", "custom_pipelines": {"x": {"impl": "evil.T"}}}),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("command", ["compress", "inspect", "eval"])
def test_no_code_of_a_checkpoint_is_run(
    ground: Ground, tmp_path: Path, closed: list[str], monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    """Even where the person at the terminal, or whoever holds its input, says yes to everything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries the network again and again
    folder = Path(shutil.copytree(ground.model, tmp_path / "model"))
    code = CODE.format(str(tmp_path / "ran"))
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    file, changes = CODES[kind]
    entries(file, **changes)(folder)
    outcome = cli(*ground.line(command, folder, tmp_path / "out"))
    tried = list(closed)
    closed.clear()
    assert (tried, (tmp_path / "ran").exists()) == ([], False)
    assert outcome.code in (0, 2)
    if outcome.code == 2:
        told(outcome.sentence, str(folder))


# ---- what a file says does not reach the terminal as it stands ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"model_type": ANSI}, "compress"),
        ({"model_type": ANSI}, "eval"),
        ({"hidden_act": "x" * 10**5}, "compress"),
        ({"quantization_config": {"quant_method": "eckart", "format": ANSI}}, "eval"),
    ],
    ids=["type compress", "type eval", "activation", "format"],
)
def test_values_are_shown_escaped_and_short(
    ground: Ground, tmp_path: Path, changes: dict[str, object], command: str
) -> None:
    folder = Path(shutil.copytree(ground.model, tmp_path / "model"))
    entries("config.json", **changes)(folder)
    outcome: Outcome = cli(*ground.line(command, folder, tmp_path / "out"))
    assert outcome.code == 2
    told(outcome.sentence, str(folder))


@pytest.mark.parametrize("value", [ANSI, "x" * 10**5], ids=["escapes", "long"])
def test_a_certificate_is_shown_escaped_and_short(ground: Ground, tmp_path: Path, value: str) -> None:
    folder = Path(shutil.copytree(ground.compressed, tmp_path / "compressed"))
    table = json.loads((folder / "eckart.json").read_text())
    table["matrices"][0]["operator"] = value
    (folder / "eckart.json").write_text(json.dumps(table))
    outcome = cli("verify", folder)
    assert outcome.code == 1
    told(outcome.sentence, str(folder))
    assert all(line.isprintable() for line in outcome.out.splitlines())
