"""Every prefix of what runs do to the disk: a rerun ends in the same bytes, and no output ever looks finished and is not.

After a killed process everything up to the prefix is there; after a power cut names and data that were not synced may
be lost, in part or altogether (``recording.Disk``).
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from recording import Contents, Disk, Operation, contents, lay_out, recording
from runs import CALIBRATED, Outcome, calibration_text, cli, tiny, tree

from eckart.model.journal import JOURNAL, LOCK
from eckart.model.output import work_folder

RECIPES = ("svd", "svd-llm")
RUNS = {recipe: ("--recipe", recipe) for recipe in RECIPES} | {"densify": ("densify",)}
# What lasted of the names and of the data that were not synced.
CUTS = (("none", "none"), ("all", "none"), ("all", "torn"), ("none", "all"), ("some", "some"), ("some", "all"))
# The fast tests take every so manyth state.
STEP = {"svd": 6, "svd-llm": 29, "densify": 3}


@dataclass
class Stage:
    """A folder in which runs are recorded and states are laid out, a model, and results of undisturbed runs."""

    folder: Path
    results: dict[tuple[str, ...], dict[str, bytes]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.folder / "disk"

    @property
    def out(self) -> Path:
        """In a folder that a run has to make."""
        return self.root / "new" / "out"

    def command(self, *options: str) -> list[object]:
        if options == RUNS["densify"]:
            return ["densify", self.folder / "small", "-o", self.out]
        text = ("--calibration", self.folder / "text.txt", *CALIBRATED)
        return ["compress", self.folder / "model", "-o", self.out, "--keep", "0.7", *text, *options]

    def lay_out(self, found: Contents) -> None:
        """Make the folder hold this and nothing else."""
        shutil.rmtree(self.root, ignore_errors=True)
        lay_out(self.root, found)

    def record(self, *options: str, before: Contents | None = None) -> list[Operation]:
        """What a run does to the disk."""
        self.lay_out(before or {})
        with recording(self.root) as operations:
            outcome = cli(*self.command(*options))
        assert outcome.code == 0, outcome.err
        return operations

    def undisturbed(self, *options: str) -> dict[str, bytes]:
        """The files of an undisturbed run."""
        if options not in self.results:
            self.lay_out({})
            outcome = cli(*self.command(*options))
            assert outcome.code == 0, outcome.err
            self.results[options] = tree(self.out)
        return self.results[options]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    tiny(folder / "model")
    calibration_text(folder / "text.txt")
    small = ("-o", folder / "small", "--keep", "0.7", "--recipe", "svd")
    assert cli("compress", tiny(folder / "sharded", sharded=True), *small).code == 0
    return Stage(folder)


@dataclass(frozen=True)
class State:
    """What a crash left; ``name`` says after how many operations, and which crash."""

    name: str
    found: Contents


def killed(operations: list[Operation], before: Contents) -> Iterator[State]:
    """What kills leave, between operations and in the middle of writes."""
    disk = Disk(before)
    yield State("killed after 0", disk.seen())
    for count, operation in enumerate(operations):
        half = operation.half() if operation.kind == "write" else None
        if half is not None:
            disk.do(half)
            yield State(f"killed within {count}: {operation.kind} {operation.path}", disk.seen())
        disk.do(operation)
        yield State(f"killed after {count + 1}: {operation.kind} {operation.path}", disk.seen())


def cut(operations: list[Operation], before: Contents) -> Iterator[State]:
    """What power cuts leave."""
    disk = Disk(before)
    for count, operation in enumerate(operations):
        disk.do(operation)
        for names, data in CUTS:
            name = f"cut after {count + 1}, {names} names, {data} data: {operation.kind} {operation.path}"
            yield State(name, disk.after_a_power_cut(names, data, random.Random(f"{count}/{names}/{data}")))


def different(states: Iterator[State]) -> list[State]:
    """One state of each kind; what stands in the lock file makes no difference."""
    kinds: dict[bytes, State] = {}
    for state in states:
        digest = hashlib.sha256()
        for name, data in sorted(state.found.items()):
            digest.update(f"{name} {data is None} {len(data or b'')}\n".encode())
            digest.update(b"" if Path(name).name == LOCK else data or b"")
        kinds.setdefault(digest.digest(), state)
    return list(kinds.values())


def is_finished(stage: Stage, expected: dict[str, bytes]) -> bool:
    """Whether the output is there; if it is, it has to be whole."""
    if not stage.out.exists():
        return False
    assert tree(stage.out) == expected
    return True


def ended(stage: Stage, outcome: Outcome, expected: dict[str, bytes]) -> None:
    assert outcome.code == 0, outcome.err
    assert is_finished(stage, expected)
    assert [p.name for p in stage.out.parent.iterdir()] == [stage.out.name]


def goes_on(stage: Stage, state: State, expected: dict[str, bytes], *options: str) -> None:
    """The same command ends in the same bytes, or finds that it was finished."""
    stage.lay_out(state.found)
    finished = is_finished(stage, expected)
    recorded = (work_folder(stage.out) / JOURNAL).exists()
    outcome = cli(*stage.command(*options))
    if finished and not recorded:  # only an empty folder may be left to remove
        assert outcome.code == 2
        assert outcome.sentence == f"{stage.out} is not empty: choose another output directory, or empty it"
        assert is_finished(stage, expected)
        return
    ended(stage, outcome, expected)


def visit(stage: Stage, states: list[State], *options: str) -> None:
    """Let the command go on from every state, and tell of all in which it does not."""
    expected = stage.undisturbed(*options)
    failures = []
    for state in states:
        try:
            goes_on(stage, state, expected, *options)
        except AssertionError as error:
            failures.append(f"{state.name}: {str(error)[:300]}")
    assert failures == []


# ---- the record -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_record_repeated_is_what_the_run_left(stage: Stage, recipe: str) -> None:
    operations = stage.record("--recipe", recipe)
    disk = Disk({})
    for operation in operations:
        disk.do(operation)
    assert disk.seen() == contents(stage.root)
    assert {"create", "write", "sync", "rename", "unlink", "mkdir", "rmdir"} <= {o.kind for o in operations}
    assert len(operations) > (75 if recipe == "svd" else 200)


@pytest.mark.parametrize("run", RUNS)
def test_a_finished_run_outlasts_a_power_cut(stage: Stage, run: str) -> None:
    """Also where the folder that holds the output was made by the run."""
    operations = stage.record(*RUNS[run])
    expected = tree(stage.out)
    disk = Disk({})
    for operation in operations:
        disk.do(operation)
    for names, data in CUTS:
        stage.lay_out(disk.after_a_power_cut(names, data, random.Random(0)))
        assert is_finished(stage, expected), (names, data)


def test_a_planted_operation_that_is_not_noted_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="that was not noted"), recording(tmp_path):  # noqa: PT012
        (tmp_path / "noted").mkdir()
        with open(tmp_path / "noted" / "secret", "w") as handle:
            handle.write("x")


def test_what_was_not_synced_is_lost(tmp_path: Path) -> None:
    """The disk itself: data lasts from the sync of the file on, names from the sync of the folder on."""
    disk = Disk({"old": b"1234"})
    draw = random.Random(0)

    def left(names: str, data: str) -> Contents:
        return disk.after_a_power_cut(names, data, draw)

    disk.do(Operation("create", "new"))
    disk.do(Operation("write", "new", 0, b"abcd"))
    disk.do(Operation("write", "old", 2, b"xxxx"))
    assert disk.seen() == {"old": b"12xxxx", "new": b"abcd"}
    assert left("none", "none") == {"old": b"1234"}
    assert left("all", "none") == {"old": b"1234", "new": b""}
    assert left("all", "torn") == {"old": b"12xx", "new": b"ab"}
    assert left("none", "all") == {"old": b"12xxxx"}
    disk.do(Operation("sync", "new"))
    assert left("none", "none") == {"old": b"1234"}
    assert left("all", "none") == {"old": b"1234", "new": b"abcd"}
    disk.do(Operation("rename", "new", to="old"))
    assert left("none", "none") == {"old": b"1234"}
    assert left("all", "none") == {"old": b"abcd"}
    disk.do(Operation("sync", "."))
    assert left("none", "none") == {"old": b"abcd"} == disk.seen()


# ---- every prefix ---------------------------------------------------------------------------------------------------


Crash = Callable[[list[Operation], Contents], Iterator[State]]


@pytest.mark.parametrize("crash", [killed, cut])
@pytest.mark.parametrize("run", RUNS)
def test_some_prefixes(stage: Stage, run: str, crash: Crash) -> None:
    states = different(crash(stage.record(*RUNS[run]), {}))
    step = STEP[run]
    visit(stage, states[step // 2 :: step], *RUNS[run])


@pytest.mark.slow
@pytest.mark.parametrize("crash", [killed, cut])
@pytest.mark.parametrize("run", RUNS)
def test_every_prefix(stage: Stage, run: str, crash: Crash) -> None:
    states = different(crash(stage.record(*RUNS[run]), {}))
    visit(stage, states, *RUNS[run])


# ---- begun anew -----------------------------------------------------------------------------------------------------


def sealed(stage: Stage, *options: str) -> Contents:
    """What a run leaves that is killed when all is ready, just before the rename; with a file of another model in it."""
    disk = Disk({})
    for operation in stage.record(*options):
        if operation.kind == "rename" and operation.to.endswith("/out"):
            break
        disk.do(operation)
    found = disk.seen()
    result = f"new/{work_folder(stage.out).name}/result"
    assert found[result] is None
    return found | {f"{result}/model-00002-of-00002.safetensors": b"another model's"}


@pytest.mark.parametrize("crash", [killed, cut])
def test_some_prefixes_of_a_restart(stage: Stage, crash: Crash) -> None:
    """Work files of the run that was thrown away never get into the result, whatever a crash left of them."""
    before = sealed(stage, "--recipe", "svd-llm", "--ranks", "uniform")
    recorded = stage.record("--recipe", "svd", "--restart", before=before)
    early = next(i for i, o in enumerate(recorded) if o.path.endswith("safetensors.part"))
    expected = stage.undisturbed("--recipe", "svd")
    for state in different(crash(recorded[: early + 1], before)):
        stage.lay_out(state.found)
        outcome = cli(*stage.command("--recipe", "svd"))
        if outcome.code:
            assert "holds an unfinished run with another" in outcome.sentence, state.name
            assert outcome.sentence.endswith("begin anew with --restart"), state.name
            outcome = cli(*stage.command("--recipe", "svd", "--restart"))
        ended(stage, outcome, expected)


def test_work_files_without_a_record_are_thrown_away(stage: Stage) -> None:
    found = sealed(stage, "--recipe", "svd")
    stage.lay_out({name: data for name, data in found.items() if Path(name).name != JOURNAL})
    ended(stage, cli(*stage.command("--recipe", "svd")), stage.undisturbed("--recipe", "svd"))


# ---- a plan between -------------------------------------------------------------------------------------------------


def until(operations: list[Operation], step: str) -> list[Operation]:
    """The operations up to the sync of the line that records a piece."""
    line = next(i for i, o in enumerate(operations) if o.path.endswith(JOURNAL) and f'"{step}"'.encode() in o.data)
    return operations[: line + 2]


UNIFORM = ("--recipe", "svd-llm", "--ranks", "uniform")


@pytest.mark.parametrize("finished", ["fit/original-0", "fit/original-1"])
def test_a_plan_that_is_killed_in_the_middle_of_a_run(stage: Stage, finished: str) -> None:
    """The plan walks the model again, over files of hidden states that the run has on record."""
    disk = Disk({})
    for operation in until(stage.record(*UNIFORM), finished):
        disk.do(operation)
    before = disk.seen()
    states = different(killed(stage.record(*UNIFORM, "--dry-run", before=before), before))
    visit(stage, states[::4], *UNIFORM)


# ---- after the rename -----------------------------------------------------------------------------------------------


def test_an_empty_work_folder_beside_a_finished_output_is_no_run(stage: Stage) -> None:
    """A kill just before the folder itself is removed; the refusal must not begin a run in it."""
    expected = stage.undisturbed("--recipe", "svd")
    stage.lay_out({"new": None, "new/out": None} | {f"new/out/{name}": data for name, data in expected.items()})
    work_folder(stage.out).mkdir()
    outcome = cli(*stage.command("--recipe", "svd"))
    assert outcome.sentence == f"{stage.out} is not empty: choose another output directory, or empty it"
    assert is_finished(stage, expected)
    assert tree(work_folder(stage.out)) == {}


def test_an_output_that_was_taken_away_before_the_end_is_named(stage: Stage) -> None:
    """Killed after the rename; before the command was repeated the output went elsewhere."""
    disk = Disk({})
    for operation in stage.record("--recipe", "svd"):
        disk.do(operation)
        if operation.kind == "rename" and operation.to.endswith("/out"):
            break
    stage.lay_out(disk.seen())
    shutil.rmtree(stage.out)
    outcome = cli(*stage.command("--recipe", "svd"))
    if outcome.code:
        assert str(stage.out) in outcome.sentence
        assert outcome.sentence.endswith("begin anew with --restart")
        outcome = cli(*stage.command("--recipe", "svd", "--restart"))
    ended(stage, outcome, stage.undisturbed("--recipe", "svd"))
