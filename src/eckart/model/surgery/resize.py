"""An adapter at another rank: the best one there is, by its factors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from eckart.bound import Bound
from eckart.measure import spectrum
from eckart.model.progress import Progress, quiet
from eckart.model.surgery.adapter import Adapter, Layer
from eckart.model.surgery.sizing import Costs, Size, ToBytes, ToEnergy, ToError, ToRank, fitted, spread
from eckart.model.surgery.writing import size_of
from eckart.operator import Factors


@dataclass(frozen=True)
class Resized:
    """The new adapter, and for each module what it leaves out of the old one, in the Frobenius norm."""

    adapter: Adapter
    bounds: Mapping[str, Bound]


def resize(adapter: Adapter, size: Size, *, progress: Progress = quiet) -> Resized:
    """Every layer's update ``s B A`` by the nearest factors of another size: ``U_r S_r V_r^T``, found by QR of both factors.

    No matrix of the size of a weight is formed. Where a layer's rank is no larger than what is asked for, its factors stay as they are,
    filled up with zeros to a given rank: the same update bit by bit. Elsewhere the scale moves into the factors. Of each bound
    ``lower`` is what no factors of that rank can beat, and ``achieved`` the error of those that are stored.

    >>> layer = Layer(torch.eye(4)[:, :2] * torch.tensor([2.0, 1.0]), torch.eye(4)[:2], scale=0.5)
    >>> made = resize(Adapter({"q": layer}), ToRank(1))
    >>> made.adapter.layers["q"].update.dense().diag().round(decimals=6).tolist(), round(made.bounds["q"].achieved, 6)
    ([1.0, 0.0, 0.0, 0.0], 0.5)

    Raises ``EckartError`` for magnitude vectors (DoRA), and for a budget that is too small.
    """
    adapter.check_plain("resize")
    sizes = _sizes(adapter, size)
    layers: dict[str, Layer] = {}
    bounds: dict[str, Bound] = {}
    for name, layer in adapter.layers.items():
        layers[name], bounds[name] = _resized(layer, sizes[name])
        progress("resize", len(layers), len(sizes), name)
    return Resized(Adapter(layers, adapter.others, adapter.config), bounds)


def _sizes(adapter: Adapter, size: Size) -> Mapping[str, ToRank | ToEnergy | ToError]:
    if not isinstance(size, ToBytes):
        return dict.fromkeys(adapter.layers, size)
    costs = {
        name: Costs.of(spectrum(layer.update).values[: layer.rank], layer.rank_bytes)
        for name, layer in adapter.layers.items()
    }
    return spread(costs, size.size, size_of(adapter) - adapter.bytes)


def _resized(layer: Layer, size: ToRank | ToEnergy | ToError) -> tuple[Layer, Bound]:
    wanted = size.rank if isinstance(size, ToRank) else layer.rank
    if isinstance(size, ToRank) and wanted >= layer.rank:
        return layer.padded(wanted), _nothing(layer)
    try:
        fit = fitted(layer.update, size, layer.dtype)
    except ValueError:  # no smaller factors in this dtype come so near: those that are there do
        return layer, _nothing(layer)
    op = fit.op
    assert isinstance(op, Factors)
    if op.rank >= layer.rank:
        return layer, _nothing(layer)
    return Layer(op.left, op.right, 1.0, layer.kind), fit.bounds[0]


def _nothing(layer: Layer) -> Bound:
    """The bound of a layer that stays as it is."""
    scale = float(torch.linalg.vector_norm(spectrum(layer.update).values))
    return Bound(norm="frobenius", lower=0.0, achieved=0.0, upper=0.0, scale=scale)
