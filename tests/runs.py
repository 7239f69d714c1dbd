"""What the tests of whole runs share: a tiny checkpoint, the command line inside and outside of this process, edits.

``Killer`` runs commands in processes of their own that are killed, stopped or starved at a chosen point. Loading torch takes
seconds, so one process loads it and makes a copy of itself for every command; where copies are unsafe (macOS) each
command loads it anew.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models import SENTENCES, shard, write_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama import LlamaConfig

from eckart.cli import main
from eckart.model.output import work_folder

TESTS = Path(__file__).parent
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}
# A recipe whose statistics come from the compressed model; the allocator's name is to be filled in.
SEQUENTIAL = """
statistics = "compressed"
[metric]
part = "Gram"
[approx]
part = "LowRank"
[allocate]
part = "{}"
"""
# How the tests run a recipe: little text, short windows.
CALIBRATED = ("--tokens", "256", "--window", "32")


def tiny(directory: Path, *, sharded: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A Llama of two blocks and 14 linear maps, 60 kB."""
    made = write_model(LlamaConfig, SIZES, directory, dtype=dtype, seed=seed)
    return shard(made, 24_000) if sharded else made


def calibration_text(path: Path, repeat: int = 4) -> Path:
    """A text of about 300 tokens a repetition."""
    path.write_text("\n".join(SENTENCES) * repeat, encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def left_behind(out: Path) -> list[str]:
    """What a refused command left of its output and beside it."""
    return sorted(p.name for p in out.parent.iterdir() if p.name in (out.name, work_folder(out).name))


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a command that failed; fails itself if there was anything else."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("eckart: ")
        assert "Traceback" not in self.out
        return lines[0].removeprefix("eckart: ")


def cli(*arguments: object) -> Outcome:
    """Run the command line inside this process."""
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, signal.getsignal(signal.SIGTERM))
    sys.argv = ["eckart", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_exit() as exits:
            main()
    finally:
        sys.argv, handler = before
        signal.signal(signal.SIGTERM, handler)
    assert len(exits) == 1, "the command line ends in an exit code"
    return Outcome(exits[0], out.getvalue(), err.getvalue())


@contextlib.contextmanager
def no_exit() -> Iterator[list[int]]:
    """Note the exit code instead of leaving."""
    codes: list[int] = []
    try:
        yield codes
    except SystemExit as leaving:
        codes.append(leaving.code if isinstance(leaving.code, int) else 1)


def executable() -> list[str]:
    """How the installed command is called."""
    script = Path(sys.executable).parent / "eckart"
    return [str(script)] if script.exists() else [sys.executable, "-c", "from eckart.cli import main; main()"]


def refused(*arguments: object, out: Path | None = None, code: int = 2) -> str:
    """The sentence with which a command is refused; it must leave nothing behind at ``out``."""
    before = None if out is None else left_behind(out)
    outcome = cli(*arguments)
    assert outcome.code == code, (outcome.code, outcome.out, outcome.err)
    if out is not None:
        assert left_behind(out) == before
    return outcome.sentence


# ---- commands in processes of their own -----------------------------------------------------------------------------


class Killer:
    """Runs command lines in processes of their own, each with one disturbance at most.

    A disturbance is a table: ``function`` ("module:name") and ``call`` (which call of it, from 1; with ``argument`` only
    those that are given it) say where, ``when`` ("before", "after" or, for the journal's ``_append``, "torn" in the middle
    of the line) and ``signal`` say what; ``largest_file`` limits the size of files instead, as a full disk does.
    """

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "killed.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, *arguments: object, **disturbance: object) -> Outcome:
        """Run a command; keyword arguments are the disturbance."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"arguments": [str(a) for a in arguments], "disturbance": disturbance}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that runs commands is gone"
        return Outcome(**json.loads(answer))

    def until_done(self, *arguments: object, call: int = 2, when: str = "torn") -> Iterator[Outcome]:
        """Run a command again and again, each time killed at the ``call``-th line that it adds to its journal, to its end; every kill."""
        for _ in range(200):
            outcome = self(*arguments, function="eckart.model.journal:Journal._append", call=call, when=when)
            if outcome.code == 0:
                return
            assert outcome.code == -signal.SIGKILL, outcome.err
            yield outcome
        raise AssertionError("a run that is killed again and again gets no further")

    def close(self) -> None:
        """End the process that waits for commands."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


# ---- edits ----------------------------------------------------------------------------------------------------------


def file_of(folder: Path, tensor: str) -> Path:
    """The weight file that holds a tensor."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            if tensor in handle.keys():  # noqa: SIM118
                return path
    raise KeyError(tensor)


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite a safetensors file after ``change`` has edited its table of tensors."""
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
        table = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    change(table)
    save_file({name: tensor.contiguous() for name, tensor in table.items()}, path, metadata=metadata)


def edit_tensor(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Replace one tensor of a checkpoint; the new one."""
    made: list[Tensor] = []

    def edit(table: dict[str, Tensor]) -> None:
        table[name] = change(table[name].clone())
        made.append(table[name])

    edit_tensors(file_of(folder, name), edit)
    return made[0]


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrite a JSON file after ``change`` has edited its table in place."""
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")


def flip_byte(folder: Path, tensor: str) -> None:
    """Change one bit of a tensor's data within its file."""
    path = file_of(folder, tensor)
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[tensor]["data_offsets"]
    data[8 + length + (start + end) // 2] ^= 1
    path.write_bytes(data)
