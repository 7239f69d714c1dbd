"""Post-training compression: gauge, approximate, correct, allocate."""

from __future__ import annotations

from eckart.allocate import Allocator, EqualMarginalLoss, Later, Threshold, Uniform
from eckart.approx import LowRank
from eckart.model.compression import Compress, Paper, Statistics
from eckart.stats import ActivationScale, Gram, Plain

LAST = Later(least=0.46)
THRESHOLD = Threshold()


def svd(allocate: Allocator = Uniform()) -> Compress:
    """Plain truncation: the nearest matrix of each rank, whatever the inputs."""
    return Compress(
        paper=Paper("The approximation of one matrix by another of lower rank", "doi:10.1007/BF02288367"),
        metric=Plain(),
        approx=LowRank(),
        allocate=allocate,
    )


def asvd(power: float = 0.5, allocate: Allocator = EqualMarginalLoss()) -> Compress:
    """Truncation after scaling each input channel by its mean magnitude to a power."""
    return Compress(
        paper=Paper(
            "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
            "arXiv:2312.05821",
            (
                "decomposition exact, or within 0.2 % of it and seeded; the released code uses an unseeded randomised one",
                "magnitudes are means over tokens; the released code adds up means of batches",
                "the floor of the scale is relative (1e-6 of the largest), not absolute",
                "ranks by equal marginal loss, from one backward pass; the paper bisects perplexities of single layers",
                "the head is left dense unless it is named",
            ),
        ),
        metric=ActivationScale(power=power),
        approx=LowRank(),
        allocate=allocate,
    )


def svd_llm(allocate: Allocator = EqualMarginalLoss(), statistics: Statistics = Statistics.ORIGINAL) -> Compress:
    """Truncation in the metric of the inputs' second moment: the least change of each map's output."""
    return Compress(
        paper=Paper(
            "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
            "arXiv:2403.07378",
            (
                "the same optimum by projection on output directions: no Cholesky factor, no inverse, no added ridge",
                "ranks by equal marginal loss; the paper's are uniform (--ranks uniform)",
                "no update of the factors by fine-tuning afterwards",
            ),
        ),
        metric=Gram(),
        approx=LowRank(),
        allocate=allocate,
        statistics=statistics,
    )


def llm_rom(allocate: Allocator = LAST) -> Compress:
    """Truncation onto the principal directions of each map's outputs, in the last blocks, each seeing what the ones before it give."""
    return Compress(
        paper=Paper(
            "Rethinking Compression: Reduced Order Modelling of Latent Features in Large Language Models",
            "arXiv:2312.07046",
            (
                "statistics are those of whole compressed blocks; within a block all maps see its dense ones",
                "as many of the last blocks pay as keeps every matrix above a share; the paper gives three numbers of blocks by hand",
                "moments are not centred and biases stay: the same optimum as svd-llm, found the same way",
            ),
        ),
        metric=Gram(),
        approx=LowRank(),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def welore(allocate: Allocator = THRESHOLD) -> Compress:
    """Plain truncation with ranks of their own: one threshold on the singular values of all matrices, each over its largest."""
    return Compress(
        paper=Paper(
            "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
            "arXiv:2407.11239",
            (
                "a matrix that would keep so many values that factors save nothing stays dense",
                "no fine-tuning of the factors afterwards: that is the training of an adapter",
            ),
        ),
        metric=Plain(),
        approx=LowRank(),
        allocate=allocate,
    )
