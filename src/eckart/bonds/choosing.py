"""What crosses a bond that is made narrower: the ways to decide it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.bonds.correction import Correction, tails
from eckart.bonds.crossing import Crossing
from eckart.bonds.projection import Projection
from eckart.bonds.scores import Score
from eckart.stats import Need


class Chosen(Protocol):
    """The analysis of one bond, from which a projection onto any number of its units can be taken."""

    def projection(self, kept: int) -> Projection:
        """What ``kept`` units, or as many directions, let through."""

    def curve(self) -> Tensor:
        """Mean squared error of what is read with 0, 1, ... units kept (u + 1,), float64."""


class Choice(Protocol):
    """Decides what crosses a bond."""

    @property
    def needs(self) -> frozenset[Need]:
        """What a crossing must bring."""

    @property
    def fitted(self) -> bool:
        """Whether it fits what crosses as it was seen, so that as many vectors must be seen as directions are kept."""

    def prepare(self, crossing: Crossing) -> Chosen:
        """Analyse a bond."""


@dataclass(frozen=True)
class Select:
    """The units of the highest scores, as they are; ``correct`` says what their readers do about the others, nothing by default.

    The share ``spared`` of all units, those of the lowest scores, is kept before any other. Ties go to the lower index.

    >>> from eckart.bonds.correction import Refit
    >>> from eckart.bonds.scores import SecondMoment
    >>> moment = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    >>> chosen = Select(SecondMoment(), Refit()).prepare(Crossing((), torch.eye(3), moment))
    >>> chosen.projection(2).kept.tolist(), chosen.curve().round(decimals=6).tolist()
    ([1, 2], [8.0, 3.0, 0.0, 0.0])

    Raises ``ValueError`` for a share that is not from 0 to below 1.
    """

    score: Score
    correct: Correction | None = None
    spared: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spared) and 0 <= self.spared < 1):
            raise ValueError(f"spared {self.spared:g} must be from 0 to below 1")

    @property
    def needs(self) -> frozenset[Need]:
        """What the score and the correction need."""
        return self.score.needs | (self.correct.needs if self.correct is not None else frozenset())

    @property
    def fitted(self) -> bool:
        """Whether there is a correction."""
        return self.correct is not None

    def prepare(self, crossing: Crossing) -> Chosen:
        """Sort the units."""
        order = self.score(crossing).argsort(descending=True, stable=True)
        least = len(order) - int(self.spared * len(order))
        return _Selected(crossing, torch.cat([order[least:], order[:least]]), self.correct)


@dataclass(frozen=True)
class _Selected:
    crossing: Crossing
    order: Tensor  # units, those first that stay longest
    correct: Correction | None

    def projection(self, kept: int) -> Projection:
        directions = self.crossing.units[self.order[:kept].sort().values].flatten().sort().values
        if self.correct is None:
            return Projection.selection(self.crossing.size, directions)
        return self.correct.projection(self.crossing, directions)

    def curve(self) -> Tensor:
        units, width = self.crossing.units, self.crossing.units.shape[1]
        along = units[self.order].flatten()
        if self.correct is None:
            joint = (self.crossing.seen * self.crossing.weight)[along][:, along]
            found = tails(2 * joint.triu(1).sum(1) + joint.diagonal())  # with everything that goes later
        else:
            found = self.correct.curve(self.crossing, along)
        return found[::width]


@dataclass(frozen=True)
class Principal:
    """The subspace that carries most of what is read: the leading left singular vectors of ``W R``, W being the readers and ``R R^T`` the
    second moment of what crosses. Where the bond itself is what is read (a stream) it is that of its principal components.

    With ``W R = U S V^T`` and r directions the readers give ``U_r U_r^T W x`` instead of ``W x``: no r directions do better.

    >>> moment = torch.diag(torch.tensor([1.0, 9.0, 4.0]))
    >>> chosen = Principal().prepare(Crossing((), torch.eye(3), moment))
    >>> chosen.curve().round(decimals=6).tolist()
    [14.0, 5.0, 1.0, 0.0]
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return frozenset({Need.GRAM})

    @property
    def fitted(self) -> bool:
        """Always."""
        return True

    def prepare(self, crossing: Crossing) -> Chosen:
        """Decompose what is read."""
        return _Subspace(crossing)


@dataclass(frozen=True)
class EachNorm:
    """Of a stream: what ``choice`` makes of it at every norm by itself, with links from one to the next, instead of once for all.

    Raises ``ValueError`` for a choice that measures nothing, which would be the same everywhere.
    """

    choice: Choice

    def __post_init__(self) -> None:
        if Need.GRAM not in self.choice.needs:
            raise ValueError("a choice that measures nothing is the same at every norm: make it once for all of them")

    @property
    def needs(self) -> frozenset[Need]:
        """What the choice needs."""
        return self.choice.needs


@dataclass(frozen=True)
class _Subspace:
    crossing: Crossing

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        u, s, _ = torch.linalg.svd(self.crossing.wide @ self.crossing.root, full_matrices=False)
        return u, s

    def projection(self, kept: int) -> Projection:
        u = self._decomposed[0][:, :kept]
        # Directions in which nothing is read are nobody's: the least solution leaves them out.
        up = torch.linalg.lstsq(self.crossing.wide, u, driver="gelsd").solution
        q, r = torch.linalg.qr((u.T @ self.crossing.wide).T)
        return Projection(q.T, up @ r.T)

    def curve(self) -> Tensor:
        found = tails(self._decomposed[1].square())
        return F.pad(found, (0, self.crossing.size + 1 - len(found)))
