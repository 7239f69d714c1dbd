"""The bond graph: which axes of which tensors meet, and what may be changed there without changing the network."""

from eckart.bonds.assembly import assembled, inner_bonds
from eckart.bonds.declaration import Declaration, Entry, declarations, declared
from eckart.bonds.gauge import change_basis, fold_centring, fold_norm, unfold_norm
from eckart.bonds.graph import Bond, BondGraph, End, Map, Norm
from eckart.bonds.projection import Projection, narrow, narrowed_eps, places, put_back
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
    "Entry",
    "Fixed",
    "Invertible",
    "Map",
    "Matrix",
    "Norm",
    "Order",
    "Orthogonal",
    "Pairs",
    "Permutation",
    "Projection",
    "Scales",
    "Symmetry",
    "assembled",
    "change_basis",
    "declarations",
    "declared",
    "fold_centring",
    "fold_norm",
    "inner_bonds",
    "narrow",
    "narrowed_eps",
    "places",
    "put_back",
    "unfold_norm",
]
