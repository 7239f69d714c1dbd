"""Compression from start to end: plan, survey, allocate, fit, choose, write."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.allocate import smallest, total_bytes
from eckart.errors import EckartError
from eckart.model import certificate
from eckart.model.approximation import approximated, choose_ranks
from eckart.model.bonded import narrowed
from eckart.model.certificate import BondRecord, Certificate, HeadRecord, MatrixRecord, Removal
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.compression import AnyRecipe, Compress, Narrow, Share
from eckart.model.files import human_bytes, sha256_of
from eckart.model.journal import Journal
from eckart.model.layout import bytes_of, forms_of, output_bytes
from eckart.model.output import (
    Outcome,
    check_free,
    is_in_place,
    may_be_done,
    put_in_place,
    work_folder,
    write_rest,
    write_weights,
)
from eckart.model.progress import Progress, peak_memory, quiet
from eckart.model.room import scratch_bytes
from eckart.model.run import Request, Run, environment, seeded
from eckart.model.sharing import shared
from eckart.model.skeleton import Skeleton
from eckart.model.survey import measure_curves, predicted_error
from eckart.model.targets import Target, Untouched, find_targets
from eckart.model.tensorfile import tensor_bytes
from eckart.model.text import draw_windows, ids_for, read_text, window_length
from eckart.model.vocabulary import counted
from eckart.model.walk import Walk
from eckart.stats import Need


@dataclass(frozen=True)
class Compressed:
    """What ``compress`` made: where, how large, at which loss, and the record of every matrix.

    ``losses`` holds the mean negative log-likelihood on the calibration windows of the original and of each choice of
    ranks that was tried; ``kept`` names the choice that was taken. ``gap`` bounds by how much the expected loss of the
    allocated ranks may exceed that of the best possible ones. ``removals`` tells in order of what went by its measured loss.
    """

    folder: Path
    matrices: tuple[MatrixRecord, ...]
    bonds: tuple[BondRecord, ...]
    heads: tuple[HeadRecord, ...]
    dropped: tuple[str, ...]
    removals: tuple[Removal, ...]
    untouched: tuple[Untouched, ...]
    target_bytes: tuple[int, int]  # before, after
    file_bytes: tuple[int, int]
    losses: Mapping[str, float]
    kept: str
    gap: float | None
    peak_memory: int


@dataclass(frozen=True)
class Planned:
    """What ``plan`` found: ranks and predicted relative errors, without any output written."""

    rows: tuple[PlannedMatrix, ...]
    untouched: tuple[Untouched, ...]
    target_bytes: tuple[int, int]
    file_bytes: tuple[int, int]
    scratch_bytes: int
    work_folder: Path


@dataclass(frozen=True)
class PlannedMatrix:
    """One line of a plan; ``predicted`` is the relative error in the recipe's metric."""

    name: str
    shape: tuple[int, int]
    operator: str
    rank: int | None
    bytes: int
    predicted: float


def compress(
    model: str | Path,
    out: str | Path,
    recipe: AnyRecipe,
    request: Request,
    *,
    restart: bool = False,
    progress: Progress = quiet,
) -> Compressed:
    """Compress a checkpoint into a directory that transformers loads after ``import eckart``.

    ``model`` is a local Hugging Face directory or a hub id; ``out`` must not exist yet or be empty. A run that was
    killed goes on when it is repeated unchanged and ends in the same bytes; ``restart`` begins anew. Reads and writes tensor
    by tensor; with calibration, one block's weights and statistics are in memory at a time.

    Raises ``EckartError`` for anything wrong with the input, the options or the place for the output.
    """
    out = Path(out)
    if not may_be_done(out, certificate.NAME):
        check_free(out)
    run = _open_run(model, out, recipe, request, restart=restart, progress=progress)
    try:
        if is_in_place(run.journal, out, certificate.NAME):
            return _read_result(out)
        check_free(out)
        made = _made(run, recipe)
        hashes = write_weights(run, made.pieces)
        write_rest(run, made, _certificate(run, made, hashes))
        put_in_place(run.journal, out)
    finally:
        run.journal.close()
    return _read_result(out)


