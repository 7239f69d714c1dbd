"""Which claims of papers hold on small trained models: pairs of compressions at the same bytes, judged by the same texts.

    ECKART_DATA=DIR python benchmarks/claims.py                  all models, one after another
    ECKART_DATA=DIR python benchmarks/claims.py --model stories260K
    ECKART_DATA=DIR python benchmarks/claims.py --table          only write the table from the runs that are there

Every run is a line in ``results/claims.jsonl``; runs that are there are not repeated. The table is ``results/claims.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart import recipes
from eckart.allocate import Level, Uniform
from eckart.approx import Compensated, Prune, RoundToNearest, Unweighted
from eckart.bonds.choosing import Select
from eckart.bonds.scores import SecondMoment
from eckart.linalg.patterns import OfGroup
from eckart.model.certificate import Certificate, MatrixRecord
from eckart.model.compression import AnyRecipe
from eckart.model.evaluate import load

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from machine import facts  # noqa: E402
from quality import MODELS, TOKENS, Subject, judge, subjects  # noqa: E402

RUNS = HERE / "results" / "claims.jsonl"
Make = Callable[[], AnyRecipe]
HALVES = OfGroup(4)
BITS = RoundToNearest(bits=3, group=64)


def beside(damage: Any, branch: Any) -> AnyRecipe:
    """A recipe with a branch beside some damage, whatever the metric of the branch."""
    return replace(recipes.eora(), approx=Compensated(damage, keep=0.6, branch=branch))


def damaged(damage: Any) -> AnyRecipe:
    """The damage alone, the same in all matrices, at the size that ``beside`` gives it."""
    return replace(recipes.eora(), approx=damage, allocate=Level())


METHODS: Mapping[str, Make] = {
    "svd": lambda: recipes.svd(Uniform()),
    "asvd": lambda: recipes.asvd(allocate=Uniform()),
    "svd-llm": lambda: recipes.svd_llm(Uniform()),
    "svd-llm, allocated": recipes.svd_llm,
    "welore": recipes.welore,
    "modegpt": recipes.modegpt,
    "modegpt, one width": lambda: recipes.modegpt(Level()),
    "slicegpt": recipes.slicegpt,
    "slicegpt, per norm": recipes.slicegpt_per_norm,
    "slices without rotation": lambda: replace(recipes.slicegpt(), stream=Select(SecondMoment())),
    "wanda": recipes.wanda,
    "magnitude": recipes.magnitude,
    "sparsegpt": recipes.sparsegpt,
    "ecoflap": recipes.ecoflap,
    "layer-drop": recipes.layer_drop,
    "shortgpt": recipes.shortgpt,
    "2 of 4": lambda: damaged(Prune(HALVES)),
    "2 of 4 + branch, error in the plain norm": lambda: beside(Prune(HALVES), Unweighted()),
    "2 of 4 + branch, error in the inputs' metric": recipes.eora,
    "3 bits": lambda: damaged(BITS),
    "3 bits + branch, error in the plain norm": lambda: beside(BITS, Unweighted()),
    "3 bits + branch, error in the inputs' metric": lambda: beside(BITS, recipes.svd_llm().approx),
}


@dataclass(frozen=True)
class Claim:
    """That ``better`` gives a lower loss than ``worse`` on a text, at one share of the bytes."""

    said: str
    better: str
    worse: str
    keep: float
    where: str = "inside"


def claims() -> list[Claim]:
    """All claims, in the order of the table."""
    found: list[Claim] = []
    for where in ("inside", "outside"):
        found += [
            Claim(f"whitening beats activation scaling, {where} the domain", "svd-llm", "asvd", 0.8, where),
            Claim(f"activation scaling beats plain truncation, {where} the domain", "asvd", "svd", 0.8, where),
        ]
    found += [
        Claim("every bond in its own metric beats maps one by one", "modegpt", "svd-llm", 0.8),
        Claim("the same, ranks allocated", "modegpt", "svd-llm, allocated", 0.8),
        Claim("slicing needs its rotation", "slicegpt", "slices without rotation", 0.8),
        Claim("a rotation at every norm beats one for all", "slicegpt, per norm", "slicegpt", 0.8),
        Claim("ranks by one threshold beat uniform ones", "welore", "svd", 0.8),
        Claim("widths by influence beat one width", "modegpt", "modegpt, one width", 0.8),
        Claim("shares by forward sensitivities beat one share of zeros", "ecoflap", "wanda", 0.6),
        Claim("weight times input beats the weight alone", "wanda", "magnitude", 0.6),
        Claim("making up for zeros beats leaving the rest as it is", "sparsegpt", "wanda", 0.6),
        Claim("the last blocks are as good to drop as those of least influence", "layer-drop", "shortgpt", 0.8),
    ]
    for damage in ("2 of 4", "3 bits"):
        metric, plain = (f"{damage} + branch, error in {norm}" for norm in ("the inputs' metric", "the plain norm"))
        keep = 0.7 if damage == "2 of 4" else 0.4
        found += [
            Claim(f"a branch in the inputs' metric beats one in the plain norm beside {damage}", metric, plain, keep),
            Claim(f"a branch in the plain norm beats none beside {damage}", plain, damage, keep),
        ]
    return found


def perform(method: str, keep: float, subject: Subject, scratch: Path) -> dict[str, Any]:
    """Make one run; the losses on both texts, and the share of the bytes that is left."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            done = eckart.compress(
                subject.folder,
                Path(folder) / "out",
                keep=keep,
                recipe=METHODS[method](),
                calibration=subject.calibration,
                tokens=TOKENS,
                quick=True,
            )
        except eckart.EckartError as error:
            return {"refused": str(error).rpartition(": ")[0] or str(error)}
        found: dict[str, Any] = judge(load(done.folder, dtype=torch.float32), subject)
        return found | {"kept_share": done.target_bytes[1] / done.target_bytes[0], "maps": by_kind(done)}


