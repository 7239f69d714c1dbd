"""The installed command killed with ``kill -9`` at random moments of every stage, and what it says when it is stopped.

A moment is drawn in two steps: a piece of the stage, out of those that an undisturbed run of the same command recorded,
and a part of the time that this piece took. The journal tells when the piece begins, and after the kill in which stage it fell.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import IO

import pytest
import torch
from models import shard, write_model
from runs import calibration_text, cli, executable, tree
from transformers.models.llama import LlamaConfig

from eckart.model.journal import JOURNAL, LOCK, Journal
from eckart.model.output import work_folder

SEED = 20
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
# The last stage reaches from the seal over the rename to the removal of the work folder.
STAGES = ("calibration", "decomposition", "writing", "rename")
PREFIXES = {
    "calibration": ("embed", "survey/", "judge/"),
    "decomposition": ("fit/",),
    "writing": ("write/", "sealed"),
}
ATTEMPTS = 12
PATIENCE = 120.0


def stage_of(step: str) -> str:
    """The stage that a piece belongs to."""
    return next(stage for stage, prefixes in PREFIXES.items() if step.startswith(prefixes))


@dataclass(frozen=True)
class Command:
    """One command of the grid."""

    recipe: str
    ranks: str
    files: str
    threads: int

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it goes through: plain ranks of a plain recipe need no text."""
        return STAGES[1:] if (self.recipe, self.ranks) == ("svd", "uniform") else STAGES

    def __str__(self) -> str:
        return f"{self.recipe}-{self.ranks}-{self.files}-{self.threads}"


GRID = [
    Command(*entry)
    for entry in product(("svd", "asvd", "svd-llm"), ("uniform", "allocated"), ("single", "sharded"), (1, 2))
]


@dataclass
class Undisturbed:
    """What a run that nobody disturbs makes, the pieces that it records, and the seconds that each of them takes."""

    files: dict[str, bytes]
    pieces: list[str]
    seconds: dict[str, float]