def _made(run: Run, recipe: AnyRecipe) -> Outcome:
    match recipe:
        case Narrow():
            return narrowed(run, recipe)
        case Share():
            return shared(run, recipe)
        case Compress():
            return approximated(run)


def plan(
    model: str | Path,
    out: str | Path,
    recipe: AnyRecipe,
    request: Request,
    *,
    restart: bool = False,
    progress: Progress = quiet,
) -> Planned:
    """What ``compress`` with the same arguments would do: ranks, bytes, predicted errors, size of the temporary file.

    The measurements that this takes stay in the work folder, and ``compress`` goes on from them.
    """
    out = Path(out)
    check_free(out)
    if not isinstance(recipe, Compress):
        raise EckartError("a plan is made for recipes of matrices: leave --dry-run out, or take one of these")
    run = _open_run(model, out, recipe, request, restart=restart, progress=progress)
    try:
        candidates, _, _ = choose_ranks(run)
        run.check_ranks(candidates)
        ranks = next(iter(candidates.values()))
        if run.walk is not None:
            measure_curves(run)
        rows = []
        for target in run.targets:
            rank = ranks[target.name]
            record = certificate.record(target, target.form(run.matrices.approx, rank), rank, ())
            error = predicted_error(run, target, rank)
            rows.append(PlannedMatrix(record.name, record.shape, record.operator, rank, record.bytes, error))
        slots = {target.name: target.slot(run.matrices.approx) for target in run.targets}
        return Planned(
            rows=tuple(rows),
            untouched=tuple(run.untouched),
            target_bytes=(sum(t.bytes for t in run.targets), total_bytes(slots, ranks)),
            file_bytes=(run.checkpoint.weight_bytes(), run.output_bytes(ranks)),
            scratch_bytes=scratch_bytes(run),
            work_folder=run.journal.folder,
        )
    finally:
        run.journal.close()


def _open_run(
    model: str | Path, out: Path, recipe: AnyRecipe, request: Request, *, restart: bool, progress: Progress
) -> Run:
    _check_size(recipe, request)
    checkpoint = Checkpoint(resolve(model))
    if checkpoint.config.get("quantization_config") is not None:
        raise EckartError(f"{checkpoint.folder} is already compressed or quantised: start from the original checkpoint")
    skeleton = Skeleton(checkpoint, torch.device(request.device))
    targets, untouched = find_targets(skeleton, request.only, request.exclude)
    walk: Walk | None = None
    calibration: dict[str, object] | None = None
    counts: Tensor | None = None
    if Need.WORDS in recipe.needs:
        counts, calibration = counted(skeleton, request)
    elif recipe.reads_text:
        walk, calibration = _calibration(skeleton, request)
    if isinstance(recipe, Compress):
        _check_budget(skeleton, recipe, targets, request)
    skeleton.check_weights()
    source = checkpoint.file_hashes(finite=skeleton.stored)
    header = environment() | {
        "source": source,
        "recipe": recipe.describe(),
        "keep": request.keep,
        "bytes": request.size,
        "only": list(request.only),
        "exclude": list(request.exclude),
        "seed": request.seed,
        "device": request.device,
        "quick": request.quick,
        "calibration": calibration,
        "companions": {name: sha256_of(checkpoint.folder / name) for name in checkpoint.companions()},
    }
    journal = Journal(work_folder(out), header, restart=restart)
    return Run(
        checkpoint=checkpoint,
        skeleton=skeleton,
        recipe=recipe,
        request=request,
        targets=targets,
        untouched=untouched,
        journal=journal,
        walk=walk,
        source=source,
        calibration=calibration,
        progress=progress,
        counts=counts,
    )


def _check_size(recipe: AnyRecipe, request: Request) -> None:
    """Refuse a request that does not say how small the result shall be, and one that does where the recipe does so itself."""
    if Need.WORDS in recipe.needs:
        if request.keep is not None or request.size is not None:
            raise EckartError(
                "this recipe leaves out what the text does not use, and no more: leave --keep and --bytes away"
            )
    elif (request.keep is None) == (request.size is None):
        raise EckartError("say how small the result shall be: either --keep FRACTION or --bytes SIZE")


