"""The command line: help with examples, options that are relied on, JSON for machines, progress only for people."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import CALIBRATED, calibration_text, cli, executable, tiny
from typer.main import get_command

import eckart
from eckart.adapt import RECIPES as ADAPTERS
from eckart.cli.commands import parse_size
from eckart.cli.main import app
from eckart.cli.reports import print_recipes, print_spectra
from eckart.model.walk import Walk

# What scripts of users may rely on: an option that leaves this table breaks them.
OPTIONS: dict[str, set[str]] = {
    "compress": {
        "--output", "-o", "--keep", "--bytes", "--recipe", "--ranks", "--only", "--exclude", "--calibration", "--tokens",
        "--window", "--seed", "--device", "--quick", "--dry-run", "--restart", "--json",
    },
    "heal": {
        "--teacher", "--output", "-o", "--text", "--steps", "--match", "--train", "--rank", "--rate", "--batch-tokens",
        "--window", "--seed", "--device", "--restart", "--json",
    },
    "verify": {"--against", "--calibration", "--json"},
    "densify": {"--output", "-o", "--restart", "--json"},
    "restore": {"--original", "--output", "-o", "--restart", "--json"},
    "eval": {"--text", "--window", "--device", "--json"},
    "inspect": {"--only", "--exclude", "--json"},
    "bonds": {"--json"},
    "bench layers": {"--shape", "--batch", "--repeats", "--json"},
    "adapt": {
        "--data", "--output", "-o", "--recipe", "--rank", "--steps", "--batch", "--accumulate", "--rate", "--warm-up", "--decay",
        "--dropout", "--length", "--held-out", "--judge", "--patience", "--save", "--labels", "--only", "--exclude",
        "--export-rank", "--uniform", "--seed", "--bfloat16", "--sweep", "--seeds", "--tensorboard", "--restart", "--json",
    },
    "lora resize": {
        "--output", "-o", "--rank", "--energy", "--error", "--bytes", "--uniform", "--alpha", "--json",
    },
    "lora extract": {
        "--output", "-o", "--rank", "--energy", "--error", "--bytes", "--only", "--exclude", "--calibration",
        "--tokens", "--window", "--seed", "--uniform", "--json",
    },
    "lora inspect": {"--base", "--leading", "--threshold", "--alpha", "--json"},
    "lora add": {
        "--output", "-o", "--weights", "--rank", "--energy", "--error", "--bytes", "--uniform", "--alpha", "--json",
    },
    "lora lift": {"--from", "--to", "--output", "-o", "--uniform", "--alpha", "--json"},
    "merge-adapter": {"--output", "-o", "--alpha", "--restart", "--json"},
    "recipes": {"--json"},
    "demo": {"--output", "-o", "--keep"},
}  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    tiny(folder / "model")
    calibration_text(folder / "text.txt")
    outcome = cli(
        "compress",
        folder / "model",
        "-o",
        folder / "small",
        "--keep",
        "0.7",
        "--calibration",
        folder / "text.txt",
        *CALIBRATED,
    )
    assert outcome.code == 0, outcome.err
    return folder


def commands() -> dict[str, Any]:
    """By the words that call them."""
    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {sub}": entry for sub, entry in inner.items()}
    return found


def test_the_commands_and_their_options_are_those_that_users_rely_on() -> None:
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        for name, command in commands().items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_explains_itself(name: str) -> None:
    outcome = cli(*name.split(), "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert all(option in outcome.out for option in OPTIONS[name])
    if OPTIONS[name] != OPTIONS["demo"]:
        assert re.search(r"Examples?:", outcome.out)
        assert f"eckart {name}" in outcome.out
    parameters = [p for p in commands()[name].params if p.name != "help"]
    assert [p.name for p in parameters if not p.help] == []


def test_without_a_command_the_help_is_shown() -> None:
    outcome = cli()
    assert outcome.code == 2
    assert all(name.split()[0] in outcome.out + outcome.err for name in OPTIONS)
    assert cli("--help").code == 0
    assert "Exit codes" in cli("--help").out


def test_the_version() -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"eckart {eckart.__version__}\n")


# ---- JSON -----------------------------------------------------------------------------------------------------------


def strict(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_of_a_plan_and_of_its_run_agree(ground: Path, tmp_path: Path) -> None:
    command = ["compress", ground / "model", "-o", tmp_path / "out", "--keep", "0.6", "--recipe", "svd", "--json"]
    planned, done = strict(cli(*command, "--dry-run").out), strict(cli(*command).out)
    assert planned["target_bytes"] == done["target_bytes"]
    assert planned["file_bytes"] == done["file_bytes"]
    assert planned["scratch_bytes"] == 0
    for plan, made in zip(planned["matrices"], done["matrices"], strict=True):
        same = ("name", "shape", "operator", "rank", "bytes")
        assert [plan[key] for key in same] == [made[key] for key in same]
        relative = made["bounds"][0]["achieved"] / made["bounds"][0]["scale"]
        assert plan["predicted_error"] == pytest.approx(relative, rel=1e-4)
    recorded = json.loads((tmp_path / "out" / "eckart.json").read_text())
    assert done["matrices"] == recorded["matrices"]
    assert done["untouched"] == recorded["untouched"]
    assert done["file_bytes"]["after"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert done["peak_memory"] > 10**7


def test_json_of_the_other_commands(ground: Path, tmp_path: Path) -> None:
    model, small, text = ground / "model", ground / "small", ground / "text.txt"
    assert strict(cli("verify", small, "--against", model, "--json").out)["holds"] is True
    scores = strict(cli("eval", small, "--text", text, "--json").out)
    (score,) = eckart.evaluate(small, [text]).values()
    assert scores == {str(text): {"tokens": score.tokens, "mean_nll": score.mean, "perplexity": score.perplexity}}
    rows = strict(cli("inspect", model, "--json").out)
    assert len(rows) >= 14
    made = strict(cli("densify", small, "-o", tmp_path / "dense", "--json").out)
    assert made == {"folder": str(tmp_path / "dense")}
    keys = [entry["key"] for entry in strict(cli("recipes", "--json").out)]
    assert keys == [*eckart.RECIPES, *ADAPTERS]
    one = strict(cli("recipes", "svd-llm", "--json").out)
    assert one["key"] == "svd-llm"
    assert one["paper"]["link"] == "arXiv:2403.07378"
    assert set(one["needs"]) == {"gram", "sensitivity"}
    assert one["deviations"]


def test_numbers_that_json_has_no_name_for(tmp_path: Path) -> None:
    """A zero matrix has no condition number."""
    from runs import edit_tensor

    model = tiny(tmp_path / "model")
    edit_tensor(model, "model.layers.0.self_attn.q_proj.weight", lambda tensor: tensor * 0)
    assert strict(cli("inspect", model, "--json").out)
    done = strict(cli("compress", model, "-o", tmp_path / "out", "--keep", "0.5", "--recipe", "svd", "--json").out)
    zero = next(m for m in done["matrices"] if m["name"].endswith("0.self_attn.q_proj"))
    assert [bound["achieved"] for bound in zero["bounds"]] == [0.0] * len(zero["bounds"])
    holds = cli("verify", tmp_path / "out", "--against", model)
    assert holds.code == 0, holds.err


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_the_table_says_sizes_losses_and_place(ground: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["compress", ground / "model", "-o", out, "--keep", "0.7", "--calibration", ground / "text.txt"]
    told = cli(*command, *CALIBRATED).out
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
        assert re.search(rf"^{re.escape(name)} +\d+ x \d+ +(\d+|dense) +", told, re.MULTILINE)
    assert re.search(r"linear maps +[\d.]+ kB -> +[\d.]+ kB", told)
    assert re.search(r"weight files +[\d.]+ kB -> +[\d.]+ kB", told)
    assert re.search(r"nats per token on the calibration text: original [\d.]+, allocated [\d.]+, uniform [\d.]+", told)
    assert re.search(r"(allocated ranks were kept|allocated ranks came out worse than uniform ones, so uniform)", told)
    assert re.search(r"left as it is: .*model.embed_tokens.*: outside of the blocks", told)
    assert re.search(r"peak memory [\d.]+ [MG]B", told)
    assert f"written to {out}" in told


@pytest.mark.parametrize("command", ["inspect", "verify", "densify"])
def test_peak_memory_is_told(ground: Path, tmp_path: Path, command: str) -> None:
    folder = ground / ("model" if command == "inspect" else "small")
    told = cli(command, folder, *(("-o", tmp_path / "dense") if command == "densify" else ())).out
    assert re.search(r"^peak memory \d{3}\.\d MB|^peak memory \d+\.\d GB", told, re.MULTILINE)


def test_several_texts_are_told_apart(ground: Path, tmp_path: Path) -> None:
    other = calibration_text(tmp_path / "other.txt", repeat=2)
    told = cli("eval", ground / "small", "--text", ground / "text.txt", "--text", other).out
    assert "text.txt" in told
    assert "other.txt" in told


def test_a_text_shorter_than_a_window(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The miller keeps the grain.")
    scores = strict(cli("eval", ground / "small", "--text", tmp_path / "short.txt", "--json").out)
    (score,) = scores.values()
    assert 1 < score["tokens"] < 63
    assert 0 < score["mean_nll"] < 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_a_narrow_terminal_loses_nothing(ground: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Every name, heading and figure stands there in one piece, whatever the width."""
    found = eckart.inspect(ground / "small")
    shown = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", shown)
    print_spectra(found)
    print_recipes(list(eckart.RECIPES.values()))
    monkeypatch.undo()
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    words = set(text.replace("\u00a0", " ").split())
    assert {"effective", "condition", "exponent", "stable", "deviations", *eckart.RECIPES} <= words
    assert {made.make().paper.link for made in eckart.RECIPES.values()} <= words
    for row in found.rows:
        (line,) = [
            line
            for line in text.splitlines()
            if (line and row.name.endswith(f".{line.split()[0]}")) or row.name in line
        ]
        assert f"{row.spectrum.stable_rank:.4g}" in line.split()
        assert f"{row.spectrum.effective_rank:.4g}" in line.split()
        assert str(row.spectrum.rank_for(0.999)) in line.split()


