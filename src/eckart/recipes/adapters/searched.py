"""Adapters of two factors whose ranks are searched for before they train."""

from __future__ import annotations

from eckart.adapters.choosing import AboveShare, TopShare
from eckart.adapters.forms import Pair
from eckart.adapters.hypergradients import Unrolled
from eckart.adapters.mixing import Simplex, Switch
from eckart.adapters.scale import OverRank
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.search import Search
from eckart.model.compression import Paper
from eckart.recipes.adapters.pairs import RANDOM


def autolora(alpha: float = 16.0, steps: int = 200) -> Adapt:
    """LoRA whose ranks, up to the one asked for, are those directions that a search finds to carry more than their share."""
    return Adapt(
        paper=Paper(
            "AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning",
            "arXiv:2403.09113",
            (
                "the search takes so many steps on 64 batches at most, and trains no classifier's head; the paper's goes through all data",
                "weights are compared with the mean of their softmax, as in the paper; the released code compares what goes into it",
                "as the largest weight is never below the mean, every map keeps one direction at least",
                "the scale stays that of the rank asked for, whatever rank a map gets",
            ),
        ),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        ranks=Search(mixing=Simplex(), choose=AboveShare(), gradient=Unrolled(), steps=steps, share=0.7),
    )


def diffora(alpha: float = 16.0, share: float = 0.5, steps: int = 100, warm_up: int = 10) -> Adapt:
    """LoRA on those maps of each block that a search finds to need it most."""
    return Adapt(
        paper=Paper(
            "DiffoRA: Enabling Parameter-Efficient LLM Fine-Tuning via Differential Low-Rank Matrix Adaptation",
            "arXiv:2502.08905",
            (
                "after the abstract, as no code is released: rates, steps and the division of the text are ours",
                "factors are not shared between blocks in the search",
                "the search takes so many steps on 64 batches at most, and trains no classifier's head",
            ),
        ),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        ranks=Search(mixing=Switch(), choose=TopShare(share), steps=steps, warm_up=warm_up),
    )
