"""The command that heals, and how its result looks."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import eckart
from eckart.cli import show
from eckart.cli.commands import Json, Restart
from eckart.cli.reports import print_peak_memory
from eckart.errors import EckartError

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.model.certificate import HeldOut
    from eckart.model.healing import Healed, Match, Training


class Matched(StrEnum):
    """What of student and teacher is brought together."""

    logits = "logits"
    features = "features"
    both = "both"


class Changing(StrEnum):
    """What of the student trains."""

    factors = "factors"
    lora = "lora"


def _match(matched: Matched) -> Match:
    from eckart.model.healing import Features, Logits, Together

    parts: dict[Matched, Match] = {
        Matched.logits: Logits(),
        Matched.features: Features(),
        Matched.both: Together(Logits(), Features()),
    }
    return parts[matched]


def _training(changing: Changing, rank: int) -> Training:
    from eckart.model.healing import TrainFactors, TrainLora

    if rank < 1:
        raise EckartError(f"--rank is {rank}: give at least 1")
    return TrainLora(rank) if changing is Changing.lora else TrainFactors()


def heal(
    checkpoint: Annotated[Path, typer.Argument(help="A directory that eckart compress wrote, or a stock checkpoint.")],
    teacher: Annotated[str, typer.Option(help="The original: a local directory or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must be new or empty.")],
    text: Annotated[Path, typer.Option(help="A UTF-8 text to train on; a tenth of it only judges.")],
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 300,
    match: Annotated[
        Matched, typer.Option(help="Bring logits together, hidden states between blocks, or both.")
    ] = Matched.logits,
    train: Annotated[
        Changing, typer.Option(help="Train the stored numbers, or adapters that merge into them.")
    ] = Changing.factors,
    rank: Annotated[int, typer.Option(help="Rank of the adapters, with --train lora.")] = 8,
    rate: Annotated[float, typer.Option(help="The highest rate; it rises, then falls by a cosine.")] = 1e-4,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step, in whole windows.")] = 2048,
    window: Annotated[
        int | None, typer.Option(help="Tokens a window; by default the model's context, at most 2048.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Train a compressed checkpoint for a while to do what its original does.

    Examples:
    eckart heal ./small --teacher ./model -o ./healed --text train.txt

    eckart heal ./small --teacher ./model -o ./healed --text train.txt --match both --train lora --rank 16

    Both models are in memory whole, in float32. What is written has the layout of what was there, and is nearer to the original on
    windows that nothing trained on, or is what was there. A run that was killed goes on when the same command is given again.
    """
    from eckart.model.healing import Course

    course = Course(steps=steps, rate=rate, batch_tokens=batch_tokens, window=window, seed=seed, device=device)
    loss, training = _match(match), _training(train, rank)
    with show.progress() as progress:
        done = eckart.heal(
            checkpoint,
            teacher,
            output,
            text,
            match=loss,
            train=training,
            course=course,
            restart=restart,
            progress=progress,
        )
    show.print_json(healed_json(done)) if json else print_healed(done)


def print_healed(done: Healed) -> None:
    """Losses on held-out windows before and after, and what was written."""
    rows = [("original", done.original), ("before", done.before), ("after", done.after)]
    show.print_table(
        ("held-out windows", "nats per token", "perplexity", "KL to the original"),
        [(label, *_cells(losses)) for label, losses in rows],
    )
    console = show.out()
    if len(done.curve) > 1:
        console.print(
            f"training loss from {done.curve[0]:.4f} to {done.curve[-1]:.4f}, means of the first and last steps"
        )
    if done.healed:
        console.print(f"{len(done.trained)} tensors were trained")
    else:
        console.print("training brought it no nearer to the original, so the numbers from before were kept")
    print_peak_memory()
    console.print(f"written to {done.folder}")


def _cells(losses: HeldOut) -> tuple[str, str, str]:
    nats, divergence = losses.nats, losses.divergence
    perplexity = "-" if nats is None or nats > 700 else f"{math.exp(nats):.2f}"
    return "-" if nats is None else f"{nats:.4f}", perplexity, "-" if divergence is None else f"{divergence:.4f}"


def healed_json(done: Healed) -> dict[str, Any]:
    """The result for machines."""
    return {
        "folder": str(done.folder),
        "healed": done.healed,
        "losses": {
            "original": done.original.to_json(),
            "before": done.before.to_json(),
            "after": done.after.to_json(),
        },
        "curve": list(done.curve),
        "trained": list(done.trained),
        "matrices": [matrix.to_json() for matrix in done.matrices],
        "peak_memory": done.peak_memory,
    }
