"""Adapters of two factors: how they begin, what becomes of the weight, and how their gradients are changed."""

from __future__ import annotations

from eckart.adapters.base import LessStart
from eckart.adapters.draws import Kaiming
from eckart.adapters.forms import Directed, Pair
from eckart.adapters.outputs import Certainty, Divergence, Spread
from eckart.adapters.pick import Bottom, Crossed
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.roles import Role
from eckart.adapters.rules import Projected, RowsByLength
from eckart.adapters.scale import Constant, OverRank, OverRoot
from eckart.adapters.sources import (
    Drawn,
    OfGradient,
    OfInputs,
    OfWeight,
    OrthogonalTriangular,
)
from eckart.adapters.split import Even, Levelled
from eckart.adapters.start import Start
from eckart.adapters.width import PartOf
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper
from eckart.stats import Covariance

RANDOM = Start(Drawn(right=Kaiming()))


def lora(alpha: float = 16.0) -> Adapt:
    """A product of two factors beside each weight, the left one zero at first."""
    return Adapt(
        paper=Paper("LoRA: Low-Rank Adaptation of Large Language Models", "arXiv:2106.09685"),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
    )


def rslora(alpha: float = 16.0) -> Adapt:
    """LoRA whose scale falls with the root of the rank."""
    return Adapt(
        paper=Paper("A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", "arXiv:2312.03732"),
        form=Pair(),
        start=RANDOM,
        scale=OverRoot(alpha),
    )


def lora_plus(alpha: float = 16.0, ratio: float = 16.0) -> Adapt:
    """LoRA whose left factor learns at a multiple of the rate."""
    return Adapt(
        paper=Paper("LoRA+: Efficient Low Rank Adaptation of Large Models", "arXiv:2402.12354"),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        roles={"left": Role(rate=ratio)},
    )


def dora(alpha: float = 16.0) -> Adapt:
    """LoRA whose rows are brought to lengths that train."""
    return Adapt(
        paper=Paper("DoRA: Weight-Decomposed Low-Rank Adaptation", "arXiv:2402.09353"),
        form=Directed(Pair()),
        start=RANDOM,
        scale=OverRank(alpha),
    )


def pissa() -> Adapt:
    """The principal components of each weight train, the rest is frozen."""
    return Adapt(
        paper=Paper(
            "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
            "arXiv:2404.02948",
            ("within 0.2 % of the best components and seeded; the released fast start is neither",),
        ),
        form=Pair(),
        start=Start(OfWeight(), split=Even()),
        base=LessStart(),
        scale=Constant(),
    )


def milora() -> Adapt:
    """The smallest components of each weight train, the rest is frozen."""
    return Adapt(
        paper=Paper(
            "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning", "arXiv:2406.09044"
        ),
        form=Pair(),
        start=Start(OfWeight(accuracy=0.0), Bottom(), Even()),
        base=LessStart(),
        scale=Constant(),
    )


def olora(scale: float = 1.0) -> Adapt:
    """The first columns of Q and rows of R of each weight train."""
    return Adapt(
        paper=Paper("OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", "arXiv:2406.01775"),
        form=Pair(),
        start=Start(OrthogonalTriangular()),
        base=LessStart(),
        scale=Constant(scale),
    )


def corda(alpha: float | None = None, damping: float = 0.01) -> Adapt:
    """The components that a text needs least train, those of the weight times the inputs' second moment."""
    return Adapt(
        paper=Paper(
            "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware Parameter-Efficient Fine-tuning",
            "arXiv:2406.05223",
            (
                "U^T W over the singular values in place of V^T times an inverse: the same where the moment has one",
                "all tokens count alike; the released code divides those of a text by its largest entry",
                "a hundredth of the mean energy is added to the diagonal once; the released code doubles it until an inverse is accurate",
            ),
        ),
        form=Pair(),
        start=Start(OfWeight(Covariance(damping), accuracy=0.0), Bottom(), Even()),
        base=LessStart(),
        scale=Constant(),
    )


def corda_preview(damping: float = 0.01) -> Adapt:
    """CorDA for a new task: the components that its text needs most train."""
    return Adapt(
        paper=corda().paper,
        form=Pair(),
        start=Start(OfWeight(Covariance(damping)), split=Even()),
        base=LessStart(),
        scale=Constant(),
    )


def eva(alpha: float = 16.0, most: float = 2.0, *, centred: bool = True) -> Adapt:
    """LoRA that reads the directions in which its inputs vary most."""
    return Adapt(
        paper=Paper(
            "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
            "arXiv:2410.07170",
            (
                "directions are those of all inputs seen at once; the paper updates them batch by batch until they settle",
                "tokens of which no loss is taken count as well; the released code leaves them out",
                "the scale stays that of the rank asked for, whatever rank a map gets, as in the released code",
            ),
        ),
        form=Pair(),
        start=Start(OfInputs(centred)),
        scale=OverRank(alpha),
        ranks=Redistribute(most=most),
    )


def lora_ga(alpha: float = 16.0, gamma: float = 16.0) -> Adapt:
    """LoRA whose first step is the best of its rank towards that of full fine-tuning."""
    return Adapt(
        paper=Paper("LoRA-GA: Low-Rank Adaptation with Gradient Approximation", "arXiv:2407.05000"),
        form=Pair(),
        start=Start(OfGradient(), Crossed(), Levelled(gamma)),
        base=LessStart(),
        scale=OverRoot(alpha),
    )


def block_lora(alpha: float = 16.0, blocks: int = 2) -> Adapt:
    """LoRA of a fraction of the rank whose left factor learns as many times as fast."""
    return Adapt(
        paper=Paper(
            "One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot Learning",
            "arXiv:2501.16720",
            (
                "the blocks of the left factor, which are summed up and get the same gradient, are one factor at their joint rate",
            ),
        ),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        width=PartOf(blocks),
        roles={"left": Role(rate=blocks)},
    )


def ba_lora(consistency: float = 1e-4, diversity: float = 3e-4, leading: float = 1e-4) -> Adapt:
    """PiSSA that is held to what the untouched model says, kept from certainty, and drawn to few directions of its outputs."""
    return Adapt(
        paper=Paper(
            "BA-LoRA: Bias-Alleviating Low-Rank Adaptation to Mitigate Catastrophic Inheritance in Large Language Models",
            "arXiv:2408.04556",
            (
                "penalties follow the formulas for generation; in the released code the share of singular values gets no gradient",
                "the untouched model is the one before the start was taken from its weights",
            ),
        ),
        form=Pair(),
        start=Start(OfWeight(), split=Even()),
        base=LessStart(),
        scale=Constant(),
        outputs=(Divergence(consistency), Certainty(diversity), Spread(leading)),
    )


def lora_pro(alpha: float = 16.0) -> Adapt:
    """LoRA whose gradients move the weight as nearly as they can to where the full gradient would."""
    return Adapt(
        paper=Paper(
            "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?",
            "arXiv:2407.18242",
            ("damping is relative to the factors; moments are those of the factors, the released default",),
        ),
        form=Pair(),
        start=RANDOM,
        scale=OverRank(alpha),
        rule=Projected(),
    )


def allora(eta: float = 2.0) -> Adapt:
    """LoRA without a scale, whose left factor learns faster where it is small."""
    return Adapt(
        paper=Paper("ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", "arXiv:2410.09692"),
        form=Pair(),
        start=RANDOM,
        scale=Constant(),
        rule=RowsByLength(eta),
    )
