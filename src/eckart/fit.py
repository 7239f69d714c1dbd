"""The result of an approximation: an operator together with what is known about its error."""

from __future__ import annotations

from dataclasses import dataclass

from eckart.bound import Bound
from eckart.operator import Operator


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An operator and its bounds, the first of them in the metric that the fit minimised.

    ``how`` says which algorithm was taken and why.
    """

    op: Operator
    bounds: tuple[Bound, ...]
    how: str
