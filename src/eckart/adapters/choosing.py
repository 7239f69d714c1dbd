"""Ranks by what a search has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.mixing import Groups

ROUNDING = 1e-6  # of a weight, which may be that far below the mean when all of them are equal


class Choice(Protocol):
    """Gives each map a rank, from none to the one that is asked for."""

    def __call__(self, weights: Mapping[str, Tensor], groups: Groups, rank: int) -> dict[str, int]:
        """The ranks for the weights (r,) of each map's directions."""


@dataclass(frozen=True)
class AboveShare:
    """As many directions as have at least ``times`` the mean weight of those of their map.

    >>> import torch
    >>> AboveShare()({"a": torch.tensor([0.5, 0.3, 0.1, 0.1])}, [["a"]], 4)
    {'a': 2}

    Raises ``ValueError`` unless times is above 0.
    """

    times: float = 1.0

    def __post_init__(self) -> None:
        check_number("times", self.times, above=0)

    def __call__(self, weights: Mapping[str, Tensor], groups: Groups, rank: int) -> dict[str, int]:
        """Their number."""
        return {
            name: int((found >= self.times * (1 - ROUNDING) * found.mean()).sum()) for name, found in weights.items()
        }


@dataclass(frozen=True)
class TopShare:
    """The maps with the largest weights get the rank, the others none: the ``share`` of each block, or of all maps ``together``.

    A share of a half of seven is four; at least one map is chosen, and of equals the first.

    >>> import torch
    >>> weights = {"a": torch.tensor([0.1]), "b": torch.tensor([0.6]), "c": torch.tensor([0.3])}
    >>> TopShare(1 / 3)(weights, [["a", "b"], ["c"]], 8), TopShare(1 / 3, together=True)(weights, [["a", "b"], ["c"]], 8)
    ({'a': 0, 'b': 8, 'c': 8}, {'a': 0, 'b': 8, 'c': 0})

    Raises ``ValueError`` for what is no share.
    """

    share: float = 0.5
    together: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"a share {self.share:g} of the maps: give one above 0, up to 1")

    def count(self, maps: int) -> int:
        """How many of so many are chosen."""
        return max(1, int(self.share * maps + 0.5))

    def __call__(self, weights: Mapping[str, Tensor], groups: Groups, rank: int) -> dict[str, int]:
        """The rank, or none."""
        chosen = set()
        for group in [list(weights)] if self.together else groups:
            order = sorted(group, key=lambda name: -float(weights[name].mean()))
            chosen |= set(order[: self.count(len(order))])
        return {name: rank if name in chosen else 0 for name in weights}
