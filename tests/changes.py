"""Random changes of basis, as large as the bonds allow."""

from __future__ import annotations

import math

import torch
from market import generator, orthonormal
from torch import Tensor

from eckart.bonds import (
    Bond,
    BondGraph,
    Change,
    Diagonal,
    Invertible,
    Matrix,
    Order,
    Orthogonal,
    Pairs,
    Permutation,
    Scales,
    fold_norm,
)

EXACT = 1e-10  # how far results may be apart that are the same but for rounding
CONDITION = 100.0


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def conditioned(n: int, seed: int) -> Tensor:
    """A random matrix of condition 100."""
    values = torch.logspace(0, math.log10(CONDITION), n, dtype=torch.float64) / 10
    return orthonormal(n, n, seed) * values @ orthonormal(n, n, seed + 1).T


def rotation(n: int, mean: bool, seed: int) -> Tensor:
    """A random orthogonal matrix; with ``mean`` one that leaves the all-ones direction where it is."""
    if not mean:
        return orthonormal(n, n, seed)
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), orthonormal(n, n - 1, seed)], 1)).Q
    inner = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), orthonormal(n - 1, n - 1, seed + 1))
    return basis @ inner @ basis.T


def allowed(bond: Bond, seed: int) -> list[Change]:
    """Random changes of the bond's symmetry."""
    n, rng = bond.size, generator(seed)
    signs = torch.randint(0, 2, (n,), generator=rng) * 2.0 - 1
    factors = torch.logspace(-1, 1, n, dtype=torch.float64)[torch.randperm(n, generator=rng)]
    match bond.symmetry:
        case Invertible():
            return [Matrix(conditioned(n, seed))]
        case Orthogonal(mean=mean):
            return [Matrix(rotation(n, mean, seed)), Order(torch.randperm(n, generator=rng))]
        case Permutation(positive=positive):
            return [Order(torch.randperm(n, generator=rng)), *([Scales(factors)] if positive else [])]
        case Diagonal():
            return [Scales(factors * signs)]
        case Pairs(rotary=rotary):
            half = rotary // 2
            angle = 6.3 * torch.rand(half, generator=rng, dtype=torch.float64)
            size = torch.logspace(-1, 1, half, dtype=torch.float64)
            c, s = (size * angle.cos()).diag(), (size * angle.sin()).diag()
            turn = torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])
            return [Matrix(torch.block_diag(turn, conditioned(n - rotary, seed)) if n > rotary else turn)]
        case _:
            return []


def folded(graph: BondGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All norms of the stream folded; what a final LayerNorm adds is left out first where the head could not take it."""
    found = dict(tensors)
    for name, norm in graph.norms.items():
        if name not in graph.bond("residual").norms:
            continue
        if norm.bias is not None and any(graph.maps[reader].bias is None for reader in norm.readers):
            found[norm.bias] = torch.zeros_like(found[norm.bias])
        found |= fold_norm(graph, name, found)
    return found
