"""The command that fine-tunes by adapters, and how its result looks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import show
from eckart.cli.commands import Exclude, Json, Model, Only, Restart
from eckart.cli.reports import print_peak_memory
from eckart.errors import EckartError

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.adapt import Swept, Trial, Tuned


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
    sweep: Annotated[
        str | None,
        typer.Option(help="Try several rates and keep the best: how many around --rate, or which, e.g. 1e-4,1e-3."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs at each rate of a sweep, from --seed on; by default 1.")
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Directory for losses as TensorBoard reads them.")] = None,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Fine-tune a model by adapters; what is written is a LoRA that PEFT loads onto the untouched model.

    Examples:
    eckart adapt ./model --data train.jsonl -o ./adapter --recipe pissa --rank 16

    eckart adapt ./model --data book.txt -o ./adapter --recipe eva --only q_proj --only v_proj --length 256

    eckart adapt ./model --data train.jsonl -o ./adapter --rate 3e-4 --sweep 5 --seeds 3

    torchrun --nproc_per_node 2 -m eckart adapt ./model --data train.jsonl -o ./adapter

    Of several rates by half decades the one with the lowest held-out loss is kept. Processes that torchrun starts share every step.

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
    if seeds is not None and sweep is None:
        raise EckartError("--seeds is for a sweep: add --sweep, e.g. --sweep 5")
    options: dict[str, Any] = {
        "rank": rank,
        "only": only or (),
        "exclude": exclude or (),
        "labels": labels,
        "course": course,
        "export_rank": export_rank,
        "uniform": uniform,
        "tensorboard": tensorboard,
        "restart": restart,
    }
    made, rates = library.find_recipe(recipe), None if sweep is None else _rates(sweep, rate)
    with show.progress() as progress:
        if rates is None:
            done = library.tune(model, data, output, made, progress=progress, **options)
        else:
            swept = library.sweep(
                model,
                data,
                output,
                made,
                rates=rates,
                seeds=1 if seeds is None else seeds,
                progress=progress,
                **options,
            )
    if not show.is_first():
        return
    if rates is None:
        show.print_json(tuned_json(done)) if json else print_tuned(done)
    else:
        show.print_json(swept_json(swept)) if json else print_swept(swept)


def _rates(told: str, rate: float) -> tuple[float, ...]:
    from eckart.adapt import around

    try:
        return around(rate, int(told)) if told.strip().isdigit() else tuple(float(part) for part in told.split(","))
    except ValueError as error:
        raise EckartError(f"--sweep is {told!r}: give a number of rates, or rates with commas between them") from error


def print_tuned(done: Tuned) -> None:
    """Losses on the way, and what was written."""
    curves = {"training loss": done.trained, "held-out loss": done.judged}
    curves |= {"held-out accuracy": done.accuracy} if done.accuracy else {}
    rows = [
        (str(step), *(show.number(curve.get(step)) for curve in curves.values()))
        for step in sorted({*done.trained, *done.judged})
    ]
    show.print_table(("step", *curves), rows)
    _print_written(done)


def print_swept(done: Swept) -> None:
    """Held-out losses by rate and seed, which rate is the best, and what was written."""
    rows = [(_named(trial), show.number(trial.final, 5), show.number(trial.best, 5)) for trial in done.trials]
    show.print_table(("rate, seed", "held-out loss", "lowest on the way"), rows)
    show.out().print()
    rows = [(f"{r:.4g}", show.number(done.mean(r), 5), show.number(done.spread(r), 3)) for r in done.rates]
    show.print_table(("rate", "mean held-out loss", "largest less smallest"), rows)
    console = show.out()
    console.print(
        f"the best rate is {done.rate:.4g}, and there the seed with the lowest loss, {done.kept.seed}, was kept"
    )
    if done.at_edge:
        end, beyond = ("lowest", "lower") if done.rate == done.rates[0] else ("highest", "higher")
        console.print(f"that is the {end} of the sweep, and a {beyond} one may be better: sweep further")
    _print_written(done.kept.tuned)


def _named(trial: Trial) -> str:
    return f"{trial.rate:.4g}, {trial.seed}"


def _print_written(done: Tuned) -> None:
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
        "accuracy": {str(step): share for step, share in done.accuracy.items()},
        "left_out": dict(done.left_out),
        "own": done.own,
        "rounded": {name: list(errors) for name, errors in done.rounded.items()},
        "within": done.within,
    }


def swept_json(done: Swept) -> dict[str, Any]:
    """The result for machines."""
    return {
        "folder": str(done.folder),
        "rate": done.rate,
        "at_edge": done.at_edge,
        "kept": {"rate": done.kept.rate, "seed": done.kept.seed},
        "rates": [{"rate": rate, "mean": done.mean(rate), "spread": done.spread(rate)} for rate in done.rates],
        "trials": [
            {
                "rate": trial.rate,
                "seed": trial.seed,
                "final": trial.final,
                "best": trial.best,
                "loss": trial.loss,
                **{name: value for name, value in tuned_json(trial.tuned).items() if name != "folder"},
            }
            for trial in done.trials
        ],
    }
