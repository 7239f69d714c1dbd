"""The best approximation of given rank, in any metric of the form ``||E R||_F``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.allocate.slots import Slot
from eckart.linalg import ACCURACY, Truncation
from eckart.metric import Metric
from eckart.operator import Factors


@dataclass(frozen=True)
class LowRank:
    """Truncation in a metric: with ``W R = U S V^T`` the minimiser of ``||(W - X) R||_F`` of rank r is ``U_r U_r^T W``.

    The error of large matrices may exceed the smallest possible one by the share ``accuracy``; 0 asks for the optimum always.

    >>> import torch
    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> fit = LowRank().prepare(w, Metric.plain()).fit(2, dtype=torch.float32, rng=torch.Generator().manual_seed(0))
    >>> [round(abs(x), 5) for x in fit.op.dense().diag().tolist()], round(fit.bounds[0].achieved, 6)
    ([3.0, 2.0, 0.0], 1.0)
    """

    accuracy: float = ACCURACY

    def __post_init__(self) -> None:
        if not (math.isfinite(self.accuracy) and self.accuracy >= 0):
            raise ValueError(f"accuracy {self.accuracy:g} must be finite and not below 0")

    def slot(self, rows: int, columns: int, itemsize: int) -> Slot:
        """The bytes of both factors."""
        return Slot(rows=rows, columns=columns, itemsize=itemsize)

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Factors:
        """Two factors of this rank, on the meta device."""
        sides = ((rows, size), (size, columns))
        return Factors(*(torch.empty(*shape, dtype=dtype, device="meta") for shape in sides))

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error in the metric for rank 0, 1, …, min(m, n): the tails of the squared singular values of ``W R``.

        >>> import torch
        >>> LowRank().curve(torch.diag(torch.tensor([3.0, 2.0, 1.0])), Metric.plain()).round(decimals=9).tolist()
        [14.0, 5.0, 1.0, 0.0]
        """
        tails = metric.singular_values(target).tails()
        return F.pad(tails, (0, min(target.shape) + 1 - len(tails)))

    def prepare(self, target: Tensor, metric: Metric) -> Truncation:
        """A truncation of ``target`` (m, n) that any rank can be taken from."""
        return Truncation(target, metric, self.accuracy)
