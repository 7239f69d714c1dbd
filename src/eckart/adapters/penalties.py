"""What is added to the loss to keep the tensors of adapters in shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.forms.residual import ENERGY, PRINCIPAL_LEFT, PRINCIPAL_MIDDLE, PRINCIPAL_RIGHT
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

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float
    squared: bool = False

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

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

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """There has to be a middle that trains."""
        _want(roles, MIDDLE)

    def __call__(self, params: Params) -> Tensor:
        """The weighted sum of squares."""
        return self.weight * params[MIDDLE].square().sum()


@dataclass(frozen=True)
class OfActing:
    """A penalty on those directions whose numbers in the middle are larger than ``above``, all of them together.

    >>> sides = {"left": torch.eye(2), "middle": torch.tensor([1.0, 0.0]), "right": 2 * torch.eye(2)}
    >>> float(OfActing(Orthonormal(1.0))(sides))
    3.0

    Raises ``ValueError`` unless above is 0 or more.
    """

    of: Penalty
    above: float = 1e-5

    def __post_init__(self) -> None:
        check_number("above", self.above, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """What the penalty asks for, and a middle that trains."""
        _want(roles, MIDDLE)
        self.of.check(roles)

    def __call__(self, params: Params) -> Tensor:
        """The penalty for those."""
        acts = params[MIDDLE].detach().abs() > self.above
        sides = {LEFT: params[LEFT][:, acts], RIGHT: params[RIGHT][acts]}
        return self.of({**params, **sides, MIDDLE: params[MIDDLE][acts]})


@dataclass(frozen=True)
class Outside:
    """``weight (||P^T B||^2 + ||A Q^T||^2)``: zero where what trains is orthogonal to the principal vectors P and Q, which stay.

    Of what is off in ``[P, B]^T [P, B] - I`` and ``[Q; A] [Q; A]^T - I`` together, squared, this is half of what lies beside the
    diagonal blocks.

    >>> sides = {"left": torch.tensor([[0.6], [0.8]]), "right": torch.tensor([[0.0, 1.0]])}
    >>> others = {"principal_left": torch.tensor([[1.0], [0.0]]), "principal_right": torch.tensor([[1.0, 0.0]])}
    >>> round(float(Outside(1.0)({**sides, **others})), 4)
    0.36

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """Both sides have to train, beside principal ones."""
        _want(roles, LEFT, RIGHT)
        _want_principal(roles)

    def __call__(self, params: Params) -> Tensor:
        """The weighted sum for both sides."""
        left, right = _across(params)
        return self.weight * (left.square().sum() + right.square().sum())


@dataclass(frozen=True)
class SameEnergy:
    """``weight | ||P S Q + B diag(d) A||_F^2 - ||W||_F^2 |``, with what stays and what trains of a weight W that both were.

    Neither matrix is formed: with ``U = P^T B`` and ``V = A Q^T`` the inner product of what stays and what trains is ``sum U S d V``.

    >>> sides = {"left": torch.tensor([[0.0], [1.0]]), "middle": torch.tensor([2.0]), "right": torch.tensor([[0.0, 1.0]])}
    >>> others = {"principal_left": torch.eye(2)[:, :1], "principal_middle": torch.tensor([3.0]), "principal_right": torch.eye(2)[:1]}
    >>> float(SameEnergy(0.5)({**sides, **others, "energy": torch.tensor(1.0)}))
    1.5

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """All three parts have to train, beside principal ones."""
        _want(roles, LEFT, MIDDLE, RIGHT)
        _want_principal(roles)

    def __call__(self, params: Params) -> Tensor:
        """The weighted difference."""
        left, right = _across(params)
        middle = params[MIDDLE]
        shared = (params[PRINCIPAL_MIDDLE][:, None] * left * middle * right.T).sum()
        grams = (params[LEFT].T @ params[LEFT]) * (params[RIGHT] @ params[RIGHT].T)
        return self.weight * (2 * shared + middle @ grams @ middle - params[ENERGY]).abs()


def _across(params: Params) -> tuple[Tensor, Tensor]:
    """Inner products (k - r, r) and (r, k - r) of the vectors that stay with those that train."""
    return params[PRINCIPAL_LEFT].T @ params[LEFT], params[RIGHT] @ params[PRINCIPAL_RIGHT].T


def _want_principal(roles: Mapping[str, Role]) -> None:
    if PRINCIPAL_LEFT not in roles:
        raise ValueError(f"principal vectors are needed beside what trains, and there are {', '.join(roles)}")


def _want(roles: Mapping[str, Role], *names: str) -> None:
    missing = [name for name in names if name not in roles or not roles[name].trains]
    if missing:
        raise ValueError(f"a {missing[0]} part is penalised, and there is none that trains")
