"""Some components of a weight train, in sight of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, FROZEN, Role
from eckart.adapters.seed import LEFT, MIDDLE, REST, RIGHT, Params, Seed
from eckart.operator import Factors

PRINCIPAL_LEFT, PRINCIPAL_MIDDLE, PRINCIPAL_RIGHT, ENERGY = (
    "principal_left",
    "principal_middle",
    "principal_right",
    "energy",
)


@dataclass(frozen=True)
class Residual:
    """``B diag(d) A`` of the r components of a weight that its start picked first; the k - r others stay, where penalties can see them.

    They are ``principal_left`` (m, k - r), ``principal_middle`` (k - r,) and ``principal_right`` (k - r, n). ``energy`` is the sum of
    the squares that d begins with, so that all together are ``||W||_F^2`` over the squared scale.
    """

    is_product: ClassVar[bool] = True
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        LEFT: FREE,
        MIDDLE: FREE,
        RIGHT: FREE,
        PRINCIPAL_LEFT: FROZEN,
        PRINCIPAL_MIDDLE: FROZEN,
        PRINCIPAL_RIGHT: FROZEN,
        ENERGY: FROZEN,
    }

    def check(self, gives: frozenset[str]) -> None:
        """All three parts, of all components."""
        take(gives, "Residual", needed=(LEFT, MIDDLE, RIGHT, REST))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The components, divided; right vectors of values that are zero are completed to orthonormal ones."""
        assert seed.left is not None
        assert seed.middle is not None
        assert seed.right is not None
        # Behind the large ones, whose directions rounding leaves alone.
        whole = torch.cat([seed.right[rank:], seed.right[:rank]])
        basis, triangle = torch.linalg.qr(whole.T)
        right = (basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)).T.roll(rank, 0)
        return {
            LEFT: seed.left[:, :rank],
            MIDDLE: seed.middle[:rank],
            RIGHT: right[:rank],
            PRINCIPAL_LEFT: seed.left[:, rank:],
            PRINCIPAL_MIDDLE: seed.middle[rank:],
            PRINCIPAL_RIGHT: right[rank:],
            ENERGY: seed.middle[:rank].square().sum(),
        }

    def update(self, params: Params) -> Factors:
        """The product."""
        return Factors(params[LEFT] * params[MIDDLE], params[RIGHT])
