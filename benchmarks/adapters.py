"""What adapters learn and forget: every recipe over learning rates and seeds, at one rank and at one number of numbers that train.

    ECKART_DATA=DIR python benchmarks/adapters.py --scratch WORK                  all of it, a night on two cores
    ECKART_DATA=DIR python benchmarks/adapters.py --scratch WORK --task llama-shakespeare --part 0/2
    ECKART_DATA=DIR python benchmarks/adapters.py --scratch WORK --table          only write the table from the runs that are there

Every run is a line in ``results/adapters.jsonl``; runs that are there are not repeated. Rates are half decades; where the best one lies
at an end, the sweep goes on there. A rate is chosen by the loss on examples of its own, and judged on others. Forgetting is
what the loss on the corpus of before rises by. The table is ``results/adapters.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from machine import facts  # noqa: E402
from tuning_tasks import Task, tasks  # noqa: E402

from eckart.adapt import RECIPES, Adapt, Wrapped  # noqa: E402
from eckart.errors import EckartError  # noqa: E402
from eckart.model.adapting.search import Search  # noqa: E402
from eckart.model.adapting.wrap import begin_all, heads_of, install, targets_of  # noqa: E402
from eckart.recipes.adapters.others import flylora, moe_lora_riemannian, smt  # noqa: E402

RUNS = HERE / "results" / "adapters.jsonl"
RANK = 8
STEPS = {"stories-e2e": 100, "stories-shakespeare": 100, "llama-shakespeare": 60, "bert-sst2": 100}
BATCH = {"stories-e2e": 4, "stories-shakespeare": 4, "llama-shakespeare": 4, "bert-sst2": 16}
SEEDS = (0, 1, 2)
EQUALS = ("rank", "numbers")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FARTHEST = (1e-5, 1.0)  # how far a sweep goes on where its best is at an end
SHARED = 1e-3  # the rate at which all are compared besides
KNOWN = ("full", "lora", "rslora", "lora-plus", "dora", "pissa", "corda", "eva", "adalora", "vera", "lora-ga")
# They train within a model made of files, and in the place of an embedding: other tasks than these.
ELSEWHERE = ("loram", "loram-width", "semi-nmf-embeddings")
# Parts that are made for widths of thousands, as models of 64 and a rank of 8 ask for them.
MADE: Mapping[str, Callable[[], Adapt]] = {
    **RECIPES,
    "smt": lambda: smt(size=8),
    "flylora": lambda: flylora(active=2),
    "moe-lora-riemannian": lambda: moe_lora_riemannian(experts=4, top=2),
}
WARM = 0.05  # of the steps the rate rises, then falls as a cosine
ALIKE = 0.1  # numbers that are nearer than this to LoRA's are as many


@dataclass(frozen=True)
class Run:
    """What identifies a run; ``rank`` is RANK, or where ``equal`` says so the one at which about as many numbers train as in LoRA."""

    task: str
    recipe: str
    rank: int
    equal: str  # "rank" or "numbers"
    rate: float
    seed: int


def wrapped(task: Task, run: Run) -> tuple[Wrapped, float]:
    """The model with the recipe's adapters, and the processor's seconds that its start took."""
    model = task.model()
    recipe = MADE[run.recipe]()
    endless = task.batches(task.train, BATCH[task.name], 1000 + run.seed)
    batches = [dict(batch) for batch in islice(endless, recipe.batches)]
    begun = time.process_time()
    start = begin_all(model, recipe, targets_of(model), rank=run.rank, batches=batches, seed=run.seed)
    whole = heads_of(model) if task.labels else ()
    return install(model, recipe, start, rank=run.rank, whole=whole), time.process_time() - begun


def trained(task: Task, run: Run, steps: int) -> tuple[Wrapped, dict[str, Any]]:
    """An adapter after training, and what that took."""
    torch.manual_seed(run.seed)
    made, start = wrapped(task, run)
    model, state = made.model, made.begin()
    optimiser = torch.optim.AdamW(made.groups(run.rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _shape(step, steps))
    begun, curve = time.process_time(), []
    for step, batch in zip(range(1, steps + 1), task.batches(task.train, BATCH[task.name], run.seed), strict=False):
        model.train()
        made.watch(step, steps)
        found = model(**batch)
        (found.loss + made.output_penalty(batch, found.logits)).backward()
        if made.recipe.penalties:
            made.penalty().backward()
        made.rule()
        optimiser.step()
        state = made.scheduled(step, steps, state)
        schedule.step()
        optimiser.zero_grad()
        curve.append(round(float(found.loss.detach()), 4))
    used = (time.process_time() - begun) / steps
    return made, {"numbers": made.numbers, "start": start, "step": used, "curve": curve[:: max(1, steps // 20)]}


def perform(task: Task, run: Run, steps: int) -> dict[str, Any]:
    """Train one adapter; its losses, times and size."""
    made, told = trained(task, run, steps)
    return told | judged(task, made.model) | {"commit": facts()["commit"]}


def judged(task: Task, model: Any) -> dict[str, Any]:
    """Losses on what chooses the rate, on what judges, and on the corpus of before; that it diverged where one is no number."""
    (choose, _), (judge, right) = task.losses(model, task.choose), task.losses(model, task.judge)
    found = {"choose": choose, "judge": judge, "right": right, "remembered": task.remembered(model)}
    return found if all(map(math.isfinite, found.values())) else {"diverged": True}


def _shape(step: int, steps: int) -> float:
    warm = max(1, round(WARM * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def settings(task: Task, recipe: str) -> Iterator[tuple[str, int]]:
    """Where a recipe trains another number of numbers than LoRA at RANK, the rank at which it trains most nearly as many."""
    aim, own = _numbers(task, "lora", RANK), _numbers(task, recipe, RANK)
    searched = isinstance(MADE[recipe]().ranks, Search)  # how many train is what that finds out
    if own and aim and abs(own - aim) > ALIKE * aim and recipe != "full" and not searched:
        sizes = {rank: _numbers(task, recipe, rank) for rank in (1, 2, 3, 4, 5, 6, 10, 12, 16, 20, 24, 28, 32)}
        best = min((abs(math.log(n / aim)), rank) for rank, n in {**sizes, RANK: own}.items() if n)[1]
        if best != RANK and sizes[best] != own:
            yield "numbers", best


_COUNTED: dict[tuple[str, str, int], int | None] = {}


def _numbers(task: Task, recipe: str, rank: int) -> int | None:
    """How many numbers train, the head of a classifier apart; ``None`` where a rank is refused."""
    key = (task.name, recipe, rank)
    if key not in _COUNTED:
        try:
            made, _ = wrapped(task, Run(task.name, recipe, rank, "rank", SHARED, 0))
            head = sum(p.numel() for name in made.whole for p in made.model.get_submodule(name).parameters())
            _COUNTED[key] = made.numbers - head
        except EckartError:
            _COUNTED[key] = None
    return _COUNTED[key]


def sweep(task: str, recipe: str, equal: str, rank: int, there: Mapping[Run, dict[str, Any]]) -> Iterator[Run]:
    """The runs of a sweep that are missing; asked again after each of them, it goes on where the best rate is at an end.

    The first seed runs at every rate, the others where it matters: at the best rate, those beside it, and SHARED.
    """
    made = {
        run.rate
        for run, result in there.items()
        if (run.task, run.recipe, run.equal) == (task, recipe, equal) and "memory" not in result
    }
    rates = sorted({*RATES, *made})
    runs = {rate: [Run(task, recipe, rank, equal, rate, seed) for seed in SEEDS] for rate in rates}

    def best(among: list[float], seeds: int) -> float:
        return min(among, key=lambda rate: _mean([there[run] for run in runs[rate][:seeds]], "choose"))

    def missing(among: list[float], seeds: int) -> list[Run]:
        return [run for rate in among for run in runs[rate][:seeds] if run not in there]

    if first := missing(rates, 1):
        yield first[0]
        return
    at = best(rates, 1)
    while True:
        further = [_beside(end, by) for end, by in ((rates[0], -1), (rates[-1], 1)) if at == end]
        if further and FARTHEST[0] <= further[0] <= FARTHEST[1]:
            yield Run(task, recipe, rank, equal, further[0], 0)
            return
        near = [rate for rate in rates if abs(rates.index(rate) - rates.index(at)) <= 1 or rate == SHARED]
        if rest := missing(near, len(SEEDS)):
            yield rest[0]
            return
        whole = [rate for rate in rates if not missing([rate], len(SEEDS))]
        if (again := best(whole, len(SEEDS))) == at:
            return
        at = again


def _beside(rate: float, by: int) -> float:
    """The next half decade: 1 or 3 times a power of ten."""
    at = round(2 * math.log10(rate)) + by
    return float(f"{'1' if at % 2 == 0 else '3'}e{at // 2}")


def _mean(results: list[dict[str, Any]], key: str) -> float:
    return (
        math.inf if any("diverged" in found for found in results) else statistics.mean(found[key] for found in results)
    )


def read_runs() -> dict[Run, dict[str, Any]]:
    """The runs that are there."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    return {Run(**line["run"]): line["result"] for line in lines}


