"""What a checkpoint that is to be healed is made of, seen from its files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eckart.errors import EckartError
from eckart.model.certificate import NAME, Certificate
from eckart.model.checkpoint import Checkpoint
from eckart.model.densify import OperatorModules
from eckart.model.skeleton import Skeleton

TRAINABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Held:
    """A linear map or an embedding: the kind of operator that holds it, for each floating tensor on disk the parameter that it becomes.

    ``transposed`` is a dense weight stored as (inputs, outputs); ``inside`` one of a block.
    """

    name: str
    kind: str
    parameters: Mapping[str, str]
    inside: bool
    transposed: bool = False


class Student:
    """A checkpoint beside the original that it is to be healed from; no weight is read.

    ``certificate`` is ``None`` for a checkpoint that another program made. Raises ``EckartError`` if it is damaged, or holds operators
    and no certificate.
    """

    def __init__(self, checkpoint: Checkpoint, teacher: Checkpoint) -> None:
        self.checkpoint, self.teacher = checkpoint, teacher
        self.modules = OperatorModules(checkpoint, optional=True)
        there = (checkpoint.folder / NAME).exists() or bool(self.modules.names)
        self.certificate = Certificate.read(checkpoint.folder) if there else None
        self.skeleton, self.original = Skeleton(checkpoint), Skeleton(teacher)

    @cached_property
    def operators(self) -> list[Held]:
        """The modules that hold an operator."""
        return [
            Held(name, self.modules.kind(name), self._floating(self.modules.tensors(name)), self._is_inside(name))
            for name in self.modules.names
        ]

    @cached_property
    def stock(self) -> list[Held]:
        """The linear maps inside of blocks that hold a plain weight."""
        disk = {place: name for name, place in self.skeleton.places.items() if place is not None}
        found = []
        for name, module in self.skeleton.model.named_modules():
            place = f"{name}.weight"
            if type(module) not in (nn.Linear, Conv1D) or not self._is_inside(name) or place not in disk:
                continue
            dtype = self.checkpoint.tensors[disk[place]][1].dtype
            if dtype in TRAINABLE and name not in self.modules.names:
                found.append(Held(name, "dense", {disk[place]: place}, True, isinstance(module, Conv1D)))
        return found

    @cached_property
    def changed(self) -> list[Held]:
        """What compression changed: operators, and all linear maps inside of blocks where it is the network that is another.

        Where there are no operators either, all linear maps inside of blocks.
        """
        return [*self.operators, *(self.stock if not self.same_network or not self.operators else [])]

    @cached_property
    def same_network(self) -> bool:
        """Whether config.json describes parameters of the shapes that the original has."""
        shapes = [
            {name: tuple(parameter.shape) for name, parameter in skeleton.model.named_parameters()}
            for skeleton in (self.skeleton, self.original)
        ]
        return shapes[0] == shapes[1]

    def corresponding(self) -> tuple[Sequence[str], Sequence[str]]:
        """Names of blocks of both models that give the same hidden states, or should.

        Where blocks were left out, the one before them stands for them: what the next block sees is to be what it saw.

        Raises ``EckartError`` where the stream is narrower, or which blocks were left out is not known.
        """
        widths = [skeleton.model.config.get_text_config().hidden_size for skeleton in (self.skeleton, self.original)]
        if widths[0] != widths[1]:
            raise EckartError(
                f"the hidden states of {self.checkpoint.folder} have {widths[0]} channels, those of {self.teacher.folder} {widths[1]}: "
                "features can't be matched, take --match logits"
            )
        own, theirs = self.skeleton.blocks, self.original.blocks
        dropped = () if self.certificate is None else self.certificate.dropped
        kept = [index for index, name in enumerate(theirs) if name not in dropped]
        if len(kept) != len(own):
            raise EckartError(
                f"{self.checkpoint.folder} has {len(own)} blocks and {self.teacher.folder} {len(theirs)}, and no {NAME} tells which "
                "correspond: features can't be matched, take --match logits"
            )
        return own, [theirs[index - 1] for index in [*kept[1:], len(theirs)]]

    def _is_inside(self, name: str) -> bool:
        return any(name.startswith(f"{block}.") for block in self.skeleton.blocks)

    def _floating(self, tensors: Mapping[str, str]) -> dict[str, str]:
        """Of an operator's tensors those that can train; a module's parameters are called what they are on disk."""
        return {name: name for name in tensors.values() if self.checkpoint.tensors[name][1].dtype in TRAINABLE}
