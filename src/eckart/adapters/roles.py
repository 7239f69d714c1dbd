"""How the tensors of an adapter take part in training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """Whether a tensor trains, at which multiple of the learning rate, and whether its weights decay.

    Raises ``ValueError`` for a rate below 0, infinite or no number.
    """

    trains: bool = True
    rate: float = 1.0
    decay: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ValueError(f"a rate of {self.rate:g}: take a multiple of the learning rate from 0 on")


FREE = Role()
FROZEN = Role(trains=False)
