"""Post-training compression by heads of attention that share their weights."""

from __future__ import annotations

from eckart.bonds.heads import CosineOfKeys
from eckart.model.compression import Paper, Share


def head_sharing() -> Share:
    """Heads of later blocks take the weights of the most similar earlier ones, which are stored once."""
    return Share(
        paper=Paper(
            "Head-wise Shareable Attention for Large Language Models",
            "arXiv:2402.11819",
            (
                "the direct form alone: nothing is trained before heads are shared",
                "a match that is shared itself hands on the weights that it takes, so that the order of sharing does not matter",
                "under grouped queries whole groups are compared and shared: queries, keys, values and what reads them",
                "biases of queries, keys and values go with the weights, and are not compared",
                "as many heads as the budget asks for, of the bytes of all maps in place of a share of the heads",
            ),
        ),
        heads=CosineOfKeys(),
    )
