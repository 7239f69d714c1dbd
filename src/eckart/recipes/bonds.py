"""Post-training compression on the bonds of a network: fewer directions, hidden units, values, keys, blocks."""

from __future__ import annotations

from eckart.allocate import Allocator, Entropic, GreedyByLoss, Level, ValuesFirst
from eckart.approx import LowRank
from eckart.bonds.choosing import EachNorm, Principal, Select
from eckart.bonds.correction import Refit, Tune
from eckart.bonds.depth import LastBlocks, LeastInfluence, LeastLoss
from eckart.bonds.scores import Activation, Condition, Gain, Magnitude, RidgeLeverage, SecondMoment
from eckart.bonds.words import Used
from eckart.model.compression import Compress, Narrow, Paper, Statistics
from eckart.stats import RootMeanSquare

EIGHTS = Level(multiple=8)  # widths that processors like
SELF = Paper("maps beside the bonds", "")
BY_INFLUENCE = Entropic(temperature=0.1)


def slicegpt(allocate: Allocator = EIGHTS) -> Narrow:
    """A narrower residual stream: one rotation onto its principal directions, the last ones sliced off."""
    return Narrow(
        paper=Paper(
            "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
            "arXiv:2401.15024",
            (
                "one rotation for the whole stream, from the moments before all norms added up; the paper takes one per norm "
                "and pays for the maps between them",
                "so the result is a stock checkpoint: the norms' scale and eps make up for the width",
                "no ridge on the moment; no random rotation inside of the kept directions",
                "statistics of the original model; embedding and head are sliced as well, and a tied head is untied",
            ),
        ),
        stream=Principal(),
        allocate=allocate,
    )


