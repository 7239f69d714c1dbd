"""What a stream whose directions change from norm to norm goes through on its way past a sublayer.

A block adds what its sublayers give to what came in. Where the directions behind a sublayer are others than before it, what came in has
to change as well, from x to ``x - F F^T x``. The norm in front of the sublayer notes x, and the map at its end adds ``-F F^T x`` to what it
gives; the block's own addition does the rest. ``config.json`` says so under ``quantization_config``::

    "links": {"model.layers.0.self_attn.o_proj": {"norm": "model.layers.0.input_layernorm", "shape": [256, 64]}}

F is the parameter ``link`` of that map. The norm, which only normalises, has one number for a weight; its shape makes loading without this
library fail instead of leaving the links out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eckart.errors import EckartError


class Carried:
    """What a norm was given, until the map at the end of its sublayer takes it."""

    def __init__(self) -> None:
        self.given: Tensor | None = None

    def note(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the norm runs."""
        self.given = args[0]

    def add(self, module: nn.Module, _: tuple[Any, ...], result: Tensor) -> Tensor:
        """After the map ran."""
        if self.given is None:
            raise EckartError("a map was run without the norm in front of its sublayer, whose input it needs")
        x, self.given = self.given, None
        return result - past(x, module.link)  # type: ignore[arg-type]


def past(x: Tensor, link: Tensor) -> Tensor:
    """``F F^T x`` for rows x (…, k)."""
    return (x @ link) @ link.T


def put_link(model: nn.Module, writer: str, entry: object) -> None:
    """Give the map ``writer`` the parameter ``link``, and have it work on what the norm of this entry is given.

    Raises ``EckartError`` for an entry that is damaged or that names modules which are not there.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("norm"), str) or not _is_shape(entry.get("shape")):
        raise EckartError(f"config.json links {writer} to no norm, or not by a matrix: it is damaged")
    for name in (writer, entry["norm"]):
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise EckartError(
                f"config.json names the module {name}, which {type(model).__name__} does not have"
            ) from error
    module, norm = model.get_submodule(writer), model.get_submodule(entry["norm"])
    if not isinstance(module, nn.Linear):
        raise EckartError(f"config.json links {writer}, a {type(module).__name__}, which is no linear map")
    if not isinstance(norm.__dict__["_parameters"].get("weight"), Tensor):
        raise EckartError(f"config.json links {writer} to {entry['norm']}, which is no norm")
    width = len(norm.weight)  # type: ignore[arg-type]
    if entry["shape"][0] != width:
        raise EckartError(f"config.json links {writer} by {entry['shape']} to a norm of {width} channels")
    with torch.device("meta"):
        module.register_parameter("link", nn.Parameter(torch.empty(entry["shape"], dtype=module.weight.dtype)))
        norm.register_parameter("weight", nn.Parameter(torch.empty(1, dtype=norm.weight.dtype)))  # type: ignore[arg-type]
    carried = Carried()
    norm.register_forward_pre_hook(carried.note)
    module.register_forward_hook(carried.add)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)


@contextmanager
def without(model: nn.Module, cuts: Sequence[tuple[str, str | None, Tensor]]) -> Iterator[None]:
    """The directions N (k, k - k') left out of the stream where each of these norms reads it, and from there on.

    Each cut is the norm, the map that ends its sublayer (``None`` for the last norm) and N, orthonormal. A stock model with these cuts
    computes what the narrower one with links does.
    """
    handles, changed = [], []
    for name, writer, left_out in cuts:
        norm, carried = model.get_submodule(name), Carried()
        handles.append(norm.register_forward_pre_hook(carried.note))
        handles.append(norm.register_forward_pre_hook(_Cut(left_out)))
        if writer is not None:
            module = model.get_submodule(writer)
            module.link = left_out  # no parameter: it is neither loaded nor emptied
            changed.append(module)
            handles.append(module.register_forward_hook(carried.add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in changed:
            del module.link


class _Cut:
    """Gives a norm what is left."""

    def __init__(self, left_out: Tensor) -> None:
        self.left_out = left_out

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        return x - past(x, self.left_out.to(x.dtype)), *rest
