"""An approximator to which every entry counts the same, whatever the metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.allocate.slots import ListedSlot, Slot
from eckart.approx.low_rank import LowRank
from eckart.approx.protocol import Approximator, Prepared
from eckart.metric import Metric
from eckart.operator import Operator


@dataclass(frozen=True)
class Unweighted:
    """What ``approx`` does in the plain norm, where a recipe's other parts have another metric. Bounds are those of the plain norm.

    >>> w, metric = torch.diag(torch.tensor([3.0, 2.0])), Metric("inputs", torch.tensor([1.0, 9.0]))
    >>> [round(float(part.curve(w, metric)[1]), 6) for part in (LowRank(), Unweighted())]
    [9.0, 4.0]
    """

    approx: Approximator = LowRank()

    def slot(self, rows: int, columns: int, itemsize: int) -> Slot | ListedSlot:
        """As ``approx``."""
        return self.approx.slot(rows, columns, itemsize)

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Operator:
        """As ``approx``."""
        return self.approx.form(rows, columns, size, dtype)

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared errors in the plain norm."""
        return self.approx.curve(target, Metric.plain())

    def prepare(self, target: Tensor, metric: Metric) -> Prepared:
        """Analysed in the plain norm."""
        return self.approx.prepare(target, Metric.plain())
