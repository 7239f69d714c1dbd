"""Linear maps in which heads are tensors of their own, so that those of other maps may be the same ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eckart.bonds import BondGraph, End
from eckart.bonds.heads import Head, Strip, strips
from eckart.bound import Bound
from eckart.linalg.formed import PLAIN, formed_bounds
from eckart.model import certificate
from eckart.model.certificate import MatrixRecord
from eckart.model.entries import entry_of
from eckart.model.linear import stored_name
from eckart.model.run import Run
from eckart.model.targets import Target
from eckart.model.tensorfile import write_all
from eckart.operator import Operator, Stacked, Transposed


@dataclass(frozen=True)
class Stack:
    """A linear map as it is stored: the strips into which its heads cut it, and what it is made of, on the meta device.

    ``axis`` is that of the weight on disk along which heads lie; ``form`` has one tensor for each strip.
    """

    target: Target
    axis: int
    strips: tuple[Strip, ...]
    form: Operator

    @classmethod
    def of(cls, target: Target, ends: Sequence[tuple[End, int]], wanted: Collection[int]) -> Stack:
        """The map of a weight in which heads have these parts; those ``wanted`` get tensors of their own."""
        axis, cut = ends[0][0].axis, tuple(strips(ends, wanted))
        across = target.shape[1] if _is_rows(target, axis) else target.shape[0]
        empty = [torch.empty(s.stop - s.start, across, dtype=target.dtype, device="meta") for s in cut]
        return cls(target, axis, cut, _operator(target, axis, empty))

    @property
    def names(self) -> tuple[str, ...]:
        """What the module calls the tensor of each strip."""
        sides = tuple(self.form.tensors())
        return tuple(f"{self.target.name}.{stored_name(side, sides)}" for side in sides)

    def places(self, head: int) -> list[int]:
        """The strips of a head."""
        return [i for i, strip in enumerate(self.strips) if strip.head == head]

    def part(self, weight: Tensor, index: int) -> Tensor:
        """What a strip holds of the weight as it is on disk: rows (k, n)."""
        strip = self.strips[index]
        return weight.movedim(self.axis, 0)[strip.start : strip.stop].contiguous()

    def operator(self, parts: Sequence[Tensor]) -> Operator:
        """The map with these strips."""
        return _operator(self.target, self.axis, parts)


def _is_rows(target: Target, axis: int) -> bool:
    """Whether what lies along this axis are outputs."""
    return (axis == 0) != target.transposed


def _operator(target: Target, axis: int, parts: Sequence[Tensor]) -> Operator:
    stacked = Stacked(tuple(parts))
    return stacked if _is_rows(target, axis) else Transposed(stacked)


@dataclass(frozen=True)
class Stacks:
    """All maps of a model in which heads take the weights of others or give theirs, by the names of their weights on disk.

    ``roots`` has for each head that takes weights the one that gives them, both by their index among ``heads``.
    """

    graph: BondGraph
    heads: Sequence[Head]
    roots: Mapping[int, int]
    table: Mapping[str, Stack]

    @classmethod
    def of(cls, run: Run, graph: BondGraph, heads: Sequence[Head], roots: Mapping[int, int]) -> Stacks:
        """Every weight in which such a head has a part."""
        wanted = {*roots, *roots.values()}
        ends: dict[str, list[tuple[End, int]]] = {}
        for index, head in enumerate(heads):
            for end in head.weights:
                ends.setdefault(end.tensor, []).append((end, index))
        return cls(
            graph,
            heads,
            roots,
            {
                target.disk: Stack.of(target, ends[target.disk], wanted)
                for target in run.targets
                if any(index in wanted for _, index in ends.get(target.disk, []))
            },
        )

    def in_block(self, block: int) -> list[Stack]:
        """Those of a block."""
        return [stack for stack in self.table.values() if stack.target.block == block]

    def sources(self, stack: Stack) -> dict[int, tuple[Stack, int]]:
        """For the strips that are not stored the map and the strip there that they are."""
        found: dict[int, tuple[Stack, int]] = {}
        assert stack.target.block is not None
        within = stack.target.disk.removeprefix(self.graph.blocks[stack.target.block])
        for head in dict.fromkeys(strip.head for strip in stack.strips):
            if head is not None and head in self.roots:
                root = self.roots[head]
                other = self.table[f"{self.graph.blocks[self.heads[root].block]}{within}"]
                pairs = zip(stack.places(head), other.places(root), strict=True)
                found |= {mine: (other, theirs) for mine, theirs in pairs}
        return found

    def own(self, stack: Stack) -> list[str]:
        """The tensors that a map stores."""
        taken = self.sources(stack)
        return [name for i, name in enumerate(stack.names) if i not in taken]

    def entry(self, stack: Stack) -> dict[str, object]:
        """What the config says of a map."""
        sides = list(stack.form.tensors())
        shared = {sides[mine]: other.names[theirs] for mine, (other, theirs) in self.sources(stack).items()}
        return entry_of(stack.form, shared)

    def record(self, stack: Stack, bounds: Sequence[Bound]) -> MatrixRecord:
        """The record of a map, with the bytes that it stores itself."""
        taken = self.sources(stack)
        size = sum(t.nbytes for i, t in enumerate(stack.form.tensors().values()) if i not in taken)
        return replace(certificate.record(stack.target, stack.form, None, bounds), bytes=size)

    def biases(self, block: int) -> dict[str, list[tuple[End, End]]]:
        """The biases of a block that change, each with the parts that are replaced and what replaces them."""
        found: dict[str, list[tuple[End, End]]] = {}
        for index, root in self.roots.items():
            if self.heads[index].block == block:
                for mine, theirs in zip(self.heads[index].biases, self.heads[root].biases, strict=True):
                    found.setdefault(mine.tensor, []).append((mine, theirs))
        return found


def store(run: Run, stacks: Stacks, block: int, file: str) -> tuple[object, list[str]]:
    """Write what the maps of a block store themselves, and its biases; for each map the bounds of its error."""
    stored: dict[str, Tensor] = {}
    bounds: dict[str, object] = {}
    for stack in stacks.in_block(block):
        weight, taken = run.checkpoint.read_finite(stack.target.disk), stacks.sources(stack)
        parts = {i: stack.part(weight, i) for i in range(len(stack.strips)) if i not in taken}
        stored |= {stack.names[i]: part for i, part in parts.items()}
        for disk in sorted({other.target.disk for other, _ in taken.values()}):
            given = run.checkpoint.read_finite(disk)
            parts |= {i: other.part(given, at) for i, (other, at) in taken.items() if other.target.disk == disk}
        made = formed_bounds(
            weight.T if stack.target.transposed else weight,
            stack.operator([parts[i] for i in range(len(parts))]),
            PLAIN,
            lower=None,
            rng=run.rng(f"share/{stack.target.name}"),
            spectral=not run.request.quick,
        )
        bounds[stack.target.disk] = [bound.to_json() for bound in made]
    for name, pairs in stacks.biases(block).items():
        stored[name] = run.checkpoint.read_finite(name).clone()
        for mine, theirs in pairs:
            stored[name][mine.start : mine.stop] = run.checkpoint.read_finite(theirs.tensor)[theirs.start : theirs.stop]
    write_all(run.file(file), stored)
    return bounds, [file]
