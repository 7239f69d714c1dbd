"""The same course at several learning rates, with several seeds; the best by what is held out is kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eckart.errors import EckartError
from eckart.model.adapting.board import check_board
from eckart.model.adapting.course import Course
from eckart.model.adapting.processes import together
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.running import ADAPTER, DONE, Export, Tuned, complete, is_finished, open_work, result_of
from eckart.model.adapting.task import material_of, task_of
from eckart.model.files import make_folder, write_json
from eckart.model.output import move_into_place, work_folder
from eckart.model.progress import Progress, quiet

SHARED = "start-{}"  # in the work folder: how adapters begin with a seed, which no rate has a part in


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep. Its adapter's held-out loss is the ``final`` one, or with ``early`` ends that of the ``best`` step."""

    rate: float
    seed: int
    early: bool
    tuned: Tuned

    @property
    def final(self) -> float:
        """The last held-out loss."""
        return self.tuned.judged[max(self.tuned.judged)]

    @property
    def best(self) -> float:
        """The lowest held-out loss on the way; infinite where none is a number."""
        return min((loss for loss in self.tuned.judged.values() if math.isfinite(loss)), default=math.inf)

    @property
    def loss(self) -> float:
        """The held-out loss of the adapter as it is; infinite where it is no number."""
        found = self.best if self.early else self.final
        return found if math.isfinite(found) else math.inf


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found, and the folder with the adapter that was kept: at the best rate that of the seed with the lowest loss.

    The best rate is the one with the lowest held-out loss in the mean over seeds; the held-out examples are the same in all runs.
    """

    folder: Path
    trials: tuple[Trial, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates, in order."""
        return tuple(sorted({trial.rate for trial in self.trials}))

    def losses(self, rate: float) -> tuple[float, ...]:
        """The held-out losses at a rate, seed by seed."""
        return tuple(trial.loss for trial in self.trials if trial.rate == rate)

    def mean(self, rate: float) -> float:
        """Of these the mean."""
        return sum(self.losses(rate)) / len(self.losses(rate))

    def spread(self, rate: float) -> float:
        """Of these the largest less the smallest."""
        losses = self.losses(rate)
        return max(losses) - min(losses) if math.isfinite(max(losses)) else math.inf

    @property
    def rate(self) -> float:
        """The best rate."""
        return min(self.rates, key=self.mean)

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of the sweep, so that one beyond it may do better."""
        return self.rate in (self.rates[0], self.rates[-1])

    @property
    def kept(self) -> Trial:
        """The run whose adapter was kept."""
        return min((trial for trial in self.trials if trial.rate == self.rate), key=lambda trial: trial.loss)


def around(rate: float, count: int) -> tuple[float, ...]:
    """So many rates by half decades around one.

    >>> [float(f"{rate:.3g}") for rate in around(1e-3, 3)]
    [0.000316, 0.001, 0.00316]
    """
    return tuple(float(f"{rate * 10 ** ((i - (count - 1) / 2) / 2):.6g}") for i in range(count))


def sweep(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    recipe: Adapt,
    *,
    rates: Sequence[float],
    seeds: int = 1,
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
) -> Swept:
    """``tune`` at each of these rates with so many seeds, from the seed of the course on, and keep the best adapter by held-out loss.

    The other options are those of ``tune``. The same call goes on with a sweep that was killed, and repeats no run that was finished.

    Raises ``EckartError`` as ``tune`` does, for rates that are none or fewer than two, where nothing is held out to choose by, and
    where no run ends in a loss that is a number.
    """
    rates, course = tuple(sorted(set(rates))), course or Course()
    _check(rates, seeds, course)
    if tensorboard is not None:
        check_board()
    division = course.seed if course.division is None else course.division
    course = replace(course, rate=rates[0], division=division)
    out, processes = Path(out), together()
    work = work_folder(out)
    finished = processes.once(lambda: is_finished(work, out, restart=restart))
    task = task_of(model, data, recipe, rank=rank, only=only, exclude=exclude, labels=labels)
    material = material_of(task, course)
    if not material.held:
        raise EckartError(f"none of {len(material.train)} examples is held out to choose a rate by: raise --held-out")
    told = {"choice of rates": list(rates), "number of seeds": seeds, **task.told(course)}
    processes.once(lambda: open_work(work, told, restart=restart))
    early, export = course.patience is not None, Export(out=out, rank=export_rank, uniform=uniform)
    runs = [(rate, seed) for rate in rates for seed in range(course.seed, course.seed + seeds)]
    for done, (rate, seed) in enumerate(runs):
        progress("sweep", done, len(runs), f"rate {rate:g}, seed {seed}")
        folder, start = _folder(work, rate, seed), work / SHARED.format(seed)
        if processes.once(partial(_is_to_run, folder, start)):
            board = None if tensorboard is None else Path(tensorboard) / folder.name
            own = replace(course, rate=rate, seed=seed)
            complete(folder, task, own, material, export, start=start, board=board, progress=progress)
            processes.once(partial(_without_checkpoints, folder))

    def placed() -> Swept:
        trials = (Trial(rate=r, seed=s, early=early, tuned=result_of(_folder(work, r, s), out)) for r, s in runs)
        found = Swept(folder=out, trials=tuple(trials))
        if math.isinf(found.kept.loss):
            raise EckartError(
                f"no run ends in a held-out loss that is a number: sweep rates below {rates[0]:g}, with --restart"
            )
        if not finished:
            kept = _folder(work, found.kept.rate, found.kept.seed)
            write_json(work / DONE, {"kept": kept.name})
            move_into_place(kept / ADAPTER, out)
        shutil.rmtree(work)
        return found

    return processes.once(placed)


def _check(rates: Sequence[float], seeds: int, course: Course) -> None:
    wrong = [rate for rate in rates if not 0 < rate < math.inf]
    if wrong:
        raise EckartError(f"a learning rate of the sweep is {wrong[0]:g}: rates are above 0")
    if len(rates) < 2:
        there = f"only {rates[0]:g}" if rates else "none"
        raise EckartError(f"a sweep compares at least 2 learning rates, and there is {there}: name more of them")
    if seeds < 1:
        raise EckartError(f"--seeds is {seeds}: give at least 1")
    if not course.held_out:
        raise EckartError("a sweep chooses by held-out loss, and --held-out is 0: give a share, e.g. 0.05")


def _folder(work: Path, rate: float, seed: int) -> Path:
    return work / f"{rate!r}-{seed}"


def _is_to_run(folder: Path, start: Path) -> bool:
    """Whether a run did not come to its end yet; then there are folders for it and for how adapters begin."""
    if (folder / DONE).exists():
        return False
    make_folder(folder)
    make_folder(start)
    return True


def _without_checkpoints(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(path)
