"""Approximators: projections of a matrix onto a representable set, in a metric."""

from eckart.approx.low_rank import LowRank
from eckart.approx.protocol import Approximator, Prepared

__all__ = ["Approximator", "LowRank", "Prepared"]
