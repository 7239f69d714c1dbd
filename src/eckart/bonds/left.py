"""What is left of tensors once units were left out: the places that their entries had before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from eckart.bonds.graph import BondGraph, End
from eckart.bonds.groups import entries_of
from eckart.bonds.heads import heads_of

HIDDEN, GROUPS = "hidden", "groups"


def places_left(
    graph: BondGraph, kept: Mapping[str, Sequence[int]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[int, Tensor]]:
    """For each tensor, and each of its axes that is shorter now, the places (k',) of what is left, in order.

    ``kept`` has for ``BLOCK.hidden`` the hidden units that are left, and for ``BLOCK.groups`` the inputs of the map behind attention, which
    are those of whole groups.

    >>> from eckart.bonds import Bond, Permutation
    >>> ends = (End("up", 0, 0, 3, reads=False), End("down", 1, 0, 3, reads=True))
    >>> graph = BondGraph("example", {"h.0.hidden": Bond("h.0.hidden", 3, Permutation(), ends)}, {}, {}, blocks=("h.0",))
    >>> left = places_left(graph, {"h.0.hidden": [0, 2]}, {"up": (3, 4), "down": (4, 3)})
    >>> {tensor: {axis: places.tolist() for axis, places in axes.items()} for tensor, axes in left.items()}
    {'up': {0: [0, 2]}, 'down': {1: [0, 2]}}

    Raises ``ValueError``, naming it, for what is neither hidden units nor whole groups.
    """
    stays: dict[tuple[str, int], Tensor] = {}

    def leave_out(end: End, entries: Tensor) -> None:
        mask = stays.setdefault((end.tensor, end.axis), torch.ones(shapes[end.tensor][end.axis], dtype=torch.bool))
        mask[end.start + entries] = False

    for name, entries in kept.items():
        block, _, kind = name.rpartition(".")
        if kind == HIDDEN and name in graph.bonds:
            bond = graph.bonds[name]
            gone = _others(bond.size, entries)
            for end in bond.ends:
                leave_out(end, gone)
        elif kind == GROUPS and block in graph.blocks:
            heads = [head for head in heads_of(graph) if head.block == graph.blocks.index(block)]
            there = torch.isin(entries_of(heads), torch.tensor(list(entries)))
            if not torch.equal(there.any(1), there.all(1)):
                raise ValueError(f"{name} has part of a group of heads")
            for head, is_left in zip(heads, there.all(1).tolist(), strict=True):
                for end in () if is_left else (*head.weights, *head.biases):
                    leave_out(end, torch.arange(end.size))
        else:
            raise ValueError(f"{name} is made of neither hidden units nor whole groups of heads")
    found: dict[str, dict[int, Tensor]] = {}
    for (tensor, axis), mask in stays.items():
        found.setdefault(tensor, {})[axis] = mask.nonzero().flatten()
    return found


def _others(size: int, entries: Iterable[int]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[torch.tensor(list(entries))] = False
    return mask.nonzero().flatten()
