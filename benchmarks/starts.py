"""What it costs to begin an adapter: PiSSA, OLoRA, CorDA, EVA and LoRA-GA by eckart and by PEFT.

    ECKART_DATA=... python benchmarks/starts.py        about half an hour on one core

Two models: the Llama of eight million numbers that learnt WikiText-2 (rank 16), and a random one of width 1024 with eight blocks
(rank 64). What is measured on a text sees the same eight windows of 256 tokens. Every start is made in a fresh process, ours and PEFT's by
turns: *CPU s* is its process time on one thread, the median of a few, without imports, the model and the windows; *MB* the largest
resident memory of the process less that of one that does everything but the start. *error / best* is on the maps of the first block,
the geometric mean and the largest, and what it is of hangs on the start:

* PiSSA: ``||W - B A||_F``, over the discarded singular values of LAPACK in float64.
* OLoRA: the same, over that of the first columns and rows of LAPACK's Q and R.
* CorDA, preview: ``||(W - B A) C||_F`` in the C of each library's own moments, damped alike, over the discarded values of ``W C``.
* CorDA: ``||B A C||_F``, over the smallest singular values of ``W C``, which it is to be made of.
* EVA: the variance of the inputs that the rows of A leave out, over the least at their rank.
* LoRA-GA: ``||G - G A^+ A||_F`` for the mean gradient G, over its discarded singular values.

The table is ``results/starts.md``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.adapt import RECIPES, Adapt, wrap
from eckart.adapters.sources import OfWeight
from eckart.model.adapting.observe import observe
from eckart.model.evaluate import load
from eckart.model.text import load_tokenizer
from eckart.stats import Need

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402

MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STARTS = ("PiSSA, exact", "PiSSA, fast", "OLoRA", "CorDA", "CorDA, preview", "EVA", "LoRA-GA")
RANKS = {"wikitext2_llama_8m": 16, "random, width 1024": 64}
WINDOWS, LENGTH = 8, 256
LIMIT = 1200  # seconds after which a start is given up
OURS, THEIRS, NOTHING = "eckart", "PEFT", "nothing"
Batches = list[dict[str, Tensor]]


def model_of(name: str) -> tuple[Any, Batches]:
    """A model in float32, and windows of tokens."""
    if name == "wikitext2_llama_8m":
        data = Path(os.environ["ECKART_DATA"])
        text = (data / "wikitext2" / "valid.txt").read_text()[:200_000]
        ids = load_tokenizer(data / name)(text, return_tensors="pt")["input_ids"][0, : WINDOWS * LENGTH]
        made = load(data / name, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
        made = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)).eval()  # type: ignore[arg-type]
        ids = torch.randint(0, 1000, (WINDOWS * LENGTH,))
    return made, [{"input_ids": row[None], "labels": row[None]} for row in ids.reshape(WINDOWS, LENGTH)]


def recipe_of(start: str) -> Adapt:
    """The recipe of a start, with the whole spectrum where that is wanted."""
    if start.startswith("PiSSA"):
        made = RECIPES["pissa"]()
        exact = replace(made, start=replace(made.start, source=OfWeight(accuracy=0.0)))
        return exact if start.endswith("exact") else made
    return RECIPES[
        {"OLoRA": "olora", "CorDA": "corda", "CorDA, preview": "corda-preview", "EVA": "eva"}.get(start, "lora-ga")
    ]()


def ours(model: Any, batches: Batches, start: str, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Left and right factors by map."""
    recipe = recipe_of(start)
    made = wrap(model, recipe, rank=rank, batches=batches if recipe.needs else ())
    return {name: (a.scale * a.left.detach(), a.right.detach()) for name, a in made.adapters.items()}


