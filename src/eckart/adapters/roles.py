"""How the tensors of an adapter take part in training."""

from __future__ import annotations

from dataclasses import dataclass

from eckart.adapters.checked import check_number


@dataclass(frozen=True)
class Role:
    """Whether a tensor trains, at which multiple of the learning rate, and whether its weights decay.

    Raises ``ValueError`` unless rate is 0 or more.
    """

    trains: bool = True
    rate: float = 1.0
    decay: bool = True

    def __post_init__(self) -> None:
        check_number("rate", self.rate, least=0)


FREE = Role()
FROZEN = Role(trains=False)
