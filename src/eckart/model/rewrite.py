"""One checkpoint from the files of another, whole or not at all: what densify and restore have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from eckart.model.checkpoint import INDEX, Checkpoint
from eckart.model.files import write_json
from eckart.model.journal import Journal
from eckart.model.output import (
    FOLDER,
    check_free,
    copy_companions,
    is_in_place,
    may_be_done,
    put_in_place,
    work_folder,
)
from eckart.model.progress import Progress
from eckart.model.run import environment
from eckart.model.tensorfile import TensorSpec, write

MARK = "config.json"  # what a finished result has


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """What becomes of a checkpoint ``source``: for each of its files other tensors, one at a time, and another config.

    ``config`` is ``None`` where it stays as it is, byte by byte. The files beside the weights come along.
    """

    stage: str
    source: Checkpoint
    specs: Callable[[str], Sequence[TensorSpec]]
    metadata: Callable[[str], dict[str, str]]
    produce: Callable[[str], Tensor]
    config: Mapping[str, object] | None


def check_place(out: Path) -> None:
    """Raise ``EckartError`` if there is no room for a result, unless it is that of a run which was killed at its end."""
    if not may_be_done(out, MARK):
        check_free(out)


def rewrite(
    plan: Rewriting, out: Path, header: Mapping[str, object], *, restart: bool = False, progress: Progress
) -> Path:
    """Write a checkpoint to ``out``, in one step once it is complete; a run that was killed goes on when it is repeated.

    ``header`` says what it is made of. Raises ``EckartError`` if ``out`` is not free or an unfinished run there was another one.
    """
    told = {**environment(), "made by": plan.stage, **header}
    journal = Journal(work_folder(out), told, restart=restart)
    try:
        if not is_in_place(journal, out, MARK):
            check_free(out)
            _write_files(plan, journal, progress)
            put_in_place(journal, out)
    finally:
        journal.close()
    return out


def _write_files(plan: Rewriting, journal: Journal, progress: Progress) -> None:
    """Write the files of the result into the work folder."""
    made = journal.path(FOLDER)
    made.mkdir(exist_ok=True)
    places: dict[str, str] = {}
    total = 0
    for done, file in enumerate(plan.source.files):
        specs = plan.specs(file)

        def make(file: str = file, specs: Sequence[TensorSpec] = specs) -> tuple[object, list[str]]:
            write(made / file, specs, plan.metadata(file), plan.produce)
            return None, [f"{FOLDER}/{file}"]

        journal.once(f"write/{file}", make)
        places |= {entry.name: file for entry in specs}
        total += sum(entry.nbytes for entry in specs)
        progress(plan.stage, done + 1, len(plan.source.files), file)
    if (plan.source.folder / INDEX).exists():
        write_json(made / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    if plan.config is None:
        copy_companions(plan.source, made, {"config.json": "config.json"})
    else:
        write_json(made / "config.json", plan.config)
    copy_companions(plan.source, made)
