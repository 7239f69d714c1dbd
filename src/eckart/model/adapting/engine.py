"""Fine-tuning a checkpoint by adapters: start, train, export. A run that was killed goes on when it is repeated."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from eckart.errors import EckartError, first_line
from eckart.model.adapting.course import Course
from eckart.model.adapting.export import Exported, written
from eckart.model.adapting.kept import read_begun, write_begun
from eckart.model.adapting.modules import NoLoraError
from eckart.model.adapting.own import TABLE, keep
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.records import Example, collate, examples_of, read_records
from eckart.model.adapting.rounded import BASE
from eckart.model.adapting.trainer import AdapterTrainer, newest
from eckart.model.adapting.wrap import begin_all, heads_of, install, targets_of
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.evaluate import load
from eckart.model.files import make_folder, read_json, sha256_of, write_json
from eckart.model.output import check_free, copy_companions, move_into_place, work_folder
from eckart.model.progress import Progress, quiet
from eckart.model.run import seeded
from eckart.model.skeleton import without_bars
from eckart.model.surgery.reading import CONFIG
from eckart.model.text import load_tokenizer, window_length

RUN, DONE = "run.json", "done.json"  # in the work folder: what was asked for, and what came out


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out: the folder with the adapter and its ranks, how many numbers trained of a model of so many, and losses by step.

    Losses are nats per token, or per text of a classifier. ``left_out`` is what an export that is not exact leaves of each map's
    change, as a share of its norm, and ``rounded`` what base and start left of each map's weight after each sweep, likewise, where it was
    rounded: the rounded model lies in ``folder / "base"`` then. ``own`` says why it was kept in a form of its own, where no LoRA of
    the rank allowed does the same. ``within`` are the bytes of the weights of the model that was trained in, as a share of the model's.
    """

    folder: Path
    ranks: Mapping[str, int]
    numbers: int
    parameters: int
    trained: Mapping[int, float]
    judged: Mapping[int, float]
    left_out: Mapping[str, float] = field(default_factory=dict)
    own: str | None = None
    rounded: Mapping[str, Sequence[float]] = field(default_factory=dict)
    within: float = 1.0


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
            "course": asdict(course),
        }


def tune(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    recipe: Adapt,
    *,
    rank: int = 8,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    labels: int | None = None,
    course: Course | None = None,
    export_rank: int | None = None,
    uniform: bool = False,
    restart: bool = False,
    progress: Progress = quiet,
) -> Tuned:
    """Train the adapters of a recipe on the records of a file, and write them to ``out`` as PEFT loads them.

    What no LoRA says is written as the best one of ``export_rank``, or without one in a form of its own, which ``attach`` reads.

    ``model`` is a folder or a hub id, of a causal language model, or with ``labels`` of a classifier with so many. The same call goes on
    with a run that was killed and ends in the same numbers; ``restart`` begins anew.

    Raises ``EckartError`` for data, options and checkpoints that will not do, each with the way out.
    """
    out, course = Path(out), course or Course()
    work = work_folder(out)
    finished = (work / DONE).exists() and any((out / name).exists() for name in (CONFIG, TABLE))
    if not finished:
        check_free(out)
    folder = Checkpoint(resolve(model)).folder
    parts = {"called": str(model), "only": tuple(only), "exclude": tuple(exclude), "labels": labels}
    task = Task(model=folder, data=Path(data), recipe=recipe, rank=rank, **parts)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(folder)
    records = read_records(task.data, labelled=labels is not None)
    length = window_length(folder, course.length)
    examples = _divided(examples_of(records, tokenizer, length), course)
    _open(work, task.told(course), restart=restart)
    if not finished:
        inner = recipe.within.model(folder, work, records, length=length, seed=course.seed, progress=progress)
        task = replace(task, model=inner)
        wrapped, losses = _trained(work, task, course, examples, tokenizer.pad_token_id or 0, progress)
        done, own = _stored(wrapped, work / "adapter", out, Checkpoint(folder), export_rank, uniform=uniform)
        recipe.within.bring_back(work / "adapter", inner, model)
        write_json(
            work / DONE,
            {
                "ranks": dict(done.ranks),
                "numbers": wrapped.numbers,
                "parameters": sum(parameter.numel() for parameter in wrapped.model.parameters()) - wrapped.numbers,
                "trained": {str(entry["step"]): entry["loss"] for entry in losses if "loss" in entry},
                "judged": {str(entry["step"]): entry["eval_loss"] for entry in losses if "eval_loss" in entry},
                "rounded": {name: list(errors) for name, errors in wrapped.rounded.items()},
                "left_out": {name: bound.achieved / bound.scale for name, bound in done.bounds.items() if bound.scale},
                "own": own,
                "within": Checkpoint(inner).weight_bytes() / Checkpoint(folder).weight_bytes(),
            },
        )
        move_into_place(work / "adapter", out)
    table: Any = read_json(work / DONE)
    shutil.rmtree(work)
    for name in ("trained", "judged"):
        table[name] = {int(step): loss for step, loss in table[name].items()}
    return Tuned(folder=out, **table)


