"""Architectures as data: what the TOML files beside this module say."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any


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
    """One architecture: its entries outside of the blocks and within each, and what its config says of attention and nonlinearity.

    ``sizes`` names the entries of the config by which a size may be changed and nothing else.
    """

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
    sizes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    requires: Mapping[str, Any] | None = None
    prefix: str = ""  # what names begin with, unless a model was saved without its head

    def without_prefix(self) -> Declaration:
        """The same for a model that was saved without its head."""

        def short(name: str) -> str:
            return name.removeprefix(f"{self.prefix}.")

        outside = {
            short(name): replace(
                entry,
                after=short(entry.after) if entry.after else None,
                tied_to=short(entry.tied_to) if entry.tied_to else None,
            )
            for name, entry in self.outside.items()
        }
        return replace(self, outside=outside, blocks=short(self.blocks), ignored=tuple(map(short, self.ignored)))


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
        sizes=table.get("sizes", {}),
        ignored=tuple(table.get("ignored", ())),
        requires=table.get("requires"),
        prefix=table["prefix"],
    )


def _entry(table: Mapping[str, Any]) -> Entry:
    unknown = table.keys() - {f.name for f in fields(Entry)}
    if unknown:
        raise ValueError(f"a declaration says {sorted(unknown)[0]}, which means nothing")
    writes = table.get("writes", ())
    return Entry(**{**table, "writes": (writes,) if isinstance(writes, str) else tuple(writes)})
