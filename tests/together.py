"""Fine-tunes as one of several processes that ``torchrun`` starts: jobs from a JSON file, results beside it from the first process.

A job says model, data, output, recipe and the course; ``outputs`` adds a penalty against what the model says.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eckart.adapt import RECIPES, Course, tune
from eckart.adapters.outputs import Correlation, Divergence


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """One job; the losses by step."""
    recipe = RECIPES[job["recipe"]]()
    if job.get("outputs"):
        recipe = replace(recipe, outputs=(Divergence(0.5), Correlation(0.5)))
    done = tune(
        job["model"],
        job["data"],
        job["out"],
        recipe,
        rank=4,
        labels=job.get("labels"),
        course=Course(**job["course"]),
    )
    return {"trained": dict(done.trained), "judged": dict(done.judged), "accuracy": dict(done.accuracy)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = Path(sys.argv[1])
    results = [run(job) for job in json.loads(jobs.read_text(encoding="utf-8"))]
    if os.environ.get("RANK", "0") == "0":
        jobs.with_suffix(".results").write_text(json.dumps(results), encoding="utf-8")
