"""Allocators: one budget of bytes, spent over all matrices."""

from eckart.allocate.exact import Exact
from eckart.allocate.greedy import Greedy
from eckart.allocate.marginal import EqualMarginalLoss
from eckart.allocate.slots import Allocation, Allocator, Slot, smallest, total_bytes, total_cost
from eckart.allocate.uniform import Uniform

__all__ = [
    "Allocation",
    "Allocator",
    "EqualMarginalLoss",
    "Exact",
    "Greedy",
    "Slot",
    "Uniform",
    "smallest",
    "total_bytes",
    "total_cost",
]
