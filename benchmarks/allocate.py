"""What allocators reach and what they cost: expected loss, certified gap and time at several budgets.

    [ECKART_DATA=DIR] python benchmarks/allocate.py

A hundred matrices of the sizes of a 7 B Llama, whose squared singular values fall like powers of different exponents; and, where
``ECKART_DATA`` names the data sets, every weight matrix of a trained Llama of 8 M parameters, its loss at rank r being the sum of
the squared singular values from r on. The table is ``results/allocate.md``. Half a minute on one core.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from machine import facts
from safetensors import safe_open

from eckart.allocate import Allocation, Allocator, EqualMarginalLoss, Exact, Greedy, Slot, Uniform, total_bytes
from eckart.linalg import singular_values

RESULT = Path(__file__).parent / "results" / "allocate.md"
ALLOCATORS: Mapping[str, Allocator] = {
    "Uniform": Uniform(),
    "Greedy": Greedy(),
    "EqualMarginalLoss": EqualMarginalLoss(),
    "Exact, 100,000 nodes": Exact(nodes=100_000),
    "Exact": Exact(),
}
KEPT = (0.1, 0.2, 0.4, 0.6, 0.8)
SHAPES = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(11008, 4096)] * 2 + [(4096, 11008)]


def powers(count: int = 100) -> dict[str, Slot]:
    """Matrices of sizes as in a Llama with grouped queries, squared singular values like k^-a, a from 0.3 to 2.5."""
    rng = random.Random(0)
    slots = {}
    for i in range(count):
        m, n = SHAPES[i % len(SHAPES)]
        squares = torch.arange(1, min(m, n) + 1, dtype=torch.float64).pow(-rng.uniform(0.3, 2.5))
        losses = 10 ** rng.uniform(-1, 1) * torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
        slots[f"w{i:03d}"] = Slot(rows=m, columns=n, itemsize=2, losses=losses)
    return slots


def trained(folder: Path) -> dict[str, Slot]:
    """The weight matrices of a checkpoint and the energies of their truncations."""
    slots = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            if weight.ndim == 2:
                m, n = weight.shape
                slots[name] = Slot(rows=m, columns=n, itemsize=2, losses=singular_values(weight).tails())
    return slots


def loss(slots: Mapping[str, Slot], allocation: Allocation) -> float:
    found = ((slots[name].losses, rank) for name, rank in allocation.ranks.items() if rank is not None)
    return math.fsum(float(losses[rank]) for losses, rank in found if losses is not None)


def rows(slots: Mapping[str, Slot]) -> Iterator[str]:
    whole = total_bytes(slots, dict.fromkeys(slots))
    yield "| kept | allocator | loss | above the best, at most | gap | seconds |"
    yield "|---|---|---|---|---|---|"
    for kept in KEPT:
        found = {}
        for name, allocator in ALLOCATORS.items():
            begun = time.process_time()
            allocation = allocator(slots, int(kept * whole))
            found[name] = (loss(slots, allocation), allocation.gap, time.process_time() - begun)
        exact, left, _ = found["Exact"]
        for name, (lost, gap, seconds) in found.items():
            above = f"{(lost - exact + (left or 0.0)) / exact:.1e}"
            reported = "none" if gap is None else f"{gap / lost:.1e}"
            yield f"| {kept} | {name} | {lost:.6g} | {above} | {reported} | {seconds:.2f} |"


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    problems = {"100 matrices of a 7 B Llama's sizes, powers of different exponents": powers()}
    if data := os.environ.get("ECKART_DATA"):
        problems["The weights of a trained Llama of 8 M parameters"] = trained(Path(data) / "wikitext2_llama_8m")
    lines = ["# Allocators", "", *(f"{key}: {value}  " for key, value in facts().items()), ""]
    lines += [
        "Seconds of one core; excess and gap relative to the loss. *Above the best, at most* is certain: it counts in what the exact",
        "answer may itself be above the best. *Gap* is what the allocator says of itself without knowing the exact answer.",
    ]
    for title, slots in problems.items():
        choices = sum(slot.max_rank + 1 for slot in slots.values())
        lines += ["", f"## {title}", "", f"{len(slots)} matrices, {choices} choices.", "", *rows(slots)]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
