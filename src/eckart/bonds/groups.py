"""Heads of attention that are left out whole, with the keys and values that they share: fewer groups, and what the others do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eckart.bonds.crossing import Crossing
from eckart.bonds.gauge import Tensors
from eckart.bonds.graph import BondGraph, End, Map
from eckart.bonds.heads import Head
from eckart.bonds.projection import Projection
from eckart.stats import Moments


def crossing_of_groups(
    graph: BondGraph, heads: Sequence[Head], tensors: Tensors, moments: Mapping[str, Moments]
) -> Crossing:
    """What the heads of a block give to the map that reads them: its matrix, the second moment of its inputs, and each group's entries."""
    reader = _reader(graph, heads)
    weight = tensors[reader.weight]
    seen = moments.get(reader.name)
    moment = None if seen is None or seen.gram is None else seen.gram / max(1, seen.count)
    return Crossing((), weight.T if reader.outputs else weight, moment, entries_of(heads))


def without_groups(
    graph: BondGraph, heads: Sequence[Head], projection: Projection, tensors: Tensors
) -> dict[str, Tensor]:
    """The tensors of a block with only those groups whose entries the projection keeps; the reader gets what it makes of the others.

    Raises ``ValueError`` for a projection that does not select whole groups.
    """
    assert projection.kept is not None
    there = torch.isin(entries_of(heads), projection.kept)
    if not torch.equal(there.any(1), there.all(1)):
        raise ValueError("groups of heads stay or go whole")
    reader = _reader(graph, heads)
    axis = 1 - reader.outputs
    wide = torch.tensordot(tensors[reader.weight].movedim(axis, -1).to(torch.float64), projection.up, 1)
    changed = {reader.weight: wide.movedim(-1, axis).to(tensors[reader.weight].dtype).contiguous()}
    gone: dict[tuple[str, int], list[End]] = {}
    for head, stays in zip(heads, there.all(1).tolist(), strict=True):
        for end in (*head.weights, *head.biases):
            if end.tensor != reader.weight and not stays:
                gone.setdefault((end.tensor, end.axis), []).append(end)
    for (tensor, axis), ends in gone.items():
        keep = torch.ones(tensors[tensor].shape[axis], dtype=torch.bool)
        for end in ends:
            keep[end.start : end.stop] = False
        changed[tensor] = tensors[tensor].movedim(axis, 0)[keep].movedim(0, axis).contiguous()
    return changed


def _reader(graph: BondGraph, heads: Sequence[Head]) -> Map:
    """The one map that reads what attention gives."""
    (tensor,) = {end.tensor for head in heads for end in _read(head)}
    return next(entry for entry in graph.maps.values() if entry.weight == tensor)


def _read(head: Head) -> list[End]:
    return [end for end in head.values if end.reads]


def entries_of(heads: Sequence[Head]) -> Tensor:
    """The inputs of the reader that are those of each group (g, s)."""
    return torch.stack([torch.cat([torch.arange(end.start, end.stop) for end in _read(head)]) for head in heads])