def _stored(
    wrapped: Wrapped, folder: Path, out: Path, checkpoint: Checkpoint, rank: int | None, *, uniform: bool
) -> tuple[Exported, str | None]:
    """The adapter written as a LoRA, with the rounded model that it is for, or in its own form and why."""
    try:
        done = written(wrapped, folder, out=out, rank=rank, uniform=uniform, dtype=_dtype_of(checkpoint))
    except NoLoraError as error:
        keep(wrapped, folder)
        return Exported(folder, {}, {}), str(error)
    if wrapped.rounded:
        copy_companions(checkpoint, folder / BASE)
    return done, None


def _dtype_of(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype of all floating numbers of a checkpoint, ``None`` where they have several."""
    found = {spec.dtype for _, spec in checkpoint.tensors.values() if spec.dtype.is_floating_point}
    return found.pop() if len(found) == 1 else None


def _open(work: Path, told: Mapping[str, Any], *, restart: bool) -> None:
    """Make the work folder of this run, or find it as it was left; raises ``EckartError`` where it is that of another run."""
    if restart and work.exists():
        shutil.rmtree(work)
    if not (work / RUN).exists():
        make_folder(work)
        write_json(work / RUN, told)
    before = read_json(work / RUN)
    other = [key for key, value in told.items() if before.get(key) != value]
    if other:
        raise EckartError(
            f"{work} holds an unfinished run with another {other[0]}: repeat that one, or begin anew with --restart"
        )


def _divided(examples: Sequence[Example], course: Course) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those that are held out, drawn by the seed."""
    order = torch.randperm(len(examples), generator=seeded(course.seed, "held out")).tolist()
    count = min(int(course.held_out * len(examples)), len(examples) - 1)
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


def _trained(
    work: Path,
    task: Task,
    course: Course,
    examples: tuple[list[Example], list[Example]],
    padding: int,
    progress: Progress,
) -> tuple[Wrapped, list[dict[str, Any]]]:
    """The model with its adapters after training, and what was noted on the way."""
    model = _loaded(task, course)
    model.name_or_path = task.called  # which the export tells, so that PEFT finds the model by itself
    begun = read_begun(work)
    if begun is None:
        names = targets_of(model, task.only, task.exclude)
        batches = _first_batches(examples[0], course, padding, task.recipe.batches)
        begun = begin_all(model, task.recipe, names, rank=task.rank, batches=batches, seed=course.seed)
        write_begun(work, begun)
    whole = () if task.labels is None else heads_of(model)
    wrapped = install(model, task.recipe, begun, rank=task.rank, whole=whole, dropout=course.dropout)
    arguments = course.arguments(work, judged=bool(examples[1]))
    trainer = AdapterTrainer(
        wrapped, arguments, *examples, padding=padding, patience=course.patience, progress=progress
    )
    checkpoint = newest(work)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    wrapped.model.eval()
    return wrapped, trainer.state.log_history


def _first_batches(examples: Sequence[Example], course: Course, padding: int, most: int) -> list[dict[str, Tensor]]:
    """Batches that starts are measured on, ``most`` at most."""
    drawn = torch.randperm(len(examples), generator=seeded(course.seed, "start")).tolist()[: most * course.batch]
    return [
        collate([examples[i].table for i in drawn[at : at + course.batch]], padding)
        for at in range(0, len(drawn), course.batch)
    ]


def _loaded(task: Task, course: Course) -> Any:
    with without_bars():
        torch.manual_seed(course.seed)  # for a head that is not stored
        if task.labels is None:
            return load(task.model, dtype=torch.float32)
        try:
            return AutoModelForSequenceClassification.from_pretrained(
                task.model, num_labels=task.labels, dtype=torch.float32
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise EckartError(
                f"{task.model} is no model that AutoModelForSequenceClassification can load: {first_line(error)}"
            ) from error
