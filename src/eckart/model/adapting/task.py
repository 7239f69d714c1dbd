"""What is fine-tuned for what, and the examples for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from eckart.errors import EckartError, first_line
from eckart.model.adapting.course import Course
from eckart.model.adapting.processes import together
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.records import Example, collate, examples_of, read_records
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.evaluate import load
from eckart.model.files import sha256_of
from eckart.model.run import seeded
from eckart.model.skeleton import without_bars
from eckart.model.text import load_tokenizer, window_length


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is fine-tuned for what: a model, a file of records, a recipe at a rank, the maps that patterns name, labels of a classifier."""

    model: Path
    data: Path
    recipe: Adapt
    called: str = ""  # what whoever asked calls the model
    rank: int = 8
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels: int | None = None

    def told(self, course: Course) -> dict[str, Any]:
        """What identifies a run: where any of it differs it is another one."""
        return {
            "model": Checkpoint(self.model).file_hashes(),
            "data": sha256_of(self.data) if self.data.is_file() else str(self.data),
            "recipe": repr(self.recipe),
            "rank": self.rank,
            "only": list(self.only),
            "exclude": list(self.exclude),
            "labels": self.labels,
            "threads": torch.get_num_threads(),
            "processes": together().count,
            "course": asdict(course),
        }

    def load(self, folder: Path, seed: int) -> Any:
        """The model in a folder, in float32; a head that is not stored is drawn by the seed."""
        with without_bars():
            torch.manual_seed(seed)
            if self.labels is None:
                return load(folder, dtype=torch.float32)
            try:
                return AutoModelForSequenceClassification.from_pretrained(
                    folder, num_labels=self.labels, dtype=torch.float32
                )
            except (ValueError, OSError, RuntimeError) as error:
                raise EckartError(
                    f"{folder} is no model that AutoModelForSequenceClassification can load: {first_line(error)}"
                ) from error


@dataclass(frozen=True, kw_only=True)
class Material:
    """Records as examples to train on and such that are held out, of at most ``length`` tokens, and the token that fills batches up."""

    records: Sequence[Mapping[str, Any]]
    length: int
    train: Sequence[Example]
    held: Sequence[Example]
    padding: int

    def first_batches(self, course: Course, most: int) -> list[dict[str, Tensor]]:
        """Batches that starts are measured on, ``most`` at most, drawn by the seed of the course."""
        order = torch.randperm(len(self.train), generator=seeded(course.seed, "start")).tolist()
        drawn = order[: most * course.batch]
        return [
            collate([self.train[i].table for i in drawn[at : at + course.batch]], self.padding)
            for at in range(0, len(drawn), course.batch)
        ]


def task_of(
    model: str | Path,
    data: str | Path,
    recipe: Adapt,
    *,
    rank: int,
    only: Sequence[str],
    exclude: Sequence[str],
    labels: int | None,
) -> Task:
    """A task as a caller names it; raises ``EckartError`` where there is no such model, and for a classifier that tells nothing apart."""
    if labels is not None and labels < 2:
        raise EckartError(f"--labels is {labels}: a classifier tells at least 2 apart")
    folder = Checkpoint(resolve(model)).folder
    parts = {"called": str(model), "only": tuple(only), "exclude": tuple(exclude), "labels": labels}
    return Task(model=folder, data=Path(data), recipe=recipe, rank=rank, **parts)  # type: ignore[arg-type]


def material_of(task: Task, course: Course) -> Material:
    """The records of a task as the examples of a course."""
    course.check_divides(together().count)
    tokenizer = load_tokenizer(task.model)
    records = read_records(task.data, labelled=task.labels is not None, labels=task.labels)
    length = window_length(task.model, course.length)
    train, held = divided(examples_of(records, tokenizer, length), course)
    return Material(records=records, length=length, train=train, held=held, padding=tokenizer.pad_token_id or 0)


def divided(examples: Sequence[Example], course: Course) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those that are held out, drawn by the division of the course."""
    seed = course.seed if course.division is None else course.division
    order = torch.randperm(len(examples), generator=seeded(seed, "held out")).tolist()
    count = min(int(course.held_out * len(examples)), len(examples) - 1)
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]
