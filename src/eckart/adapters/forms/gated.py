"""A pair of factors whose directions act on some tokens and not on others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from eckart.adapters.forms.products import Pair
from eckart.adapters.gates import Gate
from eckart.adapters.roles import Role
from eckart.adapters.seed import LEFT, RIGHT, Params, Seed
from eckart.operator import Factors


@dataclass(frozen=True)
class Gated:
    """``B (g(x) * (A x))`` with weights g (…, r) that a gate gives each token.

    With ``rooted`` the gradients of B and A carry the root of the weight in place of the weight, so that a direction that acts
    little learns more; the value and the gradient of the gate are the same.
    """

    gate: Gate
    rooted: bool = False

    @property
    def roles(self) -> Mapping[str, Role]:
        """Those of both factors and of the gate."""
        return {**Pair.roles, **self.gate.roles}

    @property
    def is_factored(self) -> bool:
        """Which columns act can depend on what comes in."""
        return False

    @property
    def is_product(self) -> bool:
        """As the pair inside of it."""
        return Pair.is_product

    def check(self, gives: frozenset[str]) -> None:
        """What a pair asks for."""
        Pair().check(gives)

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Both factors and the tensors of the gate."""
        return {**Pair().init(seed, weight, rank, rng), **self.gate.init(weight, rank, rng)}

    def update(self, params: Params) -> Factors:
        """The product with all weights at one, which no token need see."""
        return Pair().update(params)

    def outputs(self, params: Params, x: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """The update's outputs (…, m) for inputs x (…, n), of which the factors see ``dropped``, and the weights (…, r)."""
        left, z = params[LEFT], F.linear(dropped, params[RIGHT])
        weights = self.gate(params, x, z)
        if not self.rooted:
            return F.linear(weights * z, left), weights
        root = weights.detach().sqrt()
        rest = F.linear((weights - root) * z.detach(), left.detach())
        return F.linear(root * z, left) + rest, weights
