"""A network as tensors that meet along bonds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import TypeVar

from eckart.bonds.symmetry import Symmetry
from eckart.errors import EckartError

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """Where a bond takes hold of a tensor: the entries from ``start`` to ``stop`` of one axis.

    What ``reads`` changes contragrediently to what writes. ``less`` is what a tensor is stored less than it acts: Gemma's norms hold
    their scale less one.
    """

    tensor: str
    axis: int
    start: int
    stop: int
    reads: bool
    less: float = 0.0

    @property
    def size(self) -> int:
        """How many entries."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.tensor}[{':, ' * self.axis}{self.start}:{self.stop}]"

    def to_json(self) -> dict[str, object]:
        """As a table."""
        return {"tensor": self.tensor, "axis": self.axis, "start": self.start, "stop": self.stop}


@dataclass(frozen=True)
class Bond:
    """A space that maps write to and read from, and the changes of its basis that nobody outside notices.

    ``norms`` are those through which its readers see it: their scales must be folded before it may be turned.
    """

    name: str
    size: int
    symmetry: Symmetry
    ends: tuple[End, ...]
    norms: tuple[str, ...] = ()

    @property
    def writers(self) -> tuple[End, ...]:
        """What fills it."""
        return tuple(end for end in self.ends if not end.reads)

    @property
    def readers(self) -> tuple[End, ...]:
        """What is fed from it."""
        return tuple(end for end in self.ends if end.reads)

    def to_json(self) -> dict[str, object]:
        """As a table."""
        return {
            "bond": self.name,
            "size": self.size,
            "symmetry": str(self.symmetry),
            "writers": [end.to_json() for end in self.writers],
            "readers": [end.to_json() for end in self.readers],
            "norms": list(self.norms),
        }


@dataclass(frozen=True)
class Map:
    """A linear map or an embedding: ``writes`` and ``reads`` are the ends that its weight and bias have."""

    name: str
    weight: str
    bias: str | None
    shape: tuple[int, int]  # (outputs, inputs), whatever the storage
    outputs: int  # the axis of the weight on which its outputs lie
    after: str | None = None  # the norm through which it reads
    looked_up: bool = False


@dataclass(frozen=True)
class Norm:
    """A norm: what its scale and bias are called, who reads through it, and whether it subtracts the mean."""

    name: str
    weight: str
    bias: str | None
    size: int
    centres: bool
    less: float
    readers: tuple[str, ...]


@dataclass(frozen=True)
class BondGraph:
    """The bonds of a model, the maps that meet there, and its norms, each by name in the order of the model.

    ``ties`` maps each map whose weight is also another one's to that other, ``sizes`` each size that a config can change by itself to
    its entry there: ``hidden``, ``blocks``, ``vocabulary``, ``residual``, and with it ``head`` and ``eps``; ``groups`` and
    ``heads``.
    """

    architecture: str
    bonds: Mapping[str, Bond]
    maps: Mapping[str, Map]
    norms: Mapping[str, Norm]
    blocks: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)

    def bond(self, name: str) -> Bond:
        """The bond of this name. Raises ``EckartError`` with the nearest one if there is none."""
        return _known(self.bonds, name, "bond")

    def norm(self, name: str) -> Norm:
        """The norm of this name. Raises ``EckartError`` with the nearest one if there is none."""
        return _known(self.norms, name, "norm")

    @cached_property
    def uses(self) -> Mapping[str, tuple[str, ...]]:
        """The maps that have each tensor for a weight: more than one where it is tied."""
        found: dict[str, list[str]] = {}
        for name, entry in self.maps.items():
            found.setdefault(entry.weight, []).append(name)
        return {tensor: tuple(names) for tensor, names in found.items()}

    def within(self, tensors: Collection[str]) -> BondGraph:
        """What of the graph lies in these tensors: their ends, maps and norms, and the bonds that have any end left."""
        bonds = {}
        norms = {name: norm for name, norm in self.norms.items() if norm.weight in tensors}
        for name, bond in self.bonds.items():
            ends = tuple(end for end in bond.ends if end.tensor in tensors)
            if ends:
                bonds[name] = replace(bond, ends=ends, norms=tuple(norm for norm in bond.norms if norm in norms))
        maps = {name: entry for name, entry in self.maps.items() if entry.weight in tensors}
        return replace(self, bonds=bonds, maps=maps, norms=norms)

    def to_json(self) -> dict[str, object]:
        """As a table."""
        return {
            "architecture": self.architecture,
            "bonds": [bond.to_json() for bond in self.bonds.values()],
            "maps": [{"map": m.name, "shape": list(m.shape), "inner": min(m.shape)} for m in self.maps.values()],
            "ties": dict(self.ties),
        }


def _known(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        near = get_close_matches(name, table, 1, 0.0)
        hint = f": the nearest is {near[0]}" if near else ": the architecture has none"
        raise EckartError(f"there is no {what} {name}{hint}")
    return table[name]
