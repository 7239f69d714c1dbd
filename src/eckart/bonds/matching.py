"""A declaration laid over the tensors of a model: which of them are its maps and norms, and that nothing is missing or left over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from eckart.bonds.declaration import Declaration, Entry
from eckart.bonds.graph import Map
from eckart.errors import EckartError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """An entry of a declaration with its tensors; ``block`` is empty outside of all blocks."""

    name: str
    block: str
    entry: Entry
    weight: str
    bias: str | None
    tied: bool  # the weight is another map's

    def map(self, shape: tuple[int, ...]) -> Map:
        """The linear map whose weight has this shape."""
        outputs = 1 if (self.entry.transposed or self.entry.looked_up) and not self.tied else 0
        sides = (shape[outputs], shape[1 - outputs])
        return Map(self.name, self.weight, self.bias, sides, outputs, self.entry.after, self.entry.looked_up)


def matched(
    declaration: Declaration, config: Mapping[str, Any], shapes: Shapes
) -> tuple[tuple[str, ...], tuple[Place, ...]]:
    """The names of a model's blocks, and the places of all entries that it has, in the order of the declaration.

    Raises ``EckartError`` for a config that the declaration is not for, and for a tensor that is missing, unknown or of the wrong order, by
    name and with the nearest one.
    """
    for key, value in (declaration.requires or {}).items():
        if config.get(key, value) != value:
            raise EckartError(
                f"the bonds of {declaration.name} are declared for {key} = {value} only, and this model has {config[key]}"
            )
    if not any(name.startswith(f"{declaration.prefix}.") for name in shapes):
        declaration = declaration.without_prefix()
    blocks = tuple(_blocks(declaration.blocks, shapes))
    places = tuple(
        place
        for name, block, entry in _entries(declaration, blocks)
        if (place := _place(declaration.name, name, block, entry, config, shapes)) is not None
    )
    used = {tensor for place in places for tensor in (place.weight, place.bias)}
    for tensor in shapes:
        if tensor not in used and not any(fnmatchcase(tensor, pattern) for pattern in declaration.ignored):
            near = _nearest(tensor, [name for name in used if name])
            raise EckartError(f"{tensor} is not declared for {declaration.name}{near}")
    return blocks, places


def _entries(declaration: Declaration, blocks: tuple[str, ...]) -> Iterator[tuple[str, str, Entry]]:
    """Full name, block and entry; norms that an entry reads through by their full names as well."""
    for name, entry in declaration.outside.items():
        yield name, "", entry
    for block in blocks:
        for name, entry in declaration.block.items():
            yield f"{block}.{name}", block, replace(entry, after=f"{block}.{entry.after}" if entry.after else None)


def _place(
    architecture: str, name: str, block: str, entry: Entry, config: Mapping[str, Any], shapes: Shapes
) -> Place | None:
    """Where an entry is, or nowhere if it may be missing."""
    weight = name if entry.axis is not None else f"{name}.weight"
    bias = f"{name}.bias" if entry.axis is None and f"{name}.bias" in shapes else None
    tied = weight not in shapes and entry.tied_to is not None and bool(config.get("tie_word_embeddings"))
    weight = f"{entry.tied_to}.weight" if tied else weight
    if weight not in shapes:
        if entry.optional:
            return None
        raise EckartError(f"{architecture} declares {weight}, which the model does not have{_nearest(weight, shapes)}")
    if entry.axis is not None and entry.axis >= len(shapes[weight]):
        raise EckartError(
            f"{weight} has the shape {list(shapes[weight])}, and no axis {entry.axis} that could write {entry.writes[0]}"
        )
    if entry.norm is not None and len(shapes[weight]) != 1:
        raise EckartError(f"{architecture} declares {weight} as a norm, but its shape is {list(shapes[weight])}")
    if entry.reads is not None and len(shapes[weight]) != 2:
        raise EckartError(f"{architecture} declares {weight} as a matrix, but its shape is {list(shapes[weight])}")
    return Place(name, block, entry, weight, bias, tied)


def _blocks(prefix: str, shapes: Shapes) -> Iterator[str]:
    below = (name.removeprefix(f"{prefix}.").split(".")[0] for name in shapes if name.startswith(f"{prefix}."))
    yield from (f"{prefix}.{index}" for index in sorted({int(part) for part in below if part.isdecimal()}))


def _nearest(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, sorted(names), 1, 0.0)
    return f": the nearest is {near[0]}" if near else ""
