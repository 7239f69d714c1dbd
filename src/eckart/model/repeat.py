"""Checking a result by making it again: where its figures hang on everything that was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eckart.bound import Bound
from eckart.model.certificate import BondRecord, Certificate, HeadRecord, MatrixRecord, Removal
from eckart.model.checkpoint import Checkpoint
from eckart.model.compression import AnyRecipe
from eckart.model.engine import compress
from eckart.model.files import sha256_of
from eckart.model.ledger import Ledger
from eckart.model.progress import Progress
from eckart.model.recheck import check_text
from eckart.model.run import Request
from eckart.model.words import NAME as WORDS
from eckart.stats import Need

# On another machine sums are rounded otherwise; a weight may then come out at the next number that its dtype has, and figures that go
# through activations in float32 differ by theirs.
STEPS = 4
FIGURES = 1e-4


def check_repeated(
    checkpoint: Checkpoint,
    original: Checkpoint,
    certificate: Certificate,
    recipe: AnyRecipe,
    calibration: Path | None,
    ledger: Ledger,
    progress: Progress,
) -> tuple[str, ...]:
    """Make the result again in a temporary folder and compare config, records, losses and every tensor; what is left unchecked.

    Where the vocabulary is a smaller one all other files are compared as well. Nothing is made where the text is missing or a check failed
    before. Raises ``EckartError`` for another text than the recorded one.
    """
    if recipe.reads_text and calibration is None:
        return ("what hangs on the calibration text: figures, weights and losses (name it with --calibration)",)
    facts = certificate.calibration
    if calibration is not None and facts is not None:
        check_text(calibration, facts)
    if ledger.failures:
        return ()
    drawn = None if Need.WORDS in recipe.needs else facts  # counts are of the whole text
    request = Request(
        keep=certificate.keep,
        size=certificate.size,
        only=certificate.only,
        exclude=certificate.exclude,
        calibration=calibration,
        tokens=Request.tokens if drawn is None else drawn.asked_tokens,
        window=None if drawn is None else drawn.window,
        seed=certificate.seed,
        quick=certificate.quick,
    )
    with tempfile.TemporaryDirectory(prefix="eckart-verify-") as scratch:
        made = compress(original.folder, Path(scratch) / "again", recipe, request, progress=progress)
        again = Checkpoint(made.folder)
        for key in sorted({*checkpoint.config, *again.config}):
            same = checkpoint.config.get(key) == again.config.get(key)
            ledger.check(
                "config entries", same, f"{checkpoint.folder / 'config.json'}: {key} is not what the recipe gives"
            )
        _check_bonds(certificate.bonds, made.bonds, ledger)
        _check_heads(certificate.heads, made.heads, ledger)
        _check_matrices(certificate.matrices, made.matrices, ledger)
        _check_sizes(certificate.target_bytes, made.target_bytes, ledger)
        _check_sizes(certificate.file_bytes, made.file_bytes, ledger)
        same = certificate.untouched == made.untouched
        ledger.check("untouched", same, "the list of matrices left alone is not the right one")
        same = certificate.kept == made.kept
        ledger.check("ranks", same, f"the ranks taken are recorded as {certificate.kept}, but are {made.kept}")
        ledger.check(
            "blocks",
            certificate.dropped == made.dropped,
            "the blocks left out are not those that the recipe leaves out",
        )
        _check_removals(certificate.removals, made.removals, ledger)
        for label in sorted({*certificate.losses, *made.losses}):
            told, found = certificate.losses.get(label), made.losses.get(label)
            near = told is not None and found is not None and _alike(told, found)
            ledger.check("losses", near, f"the loss {label} is recorded as {told}, but it is {found}")
        for name in sorted({*checkpoint.tensors, *again.tensors}):
            there = name in checkpoint.tensors and name in again.tensors
            same = there and _near(checkpoint.read(name), again.read(name), exact=Need.WORDS in recipe.needs)
            ledger.check("tensors made again", same, f"tensor {name} is not what the recipe makes of the original")
        if WORDS in again.companions():  # ids mean something only by these files
            for name in again.companions():
                path = checkpoint.folder / name
                same = path.is_file() and sha256_of(path) == sha256_of(again.folder / name)
                ledger.check("files made again", same, f"{path} is not what the recipe makes of the original")
    return ()


def _check_bonds(told: tuple[BondRecord, ...], made: tuple[BondRecord, ...], ledger: Ledger) -> None:
    recorded = {record.name: record for record in told}
    ledger.check("bonds", len(recorded) == len(told), "a bond is recorded twice")
    for name in sorted({*recorded, *(record.name for record in made)}):
        found = next((record for record in made if record.name == name), None)
        record = recorded.get(name)
        if record is None or found is None:
            ledger.check("bonds", False, f"the bond {name} is recorded or narrowed, and not both")
            continue
        same: Callable[[BondRecord], object] = lambda r: (r.size, r.rank, r.kept, r.bound is None)  # noqa: E731
        ledger.check("bonds", same(record) == same(found), f"{name}: what is left of the bond is not as recorded")
        if record.bound is not None and found.bound is not None:
            _check_bound(name, record.bound, found.bound, ledger)


def _check_removals(told: tuple[Removal, ...], made: tuple[Removal, ...], ledger: Ledger) -> None:
    same = [replace(removal, loss=0.0) for removal in told] == [replace(removal, loss=0.0) for removal in made]
    ledger.check("removals", same, "what went by its measured loss, or the order in which it went, is not as recorded")
    for removal, found in zip(told, made, strict=False) if same else ():
        ledger.check(
            "losses",
            _alike(removal.loss, found.loss),
            f"the loss with {removal.left} of {removal.name} is recorded as {removal.loss}, but it is {found.loss}",
        )


def _alike(told: float, found: float) -> bool:
    return abs(told - found) <= FIGURES * abs(found)


def _check_sizes(told: tuple[int, int], made: tuple[int, int], ledger: Ledger) -> None:
    ledger.check("sizes", told == made, f"the bytes before and after are recorded as {told}, but are {made}")


def _check_heads(told: tuple[HeadRecord, ...], made: tuple[HeadRecord, ...], ledger: Ledger) -> None:
    recorded, found = ({record.name: record for record in records} for records in (told, made))
    ledger.check("heads", len(recorded) == len(told), "a head is recorded twice")
    for name in sorted({*recorded, *found}):
        old, new = recorded.get(name), found.get(name)
        if old is None or new is None:
            ledger.check("heads", False, f"{name} is recorded or shared, and not both")
            continue
        same = (old.match, old.root) == (new.match, new.root) and abs(old.likeness - new.likeness) <= FIGURES
        ledger.check(
            "heads", same, f"{name}: its match, whose weights it takes, or how alike they are is not as recorded"
        )


def _check_matrices(told: tuple[MatrixRecord, ...], made: tuple[MatrixRecord, ...], ledger: Ledger) -> None:
    same = [record.name for record in told] == [record.name for record in made]
    ledger.check("matrices", same, "the matrices recorded are not those that the recipe approximates")
    for record, found in zip(told, made, strict=False):
        blank = [replace(entry, bounds=()) for entry in (record, found)]
        norms = [[bound.norm for bound in entry.bounds] for entry in (record, found)]
        alike = blank[0] == blank[1] and norms[0] == norms[1]
        ledger.check("matrices", alike, f"{found.name}: operator, rank, bytes or norms are not as recorded")
        if alike:
            for old, new in zip(record.bounds, found.bounds, strict=True):
                _check_bound(found.name, old, new, ledger)


def _check_bound(name: str, told: Bound, found: Bound, ledger: Ledger) -> None:
    for figure in ("lower", "achieved", "upper", "scale"):
        old, new = getattr(told, figure), getattr(found, figure)
        near = old is new is None or (old is not None and new is not None and abs(old - new) <= FIGURES * found.scale)
        ledger.check("figures made again", near, f"{name}: {figure} is recorded as {old}, but it is {new}")


def _near(told: Tensor, made: Tensor, *, exact: bool) -> bool:
    """Whether two stored tensors are the same but for a few steps of rounding; ``exact``: to the last bit, where none was computed."""
    if told.shape != made.shape or told.dtype != made.dtype:
        return False
    if exact or not told.is_floating_point():
        return torch.equal(told, made)
    if not told.numel():
        return True
    a, b = told.to(torch.float64), made.to(torch.float64)
    grain = max(STEPS * torch.finfo(told.dtype).eps, FIGURES)
    return bool(((a - b).abs() <= grain * (b.abs() + b.abs().mean())).all())
