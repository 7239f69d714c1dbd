"""Allocators: one budget of bytes, spent over all matrices."""

from eckart.allocate.exact import Exact
from eckart.allocate.greedy import Greedy
from eckart.allocate.influence import Entropic
from eckart.allocate.kinds import ValuesFirst
from eckart.allocate.later import Later, LeastInfluential
from eckart.allocate.level import Level
from eckart.allocate.marginal import EqualMarginalLoss
from eckart.allocate.measured import GreedyByLoss, Trials
from eckart.allocate.proportional import Proportional
from eckart.allocate.slots import (
    Allocation,
    Allocator,
    AnySlot,
    BondSlot,
    ListedSlot,
    Slot,
    smallest,
    total_bytes,
    total_cost,
)
from eckart.allocate.threshold import Threshold
from eckart.allocate.uniform import Uniform

__all__ = [
    "Allocation",
    "Allocator",
    "AnySlot",
    "BondSlot",
    "Entropic",
    "EqualMarginalLoss",
    "Exact",
    "Greedy",
    "GreedyByLoss",
    "Later",
    "LeastInfluential",
    "Level",
    "ListedSlot",
    "Proportional",
    "Slot",
    "Threshold",
    "Trials",
    "Uniform",
    "ValuesFirst",
    "smallest",
    "total_bytes",
    "total_cost",
]
