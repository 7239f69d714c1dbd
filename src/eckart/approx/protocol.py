"""What an approximator is: pay for the analysis once, then take any size from it."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from eckart.fit import Fit
from eckart.metric import Metric


class Prepared(Protocol):
    """The analysis of one matrix, from which a fit of any rank can be taken."""

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        """The approximation of this rank with factors stored in ``dtype``, with a bound in the spectral norm if wanted."""

    def error(self, rank: int, rng: Generator) -> float:
        """The error in the metric that ``fit`` will come to, but for the rounding of its factors."""


class Approximator(Protocol):
    """Projects matrices onto a set, in a metric.

    ``exact`` says whether the result is the true minimiser in the metric before its factors are rounded to their dtype.
    """

    exact: ClassVar[bool]

    def curve(self, target: Tensor, metric: Metric) -> Tensor:
        """Squared error in the metric for rank 0, 1, …, min(m, n), float64."""

    def prepare(self, target: Tensor, metric: Metric) -> Prepared:
        """Analyse ``target`` (m, n)."""
