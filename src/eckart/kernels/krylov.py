"""Block Krylov iteration: every product is kept, and the best directions within all of them are taken."""

from __future__ import annotations

import torch
from torch import Generator

from eckart.kernels.randomized import Products, Subspace, conditioned, ritz_subspace


def block_krylov(a: Products, rank: int, *, steps: int, oversampling: int, rng: Generator) -> Subspace:
    """The ``rank`` best directions in the span of ``A X, (A A^T) A X, …, (A A^T)^steps A X`` for a Gaussian X.

    Musco and Musco 2015, algorithm 2. Blocks have ``rank + oversampling`` columns, made nearly orthonormal before each next
    product; all of them together go through one Householder factorisation, which copes with blocks that nearly repeat
    each other. Products run in float32.

    >>> from eckart.kernels.randomized import InMemory
    >>> falling = torch.diag(torch.arange(1, 201) ** -0.2)
    >>> found = block_krylov(InMemory(falling), 4, steps=4, oversampling=4, rng=Generator().manual_seed(0))
    >>> bool(found.s[0] > 0.98), found.u.shape
    (True, torch.Size([200, 4]))

    Raises ``ValueError`` for less than one step.
    """
    if steps < 1:
        raise ValueError(f"block Krylov iteration takes at least one step, not {steps}")
    m, n = a.shape
    side = min(rank + oversampling, m, n)
    block = conditioned(a.times(torch.randn(n, side, generator=rng).to(a.device), narrow=False))
    blocks = [block]
    for _ in range(steps):
        block = conditioned(a.times(conditioned(a.transposed_times(block, narrow=False)), narrow=False))
        blocks.append(block)
    q = torch.linalg.qr(torch.cat(blocks, dim=1)[:, : min(m, n)]).Q
    return ritz_subspace(a, q, rank, steps, None)
