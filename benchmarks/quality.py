"""How much a compression costs: every recipe at three sizes on two trained models, beside dropping whole blocks.

    ECKART_DATA=DIR python benchmarks/quality.py            all of it, about an hour on one core
    ECKART_DATA=DIR python benchmarks/quality.py --table    only write the table from the runs that are there

Every run is a line in ``results/quality.jsonl``; runs that are there are not repeated. The table is ``results/quality.md``:
mean negative log-likelihood per token on a text of the calibration's domain and on one of another, over three draws
of the calibration windows.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.allocate import EqualMarginalLoss, Uniform
from eckart.model.checkpoint import Checkpoint
from eckart.model.evaluate import load, score_ids
from eckart.model.run import seeded
from eckart.model.text import draw_windows, encode, load_tokenizer, window_length

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from machine import facts  # noqa: E402
from stories import convert  # noqa: E402

RUNS = HERE / "results" / "quality.jsonl"
KEEPS = (0.9, 0.8, 0.6)
DRAWS = (0, 1, 2)
TOKENS = 16384
RANKS = {"uniform": Uniform(), "allocated": EqualMarginalLoss()}


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
    """Both models with their texts: stretches that calibration and judgement do not share."""

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
        Subject(
            "wikitext2_llama_8m",
            data / "wikitext2_llama_8m",
            text("wikitext-calibration.txt", train[:1_000_000]),
            text("wikitext-judge.txt", test[:200_000]),
            text("shakespeare.txt", shakespeare[-100_000:]),
        ),
    ]


def runs() -> Iterator[Run]:
    """All runs, the cheap model first; a run that no draw can change is made once."""
    for model in ("stories260K", "wikitext2_llama_8m"):
        yield Run(model, "original", "-", 1.0, 0)
        for keep in KEEPS:
            yield Run(model, "fewer blocks, larger", "-", keep, 0)
            yield Run(model, "fewer blocks, smaller", "-", keep, 0)
            for method in eckart.RECIPES:
                for ranks in RANKS:
                    draws = (0,) if (method, ranks) == ("svd", "uniform") else DRAWS
                    for draw in draws:
                        yield Run(model, method, ranks, keep, draw)


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
    if run.method.startswith("fewer blocks"):
        return fewer_blocks(subject, run.keep, larger=run.method.endswith("larger"))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
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
        found = judge(load(done.folder, dtype=torch.float32), subject)
        share = done.target_bytes[1] / done.target_bytes[0]
        return found | {
            "kept_share": share,
            "bytes": done.file_bytes[1],
            "kept": done.kept,
            "losses": dict(done.losses),
        }


def fewer_blocks(subject: Subject, keep: float, *, larger: bool) -> dict[str, Any]:
    """Leave out the blocks of least influence, 1 - mean cosine of input and output, as many as the size asks for."""
    model = load(subject.folder, dtype=torch.float32)
    blocks = model.model.layers
    count = len(blocks)
    left = min(count, -int(-keep * count // 1)) if larger else int(keep * count)
    ids = encode(load_tokenizer(subject.folder), subject.calibration.read_text(encoding="utf-8"))
    windows = draw_windows(ids, window_length(subject.folder, None), TOKENS // 4, seeded(0, "windows"))
    influence = block_influence(model, windows)
    kept = sorted(sorted(range(count), key=lambda i: -influence[i])[:left])
    model.model.layers = torch.nn.ModuleList(copy.copy(blocks[i]) for i in kept)
    model.config.num_hidden_layers = left
    stored = next(spec for _, spec in Checkpoint(subject.folder).tensors.values())
    weights = sum(p.numel() for p in model.parameters()) * stored.dtype.itemsize
    return judge(model, subject) | {"kept_share": left / count, "bytes": weights, "blocks": kept}


@torch.no_grad()
def block_influence(model: Any, windows: torch.Tensor) -> list[float]:
    """1 - mean cosine between what a block is given and what it returns, for every block."""
    sums = [0.0] * len(model.model.layers)

    def watch(index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: torch.Tensor) -> None:
            sums[index] += float(torch.nn.functional.cosine_similarity(args[0], output, dim=-1).double().sum())

        return hook

    handles = [block.register_forward_hook(watch(i)) for i, block in enumerate(model.model.layers)]
    for batch in windows.split(8):
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return [1 - total / windows.numel() for total in sums]


def table(found: dict[Run, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["# What compression costs", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        f"Nats per token, lower is better; mean over {len(DRAWS)} draws of {TOKENS} calibration tokens, and the spread",
        "(largest less smallest). *inside*: a text of the calibration's domain, not the calibration text itself;",
        "*outside*: another corpus. *share*: bytes of the linear maps inside blocks. Written by `benchmarks/quality.py`.",
    ]
    for model in dict.fromkeys(run.model for run in found):
        lines += ["", f"## {model}", ""]
        lines += [
            "| keep | method | ranks | share | weight files | inside | spread | outside | spread | uniform kept |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        groups: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
        for run, result in found.items():
            if run.model == model:
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
            fallback = sum(result.get("kept") == "uniform" for result in results)
            cells.append(f"{fallback} of {len(results)}" if ranks == "allocated" else "-")
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
    parser.add_argument("--part", default="0/1", help="I/N: every N-th run beginning with the I-th, to share the work")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        part, parts = (int(x) for x in arguments.part.split("/"))
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            by_name = {subject.name: subject for subject in subjects(Path(os.environ["ECKART_DATA"]), scratch)}
            for index, run in enumerate(runs()):
                if index % parts != part or run in read_runs():
                    continue
                result = perform(run, by_name[run.model], scratch)
                RUNS.parent.mkdir(exist_ok=True)
                with RUNS.open("a") as handle:
                    handle.write(json.dumps({"run": asdict(run), "result": result}) + "\n")
                print(run, {k: v for k, v in result.items() if k != "losses"}, flush=True)
    (HERE / "results" / "quality.md").write_text(table(read_runs()))


if __name__ == "__main__":
    main()
