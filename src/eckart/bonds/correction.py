"""What readers of a bond do about the units that are gone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.bonds.crossing import Crossing
from eckart.bonds.projection import Projection
from eckart.stats import Need

SHIFT = 4 * torch.finfo(torch.float64).eps  # of the energy of all directions: what rounding may take from a pivot
TINY = 1e-200  # keeps the moment of a bond that nothing crosses positive


class Correction(Protocol):
    """Makes up for what no longer crosses by what still does."""

    needs: ClassVar[frozenset[Need]]

    def projection(self, crossing: Crossing, kept: Tensor) -> Projection:
        """What the directions ``kept`` (k',), rising, let through, and how it is read."""

    def curve(self, crossing: Crossing, order: Tensor) -> Tensor:
        """Mean squared error of what is read with the first 0, 1, ... of all directions in this ``order`` (k,) kept: (k + 1,), float64."""


@dataclass(frozen=True)
class Refit:
    """The readers are refitted by least squares to what is left: ``W C_:S C_SS^+`` for readers W and a second moment C.

    No other readers of the same directions do better.

    >>> crossing = Crossing((), torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 4.0]]))  # x_1 = 2 x_0
    >>> Refit().projection(crossing, torch.tensor([0])).up.flatten().tolist()
    [1.0, 2.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def projection(self, crossing: Crossing, kept: Tensor) -> Projection:
        """Nyström's form."""
        return Projection.refitted(crossing.seen, kept)

    def curve(self, crossing: Crossing, order: Tensor) -> Tensor:
        """From one Cholesky factor."""
        # C = L L^T in the order of the choice: what the first k leave is in the columns of L behind k. A little is added to C, so that
        # directions that others give already make no pivot of rounding.
        moment = crossing.seen[order][:, order]
        moment.diagonal().add_(SHIFT * len(moment) * float(moment.diagonal().mean()) + TINY)
        return tails((crossing.wide[:, order] @ torch.linalg.cholesky(moment)).square().sum(0))


@dataclass(frozen=True)
class Tune:
    """Every direction that is left is read with a factor m of its own, from 0 to ``largest``: the mask of what is kept, tuned.

    With ``G = (W^T W) * C`` entry by entry, what is read is off by ``E(m) = (m - 1)^T G (m - 1)`` in the mean square, m being 0 for
    directions that are gone. The factors of the others minimise ``E(m) + r ||m_S - 1||^2``: ``(G_SS + r) m_S = G_S: 1 + r``, r a share
    ``ridge`` of the mean diagonal of G. They are clipped, and where that took them too far, the best point between them and ones is taken:
    so the error is never above that of the directions as they are.

    >>> crossing = Crossing((), torch.ones(1, 2), torch.tensor([[4.0, 2.0], [2.0, 4.0]]))
    >>> Tune(ridge=0.0).projection(crossing, torch.tensor([0])).up.flatten().round(decimals=6).tolist()
    [1.5, 0.0]

    Raises ``ValueError`` for a ridge below 0 or a largest factor below 1.
    """

    ridge: float = 1e-6
    largest: float = 2.0
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge {self.ridge:g} must be finite and not below 0")
        if not (math.isfinite(self.largest) and self.largest >= 1):
            raise ValueError(f"largest {self.largest:g} must be finite and at least 1")

    def projection(self, crossing: Crossing, kept: Tensor) -> Projection:
        """The selection, its factors on the side of the readers."""
        plain = Projection.selection(crossing.size, kept)
        gone = torch.ones(crossing.size, dtype=torch.bool)
        gone[kept] = False
        order = torch.cat([kept, gone.nonzero()[:, 0]])
        joint, root = self._joint(crossing, order)
        return Projection(plain.down, plain.up * self._factors(joint, root, len(kept)), kept)

    def curve(self, crossing: Crossing, order: Tensor) -> Tensor:
        """From one Cholesky factor, a solution for every number of directions."""
        joint, root = self._joint(crossing, order)
        return torch.stack([_error(joint, self._factors(joint, root, count)) for count in range(len(order) + 1)])

    def _joint(self, crossing: Crossing, order: Tensor) -> tuple[Tensor, Tensor]:
        """G in this order, and the Cholesky factor of it with the ridge: that of its first rows and columns is its beginning."""
        joint = (crossing.seen * crossing.weight)[order][:, order]
        mean = float(joint.diagonal().mean())
        shifted = joint.clone()
        shifted.diagonal().add_((self.ridge + SHIFT * len(joint)) * mean + TINY)
        return joint, torch.linalg.cholesky(shifted)

    def _factors(self, joint: Tensor, root: Tensor, count: int) -> Tensor:
        """Those of the first ``count`` directions: ones, and a step that makes up for the columns of the others."""
        begin = root[:count, :count]
        missing = joint[:count, count:].sum(1)
        step = torch.cholesky_solve(missing[:, None], begin)[:, 0].clamp(-1.0, self.largest - 1)
        gain, cost = float(step @ missing), float(step @ joint[:count, :count] @ step)
        return 1 + step * (min(1.0, max(0.0, gain / cost)) if cost > 0 else 0.0)


def tails(parts: Tensor) -> Tensor:
    """What all entries from the k-th on add up to (k + 1,), none of it below 0.

    >>> tails(torch.tensor([1.0, 2.0, 4.0])).tolist()
    [7.0, 6.0, 4.0, 0.0]
    """
    return F.pad(parts.flip(0).cumsum(0).flip(0), (0, 1)).clamp(min=0)


def _error(joint: Tensor, factors: Tensor) -> Tensor:
    off = F.pad(factors, (0, len(joint) - len(factors))) - 1
    return (off @ joint @ off).clamp(min=0)
