"""The bond graph of a model: its axes sorted by the bonds that they belong to, and what may be changed there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eckart.bonds.declaration import Declaration, Entry
from eckart.bonds.graph import Bond, BondGraph, End, Map, Norm
from eckart.bonds.matching import Place, Shapes, matched
from eckart.bonds.symmetry import Diagonal, Fixed, Invertible, Orthogonal, Pairs, Permutation, Symmetry
from eckart.errors import EckartError

STREAM = "residual"
# Spaces of the whole model, and why those have no symmetry whose entries mean something; all others belong to a block.
NAMED = {space: f"{space} go by their numbers" for space in ("positions", "segments", "classes")}
NAMED["vocabulary"] = "tokens go by their numbers"
SHARED = (STREAM, "pooled", "transformed", *NAMED)
HOMOGENEOUS = ("relu",)  # nonlinearities that pass positive factors on


def assembled(declaration: Declaration, config: Mapping[str, Any], shapes: Shapes) -> BondGraph:
    """The bonds of a model of a declared architecture, with this config and tensors of these shapes.

    Raises ``EckartError``, by name, where tensors are missing or unknown, where two of them meet and are not of one size, and where
    the config's heads do not divide them.
    """
    blocks, places = matched(declaration, config, shapes)
    heads = Heads.of(declaration, config, places, shapes)
    maps = {p.name: (p.map(shapes[p.weight]), p) for p in places if p.entry.reads is not None}
    norms = {p.name: p for p in places if p.entry.norm is not None}
    ends = _sorted_ends(_all_ends(places, maps.values(), heads, shapes))
    reasons = dict(_reasons(norms.values()))
    stream = tuple(p.name for p in norms.values() if p.entry.norm == STREAM and not p.entry.replaces)
    homogeneous = declaration.activation is not None and config.get(declaration.activation) in HOMOGENEOUS

    def symmetry(place: _Where) -> Symmetry:
        reason = reasons.get(place.group) or NAMED.get(place.space)
        if reason is not None:
            return Fixed(reason)
        match place.space:
            case "residual":
                return Orthogonal(mean=declaration.centres)
            case "values":
                return Invertible()
            case "keys":
                size = heads.size[place.block]
                rotary = heads.rotary(size)
                return Pairs(rotary, size - rotary) if rotary else Invertible()
            case "hidden":
                return Permutation(positive=homogeneous and not place.gated(ends))
            case _:
                return Permutation()

    bonds: dict[str, Bond] = {}
    for place, found in ends.items():
        own = tuple(end for end, _ in found)
        fixed = isinstance(symmetry(place), Fixed)
        through = stream if place.space == STREAM and not fixed else ()
        bonds[place.bond] = Bond(place.bond, own[0].size, symmetry(place), own, through)
        if place.gated(ends):
            linear = tuple(end for end, space in found if space != "gate")
            name = f"{place.bond}.linear"
            bonds[name] = Bond(name, own[0].size, Diagonal("it meets the gate unit by unit"), linear)
    own_norms = {p.name: _norm(p, declaration, shapes, maps) for p in norms.values()}
    for norm in own_norms.values():
        bonds |= _channels(norm, [maps[reader][0] for reader in norm.readers])
    ties = {p.name: str(p.entry.tied_to) for p in places if p.tied}
    own_maps = {n: m for n, (m, _) in maps.items()}
    sizes = dict(declaration.sizes)
    if "head" in sizes:  # where a head has a size of its own there may be fewer of them
        sizes |= {"heads": declaration.heads, "groups": declaration.groups or declaration.heads}
    return BondGraph(declaration.name, bonds, own_maps, own_norms, blocks, ties, sizes)


def inner_bonds(architecture: str, shapes: Shapes) -> BondGraph:
    """What is known of an architecture that nobody declared: each matrix has its own inner bond."""
    maps = {
        name.removesuffix(".weight"): Map(name.removesuffix(".weight"), name, None, (shape[0], shape[1]), 0)
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    return BondGraph(architecture, {}, maps, {})


# ---- heads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """How many heads of queries and groups of keys and values there are, and the size of one in every block."""

    queries: int
    groups: int
    size: Mapping[str, int]
    turned: float  # the share of a head that rotary positions turn

    @classmethod
    def of(cls, declaration: Declaration, config: Mapping[str, Any], places: Iterable[Place], shapes: Shapes) -> Heads:
        """By the config, and by what the maps behind the heads read."""
        queries = _number(config, declaration.heads)
        groups = _number(config, declaration.groups, queries) if declaration.groups else queries
        if queries % groups:
            raise EckartError(f"{queries} heads do not share {groups} groups of keys evenly: restore the config")
        size = {}
        for place in places:
            if place.entry.reads == "values":
                width = place.map(shapes[place.weight]).shape[1]
                if width % queries:
                    raise EckartError(f"{place.weight} reads {width} values, which {queries} heads do not share evenly")
                size[place.block] = width // queries
        table = config.get("rope_parameters")
        share = table.get("partial_rotary_factor", 1.0) if isinstance(table, Mapping) else 1.0
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise EckartError(f"the config says that partial_rotary_factor is {share}: a share from 0 to 1 is wanted")
        return cls(queries, groups, size, float(share) if declaration.rotary else 0.0)

    def count(self, space: str) -> int:
        """How many queries, keys or values there are side by side."""
        return self.queries if space == "queries" else self.groups

    def group(self, space: str, index: int) -> int:
        """The group that one of them belongs to."""
        return index // (self.queries // self.groups) if space == "queries" else index

    def rotary(self, size: int) -> int:
        """The entries of a head that positions turn: a frequency for each two of them, and for one that is left over."""
        turned = int(size * self.turned)
        return turned + turned % 2


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise EckartError(f"the config says that {key} is {value}: a number of heads is wanted")
    return value


# ---- where axes belong ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """A bond by the space that it is: queries meet keys, and the gate meets the hidden units."""

    space: str
    block: str
    index: int | None = None

    @classmethod
    def of(cls, space: str, block: str, index: int | None = None) -> _Where:
        own = {"queries": "keys", "gate": "hidden"}.get(space, space)
        return cls(own, "" if space in SHARED else block, index)

    @property
    def group(self) -> tuple[str, str]:
        """What all heads of a block have in common."""
        return self.space, self.block

    @property
    def bond(self) -> str:
        """The bond's name."""
        parts = (self.block, self.space, "" if self.index is None else str(self.index))
        return ".".join(part for part in parts if part)

    def gated(self, ends: Mapping[_Where, list[tuple[End, str]]]) -> bool:
        """Whether a gate is among what writes it."""
        return any(space == "gate" for _, space in ends[self])


