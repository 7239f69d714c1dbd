"""The fast Walsh-Hadamard transform against the product with the dense matrix.

    python benchmarks/hadamard.py       a few minutes on one core

Both are the same orthonormal map of the same float32 vectors, on one thread, in process CPU time, medians of runs that
alternate. The table is ``results/hadamard.md``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Generator

from eckart.kernels.hadamard import hadamard, hadamard_transform

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402

SIZES = (1024, 4096, 5120, 10240, 11008, 11264, 14336, 28672)
VECTORS = 256
REPEATS = 5


def seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def row(n: int) -> str:
    """One line of the table: medians, their ratio, and how far the two results are apart."""
    x = torch.randn(VECTORS, n, generator=Generator().manual_seed(n))
    dense = hadamard(n).T.to(torch.float32).div_(math.sqrt(n))
    off = float((hadamard_transform(x) - x @ dense).norm() / x.norm())
    times = [(seconds(lambda: hadamard_transform(x)), seconds(lambda: x @ dense)) for _ in range(REPEATS)]
    fast, slow = (1000 * median(column) for column in zip(*times, strict=True))
    return f"| {n} | {n // (n & -n)} | {fast:.2f} | {slow:.1f} | {slow / fast:.0f} | {off:.0e} |"


def main() -> None:
    """Measure all sizes and write the table."""
    torch.set_num_threads(1)
    lines = ["# The fast Walsh-Hadamard transform", "", *(f"{key}: {value}  " for key, value in facts().items()), ""]
    lines += [
        f"{VECTORS} float32 vectors, milliseconds of process CPU time on one thread, medians of {REPEATS} alternating runs.",
        "*dense*: the product with the matrix, which is there already; *apart*: the difference of the results over their norm.",
        "Written by `benchmarks/hadamard.py`.",
        "",
        "| length | odd part | fast | dense | ratio | apart |",
        "|---|---|---|---|---|---|",
    ]
    for n in SIZES:
        lines.append(row(n))
        print(lines[-1], flush=True)
    (HERE / "results" / "hadamard.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
