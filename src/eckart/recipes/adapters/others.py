"""Adapters whose update is a tensor, or depends on the token."""

from __future__ import annotations

import math

from eckart.adapters.base import LessAll, LessStart
from eckart.adapters.draws import Kaiming, SparseRows
from eckart.adapters.forms import Blocks, Gated, Pair, Train, Tucker, Vectors, Whole
from eckart.adapters.gates import Router, TopRanks
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.roles import FREE, FROZEN
from eckart.adapters.rules import PerExpert, Preconditioned
from eckart.adapters.scale import Constant, OverRank, OverRoot
from eckart.adapters.schedules import Freeze
from eckart.adapters.sources import Drawn, OfBlocks, OfSemiNonnegative, OfTrain
from eckart.adapters.start import Start
from eckart.adapters.width import Counted, ForEach
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper


def full() -> Adapt:
    """The weights themselves train: what adapters are compared with."""
    return Adapt(
        paper=Paper(
            "full fine-tuning", "", ("embeddings, norms, biases and the head stay as they are, as beside adapters",)
        ),
        form=Whole(),
        start=Start(Drawn()),
        scale=Constant(),
        width=Counted(),
    )


def flora_tucker(modes: int = 2, scale: float = 4.0) -> Adapt:
    """A small core tensor and a factor for each mode of the weight, of any order."""
    return Adapt(
        paper=Paper("FLoRA: Low-Rank Core Space for N-dimension", "arXiv:2405.14739"),
        form=Tucker(modes),
        start=Start(Drawn()),
        scale=Constant(scale),
    )


def dota(cores: int = 3) -> Adapt:
    """The tensor train nearest to each weight trains, the rest is frozen."""
    return Adapt(
        paper=Paper(
            "DoTA: Weight-Decomposed Tensor Adaptation for Large Language Models",
            "arXiv:2412.20891",
            ("digits are as even as the prime factors of a side allow; the scale is spread evenly over the cores",),
        ),
        form=Train(cores),
        start=Start(OfTrain(cores)),
        base=LessStart(),
        scale=Constant(),
    )


def smt(size: int = 256) -> Adapt:
    """Those blocks of all weights train on which the loss has the largest gradient; the rank says how many there are for a weight."""
    return Adapt(
        paper=Paper(
            "Sparse Matrix in Large Language Model Fine-tuning",
            "arXiv:2405.15525",
            (
                "blocks are chosen by the gradient before training; the paper trains everything for a hundred steps first",
                "the mean magnitude of entries, of all maps together; the released default takes that of their mean, of two pools",
                "blocks at the edge of a side that the size does not divide are cut off",
            ),
        ),
        form=Blocks(size),
        start=Start(OfBlocks(size)),
        scale=Constant(),
        width=Counted(),
        ranks=Redistribute(most=math.inf),
    )


def aflora(alpha: float = 16.0) -> Adapt:
    """Two vectors around two factors, which stop training one by one."""
    return Adapt(
        paper=Paper(
            "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large Models",
            "arXiv:2403.13269",
            (
                "factors train in all maps; in the released code not where a map has as many outputs as inputs",
                "steps before and after are shares of all steps",
            ),
        ),
        form=Vectors(),
        start=Start(Drawn(left=Kaiming(slope=0.0), right=Kaiming(slope=0.0))),
        scale=OverRoot(alpha),
        roles={"left": FREE, "right": FREE},
        schedule=Freeze(),
    )


def flylora(active: int = 8, share: float = 0.25) -> Adapt:
    """LoRA that reads a few inputs at random, of whose directions the largest few act on each token."""
    return Adapt(
        paper=Paper(
            "FlyLoRA: Boosting Task Decoupling and Parameter Efficiency via Implicit Rank-Wise Mixture-of-Experts",
            "arXiv:2510.08396",
            ("a balance makes a direction with negative entries less likely as it rises, as in the released code",),
        ),
        form=Gated(TopRanks(active)),
        start=Start(Drawn(right=SparseRows(share))),
        scale=Constant(2.0),
        roles={"right": FROZEN},
    )


def moe_lora_riemannian(alpha: float = 16.0, experts: int = 20, top: int = 10) -> Adapt:
    """Several pairs for each weight, some of which act on each token; steps do not depend on how a product is split."""
    return Adapt(
        paper=Paper(
            "A Stronger Mixture of Low-Rank Experts for Fine-Tuning Foundation Models",
            "arXiv:2502.15828",
            (
                "both factors of an expert are preconditioned as they are before the step; in the released AdamW one sees the new other",
            ),
        ),
        form=Gated(Router(experts, top), rooted=True),
        start=Start(Drawn(right=Kaiming())),
        scale=OverRank(alpha),
        width=ForEach(experts),
        rule=PerExpert(Preconditioned(), experts),
    )


def semi_nmf_embeddings() -> Adapt:
    """Numbers for each token train, before a map without negative entries that all of them share and nothing changes."""
    return Adapt(
        paper=Paper(
            "UNKs Everywhere: Adapting Multilingual Language Models to New Scripts",
            "arXiv:2012.15562",
            (
                "one map for all tokens; the paper also tries ten clusters with a map each, and a learnt assignment",
                "sweeps start from singular vectors made positive, which is nearer than clusters by k-means",
                "nothing else trains; the paper trains adapters inside of the blocks as well",
            ),
        ),
        form=Pair(),
        start=Start(OfSemiNonnegative()),
        base=LessAll(),
        scale=Constant(),
        roles={"right": FROZEN},
    )