def slicegpt_per_norm(allocate: Allocator = EIGHTS) -> Narrow:
    """A narrower residual stream: at every norm its own principal directions, with links from those of one to those of the next."""
    return Narrow(
        paper=Paper(
            "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
            "arXiv:2401.15024",
            (
                "bases are turned so that links differ from the identity by matrices of rank d - d': these are stored, not the whole links",
                "shares are of bytes with the links counted, and the embedding is not part of the share",
                "no ridge on the moment; no random rotation inside of the kept directions",
                "the last norm's directions are those of the head, as the paper has it; a tied head is untied",
            ),
        ),
        stream=EachNorm(Principal()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def modegpt(allocate: Allocator = BY_INFLUENCE) -> Narrow:
    """Every bond of a block in the metric of what crosses it: units with a refit, pairs of queries and keys, subspaces of values."""
    return Narrow(
        paper=Paper(
            "MoDeGPT: Modular Decomposition for Large Language Model Compression",
            "arXiv:2408.09632",
            (
                "the refit takes a pseudo-inverse and adds no ridge, so that it is exact where all units are kept",
                "moments of queries and keys are taken before rotary positions and averaged over them, whole pairs at a time",
                "values of a group of heads are narrowed together, for all its readers; no inverse of a root of the moment",
                "narrower heads are stored as the rows that are left with their places: bytes and products are saved, no cache",
            ),
        ),
        hidden=Select(RidgeLeverage(ridge=1e-2), Refit()),
        values=Principal(),
        keys=Select(SecondMoment()),
        allocate=allocate,
    )


def greedy_output(allocate: Allocator = EIGHTS) -> Narrow:
    """Hidden units taken one by one, each the one that lowers the error of the output most, the readers refitted."""
    return Narrow(
        paper=Paper(
            "Greedy Output Approximation: Towards Efficient Structured Pruning for LLMs Without Retraining",
            "arXiv:2407.19126",
            (
                "the nearest variant to what is public, the abstract: forward selection with a refit, hidden units only",
                "no criterion for heads, and no claim on the paper's recovery in two steps",
            ),
        ),
        hidden=Select(Gain(), Refit()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def lorap(allocate: Allocator = EIGHTS) -> Narrow:
    """Maps of attention by truncation with the inputs' scale, values before keys; hidden units by weight times input."""
    return Narrow(
        paper=Paper(
            "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language Models",
            "arXiv:2404.09695",
            (
                "statistics of the original model instead of the compressed blocks before",
                "shares of bytes in place of ranks of square matrices, so that groups of queries are served",
                "no fine-tuning afterwards",
            ),
        ),
        hidden=Select(Activation(), spared=0.01),
        maps=Compress(paper=SELF, metric=RootMeanSquare(), approx=LowRank(), allocate=ValuesFirst(ratio=3.0)),
        allocate=allocate,
    )


def comp(allocate: Allocator = EIGHTS, share: float = 0.5) -> Narrow:
    """Blocks of little influence go, then hidden units that change the condition of their readers least; the others get factors."""
    return Narrow(
        paper=Paper(
            "Lightweight and Post-Training Structured Pruning for On-Device Large Language Models",
            "arXiv:2501.15255",
            (
                "the nearest variant to what is public, the abstract: score, correction and the split of the ratio are ours",
                "half of what is to go may go by whole blocks, by their influence; the rest goes from hidden units, and no other columns",
                "a unit's score is the change of ||Z||_F ||Z^+||_F without it, Z being the readers times the size of their inputs",
                "factors of the units that are left by least squares, from 0 to 2, never worse than none on the calibration text",
            ),
        ),
        depth=LeastInfluence(),
        share=share,
        hidden=Select(Condition(), Tune()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def axformer(allocate: Allocator | GreedyByLoss = GreedyByLoss(steps=8), tolerance: float = 0.0) -> Narrow:  # noqa: B008
    """Blocks go whose removal the measured loss does not notice, then units, in steps, where it rises least for a byte."""
    return Narrow(
        paper=Paper(
            "AxFormer: Accuracy-driven Approximation of Transformers for Faster, Smaller and more Accurate NLP Models",
            "arXiv:2010.03688",
            (
                "the nearest variant to what is public, the abstract; order, groups and tolerances are ours",
                "the loss is that of the next token on the calibration text, without labels; nothing is trained before or afterwards",
                "whole blocks, that of least loss first, while it does not rise above the best so far; no sublayers on their own",
                "then an eighth of the hidden units or of the values of a block at a time, whatever the loss, until the budget is met; "
                "every loss is recorded",
                "no hard attention to the largest scores of a row, which no stock configuration tells of",
            ),
        ),
        depth=LeastLoss(tolerance),
        hidden=Select(SecondMoment()),
        values=Select(SecondMoment()),
        allocate=allocate,
    )


def shortgpt() -> Narrow:
    """Fewer blocks: those go that turn the stream least."""
    return Narrow(
        paper=Paper(
            "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
            "arXiv:2403.03853",
            ("influence is measured on the calibration text, all tokens counted, the first of a window as well",),
        ),
        depth=LeastInfluence(),
    )


def layer_drop() -> Narrow:
    """Fewer blocks: the last ones go."""
    return Narrow(
        paper=Paper(
            "Reassessing Layer Pruning in LLMs: New Insights and Methods",
            "arXiv:2411.15558",
            ("nothing is trained afterwards, for which the paper's claims are made: the dumb baseline of depth",),
        ),
        depth=LastBlocks(),
    )


def shrink_width(allocate: Allocator = EIGHTS) -> Narrow:
    """Fewer hidden units: those with the smallest weights go. The dumb baseline of width."""
    return Narrow(
        paper=Paper(
            "Pruning Filters for Efficient ConvNets",
            "arXiv:1608.08710",
            (
                "hidden units instead of filters, Euclidean lengths of all their rows and columns added up",
                "nothing is trained afterwards",
            ),
        ),
        hidden=Select(Magnitude()),
        allocate=allocate,
    )


def embedding_pruning() -> Narrow:
    """A smaller vocabulary: the tokens that the text uses and the special ones; the other rows can be put back after training."""
    return Narrow(
        paper=Paper(
            "Frustratingly Simple Memory Efficiency for Pre-trained Language Models via Dynamic Embedding Pruning",
            "arXiv:2309.08708",
            (
                "special tokens and single bytes stay whether the text has them or not",
                "the rows of the head go as well, so a language model's softmax is over fewer tokens; the paper prunes embeddings alone",
                "the smaller model is a checkpoint of its own, and eckart restore puts the other rows back; the paper does both in memory",
            ),
        ),
        vocabulary=Used(),
    )
