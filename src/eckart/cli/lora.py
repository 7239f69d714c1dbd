"""The commands on adapters, and how their results look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import show
from eckart.cli.commands import Exclude, Json, Model, Only, Restart, parse_size
from eckart.cli.reports import print_peak_memory
from eckart.errors import EckartError
from eckart.model.files import human_bytes

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.bound import Bound
    from eckart.model.surgery import Adapter, LayerRow, Left, Size

Place = Annotated[Path, typer.Argument(help="A directory of PEFT, or a file of loralib.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")]
Rank = Annotated[int | None, typer.Option(help="One rank for every module.")]
Energy = Annotated[float | None, typer.Option(help="Share of each update's squared norm to keep, e.g. 0.95.")]
Error = Annotated[float | None, typer.Option(help="Largest certified error of each update, as a share of its norm.")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="Bytes of the file of tensors, e.g. 5MB: ranks are spread.")]
Uniform = Annotated[
    bool, typer.Option("--uniform", help="One rank and alpha for all, filled up with zeros, as some servers want it.")
]
Alpha = Annotated[float | None, typer.Option(help="The alpha of a file of loralib, which does not say it.")]


def size_of(rank: int | None, energy: float | None, error: float | None, size: str | None) -> Size:
    """The one size that was given."""
    from eckart.model.surgery import ToBytes, ToEnergy, ToError, ToRank

    match rank, energy, error, size:
        case int(), None, None, None:
            return ToRank(rank)
        case None, float(), None, None:
            return ToEnergy(energy)
        case None, None, float(), None:
            return ToError(error)
        case None, None, None, str():
            return ToBytes(parse_size(size))
        case _:
            raise EckartError("give one of --rank, --energy, --error and --bytes, and only one")


def resize(
    adapter: Place,
    output: Output,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    size: Bytes = None,
    uniform: Uniform = False,
    alpha: Alpha = None,
    json: Json = False,
) -> None:
    """Bring an adapter to another rank: the nearest there is, by its factors alone, with a bound for every module.

    Examples:
    eckart lora resize ./adapter -o ./smaller --rank 4

    eckart lora resize ./adapter -o ./smaller --error 0.1

    eckart lora resize roberta_lora.bin --alpha 16 -o ./smaller --bytes 1MB
    """
    from eckart.model.output import check_free
    from eckart.model.surgery import read
    from eckart.model.surgery import resize as resized

    wanted = size_of(rank, energy, error, size)
    check_free(output)
    before = read(adapter, alpha=alpha)
    with show.progress() as progress:
        made = resized(before, wanted, progress=progress)
    _written(made.adapter, made.bounds, output, uniform=uniform, json=json, before=before)


def extract(
    base: Annotated[str, typer.Argument(help="The base: a local directory, a hub id or a .safetensors file.")],
    tuned: Annotated[str, typer.Argument(help="What was tuned from it, of the same kind.")],
    output: Output,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    size: Bytes = None,
    only: Only = None,
    exclude: Exclude = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A UTF-8 text: errors count by what the base's inputs on it make of them.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of that text to use.")] = 32768,
    window: Annotated[
        int | None, typer.Option(help="Tokens a window; by default the model's context, at most 2048.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which windows of the text are used.")] = 0,
    uniform: Uniform = False,
    json: Json = False,
) -> None:
    """Make an adapter of what tells a tuned model from its base; tensors that differ and are in no layer are listed.

    Examples:
    eckart lora extract ./base ./tuned -o ./adapter --rank 16

    eckart lora extract org/base org/tuned -o ./adapter --bytes 20MB --only '*.mlp.*'

    eckart lora extract ./base ./tuned -o ./adapter --rank 16 --calibration texts.txt
    """
    from eckart.model.output import check_free
    from eckart.model.surgery import Text
    from eckart.model.surgery import extract as extracted

    wanted = size_of(rank, energy, error, size)
    check_free(output)
    with show.progress() as progress:
        text = None if calibration is None else Text(calibration, tokens, window, seed)
        made = extracted(base, tuned, wanted, only=only or (), exclude=exclude or (), text=text, progress=progress)
    _written(made.adapter, made.bounds, output, uniform=uniform, json=json, left=made.left)


def inspect(
    adapter: Place,
    base: Annotated[
        str | None, typer.Option(help="The model that it is for: looks for intruder dimensions too.")
    ] = None,
    leading: Annotated[int, typer.Option(help="Leading singular vectors that are looked at, with --base.")] = 10,
    threshold: Annotated[float, typer.Option(help="The cosine below which one is an intruder.")] = 0.5,
    alpha: Alpha = None,
    json: Json = False,
) -> None:
    """Ranks, norms and spectra of an adapter's updates; with its base also how much they change, and new directions.

    Examples:
    eckart lora inspect ./adapter

    eckart lora inspect ./adapter --base ./model
    """
    from eckart.model.surgery import look, read
    from eckart.model.surgery.base import Base

    found = read(adapter, alpha=alpha)
    with show.progress() as progress:
        model = None if base is None else Base(base)
        rows = look(found, model, leading=leading, threshold=threshold, progress=progress)
    if json:
        show.print_json({"layers": [row.to_json() for row in rows], "others": sorted(found.others)})
        return
    _print_rows(rows)
    _print_others(found)


def add(
    adapters: Annotated[list[Path], typer.Argument(help="Two adapters or more.")],
    output: Output,
    weights: Annotated[str | None, typer.Option(help="One for each adapter, e.g. 0.5,0.5; by default 1.")] = None,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    size: Bytes = None,
    uniform: Uniform = False,
    alpha: Alpha = None,
    json: Json = False,
) -> None:
    """Combine adapters of one model: the weighted sum of their updates, exact, or the nearest to it of a smaller rank.

    Examples:
    eckart lora add ./one ./two -o ./both

    eckart lora add ./one ./two -o ./both --weights 0.7,0.3 --rank 8
    """
    from eckart.model.output import check_free
    from eckart.model.surgery import combine, read
    from eckart.model.surgery import resize as resized

    check_free(output)
    shares = None if weights is None else parse_weights(weights)
    sizes = (rank, energy, error, size)
    wanted = None if sizes == (None,) * 4 else size_of(*sizes)
    if len(set(adapters)) < len(adapters):
        raise EckartError("an adapter is named twice: name it once, with a weight")
    # A directory says its own alpha; files of loralib among them have the one that was given.
    both = combine({str(place): read(place, alpha=None if place.is_dir() else alpha) for place in adapters}, shares)
    if wanted is None:
        _written(both, {}, output, uniform=uniform, json=json)
        return
    with show.progress() as progress:
        made = resized(both, wanted, progress=progress)
    _written(made.adapter, made.bounds, output, uniform=uniform, json=json, before=both)


def lift(
    adapter: Place,
    small: Annotated[str, typer.Option("--from", help="The narrower model that it was trained on.")],
    base: Annotated[str, typer.Option("--to", help="The model that this was made from.")],
    output: Output,
    uniform: Uniform = False,
    alpha: Alpha = None,
    json: Json = False,
) -> None:
    """Make of an adapter of a model without some of its units one of the whole model, which does the same to what was left.

    Example: eckart lora lift ./adapter --from ./small --to ./model -o ./lifted
    """
    from eckart.model.output import check_free
    from eckart.model.surgery import lift as lifted
    from eckart.model.surgery import read

    check_free(output)
    _written(lifted(read(adapter, alpha=alpha), small, base), {}, output, uniform=uniform, json=json)


def merge(
    base: Model,
    adapter: Place,
    output: Output,
    alpha: Alpha = None,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Write the dense checkpoint of a base with its adapter, tensor by tensor, rounded once to the stored dtype.

    Example: eckart merge-adapter ./model ./adapter -o ./merged

    A run that was killed goes on when the same command is given again.
    """
    from eckart.adapt import is_own
    from eckart.adapt import merge as merged_own
    from eckart.model.surgery import merge as merged

    with show.progress() as progress:
        if is_own(adapter):
            made = merged_own(base, adapter, output, restart=restart, progress=progress)
        else:
            made = merged(base, adapter, output, alpha=alpha, restart=restart, progress=progress)
    if json:
        show.print_json({"folder": str(made)})
    else:
        print_peak_memory()
        show.out().print(f"The base with this adapter lies in {made}")