def theirs(model: Any, batches: Batches, start: str, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The same by PEFT."""

    def forward() -> None:
        for batch in batches:
            model(**batch)

    def gradients() -> None:
        for batch in batches:
            model(**batch).loss.backward()

    plain = {
        "PiSSA, exact": "pissa",
        "PiSSA, fast": "pissa_niter_16",
        "OLoRA": "olora",
        "EVA": "eva",
        "LoRA-GA": "lora_ga",
    }
    mode = "ipm" if start.endswith("preview") else "kpm"
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=MAPS,
        init_lora_weights=plain.get(start, "corda"),  # type: ignore[arg-type]
        corda_config=CordaConfig(corda_method=mode) if start.startswith("CorDA") else None,  # type: ignore[arg-type]
        eva_config=EvaConfig() if start == "EVA" else None,
        lora_ga_config=LoraGAConfig(direction="ArB2r") if start == "LoRA-GA" else None,
    )
    if start.startswith("CorDA"):
        peft_module("corda").preprocess_corda(model, config, run_model=forward)
    if start == "LoRA-GA":
        peft_module("loraga").preprocess_loraga(model, config, gradients)
    made = get_peft_model(model, config)
    if start == "EVA":
        initialize_lora_eva_weights(made, dataloader=batches, show_progress_bar=False)
    found = {}
    for name, module in made.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            left, right = module.lora_B["default"].weight, module.lora_A["default"].weight
            found[name] = (module.scaling["default"] * left.detach(), right.detach())
    return found


def peft_module(name: str) -> Any:
    """A module of PEFT; that of CorDA imports ``dataclass`` from attrs without asking for attrs, and any other does."""
    if "attr" not in sys.modules and importlib.util.find_spec("attr") is None:
        sys.modules["attr"] = ModuleType("attr")
        sys.modules["attr"].dataclass = dataclass  # type: ignore[attr-defined]
    return importlib.import_module(f"peft.tuners.lora.{name}")


# ---- how good a start is ----------------------------------------------------------------------------------------------


def judged(name: str, start: str, by: str, found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The error of each map of the first block over the least possible, in float64."""
    model, batches = model_of(name)
    names = [map_ for map_ in found if ".layers.0." in map_]
    judge = {"OLoRA": of_triangle, "EVA": of_inputs, "LoRA-GA": of_gradient}.get(start, of_weight)
    covariances = by == THEIRS and start.startswith("CorDA")
    moments = scaled_moments(model, names, batches) if covariances else {}
    needs = {"EVA": {Need.GRAM}, "LoRA-GA": {Need.GRADIENTS}}.get(
        start, {Need.GRAM} if start.startswith("CorDA") else set()
    )
    ratios = {}
    for group in observe(model, names, frozenset(needs), batches):
        for map_, seen in group.items():
            left, right = (side.double() for side in found[map_])
            weight, metric = seen.weight.double(), torch.eye(seen.shape[1], dtype=torch.float64)
            if start.startswith("CorDA"):
                assert seen.moments is not None
                assert seen.moments.gram is not None
                mean = moments[map_] if covariances else seen.moments.gram / seen.moments.count
                metric = mean + 0.01 * mean.diagonal().mean() * metric
            if start == "EVA":
                assert seen.moments is not None
                weight = centred(seen.moments)
            if start == "LoRA-GA":
                assert seen.gradient is not None
                weight = seen.gradient.double()
            ratios[map_] = judge(weight, metric, left, right, kept=start == "CorDA")
    return ratios


Judge = Callable[..., float]


def of_weight(w: Tensor, metric: Tensor, left: Tensor, right: Tensor, *, kept: bool) -> float:
    values, rank = torch.linalg.svdvals(w @ metric), len(right)
    if kept:  # the smallest components train
        return float((left @ (right @ metric)).norm() / values[-rank:].norm())
    return float((w @ metric - left @ (right @ metric)).norm() / values[rank:].norm())


def of_triangle(w: Tensor, metric: Tensor, left: Tensor, right: Tensor, *, kept: bool) -> float:
    q, r = torch.linalg.qr(w)
    return float((w - left @ right).norm() / (w - q[:, : len(right)] @ r[: len(right)]).norm())


def of_inputs(covariance: Tensor, metric: Tensor, left: Tensor, right: Tensor, *, kept: bool) -> float:
    values = torch.linalg.eigvalsh(covariance).flip(0)
    explained = (right @ covariance * right).sum() / right.square().sum(1).mean()
    return float((values.sum() - explained) / values[len(right) :].sum())


def of_gradient(g: Tensor, metric: Tensor, left: Tensor, right: Tensor, *, kept: bool) -> float:
    """A has the first right vectors, B the left ones after them: A is judged."""
    basis = torch.linalg.qr(right.T).Q
    return float((g - (g @ basis) @ basis.T).norm() / torch.linalg.svdvals(g)[len(right) :].norm())


def centred(moments: Any) -> Tensor:
    """The covariance of inputs."""
    mean = moments.total / moments.count
    found: Tensor = moments.gram / moments.count - torch.outer(mean, mean)
    return found


def scaled_moments(model: Any, names: list[str], batches: Batches) -> dict[str, Tensor]:
    """What PEFT's CorDA takes for the second moment: each text divided by its largest entry."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def note(module: Any, args: tuple[Tensor, ...]) -> None:
            rows = args[0][0].detach().double() / args[0].max().abs().double()
            found[name] = found.get(name, torch.zeros(())) + rows.T @ rows / len(batches)

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return found


# ---- the table --------------------------------------------------------------------------------------------------------


def one(name: str, start: str, by: str, *, judge: bool) -> None:
    """Make one start, and say what it took as a line of JSON."""
    torch.set_num_threads(1)
    model, batches = model_of(name)
    begun, wall = time.process_time(), time.monotonic()
    found = {} if by == NOTHING else (ours if by == OURS else theirs)(model, batches, start, RANKS[name])
    told: dict[str, object] = {
        "cpu": time.process_time() - begun,
        "wall": time.monotonic() - wall,
        "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    if judge:
        told["ratios"] = judged(name, start, by, found)
    print(json.dumps(told))


def fresh(name: str, start: str, by: str, *, judge: bool = False) -> dict[str, Any] | None:
    """The same in a process of its own; ``None`` where it was given up."""
    command = [sys.executable, __file__, "--model", name, "--start", start, "--by", by, *(["--judge"] if judge else [])]
    # Large pieces are given back at once, as the command line has it, whoever asked for them.
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def row(name: str, start: str, by: str, runs: list[dict[str, Any]], empty: float) -> str:
    """A line of the table; without runs that of a start that was given up."""
    if not runs:
        return f"| {name} | {start} | {by} | over {LIMIT:,} | | | | |"
    cpu, wall = (median(run[key] for run in runs) for key in ("cpu", "wall"))
    memory = median(run["kilobytes"] for run in runs) - empty
    ratios = list(next(run["ratios"] for run in runs if "ratios" in run).values())
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return (
        f"| {name} | {start} | {by} | {cpu:.2f} | {wall:.2f} | {memory / 1024:,.0f} | {mean:.6f} | {max(ratios):.6f} |"
    )


def main() -> None:
    """Measure and write the table, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RANKS)
    parser.add_argument("--start", choices=STARTS)
    parser.add_argument("--by", choices=(OURS, THEIRS, NOTHING))
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only",
        action="append",
        choices=STARTS,
        help="this start, and as with --model, the table is printed and not written",
    )
    parser.add_argument("--quick", action="store_true", help="the small model alone")
    given = parser.parse_args()
    if given.by is not None:
        one(given.model, given.start, given.by, judge=given.judge)
        return
    torch.set_num_threads(1)
    lines = ["# Where adapters begin", "", *(f"{key}: {value}  " for key, value in facts().items())]
    lines += [f"peft: {importlib.metadata.version('peft')}  ", ""]
    lines += [
        "| model | start | by | CPU s | wall s | MB | error / best, mean | largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [given.model] if given.model else list(RANKS)[: 1 if given.quick else None]:
        empty = median(run["kilobytes"] for _ in range(given.repeats) if (run := fresh(name, STARTS[0], NOTHING)))
        for start in given.only or STARTS:
            runs: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
            waited: set[str] = set()
            for repeat in range(given.repeats):  # by turns, so that what else goes on hits both
                for by, made in runs.items():
                    run = None if by in waited else fresh(name, start, by, judge=repeat == 0)
                    made += [] if run is None else [run]
                    waited |= {by} if run is None else set()
            for by, made in runs.items():
                lines.append(row(name, start, by, [] if by in waited else made, empty))
                print(lines[-1], flush=True)
        if not (given.only or given.model):
            (HERE / "results" / "starts.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
