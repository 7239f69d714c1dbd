"""Adapters of more than two factors, some of which may be frozen."""

from __future__ import annotations

from eckart.adapters.base import LessStart, LessTail
from eckart.adapters.draws import Gaussian, Kaiming
from eckart.adapters.forms import Band, Cored, Nested, Places, Residual, SparseMiddle, Spectral, Vectors
from eckart.adapters.growth import Grow
from eckart.adapters.penalties import MiddleEnergy, OfActing, Orthonormal, Outside, SameEnergy
from eckart.adapters.pick import BottomFirst
from eckart.adapters.roles import FROZEN, Role
from eckart.adapters.scale import Constant, OverRank
from eckart.adapters.schedules import Prune
from eckart.adapters.sources import (
    Crossing,
    Drawn,
    InCommon,
    OfFirstStep,
    OfWeight,
)
from eckart.adapters.split import Even, Outer
from eckart.adapters.start import Start
from eckart.adapters.width import All, ForEach
from eckart.linalg import DEIM, Rarest
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper

DIAGONAL = Band()
WHERE_THEY_MEET = Start(Crossing(DEIM(), DEIM()))


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


def effort(weight: float = 1.0) -> Adapt:
    """The smallest components of each weight train, apart, and are held orthogonal to the others and to the energy that they had."""
    return Adapt(
        paper=Paper(
            "Effort: Efficient Orthogonal Modeling for Generalizable AI-Generated Image Detection",
            "arXiv:2411.15633",
            (
                "any linear map, and as many components as the rank says; the paper adapts attention by one component each",
                "norms are squared, as in the paper, and of the smaller Gram matrices, which are the identity for any shape",
            ),
        ),
        form=Residual(),
        start=Start(OfWeight(accuracy=0.0), BottomFirst()),
        base=LessStart(),
        scale=Constant(),
        penalties=(Orthonormal(weight / 2, squared=True), Outside(weight), SameEnergy(weight)),
    )


def adalora(alpha: float = 16.0, target: float = 2 / 3, every: int = 10, gamma: float = 0.5) -> Adapt:
    """Three factors of which fewer and fewer directions are left, those that the loss feels most."""
    return Adapt(
        paper=Paper(
            "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
            "arXiv:2303.10512",
            (
                "as many directions as exceed the budget go, also where several score alike",
                "norms of the penalty are not squared, as in the released code; the paper squares them",
                "steps before and after the budget falls are shares of all steps",
            ),
        ),
        form=Spectral(),
        start=Start(Drawn(left=Gaussian(0.02), right=Gaussian(0.02))),
        scale=OverRank(alpha),
        penalties=(Orthonormal(gamma / 2),),
        schedule=Prune(target=target, every=every),
    )


def increlora(alpha: float = 16.0, most: int = 2, every: int = 10, gamma: float = 0.1) -> Adapt:
    """Three factors that begin with one direction each; those that the loss feels most get more, up to ``most`` times the rank."""
    return Adapt(
        paper=Paper(
            "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning",
            "arXiv:2308.12043",
            (
                "tensors hold as many directions as a map may get from the start on; in the paper there is no such limit",
                "as many maps get more at a time as an even rise of the total to the budget takes, which is met exactly",
                "the divisor is the rank asked for at all times, so that growing does not shrink what has been learnt",
                "the penalty is on all directions of a map that act, together; the released code has one for each insertion",
                "new directions learn at the rate of all others, without a warm-up of their own",
            ),
        ),
        form=Spectral(),
        start=Start(Drawn(left=Gaussian(0.02), right=Gaussian(0.02))),
        scale=OverRank(alpha),
        width=ForEach(most),
        penalties=(OfActing(Orthonormal(gamma / 2)),),
        schedule=Grow(waiting=1 / (2 * most), target=1 / most, every=every),
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
        start=Start(OfWeight(), split=Even()),
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


def vera() -> Adapt:
    """Two vectors train for each weight, around random factors that all of them share."""
    return Adapt(
        paper=Paper("VeRA: Vector-based Random Matrix Adaptation", "arXiv:2310.11454"),
        form=Vectors(),
        start=Start(InCommon(left=Kaiming(slope=0.0), right=Kaiming(slope=0.0))),
        scale=Constant(),
    )