# ---- progress -------------------------------------------------------------------------------------------------------


def test_no_progress_where_nobody_looks(ground: Path, tmp_path: Path) -> None:
    command = ["compress", ground / "model", "-o", tmp_path / "out", "--keep", "0.7", "--recipe", "svd"]
    done = subprocess.run([*executable(), *map(str, command)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout


def test_progress_with_time_left_on_a_terminal(ground: Path, tmp_path: Path) -> None:
    command = ["compress", ground / "model", "-o", tmp_path / "out", "--keep", "0.7"]
    text = ("--calibration", ground / "text.txt", *CALIBRATED)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*executable(), *map(str, (*command, *text))],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    assert process.stdout is not None
    shown, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 0.2)
        try:
            shown += os.read(leader, 65536) if ready else b""
        except OSError:  # the other end was closed
            break
        if process.poll() is not None and not ready:
            break
    assert process.wait(timeout=60) == 0
    assert b"written to" in process.stdout.read()
    for stage in (b"measure", b"sensitivity", b"fit", b"write", b"left"):
        assert stage in shown


def test_a_reader_that_goes_away_is_no_error(ground: Path) -> None:
    command = [*executable(), "inspect", str(ground / "model")]
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    done = subprocess.run(command, stdout=reader.stdin, stderr=subprocess.PIPE, text=True, check=False)
    reader.communicate()
    assert "Traceback" not in done.stderr


