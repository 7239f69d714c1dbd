"""Allocators: one budget of bytes, spent over all matrices."""

from eckart.allocate.marginal import EqualMarginalLoss
from eckart.allocate.slots import Allocation, Allocator, Slot, smallest, total_bytes
from eckart.allocate.uniform import Uniform

__all__ = ["Allocation", "Allocator", "EqualMarginalLoss", "Slot", "Uniform", "smallest", "total_bytes"]
