"""Approximators: projections of a matrix onto a representable set, in a metric."""

from eckart.approx.columns_rows import ColumnsRows
from eckart.approx.compensated import Compensated
from eckart.approx.low_rank import LowRank
from eckart.approx.protocol import Approximator, Prepared
from eckart.approx.prune import BrainSurgeon, Prune
from eckart.approx.rounding import NormalFloat, RoundToNearest
from eckart.approx.unweighted import Unweighted

__all__ = [
    "Approximator",
    "BrainSurgeon",
    "ColumnsRows",
    "Compensated",
    "LowRank",
    "NormalFloat",
    "Prepared",
    "Prune",
    "RoundToNearest",
    "Unweighted",
]
