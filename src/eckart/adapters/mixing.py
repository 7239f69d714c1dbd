"""Weights of directions that are searched for: free numbers, and what they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Groups = Sequence[Sequence[str]]  # names of maps, those of a block together


class Mixing(Protocol):
    """Makes the weights of all maps' directions from free numbers, so that a gradient gets through."""

    def begin(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The free numbers of each map, of so many directions, as a search begins."""

    def __call__(self, free: Mapping[str, Tensor], widths: Mapping[str, int], groups: Groups) -> dict[str, Tensor]:
        """The weights (r,) of each map's directions."""


@dataclass(frozen=True)
class Simplex:
    """The directions of each map share a weight of one: the softmax of a number for each, equal at first.

    >>> Simplex()({"a": torch.tensor([0.0, 0.0])}, {"a": 2}, [["a"]])["a"].tolist()
    [0.5, 0.5]
    """

    def begin(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Ones."""
        return {name: torch.ones(width) for name, width in widths.items()}

    def __call__(self, free: Mapping[str, Tensor], widths: Mapping[str, int], groups: Groups) -> dict[str, Tensor]:
        """The softmax of each map's numbers."""
        return {name: numbers.softmax(-1) for name, numbers in free.items()}


@dataclass(frozen=True)
class Switch:
    """One weight for all directions of a map: the sigmoid of a number, a half at first.

    >>> Switch()({"a": torch.tensor(0.0)}, {"a": 2}, [["a"]])["a"].tolist()
    [0.5, 0.5]
    """

    def begin(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros(()) for name in widths}

    def __call__(self, free: Mapping[str, Tensor], widths: Mapping[str, int], groups: Groups) -> dict[str, Tensor]:
        """The sigmoid of each map's number."""
        return {name: number.sigmoid().expand(widths[name]) for name, number in free.items()}


@dataclass(frozen=True)
class InGroup:
    """One weight for all directions of a map, and the maps of a block share a weight of one: the softmax of a number for each.

    >>> zero = torch.tensor(0.0)
    >>> InGroup()({"a": zero, "b": zero}, {"a": 1, "b": 2}, [["a", "b"]])["b"].tolist()
    [0.5, 0.5]
    """

    def begin(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros(()) for name in widths}

    def __call__(self, free: Mapping[str, Tensor], widths: Mapping[str, int], groups: Groups) -> dict[str, Tensor]:
        """The softmax of the numbers of each block."""
        found: dict[str, Tensor] = {}
        for group in groups:
            shares = torch.stack([free[name] for name in group]).softmax(-1)
            found |= {name: share.expand(widths[name]) for name, share in zip(group, shares, strict=True)}
        return found
