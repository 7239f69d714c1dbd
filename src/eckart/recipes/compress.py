"""Post-training compression: gauge, approximate, correct, allocate."""

from __future__ import annotations

from eckart.allocate import Allocator, EqualMarginalLoss, Later, LeastInfluential, Proportional, Threshold, Uniform
from eckart.approx import BrainSurgeon, ColumnsRows, Compensated, LowRank, Prune
from eckart.linalg.patterns import OfGroup, PerMatrix, PerRow
from eckart.model.compression import Compress, Paper, Statistics
from eckart.stats import ActivationScale, FisherColumns, Gram, Plain, RootMeanSquare

LAST = Later(least=0.46)
THRESHOLD = Threshold()
SAME = Uniform()
BY_NOISE = Proportional(cap=0.1)
LEAST_INFLUENTIAL = LeastInfluential(least=0.4)


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


def fwsvd(allocate: Allocator = SAME) -> Compress:
    """Truncation after scaling each input channel by the Fisher information of its weights."""
    return Compress(
        paper=Paper(
            "Language Model Compression with Weighted Low-Rank Factorization",
            "arXiv:2207.00112",
            (
                "labels are drawn from the model, every token of a window at once; the paper has labelled samples of a task",
                "the optimum by projection on output directions: nothing is divided by the weights of channels",
                "what is nothing counts a millionth of the largest, so that no channel is free",
                "no fine-tuning of the factors afterwards",
            ),
        ),
        metric=FisherColumns(),
        approx=LowRank(),
        allocate=allocate,
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


def magnitude(allocate: Allocator = SAME) -> Compress:
    """The smallest entries of every matrix become zero. The dumb baseline of sparsity."""
    return Compress(
        paper=Paper(
            "Learning both Weights and Connections for Efficient Neural Networks",
            "arXiv:1506.02626",
            (
                "nothing is trained afterwards",
                "one share of zeros for every matrix, so that the scales of layers do not compete",
            ),
        ),
        metric=Plain(),
        approx=Prune(PerMatrix()),
        allocate=allocate,
    )


def wanda(allocate: Allocator = SAME) -> Compress:
    """In every row those entries become zero whose weight times input is smallest."""
    return Compress(
        paper=Paper(
            "A Simple and Effective Pruning Approach for Large Language Models",
            "arXiv:2306.11695",
            (
                "budgets count the bit that tells of each place, so that at the same bytes fewer entries stay than the paper keeps",
            ),
        ),
        metric=RootMeanSquare(),
        approx=Prune(PerRow()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def ecoflap(allocate: Allocator = BY_NOISE) -> Compress:
    """As wanda, but blocks keep the more entries the more the loss answers to noise on their matrices."""
    return Compress(
        paper=Paper(
            "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
            "arXiv:2310.02998",
            (
                "the blocks of one language model; the paper has those of a vision and of a language model together",
                "noise on the first 16 windows at most, drawn anew for each matrix and window; the paper takes 128 samples",
                "shares are those of bytes, which count the bit that tells of each place",
                "a budget that ground shares overspend lowers all of them; the released code adds to it instead",
            ),
        ),
        metric=RootMeanSquare(),
        approx=Prune(PerRow()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def sparsegpt(allocate: Allocator = SAME) -> Compress:
    """Zeros chosen column by column, each error made up for by the columns behind (optimal brain surgeon)."""
    return Compress(
        paper=Paper(
            "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
            "arXiv:2301.00774",
            (
                "float64; what the stored dtype rounds off is made up for as well",
                "budgets count the bit that tells of each place",
            ),
        ),
        metric=Gram(),
        approx=BrainSurgeon(PerMatrix()),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def eora(allocate: Allocator = SAME) -> Compress:
    """Two of four entries stay, and a low-rank branch makes up for what is missing, in the metric of the inputs' second moment."""
    return Compress(
        paper=Paper(
            "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation",
            "arXiv:2410.21271",
            (
                "the same optimum by projection on output directions: no inverse of the root of the moment",
                "the damage is part of the recipe: entries chosen by weight times input; a TOML recipe may name rounding instead",
                "the rank follows from the budget; moments are plain sums over tokens, which the released code lets decay",
            ),
        ),
        metric=Gram(),
        approx=Compensated(Prune(OfGroup(4)), keep=0.6),
        allocate=allocate,
        statistics=Statistics.COMPRESSED,
    )


def curing(allocate: Allocator = LEAST_INFLUENTIAL) -> Compress:
    """Columns and rows of the matrix itself with a small core between, in the blocks that turn the stream least."""
    return Compress(
        paper=Paper(
            "CURing Large Models: Compression via CUR Decomposition",
            "arXiv:2501.04211",
            (
                "chosen by DEIM from signed weights, each column times the size of its input; the paper takes absolute values",
                "the core is that of least error in the same metric; DEIM interpolates, which the released code does not",
                "all maps of a block unless --only names some; the paper takes queries, keys and gates",
                "as many blocks pay as keeps every matrix above a share; influence counts all tokens, not the last of each text",
                "the core is not trained afterwards",
            ),
        ),
        metric=RootMeanSquare(),
        approx=ColumnsRows(),
        allocate=allocate,
    )
