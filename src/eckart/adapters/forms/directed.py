"""A form whose result is brought to lengths that train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.adapters.forms.protocol import Form
from eckart.adapters.roles import Role
from eckart.adapters.seed import Params, Seed
from eckart.operator import Diagonal, Operator, Product, Sum

LENGTHS = "lengths"


@dataclass(frozen=True)
class Directed:
    """``diag(c / ||V||) V`` with V the map of another form, ``||V||`` the lengths of its rows, and c (m,), the ``lengths``, that train.

    Weight-decomposed adaptation (Liu et al. 2024). No gradient goes through the lengths of V.
    """

    of: Form

    @property
    def roles(self) -> Mapping[str, Role]:
        """Those of the other form, and the lengths."""
        return {**self.of.roles, LENGTHS: Role(decay=False)}

    @property
    def is_factored(self) -> bool:
        """Lengths of rows are no factors."""
        return False

    @property
    def is_product(self) -> bool:
        """As the pair inside of it."""
        return self.of.is_product

    def check(self, gives: frozenset[str]) -> None:
        """What the other form asks for."""
        self.of.check(gives)

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The tensors of the other form, and the lengths of the rows of the weight."""
        lengths = torch.linalg.vector_norm(weight.to(torch.float64).flatten(1), dim=1)
        return {**self.of.init(seed, weight, rank, rng), LENGTHS: lengths}

    def update(self, params: Params) -> Operator:
        """What the other form adds; lengths come after it."""
        return self.of.update(params)

    def directed(self, summed: Sum, params: Params) -> Operator:
        """The map of base and update, its rows brought to their lengths."""
        with torch.no_grad():
            now = torch.linalg.vector_norm(summed.dense(), dim=1)
        return Product((Diagonal(params[LENGTHS] / torch.where(now > 0, now, torch.ones_like(now))), summed))
