"""A bond with the weights that meet there and what was measured of the inputs of its maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eckart.bonds.crossing import Crossing, Writing
from eckart.bonds.gauge import Tensors
from eckart.bonds.graph import Bond, BondGraph, End, Map
from eckart.bonds.symmetry import Pairs
from eckart.kernels.symmetric import psd_root
from eckart.stats import Moments


def crossing_of(graph: BondGraph, bond: Bond, tensors: Tensors, moments: Mapping[str, Moments]) -> Crossing:
    """What is known of a bond inside a block: its maps by the weights in ``tensors``, their inputs by ``moments`` under the maps' names.

    What crosses to the one map that reads a bond is that map's input, as it was seen. Between linear maps alone (values, which attention
    only averages; keys) it is what the writers make of their inputs. Keys are read by queries, and an error e of one costs
    ``mean (q^T e)^2``. Rotary positions turn pairs of both: over all distances either entry of a pair carries half its energy, and no
    two pairs go together.
    """
    maps = {entry.weight: entry for entry in graph.maps.values()}
    writers = [end for end in bond.writers if end.tensor in maps]
    readers = [end for end in bond.readers if end.tensor in maps]
    inputs = {end.tensor: moments.get(maps[end.tensor].name) for end in (*writers, *readers)}
    written = tuple(
        Writing(part(tensors[end.tensor], end), None if (seen := inputs[end.tensor]) is None else seen.mean_square)
        for end in writers
    )
    compared = [end for end in readers if end.axis == maps[end.tensor].outputs]  # queries are outputs themselves
    known = all(seen is not None and seen.gram is not None for seen in inputs.values())
    if compared:
        together = _pairs(bond.symmetry)
        keys = _given(bond, writers, maps, tensors, inputs) if known else None
        queries = _given(bond, compared, maps, tensors, inputs) if known else torch.eye(bond.size)
        if isinstance(bond.symmetry, Pairs):
            queries = _turned(queries, bond.symmetry.rotary)
            keys = None if keys is None else _turned(keys, bond.symmetry.rotary)
        return Crossing(written, psd_root(queries).T, keys, together)
    read = torch.cat([part(tensors[end.tensor], end).T for end in readers])
    seen = inputs[readers[0].tensor] if len(readers) == 1 else None
    if seen is not None and seen.gram is not None and len(seen.gram) == bond.size:
        return Crossing(written, read, seen.gram / max(1, seen.count))
    return Crossing(written, read, _given(bond, writers, maps, tensors, inputs) if known else None)


def part(tensor: Tensor, end: End) -> Tensor:
    """The entries of a weight that an end takes hold of, as rows (k, n)."""
    return tensor.movedim(end.axis, 0)[end.start : end.stop]


def _given(
    bond: Bond, ends: list[End], maps: Mapping[str, Map], tensors: Tensors, inputs: Mapping[str, Moments | None]
) -> Tensor:
    """The second moment of what maps write to a bond, added up over several."""
    found = torch.zeros(bond.size, bond.size, dtype=torch.float64)
    for end in ends:
        entry, seen = maps[end.tensor], inputs[end.tensor]
        assert seen is not None
        bias = None if entry.bias is None else tensors[entry.bias][end.start : end.stop]
        found += seen.through(part(tensors[end.tensor], end), bias)
    return found


def _pairs(symmetry: object) -> Tensor | None:
    """Entries of a head that go together: rotary pairs, and what positions leave alone two by two."""
    if not isinstance(symmetry, Pairs):
        return None
    half = symmetry.rotary // 2
    turned = torch.arange(half)[:, None] + torch.tensor([0, half])
    rest = torch.arange(symmetry.rotary, symmetry.rotary + symmetry.rest).reshape(-1, 2)
    return torch.cat([turned, rest])


def _turned(moment: Tensor, rotary: int) -> Tensor:
    """A second moment averaged over the rotations of its pairs."""
    half = rotary // 2
    energies = moment.diagonal()
    mean = (energies[:half] + energies[half:rotary]) / 2
    found = moment.clone()
    found[:rotary] = 0
    found[:, :rotary] = 0
    found.diagonal()[:rotary] = torch.cat([mean, mean])
    return found
