"""What becomes of the weight under an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.forms import Form
from eckart.adapters.pick import Bottom
from eckart.adapters.sources import OfFirstStep, OfGradient, components
from eckart.adapters.start import Start
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Operator


class Base(Protocol):
    """What is taken from a weight before it is frozen."""

    def check(self, start: Start, form: Form) -> None:
        """Raise ``ValueError`` for a start and a form with which the map would be none any more."""

    def __call__(self, weight: Tensor, begun: Operator, rank: int, rng: Generator) -> Operator | None:
        """The part that is taken of ``weight`` (m, n), ``begun`` being the update that the adapter begins with; ``None`` for nothing."""


@dataclass(frozen=True)
class Untouched:
    """Nothing is taken."""

    def check(self, start: Start, form: Form) -> None:
        """Whatever it begins with will do."""

    def __call__(self, weight: Tensor, begun: Operator, rank: int, rng: Generator) -> Operator | None:
        """Nothing."""
        return None


@dataclass(frozen=True)
class LessStart:
    """The update that the adapter begins with is taken, as it is stored, so that both together are the weight."""

    def check(self, start: Start, form: Form) -> None:
        """Whatever it begins with will do."""

    def __call__(self, weight: Tensor, begun: Operator, rank: int, rng: Generator) -> Operator | None:
        """The update."""
        return begun


@dataclass(frozen=True)
class LessAll:
    """The whole weight is taken: what trains stands in its place."""

    def check(self, start: Start, form: Form) -> None:
        """Both together have to begin near the weight."""
        of_gradient = isinstance(start.source, OfGradient | OfFirstStep)
        if of_gradient or not (start.approximates and form.is_product):
            raise ValueError(
                f"nothing is left of the weight, and {type(form).__name__} begins with nothing near it: start a product from the weight"
            )

    def __call__(self, weight: Tensor, begun: Operator, rank: int, rng: Generator) -> Operator | None:
        """The weight."""
        return Dense(weight.detach().clone())


@dataclass(frozen=True)
class LessTail:
    """The smallest components are taken, as many as the adapter has: what is frozen is a truncation.

    >>> taken = LessTail()(torch.diag(torch.tensor([3.0, 1.0])), None, 1, torch.Generator())
    >>> taken.dense().round(decimals=6).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """

    def check(self, start: Start, form: Form) -> None:
        """Whatever it begins with will do."""

    def __call__(self, weight: Tensor, begun: Operator, rank: int, rng: Generator) -> Operator | None:
        """The product of those components."""
        tail = components(weight, Metric.plain(), Bottom(), rank, 0.0, rng)
        assert tail.left is not None
        assert tail.middle is not None
        assert tail.right is not None
        return Factors((tail.left * tail.middle).to(torch.float32), tail.right.to(torch.float32))