def _calibration(skeleton: Skeleton, request: Request) -> tuple[Walk, dict[str, object]]:
    """The windows that statistics are taken over, and what the record says of them."""
    if request.calibration is None:
        raise EckartError("this recipe needs a calibration text: name one with --calibration FILE")
    folder = skeleton.checkpoint.folder
    text = read_text(request.calibration)
    ids = ids_for(folder, text)
    length = window_length(folder, request.window)
    windows = draw_windows(ids, length, request.tokens, seeded(request.seed, "windows"))
    facts: dict[str, object] = {
        "sha256": sha256_of(request.calibration),
        "ids": hashlib.sha256(tensor_bytes(windows)).hexdigest(),
        "tokens": int(windows.numel()),
        "asked_tokens": request.tokens,
        "window": length,
        "seed": request.seed,
    }
    return Walk(skeleton, windows), facts


def _check_budget(skeleton: Skeleton, recipe: Compress, targets: Sequence[Target], request: Request) -> None:
    """Refuse a budget below what is possible before any work is done, and say the smallest."""
    slots = {target.name: target.slot(recipe.approx) for target in targets}
    least = smallest(slots)
    total = sum(slot.dense_bytes for slot in slots.values())
    if request.keep is not None and total_bytes(slots, least) > request.keep * total:
        share = math.ceil(1e4 * total_bytes(slots, least) / total) / 1e4
        raise EckartError(
            f"--keep is {request.keep:g}, but with the smallest rank or size everywhere {share:.4f} of the bytes remain: give at least that"
        )
    size = output_bytes(skeleton, targets, forms_of(recipe.approx, targets, least))
    if request.size is not None and size > request.size:
        raise EckartError(
            f"--bytes is {request.size}, but with the smallest rank or size everywhere the files take {size} bytes "
            f"({human_bytes(size)}): give at least that, or name more matrices with --only"
        )


def _certificate(run: Run, made: Outcome, hashes: Mapping[str, str]) -> dict[str, object]:
    return {
        "format": certificate.FORMAT,
        "environment": environment(),
        "recipe": run.recipe.describe()
        | {
            "title": run.recipe.paper.title,
            "link": run.recipe.paper.link,
            "deviations": list(run.recipe.paper.deviations),
        },
        "request": {
            "keep": run.request.keep,
            "bytes": run.request.size,
            "only": list(run.request.only),
            "exclude": list(run.request.exclude),
            "seed": run.request.seed,
            "device": run.request.device,
            "quick": run.request.quick,
        },
        "calibration": run.calibration,
        "source": run.source,
        "sizes": {
            "targets": {"before": made.target_bytes[0], "after": made.target_bytes[1]},
            "files": {"before": run.checkpoint.weight_bytes(), "after": bytes_of(run.checkpoint, made.pieces)},
        },
        "ranks": {"kept": made.kept, "losses": dict(made.losses), "gap": made.gap},
        "matrices": [matrix.to_json() for matrix in made.matrices],
        **({"bonds": [bond.to_json() for bond in made.bonds]} if made.bonds else {}),
        **({"heads": [head.to_json() for head in made.heads]} if made.heads else {}),
        **({"dropped": list(made.dropped)} if made.dropped else {}),
        **({"removals": [removal.to_json() for removal in made.removals]} if made.removals else {}),
        "untouched": [{"name": u.name, "shape": list(u.shape), "reason": u.reason} for u in run.untouched],
        "tensors": dict(hashes),
    }


def _read_result(out: Path) -> Compressed:
    """The result as its certificate tells it."""
    found = Certificate.read(out)
    return Compressed(
        folder=out,
        matrices=found.matrices,
        bonds=found.bonds,
        heads=found.heads,
        dropped=found.dropped,
        removals=found.removals,
        untouched=found.untouched,
        target_bytes=found.target_bytes,
        file_bytes=found.file_bytes,
        losses=found.losses,
        kept=found.kept,
        gap=found.gap,
        peak_memory=peak_memory(),
    )
