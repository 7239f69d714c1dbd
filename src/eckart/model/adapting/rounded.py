"""Models whose weights were rounded for adapters, as checkpoints: what an adapter is loaded onto that was trained on such a base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.entries import entry_of
from eckart.model.linear import OperatorLinear
from eckart.model.quantizer import METHOD, OperatorCheckpoint
from eckart.model.skeleton import without_bars

BASE = "base"  # beside the files of an adapter


def write_base(wrapped: Wrapped, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write what lies under the adapters as a compressed checkpoint; numbers outside of operators in this ``dtype``, or as they are.

    Raises ``EckartError`` for a model that is none of transformers', and for operators that share tensors.
    """
    model = wrapped.model
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise EckartError(
            f"a {type(model).__name__} is no model of transformers: its rounded base can't be written, and the adapter fits no other"
        )
    before = _before(model)
    modules, links = dict(before.get("modules", {})), before.get("links")
    for name in wrapped.rounded:
        base = wrapped.adapters[name].base
        assert isinstance(base, OperatorLinear)
        resized = modules.get(name, {}).get("resized")
        modules[name] = entry_of(base.operator) | ({"resized": True} if resized else {})
    shared = next((name for name, entry in modules.items() if entry.get("shared")), None)
    if shared is not None:
        raise EckartError(f"{shared} shares tensors with other maps, which can't be rounded: densify the checkpoint")
    with wrapped.bare(), _said(model.config, OperatorCheckpoint(modules, links=links)), without_bars():
        kept = {f"{name}.{key}" for name in modules for key in model.get_submodule(name).state_dict()}
        model.save_pretrained(folder, state_dict=_in_dtype(model.state_dict(), dtype, kept))
    for path in sorted(folder.iterdir()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _before(model: Any) -> Mapping[str, Any]:
    """What the config says of operators already."""
    said = getattr(model.config, "quantization_config", None)
    table: Mapping[str, Any] = said if isinstance(said, dict) else {} if said is None else said.to_dict()
    if table and table.get("quant_method") != METHOD:
        raise EckartError(
            f"some weights of the model are packed by {table.get('quant_method')}, beside which none can be rounded: load it in float32"
        )
    return table


@contextmanager
def _said(config: Any, said: OperatorCheckpoint) -> Iterator[None]:
    """For the time of the context a config that says this of operators."""
    before = dict(vars(config))
    config.quantization_config = said
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)


def _in_dtype(state: Mapping[str, Tensor], dtype: torch.dtype | None, kept: set[str]) -> dict[str, Tensor]:
    """The tensors in a dtype, but for those that are ``kept``; what is one tensor under two names stays one."""
    made: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    found = {}
    for name, tensor in state.items():
        if dtype is None or name in kept or not tensor.is_floating_point():
            found[name] = tensor
        else:
            key = (tensor.data_ptr(), tuple(tensor.shape))
            found[name] = made.setdefault(key, tensor.to(dtype))
    return found