def write_run(run: Run, result: dict[str, Any]) -> None:
    """Add a run to those that are there."""
    RUNS.parent.mkdir(exist_ok=True)
    with RUNS.open("a") as handle:
        handle.write(json.dumps({"run": asdict(run), "result": result}) + "\n")


def memory(scratch: Path, task: str, recipe: str, rank: int) -> int | None:
    """Bytes that a process of its own takes for the model, the start and three steps, beyond what it has with libraries and data."""
    call = [sys.executable, __file__, "--scratch", str(scratch), "--probe", task, recipe, str(rank)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return None if done.returncode else int(done.stdout.split()[-1])


def probe(task: Task, recipe: str, rank: int) -> int:
    """By how much the resident memory of this process rises at the most; Linux alone tells."""
    trained(task, Run(task.name, "lora", 1, "rank", SHARED, 0), 3)  # what is loaded and made once stays out
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = _status("VmRSS")
    trained(task, Run(task.name, recipe, rank, "rank", SHARED, 0), 3)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def table(there: Mapping[Run, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["# What adapters learn and forget", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        "*loss* in nats (per token, or per text of the classifier) on examples that neither trained nor chose the rate: mean over three",
        "seeds at the best rate, and the spread (largest less smallest); *beside LoRA* the same over LoRA's; *at 1e-3* the loss at that",
        "rate. The first seed ran at every rate, the others at the best, beside it and at 1e-3. *forgets*: by how much the loss on the",
        "corpus of before rises. Times are of the processor, one thread. Recipes whose numbers are far from LoRA's stand there again,",
        "at the rank that trains most nearly as many (*equal* numbers). smt has blocks of 8 x 8, flylora 2 directions that act, and",
        "moe-lora-riemannian 4 experts of which 2 act; else all settings are the recipes' own.",
        "Written by `benchmarks/adapters.py`.",
    ]
    for task in dict.fromkeys(run.task for run in there):
        untouched = next(
            (result for run, result in there.items() if run.task == task and run.recipe == "untouched"), None
        )
        lines += ["", f"## {task}", ""]
        if untouched is not None:
            told = f", {untouched['right']:.1%} right" if task == "bert-sst2" else ""
            lines += [
                f"Before: loss {untouched['judge']:.4f}{told}; {untouched['remembered']:.4f} on the corpus of before.",
                "",
            ]
        head = ["recipe", "equal", "rank", "numbers", "best rate", "loss", "spread", "beside LoRA", "at 1e-3"]
        head += (["right"] if task == "bert-sst2" else []) + ["forgets", "start", "step", "memory"]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        rows = sorted(_rows(task, there), key=lambda row: row["loss"])
        lora = next((row["loss"] for row in rows if (row["recipe"], row["equal"]) == ("lora", "rank")), math.nan)
        for row in rows:
            cells = [row["recipe"], row["equal"], str(row["rank"]), f"{row['numbers']:,}", f"{row['rate']:g}"]
            cells += [
                f"{row['loss']:.4f}",
                f"{row['spread']:.4f}",
                f"{row['loss'] / lora - 1:+.1%}",
                f"{row['shared']:.4f}",
            ]
            cells += [f"{row['right']:.1%}"] if task == "bert-sst2" else []
            cells += [f"{row['remembered'] - (untouched or row)['remembered']:+.4f}"]
            cells += [f"{row['start']:.2f} s", f"{1e3 * row['step']:.0f} ms", row["memory"]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _rows(task: str, there: Mapping[Run, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each sweep that is whole."""
    groups: dict[tuple[str, str, int], dict[float, list[dict[str, Any]]]] = {}
    sizes: dict[tuple[str, str, int], int] = {}
    for run, result in there.items():
        if run.task == task and run.recipe != "untouched":
            if "memory" in result:
                sizes[run.recipe, run.equal, run.rank] = result["memory"]
            else:
                groups.setdefault((run.recipe, run.equal, run.rank), {}).setdefault(run.rate, []).append(result)
    for (recipe, equal, rank), by_rate in groups.items():
        whole = {rate: results for rate, results in by_rate.items() if len(results) == len(SEEDS)}
        fine = {rate: results for rate, results in whole.items() if not any("diverged" in found for found in results)}
        if not fine or any(sweep(task, recipe, equal, rank, there)):
            continue
        best = min(fine, key=lambda rate: _mean(fine[rate], "choose"))
        judged = [found["judge"] for found in fine[best]]
        every = [found for results in by_rate.values() for found in results]
        size = sizes.get((recipe, equal, rank))
        yield {
            "recipe": recipe,
            "equal": equal,
            "rank": rank,
            "numbers": fine[best][0]["numbers"],
            "rate": best,
            "loss": statistics.mean(judged),
            "spread": max(judged) - min(judged),
            "shared": _mean(whole[SHARED], "judge"),
            "right": _mean(fine[best], "right"),
            "remembered": _mean(fine[best], "remembered"),
            "start": statistics.median(found["start"] for found in every),
            "step": statistics.median(found["step"] for found in every),
            "memory": "-" if size is None else f"{size / 1e6:.0f} MB",
        }


def work(
    found: Mapping[str, Task], names: list[str], scratch: Path, part: int, parts: int, equals: Collection[str]
) -> None:
    """Make all runs that are missing, sweep by sweep; those of equal rank first, for of the others most recipes have some."""
    for name in names:
        task = found[name]
        before = Run(name, "untouched", 0, "rank", 0.0, 0)
        if part == 0 and before not in read_runs():
            model = task.model()
            judge, right = task.losses(model, task.judge)
            write_run(before, {"judge": judge, "right": right, "remembered": task.remembered(model)})
        recipes = [key for key in RECIPES if key not in ELSEWHERE] if name.startswith("stories") else [*KNOWN]
        recipes = recipes[part::parts]
        for recipe in recipes if "rank" in equals else ():
            complete(task, recipe, "rank", RANK, scratch)
        for recipe in recipes if "numbers" in equals else ():
            for equal, rank in settings(task, recipe):
                complete(task, recipe, equal, rank, scratch)


def complete(task: Task, recipe: str, equal: str, rank: int, scratch: Path) -> None:
    """Make the runs of a sweep that are missing, and measure its memory."""
    while (run := next(sweep(task.name, recipe, equal, rank, read_runs()), None)) is not None:
        try:
            result = perform(task, run, STEPS[task.name])
        except EckartError as error:
            print(f"{run}: {error}", flush=True)
            return
        write_run(run, result)
        print(run, {key: value for key, value in result.items() if key != "curve"}, flush=True)
    probed = Run(task.name, recipe, rank, equal, 0.0, 0)
    if probed not in read_runs() and (size := memory(scratch, task.name, recipe, rank)) is not None:
        write_run(probed, {"memory": size})


def main() -> None:
    """Make the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for models that are made first")
    parser.add_argument("--task", action="append", choices=list(STEPS), help="only this task")
    parser.add_argument(
        "--part", default="0/1", help="I/N: every N-th recipe beginning with the I-th, to share the work"
    )
    parser.add_argument("--equal", choices=EQUALS, help="only sweeps at equal rank, or at as many numbers as LoRA has")
    parser.add_argument("--table", action="store_true", help="only write the table from the runs that are there")
    parser.add_argument("--probe", nargs=3, metavar=("TASK", "RECIPE", "RANK"), help="the memory of one recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        names = [arguments.probe[0]] if arguments.probe else arguments.task or list(STEPS)
        found = tasks(Path(os.environ["ECKART_DATA"]), arguments.scratch, names)
        if arguments.probe:
            task, recipe, rank = arguments.probe
            print(probe(found[task], recipe, int(rank)))
            return
        part, parts = (int(number) for number in arguments.part.split("/"))
        work(found, names, arguments.scratch, part, parts, [arguments.equal] if arguments.equal else EQUALS)
    (HERE / "results" / "adapters.md").write_text(table(read_runs()))


if __name__ == "__main__":
    main()
