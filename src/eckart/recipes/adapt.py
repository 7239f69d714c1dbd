"""Adapters of the LoRA family: a start, a form, what becomes of the weight, and which tensors train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eckart.adapt.base import LessStart, LessTail
from eckart.adapt.draws import Gaussian, Kaiming
from eckart.adapt.forms import Band, Cored, Directed, Nested, Pair, Places, SparseMiddle, Spectral, Vectors
from eckart.adapt.penalties import MiddleEnergy, Orthonormal
from eckart.adapt.pick import Bottom, Crossed
from eckart.adapt.roles import FROZEN, Role
from eckart.adapt.rules import Projected, RowsByLength
from eckart.adapt.scale import Constant, OverRank, OverRoot
from eckart.adapt.sources import (
    Crossing,
    Drawn,
    InCommon,
    OfFirstStep,
    OfGradient,
    OfInputs,
    OfWeight,
    OrthogonalTriangular,
)
from eckart.adapt.split import Even, Levelled, Outer
from eckart.adapt.start import Start
from eckart.adapt.width import All, PartOf
from eckart.linalg import DEIM, Rarest
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper
from eckart.stats import Covariance

RANDOM = Start(Drawn(right=Kaiming()))
PRINCIPAL = Start(OfWeight(), split=Even())
DIAGONAL = Band()
WHERE_THEY_MEET = Start(Crossing(DEIM(), DEIM()))


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
        start=PRINCIPAL,
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
                "samples are not divided by their largest entry",
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


def eva(alpha: float = 16.0, *, centred: bool = True) -> Adapt:
    """LoRA that reads the directions in which its inputs vary most."""
    return Adapt(
        paper=Paper(
            "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
            "arXiv:2410.07170",
            (
                "directions are those of all inputs seen, exactly; the paper updates them batch by batch until they settle",
            ),
        ),
        form=Pair(),
        start=Start(OfInputs(centred)),
        scale=OverRank(alpha),
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


def lora_sb(rate: float = 1e-3) -> Adapt:
    """A small square trains between the singular vectors of the first step of full fine-tuning, and begins with that step."""
    return Adapt(
        paper=Paper(
            "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning",
            "arXiv:2411.19557",
            ("vectors stay in float32; the released code rounds them to bfloat16",),
        ),
        form=Cored(),
        start=Start(OfFirstStep(rate)),
        scale=Constant(),
        roles={"left": FROZEN, "right": FROZEN},
    )


def kasa(alpha: float = 16.0, beta: float = 1e-4, gamma: float = 1e-3) -> Adapt:
    """Three factors with a random diagonal beside a weight without its smallest components."""
    return Adapt(
        paper=Paper(
            "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models",
            "arXiv:2412.06071",
            (
                "as many components are left out as the rank says, of any shape; the released code counts from the number of inputs",
            ),
        ),
        form=Spectral(),
        start=Start(Drawn(right=Kaiming(), middle=Gaussian())),
        base=LessTail(),
        scale=OverRank(alpha),
        penalties=(MiddleEnergy(beta), Orthonormal(gamma)),
    )


def sorsa(gamma: float = 4e-4) -> Adapt:
    """The principal singular vectors and values of each weight train, apart."""
    return Adapt(
        paper=Paper(
            "SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models",
            "arXiv:2409.00055",
        ),
        form=Spectral(),
        start=Start(OfWeight()),
        base=LessStart(),
        scale=Constant(),
        penalties=(Orthonormal(gamma / 2),),
    )


def svfit() -> Adapt:
    """The principal singular values of each weight train, and nothing else."""
    return Adapt(
        paper=Paper(
            "SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using Singular Values",
            "arXiv:2409.05926",
        ),
        form=Spectral(),
        start=Start(OfWeight()),
        base=LessStart(),
        scale=Constant(),
        roles={"left": FROZEN, "middle": Role(decay=False), "right": FROZEN},
    )


def svft(places: Places = DIAGONAL) -> Adapt:
    """A sparse matrix trains between all singular vectors of each weight."""
    return Adapt(
        paper=Paper(
            "SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors",
            "arXiv:2405.19597",
            (
                "values begin at zero, as the paper has it; the released code draws them and puts a gate in front",
                "aligned places are those of the largest |u . v|; the released code takes other products",
                "scattered places are different ones",
            ),
        ),
        form=SparseMiddle(places),
        start=Start(OfWeight(accuracy=0.0), split=Outer()),
        scale=Constant(),
        width=All(),
    )


def nora(inner: int = 4) -> Adapt:
    """LoRA of a small rank inside the principal singular vectors of each weight."""
    return Adapt(
        paper=Paper(
            "NoRA: Nested Low-Rank Adaptation for Efficient Fine-Tuning Large Models",
            "arXiv:2408.10280",
            (
                "the inner left factor begins at zero, so that nothing changes at the start; the released one draws both",
            ),
        ),
        form=Nested(inner),
        start=PRINCIPAL,
        scale=Constant(),
    )


def curlora() -> Adapt:
    """A square trains between columns and rows of each weight, those of small norm being the likelier ones."""
    return Adapt(
        paper=Paper(
            "CURLoRA: Stable LLM Continual Fine-Tuning and Catastrophic Forgetting Mitigation",
            "arXiv:2408.14572",
            ("columns and rows are drawn without replacement, so that none is there twice",),
        ),
        form=Cored(),
        start=Start(Crossing(Rarest(), Rarest()), split=Outer()),
        scale=Constant(),
        roles={"left": FROZEN, "right": FROZEN},
    )


def nlora() -> Adapt:
    """Columns, rows and the inverse of where they meet train, in Nyström's form."""
    return Adapt(
        paper=Paper(
            "NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models",
            "arXiv:2502.14482",
            (
                "columns and rows by the interpolation points of the singular vectors (DEIM); the released code takes the leading ones",
                "the base is the weight less the start, and the core an inverse; in the released code neither is so",
            ),
        ),
        form=Cored(),
        start=WHERE_THEY_MEET,
        base=LessStart(),
        scale=Constant(),
    )


