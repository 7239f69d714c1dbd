"""Trainings whose results are lines of a file: those that are missing are made, and a table is written of all."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from adapters import Run
from tuning_tasks import Task, tasks

Results = list[dict[str, Any]]
RESULTS = Path(__file__).parent / "results"


def complete(
    document: str | None,
    name: str,
    runs: Sequence[Run],
    perform: Callable[[Task, Run], Results],
    table: Callable[[Results], str],
) -> None:
    """Make those of ``runs``, all of one task, that ``results/NAME.jsonl`` lacks, then write ``results/NAME.md``."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for what is made first")
    scratch = parser.parse_args().scratch
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.jsonl"
    task = tasks(Path(os.environ["ECKART_DATA"]), scratch, [runs[0].task])[runs[0].task]
    for run in _missing(runs, _read(file)):
        with file.open("a") as handle:
            for result in perform(task, run):
                handle.write(json.dumps({"run": asdict(run), **result}) + "\n")
        print(run, flush=True)
    (RESULTS / f"{name}.md").write_text(table(_read(file)))


def _read(file: Path) -> Results:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _missing(runs: Iterable[Run], lines: Results) -> list[Run]:
    there = [line["run"] for line in lines]
    return [run for run in runs if asdict(run) not in there]
