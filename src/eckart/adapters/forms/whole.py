"""The whole change of a weight trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, Role
from eckart.adapters.seed import Params, Seed
from eckart.operator import Dense

CHANGE = "change"


@dataclass(frozen=True)
class Whole:
    """A ``change`` (m, n) of any rank, zero at first: what adapters are compared with.

    >>> from eckart.adapters.seed import Seed
    >>> Whole().init(Seed(), torch.ones(2, 3), 1, torch.Generator())["change"].shape
    torch.Size([2, 3])
    """

    is_product: ClassVar[bool] = False
    is_factored: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, Role]] = {CHANGE: FREE}

    def check(self, gives: frozenset[str]) -> None:
        """Nothing is made for it."""
        take(gives, "Whole", needed=())

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Zeros."""
        return {CHANGE: torch.zeros(weight.flatten(1).shape, dtype=torch.float64)}

    def update(self, params: Params) -> Dense:
        """The change itself."""
        return Dense(params[CHANGE])
