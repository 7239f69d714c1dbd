"""Runs that are killed at chosen points and repeated: the same bytes as an undisturbed run, or a refusal that says why."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import (
    CALIBRATED,
    SEQUENTIAL,
    Killer,
    Outcome,
    calibration_text,
    cli,
    edit_json,
    edit_tensor,
    executable,
    tiny,
    tree,
)

import eckart
from eckart.errors import EckartError
from eckart.model import engine
from eckart.model.output import work_folder

# With the embedding and the head there are pieces outside of the blocks, and every candidate has an embedding of its own.
OUTSIDE = ("--only", "q_proj", "--only", "embed_tokens", "--only", "lm_head")
VARIANTS: dict[str, tuple[str, ...]] = {
    "svd": ("--recipe", "svd"),
    "svd everywhere": ("--recipe", "svd", *OUTSIDE),
    "asvd": ("--recipe", "asvd"),
    "svd-llm": (),
    "svd-llm everywhere": OUTSIDE,
    "svd-llm uniform": ("--ranks", "uniform"),
    "sequential": ("--recipe", "sequential.toml"),
    "sequential uniform": ("--recipe", "sequential.toml", "--ranks", "uniform"),
}
BONDS: dict[str, tuple[str, ...]] = {
    key: ("--recipe", key)
    for key in ("modegpt", "slicegpt", "slicegpt-per-norm", "greedy-output", "comp", "shortgpt", "shrink-width")
}
BONDS["modegpt allocated"] = ("--recipe", "modegpt", "--ranks", "allocated")
BONDS["by loss"] = ("--recipe", "by loss.toml")
BY_LOSS = """
[depth]
part = "LeastLoss"
[hidden]
part = "Select"
[hidden.score]
part = "SecondMoment"
[hidden.correct]
part = "Tune"
[allocate]
part = "GreedyByLoss"
steps = 4
"""
# Of other formats than factors, with what is called for every matrix.
FORMATS: dict[str, str] = {
    "magnitude": "prune:Prune",
    "wanda": "prune:Prune",
    "sparsegpt": "prune:BrainSurgeon",
    "eora": "compensated:Compensated",
    "curing": "columns_rows:ColumnsRows",
}
# One group of keys and values, which may take that of the first block: maps are shared whole.
HEADS = {"head-sharing": ("--recipe", "head-sharing", "--keep", "0.85")}
APPEND = "eckart.model.journal:Journal._append"
CALIBRATION = {"function": "eckart.model.walk:Walk._call", "call": 2, "when": "after"}
DECOMPOSITION = {"function": "eckart.approx.low_rank:LowRank.prepare", "call": 3, "when": "after"}
WRITE = {"function": "eckart.model.output:_tensor", "call": 20, "when": "before"}
REST = {"function": "eckart.model.output:copy_companions", "call": 1, "when": "before"}
RENAME = {"function": "eckart.model.output:move_into_place", "call": 1, "when": "before"}


@dataclass(frozen=True)
class Ground:
    """A model and a text in a folder, and what undisturbed runs made of them."""

    folder: Path
    results: dict[str, dict[str, bytes]]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    def command(self, out: Path, variant: str, *changes: object, model: Path | None = None) -> list[object]:
        """The command line; of an option that is given twice the last one counts."""
        own = (VARIANTS | BONDS | HEADS).get(variant, ("--recipe", variant))
        options = [str(self.folder / o) if o.endswith(".toml") else o for o in own]
        text = ("--calibration", self.text, *CALIBRATED)
        return ["compress", model or self.model, "-o", out, "--keep", "0.7", *text, *options, *changes]

    def undisturbed(self, variant: str) -> dict[str, bytes]:
        """The files of an undisturbed run."""
        if variant not in self.results:
            out = self.folder / "undisturbed"
            outcome = cli(*self.command(out, variant))
            assert outcome.code == 0, outcome.err
            self.results[variant] = tree(out)
            shutil.rmtree(out)
        return self.results[variant]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    tiny(folder / "model", sharded=True)
    calibration_text(folder / "text.txt")
    (folder / "sequential.toml").write_text(SEQUENTIAL.format("EqualMarginalLoss"))
    (folder / "by loss.toml").write_text(BY_LOSS)
    return Ground(folder, {})


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def was_killed(outcome: Outcome, out: Path) -> None:
    assert outcome.code == -9, outcome
    assert not out.exists()
    assert work_folder(out).is_dir()


def ended(outcome: Outcome, out: Path, expected: dict[str, bytes]) -> None:
    assert outcome.code == 0, outcome.err
    found = tree(out)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def steps(out: Path) -> list[str]:
    """The finished pieces in the journal of an unfinished run."""
    lines = (work_folder(out) / "journal.jsonl").read_text().splitlines()
    return [entry["step"] for entry in (json.loads(line.partition(" ")[2]) for line in lines) if "step" in entry]


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "finished", "unfinished"),
    [
        (CALIBRATION, "survey/forward-0", "survey/forward-1"),
        (CALIBRATION | {"call": 4}, "survey/backward-1", "survey/backward-0"),
        (DECOMPOSITION | {"call": 10}, "fit/original-0", "fit/original-1"),
        (CALIBRATION | {"call": 8}, "judge/allocated/0", "judge/allocated/1"),
        (WRITE, "write/model-00001-of-00003.safetensors", "sealed"),
        (REST, "write/model-00003-of-00003.safetensors", "sealed"),
        (RENAME, "sealed", "none"),
    ],
    ids=["calibration", "sensitivity", "decomposition", "judge", "write", "rest", "rename"],
)
def test_killed_once_and_repeated(
    ground: Ground, killer: Killer, out: Path, place: dict[str, Any], finished: str, unfinished: str
) -> None:
    command = ground.command(out, "svd-llm")
    was_killed(killer(*command, **place), out)
    assert finished in steps(out)
    assert unfinished not in steps(out)
    ended(killer(*command), out, ground.undisturbed("svd-llm"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_in_every_stage_of_one_run(ground: Ground, killer: Killer, out: Path, variant: str) -> None:
    command = ground.command(out, variant)
    stages = [DECOMPOSITION, WRITE, REST, RENAME]
    if "svd-llm" in variant or variant == "asvd":
        stages = [CALIBRATION | {"call": 1}, CALIBRATION, *stages]
    for place in stages:
        was_killed(killer(*command, **place), out)
    ended(killer(*command), out, ground.undisturbed(variant))


@pytest.mark.parametrize("recipe", FORMATS)
def test_killed_among_the_matrices_of_a_block(ground: Ground, killer: Killer, out: Path, recipe: str) -> None:
    command = [*ground.command(out, recipe), "--keep", "0.75"]
    prepare = {"function": f"eckart.approx.{FORMATS[recipe]}.prepare", "call": 9, "when": "after"}
    for place in (prepare, WRITE):
        was_killed(killer(*command, **place), out)
    assert cli(*ground.command(out.parent / "peace", recipe), "--keep", "0.75").code == 0
    expected = tree(out.parent / "peace")
    shutil.rmtree(out.parent / "peace")
    ended(killer(*command), out, expected)


@pytest.mark.parametrize(
    ("variant", "at_least"),
    [
        ("svd-llm", 28),
        ("sequential uniform", 8),
        ("modegpt", 15),
        pytest.param("modegpt allocated", 15, marks=pytest.mark.slow),
        ("slicegpt", 12),
        ("slicegpt-per-norm", 12),
        ("greedy-output", 8),
        pytest.param("by loss", 30, marks=pytest.mark.slow),
        ("head-sharing", 7),
    ],
)
def test_killed_at_every_line_of_the_journal(
    ground: Ground, killer: Killer, out: Path, variant: str, at_least: int
) -> None:
    """Every run finishes one line and is killed in the middle of the next; the last one only ends."""
    command = ground.command(out, variant)
    expected = ground.undisturbed(variant)
    place = {"function": APPEND, "call": 2, "when": "torn"}
    kills, before = 0, -1
    while (outcome := killer(*command, **place)).code != 0:
        was_killed(outcome, out)
        raw = (work_folder(out) / "journal.jsonl").read_bytes()
        assert raw.count(b"\n") == before + 1 or before == -1
        assert not raw.endswith(b"\n")
        before, kills = raw.count(b"\n"), kills + 1
        assert kills < 200
    assert kills >= at_least
    ended(outcome, out, expected)


LINES = {"shrink-width": 7}  # that a journal has at least: this one reads no text and fits nothing


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("variant", ["svd-llm", "svd-llm everywhere", "sequential", *BONDS])
def test_killed_at_any_one_line_of_the_journal(
    ground: Ground, killer: Killer, out: Path, variant: str, when: str
) -> None:
    command = ground.command(out, variant)
    expected = ground.undisturbed(variant)
    for call in range(1, 200):
        outcome = killer(*command, function=APPEND, call=call, when=when)
        if outcome.code == 0:
            break
        was_killed(outcome, out)
        ended(killer(*command), out, expected)
        shutil.rmtree(out)
    assert call > LINES.get(variant, 12)


def test_killed_between_the_rename_and_the_end(ground: Ground, killer: Killer, out: Path) -> None:
    """The result is whole; the same command says so instead of finding its own output in the way."""
    command = ground.command(out, "svd")
    assert killer(*command, **RENAME | {"when": "after"}).code == -9
    ended(killer(*command), out, ground.undisturbed("svd"))


def test_killed_while_the_work_folder_is_removed(ground: Ground, killer: Killer, out: Path) -> None:
    command = ground.command(out, "svd")
    place = {"function": "os:unlink", "call": 2, "when": "after"}
    assert killer(*command, **place).code == -9
    ended(killer(*command), out, ground.undisturbed("svd"))


def test_the_installed_command_killed_at_any_moment(ground: Ground, out: Path) -> None:
    command = [*executable(), *map(str, ground.command(out, "svd-llm"))]
    journal = work_folder(out) / "journal.jsonl"
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # as the tests themselves; the number is part of what is promised
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alone)
    deadline = time.monotonic() + 120
    while not (journal.exists() and b"survey/forward-0" in journal.read_bytes()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not out.exists()
    outcome = cli(*ground.command(out, "svd-llm"))
    ended(outcome, out, ground.undisturbed("svd-llm"))


# ---- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(
    "place",
    [CALIBRATION, DECOMPOSITION, WRITE, {"function": "eckart.model.journal:_sync", "call": 4, "when": "before"}],
    ids=["calibration", "decomposition", "write", "record"],
)
def test_stopped_by_a_signal_and_repeated(
    ground: Ground, killer: Killer, out: Path, place: dict[str, Any], signal: str, code: int
) -> None:
    command = ground.command(out, "svd-llm")
    outcome = killer(*command, **place, signal=signal)
    assert outcome.code == code, outcome.err
    assert outcome.sentence == "stopped; the same command goes on from here"
    assert not out.exists()
    assert [p.name for p in work_folder(out).rglob("*.part")] == []
    ended(killer(*command), out, ground.undisturbed("svd-llm"))


# ---- changed --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(ground: Ground, killer: Killer, out: Path) -> Path:
    """The output of a run that was killed in the middle of its calibration."""
    was_killed(killer(*ground.command(out, "svd-llm"), **CALIBRATION), out)
    return out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--keep", "0.6"), ["keep", "0.7", "0.6"]),
        (("--seed", "1"), ["seed"]),
        (("--recipe", "svd"), ["recipe", "calibration"]),
        (("--recipe", "asvd"), ["recipe", "ActivationScale"]),
        (("--ranks", "uniform"), ["recipe", "Uniform"]),
        (("--only", "q_proj"), ["only", "q_proj"]),
        (("--exclude", "q_proj"), ["exclude", "q_proj"]),
        (("--tokens", "128"), ["calibration", "128"]),
        (("--window", "16"), ["calibration", "window"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_changed_option_is_refused(
    ground: Ground, unfinished: Path, changes: tuple[str, ...], named: list[str]
) -> None:
    before = tree(work_folder(unfinished))
    outcome = cli(*ground.command(unfinished, "svd-llm", *changes))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in [*named, "--restart"]), outcome.sentence
    assert tree(work_folder(unfinished)) == before
    assert not unfinished.exists()
    ended(cli(*ground.command(unfinished, "svd-llm")), unfinished, ground.undisturbed("svd-llm"))


def test_bytes_in_place_of_keep_are_refused(ground: Ground, unfinished: Path) -> None:
    command = ground.command(unfinished, "svd-llm")
    where = command.index("--keep")
    command[where : where + 2] = ["--bytes", "55000"]
    outcome = cli(*command)
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in ("bytes", "55000", "keep", "0.7", "--restart"))


def test_another_calibration_text_is_refused(ground: Ground, unfinished: Path, tmp_path: Path) -> None:
    other = calibration_text(tmp_path / "other.txt", repeat=5)
    outcome = cli(*ground.command(unfinished, "svd-llm", "--calibration", other))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in ("calibration", "sha256", "--restart")), outcome.sentence


def copied(ground: Ground, folder: Path) -> Path:
    """The model once more; the place of a model is no part of what is recorded."""
    return Path(shutil.copytree(ground.model, folder / "copy"))


def test_the_same_model_in_another_place_goes_on(ground: Ground, unfinished: Path, tmp_path: Path) -> None:
    outcome = cli(*ground.command(unfinished, "svd-llm", model=copied(ground, tmp_path)))
    assert outcome.code == 0, outcome.err
    assert tree(unfinished) == ground.undisturbed("svd-llm")


def test_a_changed_weight_file_is_refused(ground: Ground, unfinished: Path, tmp_path: Path) -> None:
    model = copied(ground, tmp_path)
    edit_tensor(model, "model.norm.weight", lambda tensor: tensor * 2)
    outcome = cli(*ground.command(unfinished, "svd-llm", model=model))
    assert outcome.code == 2
    named = ("source", ".safetensors", "--restart")
    assert all(word in outcome.sentence for word in named), outcome.sentence


def test_a_changed_config_is_refused(ground: Ground, unfinished: Path, tmp_path: Path) -> None:
    model = copied(ground, tmp_path)
    edit_json(model / "config.json", lambda table: table.update(rms_norm_eps=1e-3))
    outcome = cli(*ground.command(unfinished, "svd-llm", model=model))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in ("source", "config.json", "--restart")), outcome.sentence


def test_a_changed_tokenizer_is_refused(ground: Ground, unfinished: Path, tmp_path: Path) -> None:
    """It decides the calibration tokens, so one half of the run would have seen others than the other half."""
    model = copied(ground, tmp_path)
    edit_json(model / "tokenizer.json", lambda table: table["model"].update(merges=table["model"]["merges"][:10]))
    outcome = cli(*ground.command(unfinished, "svd-llm", model=model))
    assert outcome.code == 2, "the changed tokenizer was not noticed"
    assert "--restart" in outcome.sentence


def test_another_version_is_refused(ground: Ground, unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = engine.environment()
    monkeypatch.setattr(engine, "environment", lambda: now | {"eckart": "9.9"})
    outcome = cli(*ground.command(unfinished, "svd-llm"))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in ("eckart", "9.9", "--restart"))
    monkeypatch.setattr(engine, "environment", lambda: now | {"threads": 7})
    assert "threads" in cli(*ground.command(unfinished, "svd-llm")).sentence


def test_a_changed_work_file_is_refused(ground: Ground, unfinished: Path) -> None:
    path = work_folder(unfinished) / "original-0001.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    outcome = cli(*ground.command(unfinished, "svd-llm"))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in (str(path), "--restart"))


def test_restart_throws_the_unfinished_run_away(ground: Ground, unfinished: Path) -> None:
    changed = ground.command(unfinished, "svd-llm", "--recipe", "svd")
    assert cli(*changed).code == 2
    ended(cli(*changed, "--restart"), unfinished, ground.undisturbed("svd"))


def test_restart_without_an_unfinished_run_is_a_run(ground: Ground, out: Path) -> None:
    ended(cli(*ground.command(out, "svd"), "--restart"), out, ground.undisturbed("svd"))


HOLD = """
import fcntl, sys
handle = open(sys.argv[1], "a")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("options", [(), ("--restart",)], ids=["again", "restart"])
def test_a_run_that_is_still_going_on_is_left_alone(ground: Ground, unfinished: Path, options: tuple[str, ...]) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work_folder(unfinished) / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        before = tree(work_folder(unfinished))
        outcome = cli(*ground.command(unfinished, "svd-llm", *options))
        assert outcome.code == 2
        assert "is in use by another run" in outcome.sentence
        assert tree(work_folder(unfinished)) == before
    finally:
        other.kill()
        other.communicate()


