"""The bond graph: which axes of which tensors meet, and what may be changed there without changing the network."""

from eckart.bonds.declaration import Declaration, declarations, declared, inner_bonds
from eckart.bonds.gauge import change_basis, fold_centring, fold_norm, unfold_norm
from eckart.bonds.graph import Bond, BondGraph, End, Map, Norm
from eckart.bonds.symmetry import (
    Change,
    Diagonal,
    Fixed,
    Invertible,
    Matrix,
    Order,
    Orthogonal,
    Pairs,
    Permutation,
    Scales,
    Symmetry,
)

__all__ = [
    "Bond",
    "BondGraph",
    "Change",
    "Declaration",
    "Diagonal",
    "End",
    "Fixed",
    "Invertible",
    "Map",
    "Matrix",
    "Norm",
    "Order",
    "Orthogonal",
    "Pairs",
    "Permutation",
    "Scales",
    "Symmetry",
    "change_basis",
    "declarations",
    "declared",
    "fold_centring",
    "fold_norm",
    "inner_bonds",
    "unfold_norm",
]
