"""Approximators: projections of a matrix onto a representable set, in a metric."""

from eckart.approx.low_rank import LowRank, Truncation
from eckart.approx.protocol import Approximator, Prepared
from eckart.approx.recheck import measured_bounds

__all__ = ["Approximator", "LowRank", "Prepared", "Truncation", "measured_bounds"]
