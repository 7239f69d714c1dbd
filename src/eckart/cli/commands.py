"""The commands: each calls the library once and shows what it answers."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import eckart
from eckart.bundled import CALIBRATION, HELDOUT, MODEL
from eckart.cli import show
from eckart.cli.reports import (
    compressed_json,
    planned_json,
    print_bonds,
    print_compressed,
    print_peak_memory,
    print_plan,
    print_recipe,
    print_recipes,
    print_scores,
    print_spectra,
    print_speeds,
    print_verification,
    recipe_json,
    scores_json,
)
from eckart.errors import EckartError, VerificationError

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.allocate import Allocator
    from eckart.api import Options

Model = Annotated[str, typer.Argument(help="A local Hugging Face directory or a hub id such as org/name.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw an unfinished run away and begin anew.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Patterns of module names, e.g. '*.mlp.*' or q_proj.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Patterns of module names to leave alone.")]


class Ranks(StrEnum):
    """How ranks are spread over the matrices."""

    uniform = "uniform"
    allocated = "allocated"


def _allocator(ranks: Ranks | None) -> Allocator | None:
    from eckart.allocate import EqualMarginalLoss, Uniform

    return {None: None, Ranks.uniform: Uniform(), Ranks.allocated: EqualMarginalLoss()}[ranks]


def parse_size(text: str) -> int:
    """A number of bytes, with or without a decimal or binary unit.

    >>> parse_size("12MB"), parse_size("1.5 GiB"), parse_size("800000")
    (12000000, 1610612736, 800000)
    """
    units = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    digits = text.strip().lower().rstrip("bikmgt ")
    unit = text.strip().lower()[len(digits) :].strip()
    try:
        return int(float(digits) * units[unit])
    except (KeyError, ValueError, OverflowError) as error:
        raise EckartError(f"--bytes is {text!r}: give a size such as 12MB, 1.5GB or 800000") from error


def compress(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    keep: Annotated[
        float | None, typer.Option(help="Share of the linear maps' bytes that may remain, e.g. 0.8.")
    ] = None,
    size: Annotated[str | None, typer.Option("--bytes", help="Bytes of all weight files together, e.g. 12MB.")] = None,
    recipe: Annotated[str, typer.Option(help="A key from eckart recipes, or a TOML file.")] = "svd-llm",
    ranks: Annotated[Ranks | None, typer.Option(help="Spread ranks otherwise than the recipe does.")] = None,
    only: Only = None,
    exclude: Exclude = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A UTF-8 text; by default one that comes with eckart.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the calibration text to use.")] = 32768,
    window: Annotated[
        int | None, typer.Option(help="Tokens a window; by default the model's context, at most 2048.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Twice as fast on large matrices: no spectral norm, and a looser lower bound."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; what was measured is kept for the run.")
    ] = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Write a smaller checkpoint that transformers loads, with bounds on the error of every matrix.

    Examples:
    eckart compress ./model -o ./small --keep 0.8

    eckart compress org/name -o ./small --bytes 5GB --calibration texts.txt

    eckart compress ./model -o ./small --keep 0.7 --recipe svd --only '*.mlp.*'

    eckart compress ./model -o ./small --recipe embedding-pruning --calibration texts.txt

    A run that was killed goes on when the same command is given again.
    """
    options: Options = {
        "keep": keep,
        "size": None if size is None else parse_size(size),
        "recipe": recipe,
        "ranks": _allocator(ranks),
        "only": only or (),
        "exclude": exclude or (),
        "calibration": calibration,
        "tokens": tokens,
        "window": window,
        "seed": seed,
        "device": device,
        "quick": quick,
    }
    with show.progress() as progress:
        if dry_run:
            planned = eckart.plan(model, output, restart=restart, progress=progress, **options)
        else:
            done = eckart.compress(model, output, restart=restart, progress=progress, **options)
    if dry_run:
        show.print_json(planned_json(planned)) if json else print_plan(planned)
    else:
        show.print_json(compressed_json(done)) if json else print_compressed(done)


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="A directory that eckart compress wrote.")],
    against: Annotated[str | None, typer.Option(help="The original: checks every figure against it.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="The text that was used: checks the metric's figures too.")
    ] = None,
    json: Json = False,
) -> None:
    """Check the hashes of a compressed checkpoint, and every recorded figure against the original.

    Examples:
    eckart verify ./small --against ./model

    eckart verify ./small --against ./model --calibration texts.txt

    Exits with 1 if anything recorded does not hold.
    """
    with show.progress() as progress:
        found = eckart.verify(checkpoint, against, calibration=calibration, progress=progress)
    if json:
        show.print_json(
            {
                "holds": found.holds,
                "checked": dict(found.checked),
                "not_rechecked": list(found.not_rechecked),
                "failures": list(found.failures),
            }
        )
    else:
        print_verification(found)
        print_peak_memory()
    if not found.holds:
        raise VerificationError(f"{checkpoint}: {len(found.failures)} checks failed; the first: {found.failures[0]}")


