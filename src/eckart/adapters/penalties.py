"""What is added to the loss to keep the tensors of adapters in shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eckart.adapters.roles import Role
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Params


class Penalty(Protocol):
    """A number for one adapter; its mean over all adapters is added to the loss."""

    def check(self, roles: Mapping[str, Role]) -> None:
        """Raise ``ValueError`` where an adapter with these tensors does not have what is penalised."""

    def __call__(self, params: Params) -> Tensor:
        """The number, with its weight."""


@dataclass(frozen=True)
class Orthonormal:
    """``weight (||B^T B - I|| + ||A A^T - I||)``: zero where the columns of B and the rows of A are orthonormal; norms may be ``squared``.

    >>> eye = torch.eye(2)
    >>> sides = {"left": eye, "right": 2 * eye}
    >>> [round(float(Orthonormal(1.0, squared)(sides)), 4) for squared in (False, True)]
    [4.2426, 18.0]
    """

    weight: float
    squared: bool = False

    def check(self, roles: Mapping[str, Role]) -> None:
        """Both sides have to train."""
        _want(roles, LEFT, RIGHT)

    def __call__(self, params: Params) -> Tensor:
        """The weighted sum for both sides."""
        left, right = params[LEFT], params[RIGHT]
        eye = torch.eye(len(right), dtype=right.dtype, device=right.device)
        off = [torch.linalg.vector_norm(gram - eye) for gram in (left.T @ left, right @ right.T)]
        return self.weight * (off[0].square() + off[1].square() if self.squared else off[0] + off[1])


@dataclass(frozen=True)
class MiddleEnergy:
    """``weight sum d^2`` of the numbers between both sides.

    >>> float(MiddleEnergy(0.5)({"middle": torch.tensor([1.0, 3.0])}))
    5.0
    """

    weight: float

    def check(self, roles: Mapping[str, Role]) -> None:
        """There has to be a middle that trains."""
        _want(roles, MIDDLE)

    def __call__(self, params: Params) -> Tensor:
        """The weighted sum of squares."""
        return self.weight * params[MIDDLE].square().sum()


def _want(roles: Mapping[str, Role], *names: str) -> None:
    missing = [name for name in names if name not in roles or not roles[name].trains]
    if missing:
        raise ValueError(f"a {missing[0]} part is penalised, and there is none that trains")
