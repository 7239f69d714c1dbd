"""Architectures as data: what the TOML files beside this module say, and the graph that it gives of a model's tensors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from eckart.bonds.assembly import Assembly
from eckart.bonds.graph import BondGraph, Map
from eckart.errors import EckartError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One line of a declaration: a map, a norm or a tensor of another kind, by its name within the model or the block.

    A map ``writes`` one space, or several into one tensor (``by_heads``: side by side for every head), and ``reads`` another, ``after`` a
    norm perhaps. A ``norm`` measures a space; what it gives goes to the maps after it, unless it ``writes`` a space itself or ``replaces``
    the one that it measures. A tensor that is no map names the ``axis`` that writes.
    """

    writes: tuple[str, ...] = ()
    reads: str | None = None
    after: str | None = None
    norm: str | None = None
    replaces: bool = False
    transposed: bool = False
    looked_up: bool = False
    by_heads: bool = False
    axis: int | None = None
    tied_to: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Declaration:
    """One architecture: its entries outside of the blocks and within each, and what its config says of attention and nonlinearity."""

    name: str
    model_types: tuple[str, ...]
    blocks: str
    outside: Mapping[str, Entry]
    block: Mapping[str, Entry]
    centres: bool  # its norms subtract the mean
    heads: str  # entries of the config
    groups: str | None = None
    rotary: bool = False
    activation: str | None = None
    stored_less: float = 0.0
    ignored: tuple[str, ...] = ()
    requires: Mapping[str, Any] | None = None

    def graph(self, config: Mapping[str, Any], shapes: Shapes) -> BondGraph:
        """The bonds of a model of this architecture with this config and these tensors.

        Raises ``EckartError`` for a tensor that is missing, unknown, or of another size than those it meets, by name.
        """
        for key, value in (self.requires or {}).items():
            if config.get(key, value) != value:
                raise EckartError(
                    f"the bonds of {self.name} are declared for {key} = {value} only, and this model has {config[key]}"
                )
        indices = sorted(
            {int(rest.split(".")[0]) for rest in _below(self.blocks, shapes) if rest.split(".")[0].isdecimal()}
        )
        names = tuple(f"{self.blocks}.{index}" for index in indices)
        entries = dict(self.outside)
        for block in names:
            for name, entry in self.block.items():
                after = f"{block}.{entry.after}" if entry.after else None
                entries[f"{block}.{name}"] = replace(entry, after=after)
        assembly = Assembly(self, config, shapes, names)
        used: set[str] = set()
        for name, entry in entries.items():
            used |= self._placed(name, entry, config, shapes, assembly)
        for tensor in shapes:
            if tensor not in used and not any(fnmatchcase(tensor, pattern) for pattern in self.ignored):
                near = _nearest(tensor, used)
                raise EckartError(f"{tensor} is not declared for {self.name}{near}")
        return assembly.graph()

    def _placed(
        self, name: str, entry: Entry, config: Mapping[str, Any], shapes: Shapes, assembly: Assembly
    ) -> set[str]:
        """Hand an entry with its tensors to the assembly; the names of these."""
        weight = name if entry.axis is not None else f"{name}.weight"
        bias = f"{name}.bias" if entry.axis is None and f"{name}.bias" in shapes else None
        tied = weight not in shapes and entry.tied_to is not None and bool(config.get("tie_word_embeddings", True))
        if tied:
            assembly.tie(name, str(entry.tied_to))
            weight = f"{entry.tied_to}.weight"
        elif weight not in shapes:
            if entry.optional:
                return set()
            raise EckartError(f"{self.name} declares {weight}, which the model does not have{_nearest(weight, shapes)}")
        if entry.norm is not None:
            assembly.add_norm(name, weight, bias, entry)
        elif entry.axis is not None:
            assembly.add_tensor(weight, entry.axis, entry.writes[0])
        else:
            if len(shapes[weight]) != 2:
                raise EckartError(f"{self.name} declares {weight} as a matrix, but its shape is {list(shapes[weight])}")
            outputs = 1 if (entry.transposed or entry.looked_up) and not tied else 0
            rows, columns = shapes[weight][outputs], shapes[weight][1 - outputs]
            assembly.add_map(Map(name, weight, bias, (rows, columns), outputs, entry.after, entry.looked_up), entry)
        return {weight, *([bias] if bias else [])}


@cache
def declarations() -> Mapping[str, Declaration]:
    """All architectures that are declared, by name."""
    folder = files("eckart.bonds") / "architectures"
    tables = {
        path.name.removesuffix(".toml"): tomllib.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.name.endswith(".toml")
    }
    return {name: _read(name, _inherited(table, tables)) for name, table in tables.items()}


def declared(model_type: str) -> Declaration | None:
    """The declaration for a config's ``model_type``, if there is one.

    >>> declared("mistral").name, declared("perceiver")
    ('llama', None)
    """
    return next((d for d in declarations().values() if model_type in d.model_types), None)


def inner_bonds(architecture: str, shapes: Shapes) -> BondGraph:
    """What is known of an architecture that nobody declared: each matrix has its own inner bond."""
    maps = {
        name.removesuffix(".weight"): Map(name.removesuffix(".weight"), name, None, (shape[0], shape[1]), 0)
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    return BondGraph(architecture, {}, maps, {})


def _inherited(table: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A table on top of the one that it is like, entry by entry."""
    if "like" not in table:
        return dict(table)
    found = _inherited(tables[table["like"]], tables)
    for key, value in table.items():
        found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found


def _read(name: str, table: Mapping[str, Any]) -> Declaration:
    attention = table["attention"]
    return Declaration(
        name=name,
        model_types=tuple(table["model_types"]),
        blocks=table["blocks"],
        outside={key: _entry(value) for key, value in table["outside"].items()},
        block={key: _entry(value) for key, value in table["block"].items()},
        centres={"rms": False, "layer": True}[table["norms"]],
        heads=attention["heads"],
        groups=attention.get("groups"),
        rotary=attention.get("rotary", False),
        activation=table.get("activation"),
        stored_less=table.get("stored_less", 0.0),
        ignored=tuple(table.get("ignored", ())),
        requires=table.get("requires"),
    )


def _entry(table: Mapping[str, Any]) -> Entry:
    unknown = table.keys() - {f.name for f in fields(Entry)}
    if unknown:
        raise ValueError(f"a declaration says {sorted(unknown)[0]}, which means nothing")
    writes = table.get("writes", ())
    return Entry(**{**table, "writes": (writes,) if isinstance(writes, str) else tuple(writes)})


def _below(prefix: str, names: Shapes) -> list[str]:
    return [name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")]


def _nearest(name: str, names: Sequence[str] | Shapes | set[str]) -> str:
    near = get_close_matches(name, sorted(names), 1, 0.0)
    return f": the nearest is {near[0]}" if near else ""
