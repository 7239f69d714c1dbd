"""Fine-tuning a checkpoint by adapters: start, train, export. A run that was killed goes on when it is repeated."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from eckart.model.adapting.board import check_board
from eckart.model.adapting.course import Course
from eckart.model.adapting.processes import together
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.running import ADAPTER, Export, Tuned, complete, is_finished, open_work, result_of
from eckart.model.adapting.task import material_of, task_of
from eckart.model.output import move_into_place, work_folder
from eckart.model.progress import Progress, quiet


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
    tensorboard: str | Path | None = None,
    restart: bool = False,
    progress: Progress = quiet,
) -> Tuned:
    """Train the adapters of a recipe on the records of a file, and write them to ``out`` as PEFT loads them.

    What no LoRA says is written as the best one of ``export_rank``, or without one in a form of its own, which ``attach`` reads.

    ``model`` is a folder or a hub id, of a causal language model, or with ``labels`` of a classifier with so many. The same call goes on
    with a run that was killed and ends in the same numbers; ``restart`` begins anew. Losses go to a folder for ``tensorboard``, too.

    Where ``torchrun`` starts several processes, all call this; each takes its share of every step, and the first one writes.

    Raises ``EckartError`` for data, options and checkpoints that will not do, each with the way out.
    """
    if tensorboard is not None:
        check_board()
    out, course, processes = Path(out), course or Course(), together()
    work = work_folder(out)
    finished = processes.once(lambda: is_finished(work, out, restart=restart))
    task = task_of(model, data, recipe, rank=rank, only=only, exclude=exclude, labels=labels)
    material = material_of(task, course)
    processes.once(lambda: open_work(work, task.told(course), restart=restart))
    if not finished:
        export = Export(out=out, rank=export_rank, uniform=uniform)
        board = None if tensorboard is None else Path(tensorboard)
        complete(work, task, course, material, export, board=board, progress=progress)

    def placed() -> Tuned:
        if not finished:
            move_into_place(work / ADAPTER, out)
        done = result_of(work, out)
        shutil.rmtree(work)
        return done

    return processes.once(placed)