def _all_ends(
    places: Iterable[Place], maps: Iterable[tuple[Map, Place]], heads: Heads, shapes: Shapes
) -> Iterator[tuple[_Where, str, End]]:
    """Every axis of every tensor: the bond that it belongs to, the space as it is declared, and where it lies."""
    for place in places:
        entry = place.entry
        if entry.axis is not None:
            size = shapes[place.weight][entry.axis]
            yield (
                _Where.of(entry.writes[0], place.block),
                entry.writes[0],
                End(place.weight, entry.axis, 0, size, reads=False),
            )
    for found, place in maps:
        tensors = [(found.weight, found.outputs)] + ([(found.bias, 0)] if found.bias else [])
        for space, index, start, stop in _parts(found, place, heads):
            for tensor, axis in tensors:
                yield (
                    _Where.of(space, place.block, index),
                    space,
                    End(tensor, axis, start, stop, reads=space == "queries"),
                )
        space, axis = str(place.entry.reads), 1 - found.outputs
        if space != "values":
            yield _Where.of(space, place.block), space, End(found.weight, axis, 0, found.shape[1], reads=True)
            continue
        size = heads.size[place.block]
        for index in range(heads.queries):
            end = End(found.weight, axis, index * size, (index + 1) * size, reads=True)
            yield _Where.of(space, place.block, heads.group("queries", index)), space, end
    for place in places:  # what a norm adds is in the basis of the stream
        if place.entry.norm == STREAM and not place.entry.replaces and place.bias:
            end = End(place.bias, 0, 0, shapes[place.bias][0], reads=False)
            yield _Where.of(STREAM, place.block), STREAM, end


def _parts(found: Map, place: Place, heads: Heads) -> Iterator[tuple[str, int | None, int, int]]:
    """The spaces that a map's outputs write: space, group of heads, and from where to where."""
    writes = place.entry.writes
    if not set(writes) & {"queries", "keys", "values"}:
        yield writes[0], None, 0, found.shape[0]
        return
    size = heads.size[place.block]
    expected = size * sum(map(heads.count, writes))
    if found.shape[0] != expected:
        what = " and ".join(f"{heads.count(space)} {space}" for space in writes)
        raise EckartError(
            f"{found.weight} has {found.shape[0]} outputs, but {what} of size {size} are {expected}: restore the config"
        )
    if place.entry.by_heads:
        order = [(space, index) for index in range(heads.queries) for space in writes]
    else:
        order = [(space, index) for space in writes for index in range(heads.count(space))]
    for at, (space, index) in enumerate(order):
        yield space, heads.group(space, index), at * size, (at + 1) * size


def _sorted_ends(ends: Iterable[tuple[_Where, str, End]]) -> dict[_Where, list[tuple[End, str]]]:
    found: dict[_Where, list[tuple[End, str]]] = {}
    for where, space, end in ends:
        there = found.setdefault(where, [])
        if there and there[0][0].size != end.size:
            first = there[0][0]
            raise EckartError(
                f"{first.tensor} and {end.tensor} meet in {space}, but have {first.size} and {end.size} entries there"
            )
        there.append((end, space))
    return found


# ---- norms ----------------------------------------------------------------------------------------------------------


def _reasons(norms: Iterable[Place]) -> Iterator[tuple[tuple[str, str], str]]:
    """Which bonds norms leave no symmetry, and why."""
    for place in norms:
        entry: Entry = place.entry
        if entry.norm != STREAM or entry.replaces:
            yield _Where.of(str(entry.norm), place.block).group, f"{place.name} normalises it"
        for space in entry.writes:
            yield _Where.of(space, place.block).group, f"{place.name} writes it channel by channel"


def _norm(place: Place, declaration: Declaration, shapes: Shapes, maps: Mapping[str, tuple[Map, Place]]) -> Norm:
    readers = tuple(name for name, (found, _) in maps.items() if found.after == place.name)
    size = shapes[place.weight][0]
    return Norm(place.name, place.weight, place.bias, size, declaration.centres, declaration.stored_less, readers)


def _channels(norm: Norm, readers: list[Map]) -> dict[str, Bond]:
    """The bond between a norm and the maps that read through it."""
    if not readers:
        return {}
    ends = [End(norm.weight, 0, 0, norm.size, reads=False, less=norm.less)]
    ends += [End(norm.bias, 0, 0, norm.size, reads=False)] if norm.bias else []
    ends += [End(found.weight, 1 - found.outputs, 0, found.shape[1], reads=True) for found in readers]
    for end in ends:
        if end.size != norm.size:
            raise EckartError(f"{norm.weight} and {end.tensor} meet, but have {norm.size} and {end.size} entries there")
    name = f"{norm.name}.channels"
    return {name: Bond(name, norm.size, Diagonal(f"{norm.name} works channel by channel"), tuple(ends))}
