"""What becomes of the gradients of an adapter's tensors before an optimiser sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.roles import Role
from eckart.adapters.seed import LEFT, RIGHT, Params


class GradientRule(Protocol):
    """Changes the gradients of one adapter; those of tensors that it does not know stay as they are."""

    def check(self, roles: Mapping[str, Role]) -> None:
        """Raise ``ValueError`` where an adapter with these tensors does not have what the rule works on."""

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """The gradients by name, for an adapter with this factor in front."""


@dataclass(frozen=True)
class Plain:
    """They stay as they are.

    >>> Plain()({"left": torch.ones(1)}, {}, 1.0)["left"].tolist()
    [1.0]
    """

    def check(self, roles: Mapping[str, Role]) -> None:
        """Whatever there is will do."""

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """The same gradients."""
        return dict(gradients)


class Free(Protocol):
    """Of the gradients with the same effect on the weight, which differ by ``X A`` and ``-B X``, chooses one by its X (r, r)."""

    def __call__(self, lefts: _Gram, rights: _Gram, right_gradient: Tensor, right: Tensor) -> Tensor:
        """That X, for the gradient of A over the squared scale."""


@dataclass(frozen=True)
class Unfree:
    """X is zero."""

    def __call__(self, lefts: _Gram, rights: _Gram, right_gradient: Tensor, right: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(lefts.gram)


@dataclass(frozen=True)
class Nearest:
    """The X with which both gradients are nearest to those of backpropagation.

    It solves ``B^T B X + X A A^T = -(B^T B)^-1 L_A A^T / s^2``, by the eigenvectors of both Gram matrices.
    """

    def __call__(self, lefts: _Gram, rights: _Gram, right_gradient: Tensor, right: Tensor) -> Tensor:
        """The solution, and where both eigenvalues are zero nothing."""
        wanted = -(lefts.inverse @ right_gradient @ right.T)
        sums = lefts.values[:, None] + rights.values
        turned = lefts.vectors.T @ wanted @ rights.vectors
        solved = torch.where(
            sums > 0, turned / torch.where(sums > 0, sums, torch.ones_like(sums)), torch.zeros_like(sums)
        )
        return lefts.vectors @ solved @ rights.vectors.T


@dataclass(frozen=True)
class Projected:
    """Gradients of B and A whose joint effect on the weight, ``s (B g_A + g_B A)``, is nearest to the full gradient G.

    ``g_A = (B^T B)^-1 L_A / s^2 + X A`` and ``g_B = (I - P_B) L_B (A A^T)^-1 / s^2 - B X`` from the gradients L_A and L_B of
    backpropagation: G itself is not needed, and the effect, ``P_B G + G P_A - P_B G P_A``, does not depend on X. To each Gram matrix
    ``damping`` times its mean eigenvalue is added; what is zero altogether counts as having no inverse. In float64. (Wang et al. 2024.)

    Raises ``ValueError`` unless damping is 0 or more.
    """

    free: Free = Nearest()
    damping: float = 1e-8

    def __post_init__(self) -> None:
        check_number("damping", self.damping, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """Both factors of a pair have to train."""
        _want_pair(roles, "projected")

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """Both gradients."""
        left, right, of_left, of_right = _wide(gradients, params)
        lefts, rights = _Gram.of(left.T @ left, self.damping), _Gram.of(right @ right.T, self.damping)
        of_left, of_right = of_left / scale**2, of_right / scale**2
        x = self.free(lefts, rights, of_right, right)
        outside = of_left - left @ (lefts.inverse @ (left.T @ of_left))
        return _narrow(gradients, outside @ rights.inverse - left @ x, lefts.inverse @ of_right + x @ right)


@dataclass(frozen=True)
class Preconditioned:
    """``(B^T B + e I)^-1 g_A`` and ``g_B (A A^T + e I)^-1``: a step that no split of the product changes (Zhang and Pilanci 2024).

    Both are formed from the factors as they are before the step, in float64.

    Raises ``ValueError`` unless damping is 0 or more.
    """

    damping: float = 1e-6

    def __post_init__(self) -> None:
        check_number("damping", self.damping, least=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """Both factors of a pair have to train."""
        _want_pair(roles, "preconditioned")

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """Both gradients."""
        left, right, of_left, of_right = _wide(gradients, params)
        own = self.damping * torch.eye(len(right), dtype=torch.float64, device=right.device)
        solved = torch.linalg.solve(left.T @ left + own, of_right)
        return _narrow(gradients, torch.linalg.solve(right @ right.T + own, of_left, left=False), solved)


@dataclass(frozen=True)
class PerExpert:
    """A rule of pairs for each of ``experts`` equal parts of the directions by itself.

    Raises ``ValueError`` unless experts is at least 1.
    """

    of: GradientRule
    experts: int

    def __post_init__(self) -> None:
        check_number("experts", self.experts, least=1)

    def check(self, roles: Mapping[str, Role]) -> None:
        """What the rule asks for, of both factors."""
        self.of.check({name: roles[name] for name in (LEFT, RIGHT) if name in roles})

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """The gradients, part by part."""
        parts = []
        for columns in torch.arange(len(params[RIGHT])).chunk(self.experts):
            own, theirs = (
                {LEFT: table[LEFT][:, columns], RIGHT: table[RIGHT][columns]} for table in (gradients, params)
            )
            parts.append(self.of(own, theirs, scale))
        left, right = torch.cat([part[LEFT] for part in parts], 1), torch.cat([part[RIGHT] for part in parts])
        return {**gradients, LEFT: left, RIGHT: right}


@dataclass(frozen=True)
class RowsByLength:
    """The gradient of each row b of B times ``1 / sqrt(||b|| + 1 / eta^2)``: eta at zero, less as the row grows.

    >>> gradients, params = {"left": torch.ones(2, 1)}, {"left": torch.tensor([[0.0], [0.75]])}
    >>> RowsByLength(eta=2.0)(gradients, params, 1.0)["left"].tolist()
    [[2.0], [1.0]]

    Raises ``ValueError`` unless eta is above 0.
    """

    eta: float = 2.0

    def __post_init__(self) -> None:
        check_number("eta", self.eta, above=0)

    def check(self, roles: Mapping[str, Role]) -> None:
        """The left factor has to train."""
        if LEFT not in roles or not roles[LEFT].trains:
            raise ValueError("rows of the left factor are to be scaled, and there is none that trains")

    def __call__(self, gradients: Params, params: Params, scale: float) -> dict[str, Tensor]:
        """The gradients, that of B scaled row by row."""
        lengths = torch.linalg.vector_norm(params[LEFT], dim=1, keepdim=True)
        return {**gradients, LEFT: gradients[LEFT] / (lengths + self.eta**-2).sqrt()}


@dataclass(frozen=True)
class _Gram:
    """A Gram matrix (r, r) by its eigenvectors, and its damped inverse; the one of zeros is zero."""

    gram: Tensor
    values: Tensor
    vectors: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, gram: Tensor, damping: float) -> _Gram:
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0)
        raised = values + damping * values.mean()
        inverse = torch.where(raised > 0, 1 / torch.where(raised > 0, raised, torch.ones_like(raised)), 0.0)
        return cls(gram, values, vectors, (vectors * inverse) @ vectors.T)


def _want_pair(roles: Mapping[str, Role], how: str) -> None:
    if set(roles) != {LEFT, RIGHT} or not all(role.trains for role in roles.values()):
        raise ValueError(
            f"gradients are {how} for a pair of factors that both train, not for {', '.join(roles) or 'nothing'}"
        )


def _wide(gradients: Params, params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = (params[LEFT], params[RIGHT], gradients[LEFT], gradients[RIGHT])
    left, right, of_left, of_right = (tensor.detach().to(torch.float64) for tensor in found)
    return left, right, of_left, of_right


def _narrow(gradients: Params, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    return {LEFT: left.to(gradients[LEFT].dtype), RIGHT: right.to(gradients[RIGHT].dtype)}
