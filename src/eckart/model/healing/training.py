"""What of a student trains, as parts: the numbers that compression left, or adapters that merge into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.errors import EckartError
from eckart.linalg import truncated_svd
from eckart.model.healing.student import Held, Student
from eckart.model.run import seeded
from eckart.operator import Factors, Sum


@dataclass(frozen=True)
class Trained:
    """Parameters in float32 by name, what they come to as stored (by name on disk), and how what they hang on is taken off again."""

    parameters: Mapping[str, nn.Parameter]
    merged: Callable[[], dict[str, Tensor]]
    detach: Callable[[], None]


class Training(Protocol):
    """A way to train a student."""

    def check(self, student: Student) -> None:
        """Raise ``EckartError`` for a student that can't be trained in this way."""
        ...

    def attach(self, student: Student, model: Any, seed: int) -> Trained:
        """Prepare the loaded ``model`` for training; nothing else of it has a gradient."""
        ...


@dataclass(frozen=True)
class TrainFactors:
    """The floating tensors of operators train: factors, values of masks, scales and zeros of codes; a mask and codes stay.

    Where the network itself is narrower or has fewer blocks, or nothing is held by operators, the linear maps inside of blocks do.
    Biases, norms and embeddings stay.
    """

    def check(self, student: Student) -> None:
        """Raise ``EckartError`` where there is nothing of the kind."""
        if not any(held.parameters for held in student.changed):
            raise EckartError(f"{student.checkpoint.folder} holds no linear map that could be trained")

    def attach(self, student: Student, model: Any, seed: int) -> Trained:
        """The parameters themselves."""
        model.requires_grad_(False)
        names = {disk: place for held in student.changed for disk, place in held.parameters.items()}
        parameters = {disk: model.get_parameter(place) for disk, place in names.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(True)

        def merged() -> dict[str, Tensor]:
            return {disk: _stored(student, disk, parameter) for disk, parameter in parameters.items()}

        return Trained(parameters, merged, lambda: None)


@dataclass(frozen=True)
class TrainLora:
    """Beside every linear map inside of blocks ``alpha / rank · B A`` trains, B (outputs, rank) from 0 and A (rank, inputs) at random.

    Afterwards ``W + alpha / rank · B A`` is stored in the dtype of W. Factors keep their rank r: the sum of both products, of rank
    ``r + rank``, is truncated to r, the nearest such matrix. Other operators take no such sum and are refused.

    Raises ``ValueError`` for a rank below 1 or an alpha that is not above 0.
    """

    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha {self.alpha:g} must be above 0")

    def check(self, student: Student) -> None:
        """Raise ``EckartError`` for operators that a LoRA does not merge into, and where there is no map."""
        maps = _maps(student)
        wrong = next((held for held in maps if held.kind not in ("dense", "factors")), None)
        if wrong is not None:
            raise EckartError(
                f"{wrong.name} is stored as a {wrong.kind} operator, into which no LoRA merges: train its own numbers, --train factors"
            )
        if not maps:
            raise EckartError(f"{student.checkpoint.folder} holds no linear map that could be trained")

    def attach(self, student: Student, model: Any, seed: int) -> Trained:
        """An adapter beside every map."""
        model.requires_grad_(False)
        maps = _maps(student)
        parameters: dict[str, nn.Parameter] = {}
        hooks = []
        for held in maps:
            module = model.get_submodule(held.name)
            weight = next(iter(module.parameters()))
            outputs, inputs = _shape(student, held)
            start = torch.randn(self.rank, inputs, generator=seeded(seed, f"lora/{held.name}")) / inputs**0.5
            down = nn.Parameter(start.to(weight.device))
            up = nn.Parameter(torch.zeros(outputs, self.rank, device=weight.device))
            parameters |= {f"{held.name}/a": down, f"{held.name}/b": up}
            hooks.append(module.register_forward_hook(self._beside(down, up)))

        def merged() -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for held in maps:
                update = self._update(parameters[f"{held.name}/b"], parameters[f"{held.name}/a"])
                found |= _merged(student, held, update)
            return found

        def detach() -> None:
            for hook in hooks:
                hook.remove()

        return Trained(parameters, merged, detach)

    def _beside(self, down: Tensor, up: Tensor) -> Any:
        def hook(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (self.alpha / self.rank) * F.linear(F.linear(inputs[0], down), up)

        return hook

    def _update(self, up: Tensor, down: Tensor) -> Factors:
        return Factors((self.alpha / self.rank) * up.detach().cpu(), down.detach().cpu())


def _maps(student: Student) -> list[Held]:
    """The linear maps inside of blocks, however they are stored."""
    return [held for held in [*student.operators, *student.stock] if held.inside]


def _shape(student: Student, held: Held) -> tuple[int, int]:
    """Outputs and inputs of a map."""
    if held.name in student.modules.names:
        return student.modules.read(held.name).shape
    rows, columns = student.checkpoint.tensors[next(iter(held.parameters))][1].shape
    return (columns, rows) if held.transposed else (rows, columns)


def _merged(student: Student, held: Held, update: Factors) -> dict[str, Tensor]:
    """The tensors of a map with its adapter, in the dtype and the shapes that they had."""
    if held.kind == "factors":
        old = student.modules.read(held.name)
        assert isinstance(old, Factors)
        new = truncated_svd(Sum((old, update)), rank=old.rank, dtype=old.left.dtype).op
        names = student.modules.tensors(held.name)
        return {names[side]: tensor.contiguous() for side, tensor in new.tensors().items()}
    (disk,) = held.parameters
    weight, product = student.checkpoint.read(disk), update.dense()
    wide = torch.promote_types(weight.dtype, torch.float32)
    made = weight.to(wide) + (product.T if held.transposed else product).to(wide)
    return {disk: made.to(weight.dtype).contiguous()}


def _stored(student: Student, disk: str, parameter: Tensor) -> Tensor:
    """A parameter in the dtype of its tensor on disk."""
    return parameter.detach().cpu().to(student.checkpoint.tensors[disk][1].dtype).contiguous()