def slora(alpha: float = 16.0) -> Adapt:
    """Three factors beside each weight, the left one zero at first."""
    return Adapt(
        paper=nlora().paper,
        form=Cored(),
        start=Start(Drawn(right=Kaiming(), core=Kaiming())),
        scale=OverRank(alpha),
    )


def inttune() -> Adapt:
    """NLoRA of which only the square in the middle trains."""
    return Adapt(
        paper=nlora().paper,
        form=Cored(),
        start=WHERE_THEY_MEET,
        base=LessStart(),
        scale=Constant(),
        roles={"left": FROZEN, "right": FROZEN},
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


def vera() -> Adapt:
    """Two vectors train for each weight, around random factors that all of them share."""
    return Adapt(
        paper=Paper("VeRA: Vector-based Random Matrix Adaptation", "arXiv:2310.11454"),
        form=Vectors(),
        start=Start(InCommon(left=Kaiming(slope=0.0), right=Kaiming(slope=0.0))),
        scale=Constant(),
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


ADAPTERS: Mapping[str, Callable[[], Adapt]] = {
    "lora": lora,
    "rslora": rslora,
    "lora-plus": lora_plus,
    "dora": dora,
    "pissa": pissa,
    "milora": milora,
    "olora": olora,
    "corda": corda,
    "corda-preview": corda_preview,
    "eva": eva,
    "lora-ga": lora_ga,
    "lora-sb": lora_sb,
    "kasa": kasa,
    "sorsa": sorsa,
    "svfit": svfit,
    "svft": svft,
    "nora": nora,
    "curlora": curlora,
    "nlora": nlora,
    "slora": slora,
    "inttune": inttune,
    "block-lora": block_lora,
    "vera": vera,
    "lora-pro": lora_pro,
    "allora": allora,
}
