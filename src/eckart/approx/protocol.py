"""What an approximator is: pay for the analysis once, then take any size from it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.allocate.slots import ListedSlot, Slot
from eckart.fit import Fit
from eckart.metric import Metric
from eckart.operator import Operator


class Prepared(Protocol):
    """The analysis of one matrix, from which a fit of any size (``rank``) can be taken."""

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        """The approximation of this size with numbers stored in ``dtype``, with a bound in the spectral norm if wanted."""

    def error(self, rank: int, rng: Generator) -> float:
        """The error in the metric that ``fit`` will come to, but for the rounding of its numbers."""


class Approximator(Protocol):
    """Projects matrices onto a set, in a metric."""

    def slot(self, rows: int, columns: int, itemsize: int) -> Slot | ListedSlot:
        """The bytes of every size in which a matrix of numbers of ``itemsize`` bytes can be stored."""

    def form(self, rows: int, columns: int, size: int, dtype: torch.dtype) -> Operator:
        """What ``fit`` stores at a size, on the meta device: kind, settings, shapes and dtypes, before anything is fitted."""

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error in the metric for size 0, 1, …, float64; where it takes too long to know, a guess."""

    def prepare(self, target: Tensor, metric: Metric) -> Prepared:
        """Analyse ``target`` (m, n)."""
