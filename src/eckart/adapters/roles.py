"""How the tensors of an adapter take part in training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """Whether a tensor trains, at which multiple of the learning rate, and whether its weights decay."""

    trains: bool = True
    rate: float = 1.0
    decay: bool = True


FREE = Role()
FROZEN = Role(trains=False)
