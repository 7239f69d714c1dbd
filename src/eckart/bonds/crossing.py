"""What is known of a bond when it is decided what may cross it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eckart.kernels.symmetric import psd_root


@dataclass(frozen=True)
class Writing:
    """A map that writes a bond: its matrix (k, n), and the mean square (n,) of each of its inputs where that was measured."""

    matrix: Tensor
    square: Tensor | None = None

    @property
    def strength(self) -> Tensor:
        """The length of each row (k,), the entries weighted by the size of their inputs."""
        wide = self.matrix.to(torch.float64)
        return torch.linalg.vector_norm(wide if self.square is None else wide * self.square.sqrt(), dim=1)


@dataclass(frozen=True)
class Crossing:
    """A bond of k directions: the maps that write it, ``read`` (m, k), the matrices of all that read it one below the other, and the second
    moment ``mean x x^T`` (k, k) of what crosses, where that was measured.

    Rows of ``units`` (u, s) are directions that stay or go together: single ones, rotary pairs, the entries of a head.

    >>> crossing = Crossing(written=(), read=torch.eye(2), moment=torch.diag(torch.tensor([4.0, 1.0])))
    >>> crossing.size, crossing.units.tolist(), crossing.output
    (2, [[0], [1]], 5.0)
    """

    written: tuple[Writing, ...]
    read: Tensor
    moment: Tensor | None = None
    together: Tensor | None = None

    @property
    def size(self) -> int:
        """How many directions there are."""
        return self.read.shape[1]

    @property
    def units(self) -> Tensor:
        """The directions that stay or go together, a row for each unit."""
        return torch.arange(self.size)[:, None] if self.together is None else self.together

    @property
    def seen(self) -> Tensor:
        """The second moment, of what was not measured the identity: every direction counts the same."""
        one = torch.eye(self.size, dtype=torch.float64)
        return one if self.moment is None else self.moment.to(torch.float64)

    @cached_property
    def wide(self) -> Tensor:
        """``read`` in float64."""
        return self.read.to(torch.float64)

    @cached_property
    def root(self) -> Tensor:
        """R (k, k) with ``R R^T`` the second moment."""
        return psd_root(self.seen)

    @cached_property
    def weight(self) -> Tensor:
        """``read^T read`` (k, k): what an error in each direction does to what is read."""
        return self.wide.T @ self.wide

    @property
    def output(self) -> float:
        """The mean square of what all readers give."""
        return max(0.0, float((self.weight * self.seen).sum()))
