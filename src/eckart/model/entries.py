"""What ``config.json`` says of the operator of one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

import torch

from eckart.model.tensorfile import DTYPE_NAMES, DTYPES
from eckart.operator import KINDS, PLAIN, Blueprint, Operator, Record, describe

MOST_NUMBERS = 2**48  # in one tensor: no file holds as many, and sizes beyond overflow


@dataclass(frozen=True)
class Entry:
    """The record of an operator, its shape, and those of its tensors by name, in the operator's order.

    ``dtypes`` has the tensors that are no floating numbers. Of floating ones the module decides the dtype, as of all its
    parameters. ``resized`` says that the module is of another shape than the architecture gives it. ``shared`` are tensors that the module
    does not store, each with the name of the parameter of another module that it is.
    """

    record: Record
    shape: tuple[int, int]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    resized: bool = False
    shared: Mapping[str, str] = field(default_factory=dict)


def read_entry(entry: object) -> Entry:
    """The value of an entry from a file.

    ``operator`` is the name of a kind that has nothing but tensors, or else a record.

    Raises ``ValueError`` if it is none; the sentence goes on where one says "it gives the module".
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("shapes"), Mapping):
        raise ValueError("no operator with the shapes of its tensors")
    operator, given, codes = entry.get("operator"), entry["shapes"], entry.get("dtypes", {})
    if not isinstance(operator, Mapping) and operator not in sorted(PLAIN):
        known = ", ".join(kind for kind in KINDS if kind in PLAIN)
        raise ValueError(f"the operator {operator!r}; known are {known}, and others by their records")
    if not all(map(_is_shape, given.values())):
        raise ValueError("shapes that are no lists of sizes")
    if not isinstance(codes, Mapping) or any(
        name not in given or not isinstance(code, str) or code not in DTYPES for name, code in codes.items()
    ):
        raise ValueError(f"dtypes that are not known or of tensors that are not there; known are {', '.join(DTYPES)}")
    shared = entry.get("shared", {})
    if not isinstance(shared, Mapping) or any(
        name not in given or not isinstance(source, str) or "." not in source for name, source in shared.items()
    ):
        raise ValueError("shared tensors that are not there, or that are no parameters of other modules")
    dtypes = {name: DTYPES[code] for name, code in codes.items()}
    record = operator if isinstance(operator, Mapping) else {"kind": operator}
    try:
        blueprint = Blueprint.of(record)
        blueprint.check_names(given)
        shapes = {name: tuple(given[name]) for name in blueprint.names()}
        empty = {name: torch.empty(s, dtype=dtypes.get(name), device="meta") for name, s in shapes.items()}
        return Entry(record, blueprint.build(empty).shape, shapes, dtypes, entry.get("resized") is True, dict(shared))
    except ValueError as error:
        raise ValueError(f"no proper operator: {error}") from error


def entry_of(op: Operator, shared: Mapping[str, str] = MappingProxyType({})) -> dict[str, object]:
    """What a file says of ``op``, as JSON; ``shared`` names the parameters of other modules that some of its tensors are.

    >>> from eckart.operator import Factors, Shuffle, Sum
    >>> entry_of(Factors(torch.ones(3, 1), torch.ones(1, 2)))
    {'operator': 'factors', 'shapes': {'left': [3, 1], 'right': [1, 2]}}
    >>> entry_of(Shuffle(2, 3))
    {'operator': {'kind': 'shuffle', 'settings': {'rows': 2, 'columns': 3}}, 'shapes': {}}
    """
    record, tensors = describe(op), op.tensors()
    fixed = {name: DTYPE_NAMES[t.dtype] for name, t in tensors.items() if not t.is_floating_point()}
    return {
        "operator": record["kind"] if record["kind"] in PLAIN else record,
        "shapes": {name: list(t.shape) for name, t in tensors.items()},
    } | {key: dict(table) for key, table in (("dtypes", fixed), ("shared", shared)) if table}


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list | tuple) or not all(type(side) is int and side >= 0 for side in shape):
        return False
    return prod(max(side, 1) for side in shape) <= MOST_NUMBERS
