"""The calls that people make: the same as the commands, with recipes by key, by TOML file or composed in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eckart.allocate import Allocator
from eckart.bundled import CALIBRATION
from eckart.model import engine
from eckart.model import verify as verification
from eckart.model.certificate import Certificate
from eckart.model.compression import Compress
from eckart.model.engine import Compressed, Planned
from eckart.model.run import Progress, Request, quiet
from eckart.recipes import read_recipe
from eckart.recipes import recipe as find_recipe
from eckart.recipes.notation import compose

DEFAULT_RECIPE = "svd-llm"


def compress(
    model: str | Path,
    out: str | Path,
    *,
    keep: float | None = None,
    size: int | None = None,
    recipe: str | Path | Compress = DEFAULT_RECIPE,
    ranks: Allocator | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibration: str | Path | None = None,
    tokens: int = Request.tokens,
    window: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    restart: bool = False,
    progress: Progress = quiet,
) -> Compressed:
    """Write a smaller checkpoint to ``out``, with bounds on the error of every matrix.

    Args:
        model: a local Hugging Face directory or a hub id.
        out: a directory that does not exist yet or is empty.
        keep: the share of the targeted linear maps' bytes that may remain, 0 < keep <= 1; or
        size: the bytes that all safetensors files together may take.
        recipe: a key of ``eckart.RECIPES``, the path of a TOML file, or a composed ``Compress``.
        ranks: another allocator than the recipe's.
        only: patterns of module names to compress instead of all maps inside blocks.
        exclude: patterns of module names to leave alone.
        calibration: a UTF-8 text; by default the one that comes with the package.
        tokens: how many tokens of it are used, in windows drawn by ``seed``.
        window: tokens a window; by default the smaller of the model's context and 2048.
        seed: decides everything that is random; it is recorded.
        device: where blocks run and matrices are decomposed.
        restart: throw an unfinished run away instead of going on from it.
        progress: called after every finished piece.

    Raises ``EckartError``, one sentence, for anything wrong with model, options or output.
    """
    request = _request(keep, size, only, exclude, calibration, tokens, window, seed, device)
    return engine.compress(model, out, _resolved(recipe, ranks), request, restart=restart, progress=progress)


def plan(
    model: str | Path,
    out: str | Path,
    *,
    keep: float | None = None,
    size: int | None = None,
    recipe: str | Path | Compress = DEFAULT_RECIPE,
    ranks: Allocator | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibration: str | Path | None = None,
    tokens: int = Request.tokens,
    window: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    restart: bool = False,
    progress: Progress = quiet,
) -> Planned:
    """What ``compress`` with the same arguments would do, without writing it; arguments and errors are the same."""
    request = _request(keep, size, only, exclude, calibration, tokens, window, seed, device)
    return engine.plan(model, out, _resolved(recipe, ranks), request, restart=restart, progress=progress)


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    calibration: str | Path | None = None,
    progress: Progress = quiet,
) -> verification.Verification:
    """Check a compressed checkpoint's hashes and figures; see ``eckart.model.verify``.

    ``calibration`` is the text that statistics were taken from; it must be the very same. Raises ``EckartError`` if something
    can't be read; what does not hold is in ``failures`` of the result.
    """
    recipe = None
    if calibration is not None:
        recorded = Certificate.read(Path(folder)).section("recipe")
        parts = {key: recorded[key] for key in ("metric", "approx", "allocate", "statistics") if key in recorded}
        recipe = compose(parts, str(Path(folder) / "eckart.json"))
    text = None if calibration is None else Path(calibration)
    return verification.verify(folder, against, recipe=recipe, calibration=text, progress=progress)


def _request(
    keep: float | None,
    size: int | None,
    only: Sequence[str],
    exclude: Sequence[str],
    calibration: str | Path | None,
    tokens: int,
    window: int | None,
    seed: int,
    device: str,
) -> Request:
    return Request(
        keep=keep,
        size=size,
        only=tuple(only),
        exclude=tuple(exclude),
        calibration=CALIBRATION if calibration is None else Path(calibration),
        tokens=tokens,
        window=window,
        seed=seed,
        device=device,
    )


def _resolved(recipe: str | Path | Compress, ranks: Allocator | None) -> Compress:
    if isinstance(recipe, Compress):
        found = recipe
    elif isinstance(recipe, Path) or str(recipe).endswith(".toml"):
        found = read_recipe(Path(recipe))
    else:
        found = find_recipe(recipe).make()
    return found if ranks is None else replace(found, allocate=ranks)
