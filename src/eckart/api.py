"""The calls that people make: the same as the commands, with recipes by key, by TOML file or composed in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from eckart.allocate import Allocator
from eckart.bundled import CALIBRATION
from eckart.errors import EckartError
from eckart.model import engine
from eckart.model import verify as verification
from eckart.model.certificate import NAME, Certificate
from eckart.model.compression import AnyRecipe, Compress, Narrow, Share
from eckart.model.engine import Compressed, Planned
from eckart.model.healing.check import verify_healed
from eckart.model.progress import Progress, quiet
from eckart.model.run import Request
from eckart.recipes import read_recipe
from eckart.recipes import recipe as find_recipe
from eckart.recipes.notation import recorded_metric, recorded_recipe
from eckart.stats import Need

DEFAULT_RECIPE = "svd-llm"


class Options(TypedDict, total=False):
    """What ``compress`` and ``plan`` can be told; exactly one of ``keep`` and ``size`` is needed, and none where the recipe tells the size.

    ``keep``: the share of the targeted linear maps' bytes that may remain, 0 < keep <= 1.
    ``size``: the bytes that all safetensors files together may take.
    ``recipe``: a key of ``eckart.RECIPES``, a TOML file, or a composed ``Compress``, ``Narrow`` or ``Share``; by default ``svd-llm``.
    ``ranks``: another allocator than the recipe's.
    ``only``: patterns of module names to compress instead of all maps inside blocks.
    ``exclude``: patterns of module names to leave alone.
    ``calibration``: a UTF-8 text; by default the one that comes with the package, but for recipes that leave out what it does not use.
    ``tokens``: how many tokens of it are used, in windows drawn by ``seed``; by default 32768.
    ``window``: tokens a window; by default the smaller of the model's context and 2048.
    ``seed``: decides everything that is random, and is recorded; by default 0.
    ``device``: where blocks run and matrices are decomposed; by default ``cpu``.
    ``quick``: leave out the spectral norm, and where the smaller side is above 1024 the lower bound that comes near the optimum.
    """

    keep: float | None
    size: int | None
    recipe: str | Path | AnyRecipe
    ranks: Allocator | None
    only: Sequence[str]
    exclude: Sequence[str]
    calibration: str | Path | None
    tokens: int
    window: int | None
    seed: int
    device: str
    quick: bool


def compress(
    model: str | Path,
    out: str | Path,
    *,
    restart: bool = False,
    progress: Progress = quiet,
    **options: Unpack[Options],
) -> Compressed:
    """Write a smaller checkpoint to ``out``, with bounds on the error of every matrix.

    ``model`` is a local Hugging Face directory or a hub id; ``out`` must not exist yet or be empty. ``options`` are those of
    ``Options``. A run that was killed goes on when it is repeated unchanged, unless ``restart`` throws it away.
    ``progress`` is called after every finished piece. The README's example is run by the tests.

    Raises ``EckartError``, one sentence, for anything wrong with model, options or output.
    """
    recipe, request = _read(options)
    return engine.compress(model, out, recipe, request, restart=restart, progress=progress)


def plan(
    model: str | Path,
    out: str | Path,
    *,
    restart: bool = False,
    progress: Progress = quiet,
    **options: Unpack[Options],
) -> Planned:
    """What ``compress`` with the same arguments would do, without writing it; arguments and errors are the same."""
    recipe, request = _read(options)
    return engine.plan(model, out, recipe, request, restart=restart, progress=progress)


def _read(options: Options) -> tuple[AnyRecipe, Request]:
    """The recipe and the request that options ask for."""
    unknown = sorted(set(options) - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}: known are {', '.join(Options.__annotations__)}")
    recipe, ranks = options.get("recipe", DEFAULT_RECIPE), options.get("ranks")
    found = _resolved(recipe, ranks)
    own = None if Need.WORDS in found.needs else CALIBRATION  # nobody's model is for the bundled text
    calibration = options.get("calibration")
    request = Request(
        keep=options.get("keep"),
        size=options.get("size"),
        only=tuple(options.get("only", ())),
        exclude=tuple(options.get("exclude", ())),
        calibration=own if calibration is None else Path(calibration),
        tokens=options.get("tokens", Request.tokens),
        window=options.get("window"),
        seed=options.get("seed", Request.seed),
        device=options.get("device", Request.device),
        quick=options.get("quick", Request.quick),
    )
    return found, request


def _resolved(recipe: str | Path | AnyRecipe, ranks: Allocator | None) -> AnyRecipe:
    if isinstance(recipe, Compress | Narrow | Share):
        found: AnyRecipe = recipe
    elif isinstance(recipe, Path) or recipe.endswith(".toml"):
        found = read_recipe(Path(recipe))
    else:
        found = find_recipe(recipe).make()
    if ranks is not None and isinstance(found, Share):
        raise EckartError(
            "this recipe shares as many heads as the budget asks for, and there are no ranks to spread: leave --ranks out"
        )
    try:
        return found if ranks is None or isinstance(found, Share) else replace(found, allocate=ranks)
    except ValueError as error:
        raise EckartError(f"these ranks do not go with this recipe: {error}") from error


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    calibration: str | Path | None = None,
    progress: Progress = quiet,
) -> verification.Verification:
    """Check a compressed checkpoint's hashes and figures; see ``eckart.model.verify``.

    ``calibration`` is the text that statistics were taken from; it must be the very same. Of a healed checkpoint training is not made
    again, which is told. Raises ``EckartError`` if something
    can't be read; what does not hold is in ``failures`` of the result.
    """
    certificate, origin = Certificate.read(Path(folder)), str(Path(folder) / NAME)
    recorded = certificate.recipe
    if certificate.trained or (
        certificate.healing and not recorded
    ):  # healed: neither the recipe nor its metric tells of what is there now
        if calibration is not None:
            raise EckartError(
                f"{folder} was healed, and no figure of it hangs on a calibration text: leave --calibration out"
            )
        return verify_healed(folder, against, progress)
    text = None if calibration is None else Path(calibration)
    recipe = recorded_recipe(recorded, origin)
    if recipe is not None:
        return verification.verify(folder, against, recipe=recipe, calibration=text, progress=progress)
    rule, statistics = recorded_metric(recorded, origin)
    return verification.verify(folder, against, rule=rule, statistics=statistics, calibration=text, progress=progress)
