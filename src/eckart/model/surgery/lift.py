"""An adapter of a narrower model as one of the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eckart.bonds.left import places_left
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import resolve
from eckart.model.graph import graph_of
from eckart.model.surgery.adapter import Adapter, Layer
from eckart.model.surgery.base import Base

WAY_OUT = (
    "adapters are lifted where units went whole, hidden ones or groups of heads: narrow by such a recipe (shrink-width)"
)


def lift(adapter: Adapter, small: str | Path, base: str | Path) -> Adapter:
    """The adapter of ``small`` as one of ``base``, of which ``eckart compress`` left hidden units or groups of heads out.

    Rows of the left factor of maps that lost outputs, and columns of the right factor of maps that lost inputs, go to the places that
    they had; zeros stand at the others. So the update is what it was on what is left, and zero elsewhere. What trained whole comes back
    into what the base has there.

    Raises ``EckartError`` for magnitude vectors (DoRA), for a model that was narrowed otherwise, and where adapter, small model and base
    do not belong together.
    """
    adapter.check_plain("lift")
    place = Path(resolve(small))
    found = Base(base)
    left = _left(Certificate.read(place), place, found)
    layers = {name: _lifted(found, name, layer, left, place) for name, layer in adapter.layers.items()}
    others = {name: _whole(found, name, tensor, left, place) for name, tensor in adapter.others.items()}
    return Adapter(layers, others, {**adapter.config, "base_model_name_or_path": str(base)})


def _left(certificate: Certificate, small: Path, base: Base) -> dict[str, dict[int, Tensor]]:
    """For each tensor of the base the places on its axes that the small model still has; nothing of tensors that are whole."""
    folder = base.checkpoint.folder
    if certificate.source != base.checkpoint.file_hashes():
        raise EckartError(f"{small} was not made from {folder}, as its certificate tells: name the model that it was")
    if certificate.dropped:
        raise EckartError(f"{small} lacks the block {certificate.dropped[0]}; {WAY_OUT}")
    if certificate.heads:
        raise EckartError(f"{small} has the head {certificate.heads[0].name} in common with another one; {WAY_OUT}")
    if certificate.matrices:
        raise EckartError(f"{small} has {certificate.matrices[0].name} approximated; {WAY_OUT}")
    kept = {}
    for bond in certificate.bonds:
        if bond.kept is None:
            raise EckartError(f"{small} has directions of its own at {bond.name}, which are no units; {WAY_OUT}")
        kept[bond.name] = bond.kept
    shapes = {name: spec.shape for name, (_, spec) in base.checkpoint.tensors.items()}
    try:
        return places_left(graph_of(base.checkpoint), kept, shapes)
    except ValueError as error:
        raise EckartError(f"{small}: {error}; {WAY_OUT}") from error


def _lifted(base: Base, name: str, layer: Layer, left: Mapping[str, Mapping[int, Tensor]], small: Path) -> Layer:
    disk = base.disk_of(f"{name}.weight")
    places = left.get(disk or "", {})
    outputs = 1 if isinstance(base.modules.get(name), Conv1D) else 0
    made = layer
    if places:
        assert disk is not None
        sizes = base.checkpoint.tensors[disk][1].shape
        rows, columns = places.get(outputs), places.get(1 - outputs)
        if rows is not None:
            _check(name, len(layer.left), rows, small)
            made = replace(made, left=_scattered(layer.left, 0, rows, sizes[outputs]))
        if columns is not None:
            _check(name, layer.right.shape[1], columns, small)
            made = replace(made, right=_scattered(layer.right, 1, columns, sizes[1 - outputs]))
    base.weight_of(name, made)  # which says so where the base has no such map
    return made


def _scattered(tensor: Tensor, axis: int, places: Tensor, length: int) -> Tensor:
    shape = [*tensor.shape]
    shape[axis] = length
    return tensor.new_zeros(shape).index_copy(axis, places, tensor)


def _whole(base: Base, name: str, tensor: Tensor, left: Mapping[str, Mapping[int, Tensor]], small: Path) -> Tensor:
    """What trained whole, with the base's own numbers where something was left out."""
    disk = base.disk_of(name.replace(".base_layer.", "."))
    places = left.get(disk or "", {})
    if not places:
        return tensor
    assert disk is not None
    stored = base.checkpoint.read_finite(disk).to(tensor.dtype)
    for axis, some in places.items():
        _check(name, tensor.shape[axis], some, small)
    return _within(stored, tensor, sorted(places.items()))


def _within(stored: Tensor, tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    (axis, some), *rest = places
    inner = _within(stored.index_select(axis, some), tensor, rest) if rest else tensor
    return stored.index_copy(axis, some, inner)


def _check(name: str, size: int, places: Tensor, small: Path) -> None:
    if size != len(places):
        raise EckartError(
            f"{name} has {size} places in the adapter where {small} has {len(places)}: it is for another model"
        )