# ---- planned --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plan_before_a_run_changes_nothing(ground: Ground, out: Path, variant: str) -> None:
    command = ground.command(out, variant)
    first = cli(*command, "--dry-run", "--json")
    assert first.code == 0, first.err
    assert not out.exists()
    assert cli(*command, "--dry-run", "--json").out == first.out
    ended(cli(*command), out, ground.undisturbed(variant))


@pytest.mark.parametrize(
    ("variant", "place"),
    [
        ("svd-llm", CALIBRATION),
        ("svd-llm", DECOMPOSITION | {"call": 10}),
        ("svd-llm", WRITE),
        ("svd-llm uniform", CALIBRATION),
        ("svd-llm uniform", WRITE),
        ("sequential", DECOMPOSITION | {"call": 10}),
        ("sequential uniform", RENAME),
        ("svd", RENAME),
    ],
)
def test_a_plan_in_the_middle_changes_nothing(
    ground: Ground, killer: Killer, out: Path, variant: str, place: dict[str, Any]
) -> None:
    command = ground.command(out, variant)
    was_killed(killer(*command, **place), out)
    planned = cli(*command, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    ended(cli(*command), out, ground.undisturbed(variant))
    shutil.rmtree(out)
    assert cli(*command, "--dry-run", "--json").out == planned.out


# ---- the same in Python ---------------------------------------------------------------------------------------------


def test_the_python_call_goes_on_where_the_command_was_killed(ground: Ground, unfinished: Path) -> None:
    arguments: dict[str, Any] = {"calibration": ground.text, "tokens": 256, "window": 32}
    with pytest.raises(EckartError, match=r"keep .*--restart"):
        eckart.compress(ground.model, unfinished, keep=0.5, **arguments)
    done = eckart.compress(ground.model, unfinished, keep=0.7, **arguments)
    assert done.folder == unfinished
    assert tree(unfinished) == ground.undisturbed("svd-llm")


def test_the_python_call_can_restart(ground: Ground, unfinished: Path) -> None:
    eckart.compress(ground.model, unfinished, keep=0.7, recipe="svd", restart=True)
    assert tree(unfinished) == ground.undisturbed("svd")
