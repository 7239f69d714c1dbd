"""What a source is."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from eckart.adapters.pick import Pick
from eckart.adapters.seed import Seed, Seen
from eckart.stats import Need


class Explaining(Protocol):
    """A source that knows how much each of its directions explains."""

    def shares(self, seen: Seen, most: int | None = None) -> Tensor:
        """Of what there is to explain the share of each direction, or of the first ``most``, descending; those of all add up to 1."""


class Source(Protocol):
    """Makes the parts of a start; ``gives`` names those that it makes, and what is ``ordered`` may be picked from.

    Where it ``approximates``, the product of its parts is meant to be an update, so that the scale in front is divided out.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What is to be measured for it."""

    @property
    def gives(self) -> frozenset[str]:
        """The parts that it makes."""

    @property
    def ordered(self) -> bool:
        """Whether its parts are in an order, the largest first."""

    @property
    def approximates(self) -> bool:
        """Whether the product of its parts is meant to be an update."""

    def __call__(self, seen: Seen, pick: Pick, rank: int, rng: Generator) -> Seed:
        """The parts for one map, in float64."""