# ---- the room that a plan announces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "files"), [("allocated", 2 + 3), ("uniform", 2)])
def test_a_plan_says_how_much_room_hidden_states_take(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: str, files: int
) -> None:
    """Two blocks: their inputs, their output and two gradients at once, or input and output of one; 4 bytes a number."""
    out = tmp_path / "out"
    command = ["compress", ground / "model", "-o", out, "--keep", "0.7", "--ranks", ranks]
    text = ("--calibration", ground / "text.txt", *CALIBRATED)
    planned = strict(cli(*command, *text, "--dry-run", "--json").out)
    tokens, width = 256, 16
    assert planned["scratch_bytes"] == files * tokens * width * 4
    most = 0
    real = Walk._finish

    def watched(walk: Walk, target: Any, path: Path) -> None:
        nonlocal most
        real(walk, target, path)
        most = max(most, sum(p.stat().st_size for p in path.parent.glob("*.bin")))

    monkeypatch.setattr(Walk, "_finish", watched)
    assert cli(*command, *text, "--restart").code == 0
    assert most == planned["scratch_bytes"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("7b", 7),
        ("2kB", 2_000),
        ("12MB", 12_000_000),
        ("1.5 GB", 1_500_000_000),
        ("1TB", 10**12),
        ("3KiB", 3_072),
        ("2 MiB", 2_097_152),
        ("1.5GiB", 1_610_612_736),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory_is_told_in_a_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def starving(**_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["eckart.cli.main"], "app", starving)
    outcome = cli("recipes")
    assert outcome.code == 2
    assert outcome.sentence.startswith("out of memory: close other programs")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_other_code_makes_an_error_of_is_still_one(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiled code that was called back into answers with errors of its own.
    def swallow(*, standalone_mode: bool) -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(sys.modules["eckart.cli.main"], "app", swallow)
    outcome = cli("compress")
    assert (outcome.code, outcome.sentence) == (code, "stopped; the same command goes on from here")


def test_without_a_signal_an_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, standalone_mode: bool) -> None:
        raise ValueError("no signal was sent")

    monkeypatch.setattr(sys.modules["eckart.cli.main"], "app", fail)
    with pytest.raises(ValueError, match="no signal was sent"):
        cli("compress")
