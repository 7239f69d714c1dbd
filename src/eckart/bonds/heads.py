"""Heads of attention across a network: where each lies in the tensors, which are alike, and which take the place of others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from eckart.bonds.graph import BondGraph, End
from eckart.stats import Need

DECIMALS = 12  # of a likeness: what is equal comes out equal, whatever the order of a sum


@dataclass(frozen=True)
class Head:
    """A head, or a group of queries with the keys and values that they share: its parts of the weights and biases of a block.

    ``keys`` are the parts of queries and keys, ``values`` those of the values and of what reads them.
    """

    name: str
    block: int
    keys: tuple[End, ...]
    values: tuple[End, ...]
    biases: tuple[End, ...]

    @property
    def weights(self) -> tuple[End, ...]:
        """All its parts of weights."""
        return self.keys + self.values


def heads_of(graph: BondGraph) -> list[Head]:
    """The heads of a network, block by block; the parts of each in one order.

    >>> from eckart.bonds import Bond, Invertible, Map
    >>> ends = {name: End(name, 0, 0, 2, reads=name == "q") for name in "qkv"} | {"o": End("o", 1, 0, 2, reads=True)}
    >>> bonds = {
    ...     "h.0.keys.0": Bond("h.0.keys.0", 2, Invertible(), (ends["q"], ends["k"])),
    ...     "h.0.values.0": Bond("h.0.values.0", 2, Invertible(), (ends["v"], ends["o"])),
    ... }
    >>> maps = {name: Map(name, name, None, (2, 4), 0) for name in "qkvo"}
    >>> [(head.name, len(head.weights)) for head in heads_of(BondGraph("example", bonds, maps, {}, blocks=("h.0",)))]
    [('h.0.heads.0', 4)]
    """
    weights = {entry.weight for entry in graph.maps.values()}
    found = []
    for block, name in enumerate(graph.blocks):
        index = 0
        while f"{name}.keys.{index}" in graph.bonds:
            keys, values = (graph.bonds[f"{name}.{space}.{index}"].ends for space in ("keys", "values"))
            found.append(
                Head(
                    name=f"{name}.heads.{index}",
                    block=block,
                    keys=tuple(end for end in keys if end.tensor in weights),
                    values=tuple(end for end in values if end.tensor in weights),
                    biases=tuple(end for end in keys + values if end.tensor not in weights),
                )
            )
            index += 1
    return found


class Likeness(Protocol):
    """Says how alike heads are."""

    needs: ClassVar[frozenset[Need]]

    def compared(self, head: Head) -> tuple[End, ...]:
        """The parts of a head that are looked at; all of them flattened make one row of what ``between`` is given."""

    def between(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """How alike each of ``ours`` (a, k) and each of ``theirs`` (b, k) are, both in float64: (a, b), the more the higher."""


@dataclass(frozen=True)
class CosineOfKeys:
    """The cosine of the angle between the queries and keys of two heads: ``<[Wq; Wk], [Wq'; Wk']>`` of unit lengths.

    It sees neither biases nor the changes of basis that a head does not notice; of nothing but zeros it is 0.

    >>> CosineOfKeys().between(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0], [4.0, -3.0]])).tolist()
    [[1.0, 0.0]]
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def compared(self, head: Head) -> tuple[End, ...]:
        """Queries and keys."""
        return head.keys

    def between(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """All cosines."""
        lengths = ours.norm(dim=1)[:, None] * theirs.norm(dim=1)
        return torch.where(lengths > 0, (ours @ theirs.T) / lengths, 0.0).round(decimals=DECIMALS)


@dataclass(frozen=True)
class Match:
    """The most similar head of an earlier block, by its index among all heads."""

    head: int
    likeness: float


def by_likeness(matches: Mapping[int, Match]) -> list[int]:
    """The heads that have a match, those that are most like theirs first; of equal ones the earlier first.

    >>> by_likeness({2: Match(0, 0.5), 3: Match(0, 0.9), 4: Match(1, 0.5)})
    [3, 2, 4]
    """
    return sorted(matches, key=lambda index: (-matches[index].likeness, index))


def roots(matches: Mapping[int, Match], shared: Collection[int]) -> dict[int, int]:
    """For each of the heads ``shared`` the one whose weights it takes: its match, or where that is shared too, what that one takes.

    Matches are earlier heads, so every such chain ends.

    >>> roots({2: Match(0, 0.5), 3: Match(2, 0.9), 4: Match(1, 0.5)}, [2, 3])
    {2: 0, 3: 0}
    """
    found: dict[int, int] = {}
    for index in sorted(shared):
        match = matches[index].head
        found[index] = found.get(match, match)
    return found


@dataclass(frozen=True)
class Strip:
    """The entries from ``start`` to ``stop`` of one axis of a weight, and the head that they belong to, if it was asked for."""

    start: int
    stop: int
    head: int | None


def strips(ends: Sequence[tuple[End, int]], wanted: Collection[int]) -> list[Strip]:
    """The axis that heads share, from its first to its last entry; neighbours of one head are together, and so are those not wanted.

    ``ends`` are the parts of all heads with their indices. One strip alone is cut into two, so that no tensor of it could be taken for the
    whole.

    >>> ends = [(End("q", 0, 2 * i, 2 * i + 2, reads=True), i // 2) for i in range(6)]
    >>> [(strip.start, strip.stop, strip.head) for strip in strips(ends, {1})]
    [(0, 4, None), (4, 8, 1), (8, 12, None)]
    """
    found: list[Strip] = []
    for end, index in sorted(ends, key=lambda item: item[0].start):
        head = index if index in wanted else None
        if found and found[-1].head == head:
            found[-1] = Strip(found[-1].start, end.stop, head)
        else:
            found.append(Strip(end.start, end.stop, head))
    if len(found) == 1:
        (whole,) = found
        middle = (whole.start + whole.stop) // 2
        return [Strip(whole.start, middle, whole.head), Strip(middle, whole.stop, whole.head)]
    return found
