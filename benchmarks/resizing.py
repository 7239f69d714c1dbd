"""A LoRA that was trained at rank 64 and brought to 32, beside one that was trained at 32.

    ECKART_DATA=DIR python benchmarks/resizing.py --scratch WORK

Both are swept over rates with three seeds, as in ``adapters.py``, on the 8M Llama and Shakespeare's plays. Runs are lines in
``results/resizing.jsonl``, and are not repeated; the table is ``results/resizing.md``. Beside the losses stands how many of the ten
leading singular vectors of each changed weight are none of the leading ones of before: intruder dimensions.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from adapters import RATES, SEEDS, STEPS, Run, judged, trained  # noqa: E402
from machine import facts  # noqa: E402
from tuning_runs import complete  # noqa: E402
from tuning_tasks import Task  # noqa: E402

from eckart.adapt import Wrapped  # noqa: E402
from eckart.linalg import truncated_svd  # noqa: E402
from eckart.model.adapting.modules import matrix_of  # noqa: E402
from eckart.model.surgery import intruding  # noqa: E402
from eckart.operator import Factors  # noqa: E402

TASK = "llama-shakespeare"
LARGE, SMALL = 64, 32
SIMILAR, LEADING = 0.6, 10  # a vector none of whose products with those of before is larger intrudes


def intruders(made: Wrapped) -> float:
    """The mean number of intruder dimensions of a weight."""
    found = []
    for adapter in made.adapters.values():
        weight = matrix_of(adapter.base).double()
        largest = intruding(weight, weight + adapter.update.dense().double(), LEADING)
        found.append(int((largest < SIMILAR).sum()))
    return statistics.mean(found)


def shrink(made: Wrapped, rank: int) -> None:
    """Put the best factors of a smaller rank in the place of those of each adapter."""
    for adapter in made.adapters.values():
        product = Factors(adapter.params["left"].detach().double(), adapter.params["right"].detach().double())
        best = truncated_svd(product, rank, accuracy=0.0, dtype=torch.float64).op
        assert isinstance(best, Factors)
        for side, factor in (("left", best.left), ("right", best.right)):
            setattr(adapter, side, torch.nn.Parameter(factor.float()))


def perform(task: Task, run: Run) -> list[dict[str, Any]]:
    """The results of a training at a rank, and where it is the large one of the small one made of it."""
    made, told = trained(task, run, STEPS[TASK])
    told |= {"commit": facts()["commit"]}
    found = [{"made": f"trained at {run.rank}", **told, **judged(task, made.model), "intruders": intruders(made)}]
    if run.rank == LARGE:
        shrink(made, SMALL)
        found.append({"made": f"{LARGE} to {SMALL}", **told, **judged(task, made.model), "intruders": intruders(made)})
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    text = ["# A LoRA of rank 64 brought to 32", ""]
    text += [f"{key}: {value}  " for key, value in facts().items()]
    text += [
        "",
        f"{TASK}, {STEPS[TASK]} steps, means of three seeds. The rate is chosen on examples of their own. *intruders*: of the",
        f"{LEADING} leading singular vectors of a changed weight those that are nowhere near one of before (products below {SIMILAR}),",
        "the mean over weights.",
        "Written by `benchmarks/resizing.py`.",
        "",
        "| | rate | loss | spread | on the corpus of before | intruders | best rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for made in dict.fromkeys(line["made"] for line in lines):
        own = [line for line in lines if line["made"] == made and "diverged" not in line]
        by_rate = {rate: [line for line in own if line["run"]["rate"] == rate] for rate in RATES}
        by_rate = {rate: found for rate, found in by_rate.items() if len(found) == len(SEEDS)}
        best = min(by_rate, key=lambda rate: statistics.mean(line["choose"] for line in by_rate[rate]))
        for rate, found in by_rate.items():
            losses = [line["judge"] for line in found]
            cells = [made, f"{rate:g}", f"{statistics.mean(losses):.4f}", f"{max(losses) - min(losses):.4f}"]
            cells += [f"{statistics.mean(line[key] for line in found):.4f}" for key in ("remembered", "intruders")]
            text.append(f"| {' | '.join(cells)} | {'*' if rate == best else ''} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    RUNS = [Run(TASK, "lora", rank, "rank", rate, seed) for rank in (SMALL, LARGE) for rate in RATES for seed in SEEDS]
    complete(__doc__, "resizing", RUNS, perform, table)