def by_kind(done: Certificate) -> dict[str, dict[str, float]]:
    """For the maps of every name in a block: the share of the bytes that they keep, and their mean relative error."""
    groups: dict[str, list[MatrixRecord]] = {}
    for record in done.matrices:
        groups.setdefault(record.name.rpartition(".")[2], []).append(record)
    table = {}
    for leaf, records in groups.items():
        whole = sum(record.shape[0] * record.shape[1] for record in records)
        width = done.target_bytes[0] / sum(record.shape[0] * record.shape[1] for record in done.matrices)
        errors = [record.bounds[-1].relative if record.bounds else 0.0 for record in records]
        table[leaf] = {
            "kept": sum(record.bytes for record in records) / (whole * width),
            "error": sum(errors) / len(errors),
        }
    return table


def table(found: Mapping[tuple[str, str, float], Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["# Which claims hold on small models", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        f"Nats per token with the first method and the second, {TOKENS} calibration tokens, one draw, at most that share of the bytes of",
        "the linear maps inside of blocks (damage alone has what it takes by itself). Written by `benchmarks/claims.py`.",
        "",
        "| claim | model | keep | first | second | loss of the first | of the second | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for claim in claims():
        for model in MODELS:
            runs = [found.get((model, method, claim.keep)) for method in (claim.better, claim.worse)]
            if any(run is None for run in runs):
                continue
            losses = [run.get(claim.where) for run in runs if run is not None]
            first, second = (f"{loss:.4f}" if loss is not None else "refused" for loss in losses)
            holds = "-" if None in losses else "yes" if losses[0] < losses[1] else "no"
            cells = (claim.said, model, f"{claim.keep:g}", claim.better, claim.worse, first, second, holds)
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Values and outputs need more rank than queries and keys: relative error in the inputs' metric where all maps have the same share",
        "of ranks (svd-llm, uniform, keep 0.8), and the share of the bytes that equal marginal losses give them.",
        "",
        "| model | maps | error at one share | bytes where allocated |",
        "|---|---|---|---|",
    ]
    for model in MODELS:
        even, spread = (
            found.get((model, method, 0.8), {}).get("maps", {}) for method in ("svd-llm", "svd-llm, allocated")
        )
        for leaf in even:
            cells = (
                model,
                leaf,
                f"{even[leaf]['error']:.3f}",
                f"{spread[leaf]['kept']:.2f}" if leaf in spread else "-",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def read_runs() -> dict[tuple[str, str, float], dict[str, Any]]:
    """The runs that are there."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    return {(line["model"], line["method"], line["keep"]): line["result"] for line in lines}


def main() -> None:
    """Make the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the table from the runs that are there")
    parser.add_argument("--model", choices=MODELS, help="only the runs of one model")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool,
        ):
            scratch = Path(folder)
            pairs = dict.fromkeys((m, c.keep) for c in claims() for m in (c.better, c.worse))
            for subject in subjects(Path(os.environ["ECKART_DATA"]), scratch):
                for method, keep in pairs:
                    if (subject.name, method, keep) in read_runs() or arguments.model not in (None, subject.name):
                        continue
                    result = pool.apply(perform, (method, keep, subject, scratch))
                    line = {"model": subject.name, "method": method, "keep": keep, "result": result}
                    with RUNS.open("a") as handle:
                        handle.write(json.dumps(line) + "\n")
                    print(line, flush=True)
    (HERE / "results" / "claims.md").write_text(table(read_runs()))


if __name__ == "__main__":
    main()
