"""Scores by which units of a bond stay or go: the larger, the more is lost without the unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from eckart.bonds.crossing import Crossing
from eckart.stats import Need


class Score(Protocol):
    """Values units by what is known of the bond."""

    needs: ClassVar[frozenset[Need]]

    def __call__(self, crossing: Crossing) -> Tensor:
        """One number for each unit (u,), float64."""


@dataclass(frozen=True)
class Magnitude:
    """The lengths of a unit's rows in what writes it and of its columns in what reads it, added up.

    >>> from eckart.bonds.crossing import Writing
    >>> gate = Writing(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> Magnitude()(Crossing((gate,), torch.tensor([[2.0, 1.0]]))).tolist()
    [7.0, 2.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, crossing: Crossing) -> Tensor:
        """Sums of Euclidean norms."""
        columns = torch.linalg.vector_norm(crossing.wide, dim=0)
        rows = [torch.linalg.vector_norm(entry.matrix.to(torch.float64), dim=1) for entry in crossing.written]
        return _by_unit(sum(rows, columns), crossing)


@dataclass(frozen=True)
class Activation:
    """As ``Magnitude``, every weight times the size ``sqrt(mean x^2)`` of what it is multiplied with."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, crossing: Crossing) -> Tensor:
        """Sums of weighted Euclidean norms."""
        columns = torch.linalg.vector_norm(crossing.wide, dim=0) * crossing.seen.diagonal().clamp(min=0).sqrt()
        return _by_unit(sum((entry.strength for entry in crossing.written), columns), crossing)


@dataclass(frozen=True)
class SecondMoment:
    """What leaving a unit out adds to the mean squared error of what is read: ``sum_ij (C * R^T R)_ij`` over its directions.

    >>> SecondMoment()(Crossing((), torch.tensor([[1.0, 2.0]]), torch.diag(torch.tensor([9.0, 1.0])))).tolist()
    [9.0, 4.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, crossing: Crossing) -> Tensor:
        """``tr(W_P C_PP W_P^T)`` for each unit P."""
        joint, units = crossing.seen * crossing.weight, crossing.units
        return joint[units[:, :, None], units[:, None, :]].sum((1, 2))


@dataclass(frozen=True)
class RidgeLeverage:
    """Ridge leverage ``[C (C + l I)^-1]_ii`` of what crosses, with l a share ``ridge`` of the mean diagonal.

    A unit that others can stand in for scores low. Source: Drineas and Mahoney, doi:10.1145/2842602.

    >>> crossing = Crossing((), torch.eye(3), torch.diag(torch.tensor([3.0, 1.0, 0.0])))
    >>> RidgeLeverage(ridge=0.75)(crossing).tolist()
    [0.75, 0.5, 0.0]

    Raises ``ValueError`` for a ridge that is not above 0.
    """

    ridge: float = 1e-2
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge {self.ridge:g} must be finite and above 0")

    def __call__(self, crossing: Crossing) -> Tensor:
        """Leverages between 0 and 1, added up over a unit."""
        moment = crossing.seen
        level = self.ridge * float(moment.diagonal().mean())
        if level == 0:
            return torch.zeros(len(crossing.units), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(moment)
        kept = values.clamp(min=0)
        return _by_unit(vectors.square() @ (kept / (kept + level)), crossing)


@dataclass(frozen=True)
class Gain:
    """Units in the order in which a greedy choice takes them: each next one lowers the mean squared error of what is read most, the readers
    being refitted.

    A step takes ``j`` with the largest ``||W R_:j||^2 / R_jj``, R being what the units taken so far leave of the second moment.
    Units of several directions are not supported: ``ValueError``.

    >>> moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.01, 0.0], [0.0, 0.0, 0.5]])
    >>> Gain()(Crossing((), torch.eye(3), moment)).argsort(descending=True).tolist()
    [1, 2, 0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, crossing: Crossing) -> Tensor:
        """The later a unit is taken, the lower its score."""
        units = crossing.units
        if units.shape[1] != 1:
            raise ValueError(
                "a greedy choice takes single directions, and these stay or go together: score them by another rule, such as SecondMoment"
            )
        left, read = crossing.seen.clone(), crossing.wide
        tiny = len(left) * torch.finfo(torch.float64).eps * float(left.diagonal().max())
        scores = torch.zeros(len(left), dtype=torch.float64)
        open_ = torch.ones(len(left), dtype=torch.bool)
        images = read @ left
        for turn in range(len(left)):
            room = left.diagonal().clamp(min=0)
            gains = torch.where(room > tiny, images.square().sum(0) / room.clamp(min=tiny), torch.zeros_like(room))
            j = int(torch.where(open_, gains, torch.full_like(gains, -1.0)).argmax())
            scores[j], open_[j] = len(left) - turn, False
            if float(room[j]) > tiny:
                column = left[:, j] / room[j].sqrt()
                images = images - torch.outer(images[:, j] / room[j].sqrt(), column)
                left = left - torch.outer(column, column)
        return scores


def _by_unit(values: Tensor, crossing: Crossing) -> Tensor:
    return values[crossing.units].sum(1)
