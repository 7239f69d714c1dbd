"""Intruder dimensions: how many a fine-tune grows, and what scaling them down does to what it forgets.

    ECKART_DATA=DIR python benchmarks/intruders.py --scratch WORK

LoRAs of several ranks and all weights, trained as in ``adapters.py`` on the 8M Llama and Shakespeare's plays, at the rate that is the
best one there, with three seeds. Of the ten leading left singular vectors of every changed weight those that no vector of before comes
near (a product of 0.6) intrude. Each is scaled: ``W + (scale - 1) s u v^T`` (Shuttleworth and others 2024). Runs are lines in
``results/intruders.jsonl`` and are not repeated; the table is ``results/intruders.md``.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from adapters import SEEDS, STEPS, Run, judged, read_runs, trained  # noqa: E402
from machine import facts  # noqa: E402
from tuning_runs import complete  # noqa: E402
from tuning_tasks import Task  # noqa: E402

from eckart.model.adapting.modules import matrix_of, put_matrix  # noqa: E402
from eckart.model.surgery import intruding  # noqa: E402

TASK = "llama-shakespeare"
MADE = (("full", 8), ("lora", 1), ("lora", 8), ("lora", 64))
SIMILAR, LEADING = 0.6, 10
SCALES = (1.0, 0.7, 0.3, 0.0)
LONGER = 2  # times the steps of the comparison: what intrudes grows with training


def perform(task: Task, run: Run) -> list[dict[str, Any]]:
    """What a training left of the text of before, at each scale of its intruders."""
    made, told = trained(task, run, LONGER * STEPS[TASK])
    before = {name: matrix_of(adapter.base).double().clone() for name, adapter in made.adapters.items()}
    model = made.merge()
    after = {name: matrix_of(model.get_submodule(name)).double().clone() for name in before}
    numbers: dict[str, int] = {}
    pieces: dict[str, Tensor] = {}
    for name, weight in after.items():
        there = (intruding(before[name], weight, LEADING) < SIMILAR).nonzero().flatten()
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        numbers[name], pieces[name] = len(there), (u[:, there] * s[there]) @ v[there]
    found: dict[str, Any] = {"intruders": statistics.mean(numbers.values()), "numbers": told["numbers"]}
    for scale in SCALES:
        for name, weight in after.items():
            put_matrix(model.get_submodule(name), weight + (scale - 1) * pieces[name])
        found[f"at {scale:g}"] = judged(task, model)
    return [found | {"commit": facts()["commit"]}]


def best_rate(recipe: str) -> float:
    """The rate with the lowest loss on the examples that choose it, in the comparison."""
    by_rate: dict[float, list[float]] = {}
    for run, result in read_runs().items():
        if (run.task, run.recipe, run.equal) == (TASK, recipe, "rank") and "choose" in result:
            by_rate.setdefault(run.rate, []).append(result["choose"])
    return min((statistics.mean(losses), rate) for rate, losses in by_rate.items() if len(losses) == len(SEEDS))[1]


def table(lines: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    text = ["# What intrudes", ""]
    text += [f"{key}: {value}  " for key, value in facts().items()]
    text += [
        "",
        f"{TASK}, {LONGER * STEPS[TASK]} steps at the best rate of the comparison, means of three seeds. *intruders*: of the {LEADING}",
        f"leading left singular vectors of a changed weight those whose products with all of before are below {SIMILAR}, the mean over",
        "weights. *learnt* is the loss on Shakespeare's plays, *before* the one on WikiText-2, which the model learnt first, both in nats",
        "per token, where the intruders are scaled down by so much.",
        "Written by `benchmarks/intruders.py`.",
        "",
        f"| | rate | intruders | {' | '.join(f'learnt, {s:g} | before, {s:g}' for s in SCALES)} |",
        "|" + "---|" * (3 + 2 * len(SCALES)),
    ]
    for recipe, rank in MADE:
        own = [line for line in lines if (line["run"]["recipe"], line["run"]["rank"]) == (recipe, rank)]
        if not own:
            continue
        cells = [recipe if recipe == "full" else f"{recipe}, rank {rank}", f"{own[0]['run']['rate']:g}"]
        cells.append(f"{statistics.mean(line['intruders'] for line in own):.2f}")
        for scale in SCALES:
            for key in ("judge", "remembered"):
                cells.append(f"{statistics.mean(line[f'at {scale:g}'][key] for line in own):.4f}")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    RUNS = [Run(TASK, recipe, rank, "rank", best_rate(recipe), seed) for recipe, rank in MADE for seed in SEEDS]
    complete(__doc__, "intruders", RUNS, perform, table)
