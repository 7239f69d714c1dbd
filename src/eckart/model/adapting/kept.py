"""Adapters on the disk as they begin and as they stand, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.adapting.wrap import Begun
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.files import read_json, write_json
from eckart.model.tensorfile import TensorFile, write_all
from eckart.operator import Blueprint, Operator, Record, describe

TENSORS, TABLE = "begun.safetensors", "begun.json"
TAKEN = "taken:"  # before the names of the tensors of what was taken from a weight
BASE = "base:"  # and of what replaces it


def write_begun(folder: Path, begun: Mapping[str, Begun]) -> None:
    """Write how adapters begin: tensors first, then the table that makes them whole."""
    tensors, table = laid_out(begun)
    write_all(folder / TENSORS, tensors)
    write_json(folder / TABLE, table)


def laid_out(begun: Mapping[str, Begun]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of adapters by name, and what else there is to be told of each module."""
    tensors: dict[str, Tensor] = {}
    table: dict[str, Any] = {}
    for name, start in begun.items():
        tensors |= {f"{name}|{key}": tensor for key, tensor in start.params.items()}
        operators = {TAKEN: start.taken, BASE: start.base}
        for before, op in operators.items():
            held = {} if op is None else op.tensors()
            tensors |= {f"{name}|{before}{key}": tensor for key, tensor in held.items()}
        table[name] = {
            "scale": start.scale,
            "errors": start.errors,
            **{before: None if op is None else describe(op) for before, op in operators.items()},
        }
    return tensors, table


def read_begun(folder: Path) -> dict[str, Begun] | None:
    """How adapters begin, ``None`` where that was not written to its end."""
    if not (folder / TABLE).exists():
        return None
    file = TensorFile(folder / TENSORS)
    return begun_of(read_json(folder / TABLE), {name: file.read(name) for name in file.specs}, folder / TENSORS)


def begun_of(table: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Begun]:
    """What ``laid_out`` laid out; raises ``EckartError`` where tensors and table do not go together."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in table}
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition("|")
        if name not in parts:
            raise EckartError(f"{origin} does not go with the table beside it, which has no {name}: begin anew")
        parts[name][key] = tensor
    found = {}
    for name, told in table.items():
        held = parts[name]
        try:
            scale, errors = _numbers_of(told)
            operators = {before: _operator(told[before], before, held) for before in (TAKEN, BASE)}
        except ValueError as error:
            raise EckartError(f"{origin}: {name}: {error}; the table beside it was edited, or is damaged") from error
        params = {key: tensor for key, tensor in held.items() if not key.startswith((TAKEN, BASE))}
        found[name] = Begun(params, operators[TAKEN], scale, operators[BASE], errors)
    return found


def _numbers_of(told: Any) -> tuple[float, tuple[float, ...]]:
    """The scale, and the errors of sweeps; ``ValueError`` for an entry that ``laid_out`` could not have written."""
    if not isinstance(told, Mapping) or set(told) != {"scale", "errors", TAKEN, BASE}:
        raise ValueError(f"an adapter's entry is a table of scale, errors, {TAKEN} and {BASE}")
    if not isinstance(told["errors"], list) or not all(map(_is_number, [told["scale"], *told["errors"]])):
        raise ValueError("the scale is a number, and the errors of sweeps are a list of them")
    return float(told["scale"]), tuple(map(float, told["errors"]))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max


def _operator(record: Record | None, before: str, held: Mapping[str, Tensor]) -> Operator | None:
    """The operator of this record on those of the tensors whose names begin so."""
    mine = {key.removeprefix(before): tensor for key, tensor in held.items() if key.startswith(before)}
    if record is None:
        if mine:
            raise ValueError(f"there is no record of {before} and a tensor {next(iter(mine))} of it")
        return None
    blueprint = Blueprint.of(record)
    blueprint.check_names(mine)
    return blueprint.build(mine)


def state_of(wrapped: Wrapped) -> dict[str, Tensor]:
    """All tensors that training may change, by name: of the adapters, and of modules that train as they are."""
    found = {
        f"{name}|{key}": tensor.detach()
        for name, adapter in wrapped.adapters.items()
        for key, tensor in adapter.params.items()
    }
    for name in wrapped.whole:
        found |= {f"{name}|{key}": tensor for key, tensor in wrapped.model.get_submodule(name).state_dict().items()}
    return found


def put_state(wrapped: Wrapped, state: Mapping[str, Tensor]) -> None:
    """Put such tensors in place."""
    for entry, tensor in state.items():
        name, _, key = entry.rpartition("|")
        if name in wrapped.adapters:
            wrapped.adapters[name].params[key].data.copy_(tensor)
        else:
            wrapped.model.get_submodule(name).state_dict()[key].copy_(tensor)
