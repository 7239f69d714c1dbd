"""How much memory the commands take on a checkpoint that is far larger, under a hard limit.

    python benchmarks/memory.py --gigabytes 6       writes the checkpoint, runs every command; about an hour on two cores

Every command runs in a process of its own whose anonymous memory (``RLIMIT_DATA``) is limited; the largest ``RssAnon``
is read from the kernel while it runs. Memory maps of files, which the kernel may drop at any time, are not counted. The
table is ``results/memory.md``.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from eckart.bundled import CALIBRATION
from eckart.model.files import human_bytes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402
from synthetic import Shape, make, of_size  # noqa: E402

LIMIT = 3 * 10**9


def measured(command: Sequence[str], limit: int) -> tuple[int, float, int, str]:
    """Exit code, seconds, largest anonymous resident memory, and what the command said on its error stream."""
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.05)
        said.seek(0)
        return process.returncode, time.monotonic() - begun, peak, said.read()


def anonymous(pid: int) -> int:
    """The anonymous resident memory of a process, in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def allowed(shape: Shape, *, calibrated: bool) -> int:
    """The promise: the largest block in float32, its statistics, and 1 GB."""
    block = 2 * sum(spec.nbytes for spec in shape.specs(0))
    widths = (shape.hidden_size, shape.hidden_size, shape.hidden_size, shape.intermediate_size)
    grams = sum(8 * width**2 for width in widths)  # inputs of q/k/v, of o, of gate/up, of down
    return block + (grams if calibrated else 0) + 10**9


def main() -> None:
    """Write the checkpoint, run the commands, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", type=Path, help="where the checkpoint lies or shall lie; a temporary folder")
    parser.add_argument("--tokens", default="2048")
    parser.add_argument("--blocks", type=int, default=8, help="how many blocks the calibrated recipe approximates")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, work = arguments.folder or Path(scratch) / "model", Path(scratch)
        shape = of_size(arguments.gigabytes)
        if not model.exists():
            make(model, shape)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        eckart = [sys.executable, "-c", "from eckart.cli import main; main()"]
        text = ["--calibration", str(CALIBRATION), "--tokens", arguments.tokens]
        only = [part for block in range(arguments.blocks) for part in ("--only", f"model.layers.{block}.*")]
        small, calibrated, dense = (str(work / name) for name in ("svd", "svd-llm", "dense"))
        commands = {
            "compress svd": ["compress", str(model), "-o", small, "--keep", "0.15", "--recipe", "svd"],
            "compress svd-llm": ["compress", str(model), "-o", calibrated, "--keep", "0.5", *text, *only],
            "inspect": ["inspect", str(model)],
            "verify svd": ["verify", small, "--against", str(model)],
            "verify svd-llm": ["verify", calibrated, "--against", str(model), "--calibration", str(CALIBRATION)],
            "densify": ["densify", small, "-o", dense],
        }
        lines = ["# Memory", "", *(f"{key}: {value}  " for key, value in facts().items()), ""]
        lines += [
            f"A checkpoint of {human_bytes(size)}, limit {human_bytes(LIMIT)} of anonymous memory.",
            "*promised*: the largest block in float32, its Gram matrices and 1 GB.",
            f"svd approximates every map; svd-llm, with allocated ranks and {arguments.tokens} tokens, walks through all blocks "
            f"and approximates {arguments.blocks} of them, since nothing but time depends on how many these are.",
            "",
            "| command | seconds | largest RssAnon in MB | promised | exit code |",
            "|---|---|---|---|---|",
        ]
        for name, command in commands.items():
            code, seconds, peak, said = measured([*eckart, *command], LIMIT)
            promise = allowed(shape, calibrated="svd-llm" in name)
            lines.append(f"| {name} | {seconds:.0f} | {peak / 1e6:,.0f} | {promise / 1e6:,.0f} | {code} |")
            print(lines[-1], said[-300:], flush=True)
            (HERE / "results" / "memory.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
