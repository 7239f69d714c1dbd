"""The model that an adapter is for: where the weights of its modules stand on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.errors import EckartError
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.files import shown
from eckart.model.inspect import FLOATING
from eckart.model.quantizer import METHOD
from eckart.model.skeleton import Skeleton
from eckart.model.surgery.adapter import Changing, Embedding, nearest


@dataclass(frozen=True)
class Weight:
    """A weight on disk; ``transposed`` where it is stored as (inputs, outputs), as GPT-2's maps and all embeddings are."""

    parameter: str
    disk: str
    transposed: bool

    def turned(self, stored: Tensor) -> Tensor:
        """What is stored as (outputs, inputs), a kernel behind its outputs."""
        return stored.T if self.transposed else stored.flatten(1)


class Base:
    """A stock checkpoint, looked up by the names of modules.

    Raises ``EckartError`` for one whose weights are no plain numbers.
    """

    def __init__(self, model: str | Path) -> None:
        self.checkpoint = Checkpoint(resolve(model))
        check_stock(self.checkpoint)
        self.skeleton = Skeleton(self.checkpoint)
        self.modules = dict(self.skeleton.model.named_modules())
        self.disks = {place: disk for disk, place in self.skeleton.places.items() if place is not None}

    def disk_of(self, parameter: str) -> str | None:
        """The tensor that holds a parameter, its own or the one that it is tied to; ``None`` where there is none."""
        source = self.skeleton.ties.get(parameter, parameter)
        own = parameter if parameter in self.checkpoint.tensors else None
        return self.disks.get(parameter) or self.disks.get(source) or own

    def weight_of(self, name: str, layer: Changing) -> Weight:
        """The weight that a layer is added to; raises ``EckartError`` where there is none, or none of that shape."""
        parameter = f"{name}.weight"
        disk = self.disk_of(parameter)
        folder = self.checkpoint.folder
        if disk is None:
            held = [place.removesuffix(".weight") for place in self.disks if place.endswith(".weight")]
            raise EckartError(f"{folder} has no module {name}, which the adapter is for; {nearest(name, held)}")
        module = self.modules.get(name)
        looked_up = isinstance(layer.kind, Embedding)
        if looked_up != isinstance(module, nn.Embedding):
            kinds = ("no embedding", "an embedding") if looked_up else ("an embedding", "a linear map")
            raise EckartError(
                f"{name} is {kinds[0]} in {folder}, but {kinds[1]} in the adapter: it is for another model"
            )
        spec = self.checkpoint.tensors[disk][1]
        if spec.dtype not in FLOATING or not spec.shape:
            raise EckartError(
                f"{folder}: {disk} is stored as {spec.dtype}, which nothing can be added to: load and save the model in bfloat16"
            )
        transposed = looked_up or isinstance(module, Conv1D)
        rows, columns = layer.shape
        fits = spec.shape[-1 if transposed else 0] == rows and math.prod(spec.shape) == rows * columns
        if not fits:
            raise EckartError(
                f"{name} is {shown(list(spec.shape))} in {folder}, but the adapter changes a map of {rows} x {columns}: "
                "it is for another model"
            )
        return Weight(parameter, disk, transposed)

    def matrix(self, weight: Weight, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weight as (outputs, inputs); raises ``EckartError`` on NaN or infinity."""
        return weight.turned(self.checkpoint.read_finite(weight.disk).to(dtype))


def check_stock(checkpoint: Checkpoint) -> None:
    """Raise ``EckartError`` for a checkpoint that is compressed or quantised."""
    entry = checkpoint.config.get("quantization_config")
    if entry is None:
        return
    method = entry.get("quant_method") if isinstance(entry, dict) else entry
    if method == METHOD:
        raise EckartError(
            f"{checkpoint.folder} is compressed by eckart: eckart densify {checkpoint.folder} -o DENSE makes a stock checkpoint of it"
        )
    raise EckartError(
        f"{checkpoint.folder} is quantised ({shown(method)}), and nothing can be added to its codes: take the model that it was made from, "
        "or load it dequantised and save it in bfloat16"
    )