def densify(
    checkpoint: Annotated[Path, typer.Argument(help="A directory that eckart compress wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Multiply the factors out: a stock checkpoint of full size that needs nothing but transformers.

    Example: eckart densify ./small -o ./dense
    """
    with show.progress() as progress:
        made = eckart.densify(checkpoint, output, restart=restart, progress=progress)
    if json:
        show.print_json({"folder": str(made)})
    else:
        print_peak_memory()
        show.out().print(f"A stock checkpoint lies in {made}")


def restore(
    checkpoint: Annotated[Path, typer.Argument(help="A directory with a smaller vocabulary, trained or not.")],
    original: Annotated[str, typer.Option(help="The model that it was made from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Put the rows of a smaller vocabulary back into the original: its other rows, its config and its tokenizer stay.

    Example: eckart restore ./small --original ./model -o ./full
    """
    with show.progress() as progress:
        made = eckart.restore(checkpoint, original, output, restart=restart, progress=progress)
    if json:
        show.print_json({"folder": str(made)})
    else:
        print_peak_memory()
        show.out().print(f"The original with these weights lies in {made}")


def evaluate(
    model: Model,
    text: Annotated[list[Path], typer.Option("--text", help="A UTF-8 text file; may be given several times.")],
    window: Annotated[
        int | None, typer.Option(help="Tokens a window; by default the model's context, at most 2048.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Perplexity of texts under a model, original or compressed, in non-overlapping windows.

    Example: eckart eval ./small --text valid.txt --text other.txt

    The first token of a window is not scored. Arithmetic is float32.
    """
    with show.progress() as progress:
        scores = eckart.evaluate(model, text, window=window, device=device, progress=progress)
    show.print_json(scores_json(scores)) if json else print_scores({model: scores})


def inspect(model: Model, only: Only = None, exclude: Exclude = None, json: Json = False) -> None:
    """The spectrum of every matrix: stable and effective rank, ranks for 90, 99 and 99.9 % of the energy, tail.

    Example: eckart inspect ./model --only '*.mlp.*'
    """
    with show.progress() as progress:
        found = eckart.inspect(model, only=only or (), exclude=exclude or (), progress=progress)
    if json:
        show.print_json([row.to_json() for row in found.rows])
    else:
        print_spectra(found)
        print_peak_memory()


def bonds(model: Model, json: Json = False) -> None:
    """How a model's tensors hang together: which axes meet, and what may be changed there without changing the network.

    Example: eckart bonds ./model
    """
    found = eckart.bond_graph(model)
    show.print_json(found.to_json()) if json else print_bonds(found)


def parse_shape(text: str) -> tuple[int, int]:
    """Outputs and inputs of a layer.

    >>> parse_shape("4096x11008")
    (4096, 11008)
    """
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise EckartError(f"--shape is {text!r}: give outputs and inputs such as 4096x11008")
    return int(rows), int(columns)


def bench_layers(
    shape: Annotated[list[str] | None, typer.Option(help="Outputs x inputs, e.g. 4096x11008; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows at a time; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs that the median is taken of.")] = 7,
    json: Json = False,
) -> None:
    """Time factored layers beside dense ones on this machine, in float32 and bfloat16, and say up to which rank they are faster.

    Example: eckart bench layers --shape 4096x4096 --shape 4096x11008
    """
    from eckart.model.speed import layer_speeds

    shapes = [parse_shape(text) for text in shape or ["2048x2048", "4096x4096"]]
    with show.progress() as progress:
        found = layer_speeds(shapes, batch or (1, 16, 512), repeats=repeats, progress=progress)
    show.print_json([speed.to_json() for speed in found]) if json else print_speeds(found)


def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, with its parts, needs and deviations.")] = None,
    json: Json = False,
) -> None:
    """List the recipes, or show one.

    Examples: eckart recipes, eckart recipes svd-llm, eckart recipes pissa
    """
    from eckart.adapt import RECIPES as ADAPTERS
    from eckart.recipes import Recipe

    known: dict[str, Recipe[Any]] = {**eckart.RECIPES} | {
        key: Recipe(key, "adapt", make) for key, make in ADAPTERS.items()
    }
    if name and name not in known:
        raise EckartError(f"there is no recipe {name!r}: known are {', '.join(known)}")
    chosen = [known[name]] if name else list(known.values())
    if json:
        records = [recipe_json(entry) for entry in chosen]
        show.print_json(records[0] if name else records)
    elif name:
        print_recipe(chosen[0])
    else:
        print_recipes(chosen)


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the result goes; a new temporary folder.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the linear maps' bytes that may remain.")] = 0.8,
) -> None:
    """Compress the small model that comes with eckart, check it, and evaluate it before and after."""
    folder = output or Path(tempfile.mkdtemp(prefix="eckart-demo-")) / "compressed"
    console = show.out()
    console.print(f"Compressing the bundled model to {keep:.0%} of its linear maps ...")
    with show.progress() as progress:
        done = eckart.compress(MODEL, folder, keep=keep, progress=progress)
    print_compressed(done)
    with show.progress() as progress:
        before = eckart.evaluate(MODEL, [HELDOUT], progress=progress)
        after = eckart.evaluate(folder, [HELDOUT], progress=progress)
        found = eckart.verify(folder, MODEL, calibration=CALIBRATION, progress=progress)
    print_scores({"original": before, "compressed": after})
    print_verification(found)
    console.print(f"\nThe compressed model lies in {folder}")
    if not found.holds:
        raise VerificationError(f"{folder}: {found.failures[0]}")
