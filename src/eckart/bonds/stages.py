"""A stream cut at the norms that read it: stretches that may each have directions of their own, and what it takes to pass between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eckart.bonds.graph import Bond, BondGraph, End, Map
from eckart.bonds.projection import Projection
from eckart.errors import EckartError


@dataclass(frozen=True)
class Stage:
    """The stretch of a stream that one norm reads.

    ``bond`` has the ends that lie there: the maps that read through the norm, and those whose outputs are the last that come in before
    it. ``writer`` is the map that ends the stretch by adding to the stream, ``None`` for the last one, which the head reads.
    """

    bond: Bond
    block: int | None
    writer: str | None

    @property
    def norm(self) -> str:
        """The norm that reads it."""
        return self.bond.norms[0]


def stages(graph: BondGraph, name: str) -> tuple[Stage, ...]:
    """The stretches of the stream ``name``, in the order in which a token goes through them.

    Raises ``EckartError`` where norms and maps do not take turns, one of each: then maps of several norms add to one stretch.
    """
    bond = graph.bond(name)
    homes = {norm: _block_of(graph, norm) for norm in bond.norms}
    norms = sorted(bond.norms, key=lambda norm: (homes[norm] is None, homes[norm] or 0))
    readers = {entry.weight: norms.index(entry.after) for entry in graph.maps.values() if entry.after in homes}
    inside = {entry.name: entry for entry in graph.maps.values() if _block_of(graph, entry.name) is not None}
    source = {m.name: _norm_before(graph, m, bond) for m in inside.values() if _ends_in(bond, m.weight, reads=False)}
    writers = [[name for name, before in source.items() if before == norm] for norm in norms]
    if not norms or any(len(some) != 1 for some in writers[:-1]) or homes[norms[-1]] is not None or writers[-1]:
        raise EckartError(
            f"the stream of {graph.architecture} can't be cut at its norms: one norm and one map that adds to the stream have to take turns"
        )
    ends: list[list[End]] = [[] for _ in norms]
    owners = {tensor: m.name for m in graph.maps.values() for tensor in (m.weight, m.bias) if tensor is not None}
    after = {name: norms.index(norm) + 1 for name, norm in source.items() if norm is not None}
    for end in bond.ends:
        ends[readers[end.tensor] if end.reads else after.get(owners.get(end.tensor, ""), 0)].append(end)
    return tuple(
        Stage(
            replace(bond, name=f"{norm}.{name}", ends=tuple(own), norms=(norm,)),
            homes[norm],
            some[0] if some else None,
        )
        for norm, own, some in zip(norms, ends, writers, strict=True)
    )


def staged(graph: BondGraph, name: str, parts: Sequence[Stage]) -> BondGraph:
    """The graph with a bond for each stretch in place of the stream ``name``."""
    others = {key: bond for key, bond in graph.bonds.items() if key != name}
    return replace(graph, bonds=others | {stage.bond.name: stage.bond for stage in parts})


def linked(before: Projection, after: Projection) -> tuple[Projection, Tensor]:
    """The directions ``after`` in another basis, and F (k', min(k', k - k')): what crosses from ``before`` becomes ``x - F F^T x``.

    Within what is kept any orthogonal change of basis is free. With ``Q^T P = U C V^T`` for the two bases Q and P, that of ``P V U^T``
    has ``Q^T P V U^T = U C U^T``: what crosses shrinks by the cosines C of the principal angles between the two subspaces. Of k' out of k
    directions all but k - k' are shared, with cosine 1, so that ``U C U^T = 1 - F F^T`` with so few columns.

    >>> before = Projection.selection(3, torch.tensor([0, 1]))
    >>> after, link = linked(before, Projection.selection(3, torch.tensor([2, 1])))
    >>> link.shape, bool(torch.allclose(after.down @ before.up, torch.eye(2, dtype=torch.float64) - link @ link.T))
    (torch.Size([2, 1]), True)
    """
    u, cosines, vh = torch.linalg.svd(before.down @ after.up)
    turn = (u @ vh).T
    few = min(before.rank, before.size - before.rank)
    sines = (1 - cosines.clamp(max=1)).sqrt()  # in the order of rising angles
    return Projection(turn.T @ after.down, after.up @ turn), (u * sines)[:, before.rank - few :]


def _block_of(graph: BondGraph, name: str) -> int | None:
    return next((index for index, block in enumerate(graph.blocks) if name.startswith(f"{block}.")), None)


def _ends_in(bond: Bond, tensor: str, *, reads: bool) -> bool:
    return any(end.tensor == tensor and end.reads == reads for end in bond.ends)


def _norm_before(graph: BondGraph, entry: Map, stream: Bond) -> str | None:
    """The norm behind which the maps lie whose outputs a map inside of a block is given; ``None`` where there are several."""
    given = [bond for bond in graph.bonds.values() if bond is not stream and _ends_in(bond, entry.weight, reads=True)]
    tensors = {end.tensor for bond in given for end in bond.writers}
    found = {m.after for m in graph.maps.values() if m.weight in tensors}
    return found.pop() if len(found) == 1 else None
