"""Several adapters as one: the weighted sum of their updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.surgery.adapter import Adapter, Layer


def combine(adapters: Mapping[str, Adapter], weights: Sequence[float] | None = None) -> Adapter:
    """The adapter whose updates are ``sum_i w_i s_i B_i A_i``: factors side by side, so that ranks add and nothing is lost.

    ``adapters`` are named for what is said of them. A module that an adapter does not have is zero there. Tensors beside the factors come
    along from the one that has them, or where all that have them agree. ``resize`` of the result brings it to a smaller rank.

    >>> one, two = (Adapter({"q": Layer(torch.full((2, 1), x), torch.ones(1, 2))}) for x in (1.0, 2.0))
    >>> both = combine({"one": one, "two": two}, [0.5, 2.0])
    >>> both.ranks, both.layers["q"].update.dense().tolist()
    ({'q': 2}, [[4.5, 4.5], [4.5, 4.5]])

    Raises ``EckartError`` for shapes or other tensors that do not match, for magnitude vectors, and for weights that are not one for each.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters) or not adapters:
        raise EckartError(f"--weights gives {len(weights)} numbers for {len(adapters)} adapters: give one for each")
    if not all(torch.isfinite(torch.tensor(weights, dtype=torch.float64)).tolist()):
        raise EckartError(f"--weights holds {weights}: give finite numbers")
    for place, adapter in adapters.items():
        adapter.check_plain(place)
    names = dict.fromkeys(name for adapter in adapters.values() for name in adapter.layers)
    layers = {}
    for name in names:
        parts = {
            place: adapter.layers[name].scaled(weight)
            for (place, adapter), weight in zip(adapters.items(), weights, strict=True)
            if name in adapter.layers
        }
        layers[name] = _side_by_side(name, parts)
    others = _others(adapters)
    first, *rest = adapters.values()
    config = dict(first.config)
    if any(adapter.config.get("modules_to_save") for adapter in rest):
        listed = [adapter.config.get("modules_to_save") for adapter in adapters.values()]
        config["modules_to_save"] = sorted({entry for names in listed if isinstance(names, list) for entry in names})
    return Adapter(layers, others, config)


def _side_by_side(name: str, parts: Mapping[str, Layer]) -> Layer:
    (place, first), *more = parts.items()
    for other, layer in more:
        if layer.shape != first.shape or layer.kind != first.kind:
            raise EckartError(
                f"{name} is a {_told(first)} in {place}, but a {_told(layer)} in {other}: these adapters are for different models"
            )
    left = torch.cat([layer.left for layer in parts.values()], dim=1)
    right = torch.cat([layer.right for layer in parts.values()])
    return Layer(left, right, 1.0, first.kind)


def _told(layer: Layer) -> str:
    rows, columns = layer.shape
    return f"{type(layer.kind).__name__.lower()} map of {rows} x {columns}"


def _others(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for place, adapter in adapters.items():
        for name, tensor in adapter.others.items():
            if name in found and not (tensor.shape == found[name].shape and torch.equal(tensor, found[name])):
                raise EckartError(
                    f"{name} trained as a whole in {homes[name]} and in {place}, and differently: no sum of factors combines them; leave "
                    "one of these adapters out"
                )
            found[name], homes[name] = tensor, place
    return found
