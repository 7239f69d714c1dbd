"""The result of an approximation: an operator together with what is known about its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eckart.bound import Bound
from eckart.operator import Operator


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An operator and its bounds, the first of them in the metric that the fit minimised.

    ``info`` holds figures of the computation (for instance the algorithm's residual); it is never needed to use ``op``.
    """

    op: Operator
    bounds: tuple[Bound, ...]
    info: Mapping[str, float] = field(default_factory=dict)
