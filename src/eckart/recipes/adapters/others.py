"""Adapters whose update is a tensor, or depends on the token."""

from __future__ import annotations

from eckart.adapters.base import LessStart
from eckart.adapters.draws import Kaiming, SparseRows
from eckart.adapters.forms import Gated, Train, Tucker
from eckart.adapters.gates import Router, TopRanks
from eckart.adapters.roles import FROZEN
from eckart.adapters.rules import PerExpert, Preconditioned
from eckart.adapters.scale import Constant, OverRank
from eckart.adapters.sources import Drawn, OfTrain
from eckart.adapters.start import Start
from eckart.adapters.width import ForEach
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper


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
