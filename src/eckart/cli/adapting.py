"""The command that fine-tunes by adapters, and how its result looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import show
from eckart.cli.commands import Exclude, Json, Model, Only, Restart
from eckart.cli.reports import print_peak_memory

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.adapt import Tuned


def adapt(
    model: Model,
    data: Annotated[
        Path, typer.Option(help="Records, one JSON table a line: prompt and completion, or text; or a plain text.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    recipe: Annotated[
        str, typer.Option(help="A key from eckart recipes, e.g. lora, pissa, eva, dora, or a TOML file.")
    ] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 200,
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Parts that a step is added up from, to save memory.")] = 1,
    rate: Annotated[float, typer.Option(help="The highest rate; it rises, then falls by a cosine.")] = 2e-4,
    warm_up: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.03,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    dropout: Annotated[float, typer.Option(help="Share of the adapters' inputs that drops out.")] = 0.0,
    length: Annotated[int | None, typer.Option(help="Tokens an example; by default the model's context.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the examples that only judges.")] = 0.05,
    judge: Annotated[int, typer.Option(help="Steps from one judgement to the next.")] = 50,
    patience: Annotated[
        int | None, typer.Option(help="End after so many judgements without gain, with the best.")
    ] = None,
    save: Annotated[int, typer.Option(help="Steps after which a killed run can go on.")] = 50,
    labels: Annotated[
        int | None, typer.Option(help="Train a classifier with so many labels; records have text and label.")
    ] = None,
    only: Only = None,
    exclude: Exclude = None,
    export_rank: Annotated[
        int | None, typer.Option(help="Rank of the export where the change of a weight is of no low rank.")
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="One rank for all maps, as some servers want it.")] = False,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute in mixed precision.")] = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Fine-tune a model by adapters; what is written is a LoRA that PEFT loads onto the untouched model.

    Examples:
    eckart adapt ./model --data train.jsonl -o ./adapter --recipe pissa --rank 16

    eckart adapt ./model --data book.txt -o ./adapter --recipe eva --only q_proj --only v_proj --length 256

    A run that was killed goes on when the same command is given again, and ends in the same numbers.
    """
    import eckart.adapt as library

    course = library.Course(
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        rate=rate,
        warm_up=warm_up,
        decay=decay,
        dropout=dropout,
        length=length,
        held_out=held_out,
        judge=judge,
        patience=patience,
        save=save,
        seed=seed,
        bfloat16=bfloat16,
    )
    made = library.find_recipe(recipe)
    with show.progress() as progress:
        done = library.tune(
            model,
            data,
            output,
            made,
            rank=rank,
            only=only or (),
            exclude=exclude or (),
            labels=labels,
            course=course,
            export_rank=export_rank,
            uniform=uniform,
            restart=restart,
            progress=progress,
        )
    show.print_json(tuned_json(done)) if json else print_tuned(done)


def print_tuned(done: Tuned) -> None:
    """Losses on the way, and what was written."""
    steps = sorted({*done.trained, *done.judged})
    rows = [(str(step), show.number(done.trained.get(step)), show.number(done.judged.get(step))) for step in steps]
    show.print_table(("step", "training loss", "held-out loss"), rows)
    console = show.out()
    share = show.percent(done.numbers / done.parameters)
    console.print(f"{done.numbers:,} numbers trained beside {done.parameters:,} of the model ({share})")
    if done.within < 1:
        console.print(f"trained within a smaller model of {show.percent(done.within)} of the bytes, and lifted")
    if done.own is None:
        ranks = sorted(set(done.ranks.values()))
        told = " to ".join(str(rank) for rank in {ranks[0]: 0, ranks[-1]: 0})
        console.print(f"exported {len(done.ranks)} maps at rank {told}")
    else:
        console.print(f"kept in eckart's own form, which eckart.adapt.attach puts into the model: {done.own}")
    if done.left_out:
        worst = max(done.left_out, key=lambda name: done.left_out[name])
        console.print(
            f"of the change of {worst} the export leaves {show.percent(done.left_out[worst])}, the most of all"
        )
    if done.rounded:
        shares = [min(errors) for errors in done.rounded.values()]
        told = " to ".join(show.percent(share) for share in (min(shares), max(shares)))
        console.print(
            f"rounded {len(shares)} weights, of which base and start leave {told}; the adapter fits {done.folder}/base alone"
        )
    print_peak_memory()
    console.print(f"written to {done.folder}")


def tuned_json(done: Tuned) -> dict[str, Any]:
    """The result for machines."""
    return {
        "folder": str(done.folder),
        "numbers": done.numbers,
        "parameters": done.parameters,
        "ranks": dict(done.ranks),
        "trained": {str(step): loss for step, loss in done.trained.items()},
        "judged": {str(step): loss for step, loss in done.judged.items()},
        "left_out": dict(done.left_out),
        "own": done.own,
        "rounded": {name: list(errors) for name, errors in done.rounded.items()},
        "within": done.within,
    }
