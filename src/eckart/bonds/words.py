"""Which token ids a smaller vocabulary holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from eckart.stats import Need


class Words(Protocol):
    """Chooses ids by how often a text has them."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known."""

    def __call__(self, counts: Tensor) -> Tensor:
        """The ids (k,) that stay, rising, of ``counts`` (V,), which says how often each of V ids occurs."""


@dataclass(frozen=True)
class Used:
    """The ids that occur at least so often.

    >>> import torch
    >>> Used(least=2)(torch.tensor([0, 3, 1, 2])).tolist()
    [1, 3]

    Raises ``ValueError`` for ``least`` below 1.
    """

    least: int = 1
    needs: ClassVar[frozenset[Need]] = frozenset({Need.WORDS})

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least {self.least} must be at least 1")

    def __call__(self, counts: Tensor) -> Tensor:
        """By count."""
        return (counts >= self.least).nonzero().flatten()