@dataclass
class Ground:
    """Models and a text, and what undisturbed runs made of them."""

    folder: Path
    results: dict[Command, Undisturbed] = field(default_factory=dict)

    def arguments(self, command: Command, out: Path) -> list[str]:
        text = ["--calibration", str(self.folder / "text.txt"), "--tokens", "2048", "--window", "64"]
        options = ["--keep", "0.7", "--recipe", command.recipe, "--ranks", command.ranks]
        return ["compress", str(self.folder / command.files), "-o", str(out), *options, *text]

    def start(self, command: Command, out: Path) -> subprocess.Popen[str]:
        """Begin the command in a process of its own."""
        return subprocess.Popen(
            [*executable(), *self.arguments(command, out)],
            env=os.environ | {"OMP_NUM_THREADS": str(command.threads), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def undisturbed(self, command: Command) -> Undisturbed:
        """A run of the same command, watched from outside."""
        if command not in self.results:
            out = self.folder / "undisturbed"
            for _ in range(ATTEMPTS):
                seen = self._watch(command, out)
                files = tree(out)
                shutil.rmtree(out)
                if "sealed" in seen:  # on a busy machine the journal may be gone before its last line was read
                    break
            assert "sealed" in seen
            self._note(command, seen, files)
        return self.results[command]

    def undisturbed_here(self, command: Command) -> Undisturbed:
        """The same without a process of its own, which saves the loading of torch."""
        assert command.threads == torch.get_num_threads() == 1
        out = self.folder / "undisturbed"
        seen: dict[str, float] = {}
        real = Journal._append

        def append(journal: Journal, handle: IO[bytes], entry: dict[str, object]) -> None:
            real(journal, handle, entry)
            if "step" in entry or "header" in entry:
                seen[str(entry.get("step", "header"))] = time.monotonic()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "_append", append)
            outcome = cli(*self.arguments(command, out))
        assert outcome.code == 0, outcome.err
        self._note(command, seen | {"end": time.monotonic()}, tree(out))
        shutil.rmtree(out)
        return self.results[command]

    def _note(self, command: Command, seen: dict[str, float], files: dict[str, bytes]) -> None:
        times = list(seen.values())
        seconds = {piece: now - past for piece, past, now in zip(seen, [times[0], *times], times, strict=False)}
        self.results[command] = Undisturbed(files, list(seen), seconds)

    def _watch(self, command: Command, out: Path) -> dict[str, float]:
        """When each piece was on record, in their order."""
        process, tail = self.start(command, out), Tail(out)
        seen: dict[str, float] = {}
        for now in watched(process):
            seen |= {piece: now for piece in tail.pieces() if piece not in seen}
        seen["end"] = time.monotonic()
        assert process.returncode == 0, process.communicate()
        process.communicate()
        return seen


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    for files in ("single", "sharded"):
        write_model(LlamaConfig, SIZES, folder / files)
    shard(folder / "sharded", 60_000)
    calibration_text(folder / "text.txt", 16)
    return Ground(folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# ---- watching and killing -------------------------------------------------------------------------------------------


def watched(process: subprocess.Popen[str]) -> Iterator[float]:
    """The time, again and again until the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < deadline, "the command does not end"
        yield time.monotonic()
        time.sleep(0.0003)


def pieces_of(out: Path) -> list[str]:
    """The pieces on record; the header counts as the first."""
    try:
        raw = (work_folder(out) / JOURNAL).read_bytes()
    except FileNotFoundError:
        return []
    lines = [json.loads(line.partition(b" ")[2]) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]
    return [line.get("step", "header") for line in lines if "step" in line or "header" in line]


class Tail:
    """A journal that is looked at very often and read only when it has grown."""

    def __init__(self, out: Path) -> None:
        self._out, self._size, self._pieces = out, 0, list[str]()

    def pieces(self) -> list[str]:
        """The pieces on record."""
        try:
            size = (work_folder(self._out) / JOURNAL).stat().st_size
        except FileNotFoundError:
            return self._pieces
        if size != self._size:
            self._size, self._pieces = size, pieces_of(self._out) or self._pieces
        return self._pieces


def stage_after(out: Path, expected: Undisturbed) -> str:
    """The stage that a killed run was in."""
    if not work_folder(out).exists():
        return "ended" if out.exists() else "start"
    pieces = pieces_of(out)
    if not pieces:
        return "rename" if out.exists() else "start"
    following = expected.pieces[len(pieces)]
    assert expected.pieces[: len(pieces)] == pieces
    return "rename" if following == "end" else stage_of(following)


def piece_in(stage: str, expected: Undisturbed, recorded: list[str], draw: random.Random) -> str:
    """One of the pieces of a stage that are not on record yet."""
    left = [piece for piece in expected.pieces if piece not in (*recorded, "header")]
    return draw.choice([piece for piece in left if (stage_of(piece) if piece != "end" else "rename") == stage])


def send(process: subprocess.Popen[str], number: signal.Signals, out: Path, count: int, wait: float) -> None:
    """Send a signal ``wait`` seconds after the journal holds so many pieces; the process is over afterwards."""
    due: float | None = None
    tail = Tail(out)
    for now in watched(process):
        if due is None and len(tail.pieces()) >= count:
            due = now + wait
        if due is not None and now >= due:
            process.send_signal(number)
            break
    process.wait(timeout=PATIENCE)


def whole_or_absent(out: Path, expected: Undisturbed) -> None:
    """No output ever looks finished and is not."""
    if out.exists():
        assert tree(out) == expected.files


def ended(code: int, said: str, out: Path, expected: Undisturbed) -> None:
    assert code == 0, said
    found = tree(out)
    assert sorted(found) == sorted(expected.files)
    assert [name for name in found if found[name] != expected.files[name]] == []
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def finish(ground: Ground, command: Command, out: Path, expected: Undisturbed) -> None:
    """Let a process of its own go on from where the killed one was."""
    nothing_left = out.exists() and not (work_folder(out) / JOURNAL).exists()
    process = ground.start(command, out)
    _, said = process.communicate(timeout=PATIENCE)
    if nothing_left:  # killed when all was done but for an empty folder
        assert "is not empty" in said
        whole_or_absent(out, expected)
    else:
        ended(process.returncode, said, out, expected)


def disturb(
    ground: Ground, command: Command, out: Path, stage: str, number: signal.Signals, draw: random.Random
) -> tuple[subprocess.Popen[str], list[str]]:
    """Run the command until a signal meets it in a stage; the process, and the stages that earlier signals fell into.

    A signal may come too late on a busy machine. Then the run is ended, checked, and begun anew.
    """
    expected, fallen = ground.undisturbed(command), []
    for _ in range(ATTEMPTS):
        piece = piece_in(stage, expected, pieces_of(out), draw)
        place, wait = expected.pieces.index(piece), draw.random() * expected.seconds[piece]
        if piece == "end":  # most of that time the process only says what it did
            wait = draw.random() * 0.004
        process = ground.start(command, out)
        send(process, number, out, place, wait)
        whole_or_absent(out, expected)
        fallen.append(stage_after(out, expected))
        if fallen[-1] == stage and process.returncode != 0:
            return process, fallen
        process.communicate()
        if work_folder(out).exists():
            finish(ground, command, out, expected)
        shutil.rmtree(out)
    raise AssertionError(f"no signal met the stage {stage}: {fallen}")


# ---- killed ---------------------------------------------------------------------------------------------------------


def drawn() -> list[tuple[Command, str]]:
    """A stage for every command, each stage about equally often."""
    draw = random.Random(SEED)
    bag: list[str] = []
    found = []
    for command in GRID:
        while not set(bag) & set(command.stages):
            bag += STAGES
        stage = draw.choice([stage for stage in bag if stage in command.stages])
        bag.remove(stage)
        found.append((command, stage))
    return found


def test_the_draw_goes_through_all_stages() -> None:
    stages = [stage for _, stage in drawn()]
    assert len(stages) == 24
    assert all(stages.count(stage) >= 4 for stage in STAGES), stages


def test_killed_in_every_stage_of_one_run(ground: Ground, out: Path) -> None:
    command, draw = Command("svd-llm", "uniform", "sharded", 1), random.Random(SEED)
    expected = ground.undisturbed_here(command)
    for stage in STAGES[:3]:
        process, fallen = disturb(ground, command, out, stage, signal.SIGKILL, draw)
        print(f"{command}: killed in {fallen}")
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        process.communicate()
    outcome = cli(*ground.arguments(command, out))
    ended(outcome.code, outcome.err, out, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "stage"), drawn(), ids=str)
def test_killed_at_a_random_moment(ground: Ground, out: Path, command: Command, stage: str) -> None:
    draw = random.Random(f"{SEED}/{command}")
    process, fallen = disturb(ground, command, out, stage, signal.SIGKILL, draw)
    print(f"{command}: killed in {fallen}")
    assert process.returncode == -signal.SIGKILL
    process.communicate()
    finish(ground, command, out, ground.undisturbed(command))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_killed_again_and_again(ground: Ground, out: Path, threads: int) -> None:
    """Every run is killed after it has recorded some more pieces, until one gets through."""
    command, draw = Command("svd-llm", "allocated", "single", threads), random.Random(SEED + threads)
    expected = ground.undisturbed(command)
    fallen: list[str] = []
    while True:
        before = len(pieces_of(out))
        wanted = before + draw.randint(1, len(expected.pieces) // 5)
        process = ground.start(command, out)
        if wanted >= len(expected.pieces):
            break
        wait = draw.random() * expected.seconds[expected.pieces[wanted]]
        send(process, signal.SIGKILL, out, wanted, wait)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        whole_or_absent(out, expected)
        fallen.append(stage_after(out, expected))
        if out.exists() and not work_folder(out).exists():  # killed when all was done: the result is whole
            assert len(fallen) >= 3
            return
        assert len(pieces_of(out)) > before
    _, said = process.communicate(timeout=PATIENCE)
    ended(process.returncode, said, out, expected)
    print(f"{command}: killed in {fallen}")
    assert len(fallen) >= 3


# ---- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[:3])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_stopped_at_a_random_moment(ground: Ground, out: Path, stage: str, number: signal.Signals, code: int) -> None:
    command = Command("svd-llm", "allocated", "sharded", 1)
    process, _ = disturb(ground, command, out, stage, number, random.Random(f"{SEED}/{stage}/{number}"))
    said = process.communicate()
    assert process.returncode == code, said
    assert said == ("", "eckart: stopped; the same command goes on from here\n")
    assert list(work_folder(out).rglob("*.part")) == []
    finish(ground, command, out, ground.undisturbed(command))


# ---- two at once ----------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_until_the_first_is_killed(ground: Ground, out: Path) -> None:
    """The sentence names the process that holds the folder; a lock file that a killed process left refuses nobody."""
    command = Command("svd", "uniform", "single", 1)
    process = ground.start(command, out)
    lock = work_folder(out) / LOCK
    try:
        for _ in watched(process):
            if lock.exists() and lock.read_bytes() == str(process.pid).encode():
                process.send_signal(signal.SIGSTOP)
                break
        for options in ((), ("--restart",)):
            before = tree(work_folder(out))
            second = cli(*ground.arguments(command, out), *options)
            assert second.code == 2
            assert second.sentence == (
                f"{work_folder(out)} is in use by another run (process {process.pid}): "
                "wait for it, or choose another output"
            )
            assert tree(work_folder(out)) == before
    finally:
        process.kill()
        process.communicate()
    assert lock.read_bytes() == str(process.pid).encode()
    outcome = cli(*ground.arguments(command, out))
    assert outcome.code == 0, outcome.err
    assert [p.name for p in out.parent.iterdir()] == [out.name]
