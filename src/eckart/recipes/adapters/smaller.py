"""Adapters that train within a smaller model."""

from __future__ import annotations

from eckart.adapters.forms import Pair
from eckart.adapters.scale import OverRank
from eckart.allocate import Level
from eckart.bonds.choosing import Choice, Select
from eckart.bonds.scores import Magnitude
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.within import Smaller
from eckart.model.compression import Narrow, Paper
from eckart.recipes.adapters.pairs import RANDOM

LORAM = Paper(
    "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models",
    "arXiv:2502.13533",
    (
        "units go by the lengths of their weights, in all blocks alike; the paper takes gradients, and spares the first and last blocks",
        "about a third of the bytes inside of blocks goes by default; the paper leaves out 65 to 95 % of the parameters",
        "the smaller model is not aligned by training before (eckart heal does so for one that eckart lora lift is told of)",
        "the smaller model is not quantised as well",
    ),
)


def loram(keep: float = 0.65, alpha: float = 16.0, groups: Choice | None = Select(Magnitude())) -> Adapt:  # noqa: B008
    """LoRA that trains in the model without some of its hidden units and heads, and is lifted to the whole model."""
    return Adapt(
        paper=LORAM,
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        within=Smaller(Narrow(paper=LORAM, hidden=Select(Magnitude()), groups=groups, allocate=Level()), keep),
    )


def loram_width(keep: float = 0.65) -> Adapt:
    """The same with all heads, for architectures whose configuration can't tell of fewer ones."""
    return loram(keep, groups=None)
