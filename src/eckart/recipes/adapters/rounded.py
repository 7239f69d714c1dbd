"""Adapters on a base of four bits."""

from __future__ import annotations

from eckart.adapters.base import LessStart
from eckart.adapters.draws import Kaiming
from eckart.adapters.forms import Pair, Train
from eckart.adapters.scale import Constant, OverRank
from eckart.adapters.sources import Drawn, OfTrain, OfWeight
from eckart.adapters.split import Even
from eckart.adapters.start import Start
from eckart.adapters.stored import Rounded, RoundedFirst
from eckart.approx import NormalFloat
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper

BLOCKS = "blocks of 64 do not cross rows, and their scales are not rounded again"


def qlora(alpha: float = 16.0, bits: int = 4) -> Adapt:
    """LoRA beside weights that are rounded to normal levels."""
    return Adapt(
        paper=Paper("QLoRA: Efficient Finetuning of Quantized LLMs", "arXiv:2305.14314", (BLOCKS,)),
        form=Pair(),
        start=Start(Drawn(right=Kaiming())),
        stored=Rounded(NormalFloat(bits)),
        scale=OverRank(alpha),
    )


def qpissa(sweeps: int = 1, bits: int = 4) -> Adapt:
    """PiSSA whose frozen rest is rounded, which has smaller entries than the weight."""
    return Adapt(
        paper=Paper(
            "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
            "arXiv:2404.02948",
            ("of several sweeps the one with the least error is kept; the paper keeps the last", BLOCKS),
        ),
        form=Pair(),
        start=Start(OfWeight(), split=Even()),
        base=LessStart(),
        stored=Rounded(NormalFloat(bits), sweeps),
        scale=Constant(),
    )


def qdota(cores: int = 3, bits: int = 4) -> Adapt:
    """DoTA whose frozen rest is rounded."""
    return Adapt(
        paper=Paper(
            "DoTA: Weight-Decomposed Tensor Adaptation for Large Language Models",
            "arXiv:2412.20891",
            (
                "digits are as even as the prime factors of a side allow; the scale is spread evenly over the cores",
                "cores train in float32",
                BLOCKS,
            ),
        ),
        form=Train(cores),
        start=Start(OfTrain(cores)),
        base=LessStart(),
        stored=Rounded(NormalFloat(bits)),
        scale=Constant(),
    )


def loftq(sweeps: int = 5, bits: int = 4) -> Adapt:
    """LoRA that begins with what rounding left out of the weight, to both of which each sweep comes nearer together."""
    return Adapt(
        paper=Paper(
            "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
            "arXiv:2310.08659",
            ("of the sweeps the one with the least error is kept; the paper keeps the last", BLOCKS),
        ),
        form=Pair(),
        start=Start(OfWeight(), split=Even()),
        base=LessStart(),
        stored=RoundedFirst(NormalFloat(bits), sweeps),
        scale=Constant(),
    )
