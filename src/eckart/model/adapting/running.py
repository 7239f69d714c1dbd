"""One run in its work folder: from how adapters begin to what came out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eckart.errors import EckartError
from eckart.model.adapting.board import board_in
from eckart.model.adapting.course import Course
from eckart.model.adapting.export import Exported, written
from eckart.model.adapting.kept import read_begun, write_begun
from eckart.model.adapting.modules import NoLoraError
from eckart.model.adapting.own import TABLE, keep
from eckart.model.adapting.processes import together
from eckart.model.adapting.rounded import BASE
from eckart.model.adapting.task import Material, Task
from eckart.model.adapting.trainer import AdapterTrainer, newest, step_of
from eckart.model.adapting.wrap import begin_all, heads_of, install, targets_of
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.checkpoint import Checkpoint
from eckart.model.files import make_folder, read_json, write_json
from eckart.model.output import check_free, copy_companions
from eckart.model.progress import Progress, quiet
from eckart.model.surgery.reading import CONFIG

RUN, DONE, ADAPTER = "run.json", "done.json", "adapter"  # in the work folder: what was asked for, and what came out
CURVES = {"trained": "loss", "judged": "eval_loss", "accuracy": "eval_accuracy"}  # as the trainer calls them


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out: the folder with the adapter and its ranks, how many numbers trained of a model of so many, and losses by step.

    Losses are nats per token, or per text of a classifier, whose ``accuracy`` is the share of held-out texts that get their label.
    ``left_out`` is what an export that is not exact leaves of each map's change, as a share of its norm, and ``rounded`` what base and
    start left of each map's weight after each sweep, likewise, where it was rounded: the rounded model lies in ``folder / "base"`` then.
    ``own`` says why it was kept in a form of its own, where no LoRA of the rank allowed does the same. ``within`` are the bytes of the
    weights of the model that was trained in, as a share of the model's.
    """

    folder: Path
    ranks: Mapping[str, int]
    numbers: int
    parameters: int
    trained: Mapping[int, float]
    judged: Mapping[int, float]
    accuracy: Mapping[int, float] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)
    rounded: Mapping[str, Sequence[float]] = field(default_factory=dict)
    own: str | None = None
    within: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Where an adapter goes in the end, to which rank it is brought where it is of no low one, and whether all maps get the same."""

    out: Path
    rank: int | None = None
    uniform: bool = False

    def put(self, wrapped: Wrapped, folder: Path, checkpoint: Checkpoint) -> tuple[Exported, str | None]:
        """Write an adapter as a LoRA, with the rounded model that it is for, or in its own form, and tell why."""
        dtype = _dtype_of(checkpoint)
        try:
            done = written(wrapped, folder, out=self.out, rank=self.rank, uniform=self.uniform, dtype=dtype)
        except NoLoraError as error:
            keep(wrapped, folder)
            return Exported(folder, {}, {}), str(error)
        if wrapped.rounded:
            copy_companions(checkpoint, folder / BASE)
        return done, None


def is_finished(work: Path, out: Path, *, restart: bool) -> bool:
    """Whether a run came to its end before it could clean up; raises ``EckartError`` where it did not, and ``out`` is not free."""
    if not restart and (work / DONE).exists() and any((out / name).exists() for name in (CONFIG, TABLE)):
        return True
    check_free(out)
    return False


def open_work(work: Path, told: Mapping[str, Any], *, restart: bool) -> None:
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


def complete(
    work: Path,
    task: Task,
    course: Course,
    material: Material,
    export: Export,
    *,
    start: Path | None = None,
    board: Path | None = None,
    progress: Progress = quiet,
) -> None:
    """Train in a work folder until it holds the adapter and what is to be told of it; adapters begin as ``start`` has it, or will."""
    start, within, processes = start or work, task.recipe.within, together()

    def prepared() -> Path:
        return within.model(
            task.model, start, material.records, length=material.length, seed=course.seed, progress=progress
        )

    inner = processes.once(prepared)
    wrapped, parameters, losses = _trained(work, start, inner, task, course, material, board, progress)

    def finish() -> None:
        done, own = export.put(wrapped, work / ADAPTER, Checkpoint(task.model))
        within.bring_back(work / ADAPTER, inner, task.called)
        curves = {
            name: {str(entry["step"]): entry[key] for entry in losses if key in entry} for name, key in CURVES.items()
        }
        write_json(
            work / DONE,
            {
                "ranks": dict(done.ranks),
                "numbers": wrapped.numbers,
                "parameters": parameters,
                "left_out": {name: bound.achieved / bound.scale for name, bound in done.bounds.items() if bound.scale},
                "rounded": {name: list(errors) for name, errors in wrapped.rounded.items()},
                "own": own,
                "within": Checkpoint(inner).weight_bytes() / Checkpoint(task.model).weight_bytes(),
                **curves,
            },
        )

    processes.once(finish)


def result_of(work: Path, folder: Path) -> Tuned:
    """What a work folder tells of its run, whose adapter is, or will be, in a folder."""
    table: Any = read_json(work / DONE)
    for name in CURVES:
        table[name] = {int(step): value for step, value in sorted(table[name].items(), key=lambda entry: int(entry[0]))}
    return Tuned(folder=folder, **table)


def _trained(
    work: Path,
    start: Path,
    inner: Path,
    task: Task,
    course: Course,
    material: Material,
    board: Path | None,
    progress: Progress,
) -> tuple[Wrapped, int, list[dict[str, Any]]]:
    """The model with its adapters after training, how many parameters it had before, and what was noted on the way."""
    processes = together()
    model = task.load(inner, course.seed)
    whole = () if task.labels is None else heads_of(model)
    heads = sum(parameter.numel() for name in whole for parameter in model.get_submodule(name).parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters()) - heads
    model.name_or_path = task.called  # which the export tells, so that PEFT finds the model by itself

    def measure() -> None:
        if read_begun(start) is None:
            names = targets_of(model, task.only, task.exclude)
            batches = material.first_batches(course, task.recipe.batches)
            begun = begin_all(model, task.recipe, names, rank=task.rank, batches=batches, seed=course.seed)
            write_begun(start, begun)

    processes.once(measure)
    begun = read_begun(start) or {}
    wrapped = install(model, task.recipe, begun, rank=task.rank, whole=whole, dropout=course.dropout)
    checkpoint = processes.once(lambda: newest(work))
    writer = None if board is None or not processes.first else board_in(board, after=step_of(checkpoint))
    trainer = AdapterTrainer(
        wrapped,
        course.arguments(work, judged=bool(material.held), processes=processes.count),
        material.train,
        material.held,
        padding=material.padding,
        patience=course.patience,
        processes=processes,
        board=writer,
        progress=progress,
    )
    trainer.run(checkpoint)
    wrapped.model.eval()
    return wrapped, parameters, trainer.state.log_history


def _dtype_of(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype of all floating numbers of a checkpoint, ``None`` where they have several."""
    found = {spec.dtype for _, spec in checkpoint.tensors.values() if spec.dtype.is_floating_point}
    return found.pop() if len(found) == 1 else None
