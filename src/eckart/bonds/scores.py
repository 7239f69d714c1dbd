"""Scores by which units of a bond stay or go: the larger, the more is lost without the unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from eckart.bonds.crossing import Crossing
from eckart.kernels.pivoting import interpolation_points
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
class Leverage:
    """The squared lengths of a unit's entries in the leading eigenvectors of ``C``, as few as carry the share ``energy`` of its trace.

    Source: Drineas, Mahoney and Muthukrishnan, doi:10.1137/07070471X.

    >>> Leverage(energy=0.8)(Crossing((), torch.eye(3), torch.diag(torch.tensor([3.0, 1.0, 0.5])))).tolist()
    [1.0, 1.0, 0.0]

    Raises ``ValueError`` for a share that is not above 0 and at most 1.
    """

    energy: float = 0.99
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy {self.energy:g} must be above 0 and at most 1")

    def __call__(self, crossing: Crossing) -> Tensor:
        """Leverages between 0 and 1, added up over a unit."""
        values, vectors = _leading(crossing.seen)
        total = float(values.sum())
        if total == 0:
            return torch.zeros(len(crossing.units), dtype=torch.float64)
        count = int((values.cumsum(0) < self.energy * total * (1 - 1e-12)).sum()) + 1
        return _by_unit(vectors[:, :count].square().sum(1), crossing)


@dataclass(frozen=True)
class Interpolation:
    """Units in the order of the discrete empirical interpolation method (DEIM): each next one is where the leading eigenvectors of C
    so far, interpolated at the units taken before, miss the next eigenvector by most.

    Source: Sorensen and Embree, arXiv:1407.5516. Units of several directions are not supported: ``ValueError``.

    >>> moment = torch.tensor([[2.0, 1.9, 0.0], [1.9, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> Interpolation()(Crossing((), torch.eye(3), moment)).argsort(descending=True).tolist()[:2]
    [0, 2]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, crossing: Crossing) -> Tensor:
        """The later a unit is taken, the lower its score."""
        _check_single(crossing, "interpolation")
        _, vectors = _leading(crossing.seen)
        order = interpolation_points(vectors.T, len(vectors))
        scores = torch.empty(len(order), dtype=torch.float64)
        scores[order] = torch.arange(len(order), 0, -1, dtype=torch.float64)
        return scores


@dataclass(frozen=True)
class Similarity:
    """How unlike a unit is to all that are stronger: ``1 - max_j |C_ij| / sqrt(C_ii C_jj)`` over units j with ``C_jj`` above ``C_ii``.

    Of two that carry the same, up to a factor, the stronger one scores as if the other were not there, the weaker one 0. What is never
    active scores 0 as well. Of equals the earlier one counts as the stronger. Units of several directions are not supported:
    ``ValueError``.

    >>> moment = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    >>> Similarity()(Crossing((), torch.eye(3), moment)).tolist()
    [0.0, 1.0, 1.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, crossing: Crossing) -> Tensor:
        """Numbers from 0 to 1."""
        _check_single(crossing, "likeness")
        strength = crossing.seen.diagonal().clamp(min=0)
        order = strength.argsort(descending=True, stable=True)
        lengths = strength[order].sqrt()
        alive = lengths > 0
        lengths = torch.where(alive, lengths, torch.ones_like(lengths))
        like = (crossing.seen[order][:, order] / lengths / lengths[:, None]).abs().tril(-1)  # with what is stronger
        scores = torch.empty_like(strength)
        scores[order] = torch.where(alive, 1 - like.amax(1).clamp(max=1), torch.zeros_like(lengths))
        return scores


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
        _check_single(crossing, "a greedy choice")
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


@dataclass(frozen=True)
class Condition:
    """How much the condition ``||Z||_F ||Z^+||_F`` of ``Z = W diag(sqrt(mean x^2))`` changes when a unit's column goes, up or down.

    W are the readers. The pseudo-inverse is floored: in ``||Z^+||_F^2`` each of the min(m, k) singular values counts ``1 / (s_i^2 + f^2)``,
    f being the share ``floor`` of the largest. One decomposition serves all columns: with a_j the j-th row of V and ``d_i = s_i^2 + f^2``,
    column j of a wide Z adds ``sum_i a_ji^2 s_i^2 / d_i^2`` over ``1 - sum_i a_ji^2 s_i^2 / d_i`` when it goes; that of a Z with no more
    columns than rows takes away ``sum_i a_ji^2 / d_i^2`` over ``sum_i a_ji^2 / d_i``, and a singular value.

    A condition is blind to size: it is the same for Z and 2 Z. Units of several directions are not supported: ``ValueError``.

    >>> Condition()(Crossing((), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))).round(decimals=4).tolist()
    [0.6906, 0.6906, 0.3094]

    Raises ``ValueError`` for a floor that is not above 0 and below 1.
    """

    floor: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __post_init__(self) -> None:
        if not 0 < self.floor < 1:
            raise ValueError(f"floor {self.floor:g} must be above 0 and below 1")

    def __call__(self, crossing: Crossing) -> Tensor:
        """Sizes of changes."""
        if crossing.units.shape[1] != 1:
            raise ValueError("a condition is that of single columns, and these stay or go together")
        scaled = crossing.wide * crossing.seen.diagonal().clamp(min=0).sqrt()
        _, s, vh = torch.linalg.svd(scaled, full_matrices=False)
        if float(s[0]) == 0:
            return torch.zeros(crossing.size, dtype=torch.float64)
        # Of a matrix of norm 1, as a condition is the same for all multiples.
        s, scaled = s / s[0], scaled / s[0]
        floored, shares = s.square() + self.floor**2, vh.T.square()
        inverse = float((1 / floored).sum())
        if scaled.shape[1] > scaled.shape[0]:
            left = (1 - shares @ (s.square() / floored)).clamp(min=self.floor**2 / (1 + self.floor**2))
            after = inverse + shares @ (s / floored).square() / left
        else:
            after = inverse - shares @ (1 / floored.square()) / (shares @ (1 / floored))
        size = (s.square().sum() - scaled.square().sum(0)).clamp(min=0)
        return ((size * after.clamp(min=0)).sqrt() - (s.square().sum() * inverse).sqrt()).abs()


def _leading(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors as columns, the largest first."""
    values, vectors = torch.linalg.eigh(moment)
    return values.clamp(min=0).flip(0), vectors.flip(1)


def _check_single(crossing: Crossing, what: str) -> None:
    if crossing.units.shape[1] != 1:
        raise ValueError(
            f"{what} takes single directions, and these stay or go together: score them by another rule, such as SecondMoment"
        )


def _by_unit(values: Tensor, crossing: Crossing) -> Tensor:
    return values[crossing.units].sum(1)
