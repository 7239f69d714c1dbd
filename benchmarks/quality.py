"""How much a compression costs: every recipe at five sizes on three trained models, the dumb baselines among them.

    ECKART_DATA=DIR python benchmarks/quality.py                  all of it, some hours on one core
    ECKART_DATA=DIR python benchmarks/quality.py --model stories260K
    ECKART_DATA=DIR python benchmarks/quality.py --table          only write the table from the runs that are there

Every run is a line in ``results/quality.jsonl``; runs that are there are not repeated. The table is ``results/quality.md``:
mean negative log-likelihood per token on a text of the calibration's domain and on one of another, over three draws
of the calibration windows at keep 0.8 and 0.6, with the time on the clock and the peak memory of a process of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.allocate import EqualMarginalLoss, Uniform
from eckart.model.checkpoint import Checkpoint
from eckart.model.evaluate import load, score_ids
from eckart.model.progress import peak_memory
from eckart.model.text import encode, load_tokenizer, window_length

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from machine import facts  # noqa: E402
from stories import convert  # noqa: E402

RUNS = HERE / "results" / "quality.jsonl"
KEEPS = {0.9: (0,), 0.8: (0, 1, 2), 0.7: (0,), 0.6: (0, 1, 2), 0.5: (0,)}  # and the draws of calibration windows
TOKENS = 16384
# Recipes of matrices with ranks spread in two ways, the others as they are.
RANKS = {"uniform": Uniform(), "allocated": EqualMarginalLoss(), "own": None}
SPREAD = ("svd", "asvd", "svd-llm")
MODELS = ("stories260K", "wikitext2_llama_8m", "wikitext2_gpt2_6m")


@dataclass(frozen=True)
class Subject:
    """A model, the text it is calibrated on, and the texts it is judged on: of the same domain and of another."""

    name: str
    folder: Path
    calibration: Path
    inside: Path
    outside: Path


@dataclass(frozen=True)
class Run:
    """What identifies a run."""

    model: str
    method: str
    ranks: str
    keep: float
    draw: int


def subjects(data: Path, scratch: Path) -> list[Subject]:
    """The models with their texts: stretches that calibration and judgement do not share."""

    def text(name: str, content: str) -> Path:
        path = scratch / name
        path.write_text(content, encoding="utf-8")
        return path

    stories = (data / "tinystories_sample" / "tinystories_val.txt").read_text(encoding="utf-8")
    train = gzip.decompress((data / "wikitext2" / "train.txt.gz").read_bytes()).decode()
    test = (data / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    shakespeare = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    return [
        Subject(
            "stories260K",
            convert(data, scratch / "stories"),
            text("stories-calibration.txt", stories[:500_000]),
            text("stories-judge.txt", stories[500_000:700_000]),
            text("wikitext-short.txt", test[:60_000]),
        ),
        *(
            Subject(
                name,
                data / name,
                text("wikitext-calibration.txt", train[:1_000_000]),
                text("wikitext-judge.txt", test[:200_000]),
                text("shakespeare.txt", shakespeare[-100_000:]),
            )
            for name in MODELS[1:]
        ),
    ]


def runs() -> Iterator[Run]:
    """All runs, the cheap model first and the further draws last; a run that no draw can change is made once."""
    for model in MODELS:
        yield Run(model, "original", "-", 1.0, 0)
        found = [Run(model, *run) for run in _compressions()]
        yield from sorted(found, key=lambda run: run.draw > 0)


def _compressions() -> Iterator[tuple[str, str, float, int]]:
    for keep, draws in KEEPS.items():
        for method, recipe in eckart.RECIPES.items():
            for ranks in RANKS if method in SPREAD else ("own",):
                if method in SPREAD and ranks == "own":
                    continue
                needs = recipe.make().reads_text or (ranks == "allocated")
                for draw in draws if needs else (0,):
                    yield method, ranks, keep, draw


def judge(model: Any, subject: Subject) -> dict[str, float]:
    """Nats per token inside and outside of the domain."""
    tokenizer, window = load_tokenizer(subject.folder), window_length(subject.folder, None)
    texts = {"inside": subject.inside, "outside": subject.outside}
    return {
        k: score_ids(model, encode(tokenizer, p.read_text(encoding="utf-8")), window).mean for k, p in texts.items()
    }


def perform(run: Run, subject: Subject, scratch: Path) -> dict[str, Any]:
    """Make one run; what it gives."""
    if run.method == "original":
        size = Checkpoint(subject.folder).weight_bytes()
        return judge(load(subject.folder, dtype=torch.float32), subject) | {"kept_share": 1.0, "bytes": size}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        begun, used = time.monotonic(), time.process_time()
        try:
            done = eckart.compress(
                subject.folder,
                Path(folder) / "out",
                keep=run.keep,
                recipe=run.method,
                ranks=RANKS[run.ranks],
                calibration=subject.calibration,
                tokens=TOKENS,
                seed=run.draw,
            )
        except eckart.EckartError as error:
            return {"refused": str(error).rpartition(": ")[0] or str(error)}
        seconds, processor, memory = time.monotonic() - begun, time.process_time() - used, peak_memory()
        found = judge(load(done.folder, dtype=torch.float32), subject)
        share = done.target_bytes[1] / done.target_bytes[0]
        return found | {
            "kept_share": share,
            "bytes": done.file_bytes[1],
            "kept": done.kept,
            "losses": dict(done.losses),
            "seconds": seconds,
            "processor": processor,
            "memory": memory,
            "commit": facts()["commit"],
        }


def table(found: dict[Run, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["# What compression costs", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        f"Nats per token, lower is better; mean over the draws of {TOKENS} calibration tokens, and the spread (largest less",
        "smallest). *inside*: a text of the calibration's domain, not the calibration text itself; *outside*: another corpus.",
        "*share*: bytes of the linear maps inside blocks, indices counted. One thread: *processor* is the time of the process itself, the",
        "median of the runs that measured it; *clock* is with other work beside it; memory is the largest of a process of its own. Rows",
        "without a time: a751230, on an AMD EPYC; others: 6b39af8, b20d5c8, 6c2f080, or as `quality.jsonl` says.",
        "Runs that were refused are not shown. Written by `benchmarks/quality.py`.",
    ]
    for model in dict.fromkeys(run.model for run in found):
        lines += ["", f"## {model}", ""]
        columns = (
            "keep",
            "recipe",
            "ranks",
            "share",
            "weight files",
            "inside",
            "spread",
            "outside",
            "spread",
            "processor",
            "clock",
            "memory",
        )
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        groups: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
        for run, result in found.items():
            if run.model == model and "refused" not in result:
                groups.setdefault((run.keep, run.method, run.ranks), []).append(result)
        for (keep, method, ranks), results in groups.items():
            cells = [
                f"{keep:g}",
                method,
                ranks,
                f"{results[0]['kept_share']:.4f}",
                f"{results[0]['bytes'] / 1e6:.2f} MB",
            ]
            for where in ("inside", "outside"):
                values = [result[where] for result in results]
                spread = f"{max(values) - min(values):.4f}" if len(values) > 1 else "-"
                cells += [f"{statistics.mean(values):.4f}", spread]
            for figure in ("processor", "seconds"):
                times = [result[figure] for result in results if figure in result]
                cells.append(f"{statistics.median(times):.1f} s" if times else "-")
            memory = [result["memory"] for result in results if "memory" in result]
            cells.append(f"{max(memory) / 1e6:.0f} MB" if memory else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def read_runs() -> dict[Run, dict[str, Any]]:
    """The runs that are there, in the order in which ``runs`` names them."""
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    there = {Run(**line["run"]): line["result"] for line in lines}
    return {run: there[run] for run in runs() if run in there}


def main() -> None:
    """Make the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the table from the runs that are there")
    parser.add_argument("--model", choices=MODELS, help="only the runs of one model")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th run beginning with the I-th, to share the work")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        part, parts = (int(x) for x in arguments.part.split("/"))
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool,
        ):
            scratch = Path(folder)
            by_name = {subject.name: subject for subject in subjects(Path(os.environ["ECKART_DATA"]), scratch)}
            for index, run in enumerate(runs()):
                if index % parts != part or run in read_runs() or arguments.model not in (None, run.model):
                    continue
                result = pool.apply(perform, (run, by_name[run.model], scratch))
                RUNS.parent.mkdir(exist_ok=True)
                with RUNS.open("a") as handle:
                    handle.write(json.dumps({"run": asdict(run), "result": result}) + "\n")
                print(run, {k: v for k, v in result.items() if k != "losses"}, flush=True)
    (HERE / "results" / "quality.md").write_text(table(read_runs()))


if __name__ == "__main__":
    main()