def parse_weights(text: str) -> list[float]:
    """Numbers between commas.

    >>> parse_weights("0.5, -1")
    [0.5, -1.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise EckartError(f"--weights is {text!r}: give a number for each adapter, such as 0.5,0.5") from error


def _written(
    adapter: Adapter,
    bounds: Mapping[str, Bound],
    output: Path,
    *,
    uniform: bool,
    json: bool,
    before: Adapter | None = None,
    left: tuple[Left, ...] = (),
) -> None:
    """Write an adapter and tell what it is."""
    from eckart.model.surgery import write
    from eckart.model.surgery.writing import WEIGHTS

    folder = write(adapter, output, uniform=uniform)
    size = (folder / WEIGHTS).stat().st_size
    if json:
        modules = {
            name: {
                "shape": list(layer.shape),
                "rank": layer.rank,
                **({"rank_before": before.layers[name].rank} if before is not None else {}),
                **({"bound": bounds[name].to_json()} if name in bounds else {}),
            }
            for name, layer in adapter.layers.items()
        }
        table: dict[str, Any] = {"folder": str(folder), "bytes": size, "modules": modules}
        show.print_json(table | {"left": [vars(entry) for entry in left], "others": sorted(adapter.others)})
        return
    rows = []
    for name, layer in adapter.layers.items():
        bound = bounds.get(name)
        ranks = str(layer.rank) if before is None else f"{before.layers[name].rank} -> {layer.rank}"
        told = (
            ("-", "-", "-") if bound is None else (show.number(bound.scale), show.percent(bound.relative), _over(bound))
        )
        rows.append((name, f"{layer.shape[0]} x {layer.shape[1]}", ranks, *told))
    norm = next((bound.norm for bound in bounds.values()), "frobenius")
    show.print_table(("module", "shape", "rank", f"norm ({norm})", "error", "over optimum"), rows)
    console = show.out()
    if left:
        console.print("\ndiffers too, and is not in the adapter:")
        cells = [
            (e.name, e.reason, show.number(e.norm), "-" if e.relative is None else show.percent(e.relative))
            for e in left
        ]
        show.print_table(("tensor", "why", "norm", "of the base's"), cells, left=2)
    _print_others(adapter)
    console.print(f"written to {folder}, {human_bytes(size)}")


def _over(bound: Bound) -> str:
    """The error over the least possible one; nothing where both are what rounding leaves."""
    return "-" if bound.excess is None else f"{bound.excess:.4f}"


def _print_rows(rows: tuple[LayerRow, ...]) -> None:
    columns = [
        "module",
        "shape",
        "rank",
        "scale",
        "norm",
        "largest",
        "stable rank",
        "effective rank",
        "energy at half the rank",
    ]
    beside = any(row.beside is not None for row in rows)
    cells = []
    for row in rows:
        spectrum = row.spectrum
        half = row.spectrum.values[: max(1, row.rank // 2)].square().sum() / max(spectrum.frobenius**2, 5e-324)
        found = [
            row.name,
            f"{spectrum.shape[0]} x {spectrum.shape[1]}",
            f"{row.rank}{' (DoRA)' if row.has_lengths else ''}",
            show.number(row.scale),
            show.number(spectrum.frobenius),
            show.number(spectrum.top),
            show.number(spectrum.stable_rank),
            show.number(spectrum.effective_rank),
            show.percent(float(half)),
        ]
        if row.beside is not None:
            found += [show.percent(row.beside.ratio), f"{row.beside.intruders} of {len(row.beside.cosines)}"]
        cells.append(found)
    show.print_table([*columns, "of the weight's norm", "intruders"] if beside else columns, cells)


def _print_others(adapter: Adapter) -> None:
    if adapter.others:
        names = sorted(adapter.others)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        show.out().print(f"trained as a whole: {', '.join(map(show.plain, names[:3]))}{more}")
