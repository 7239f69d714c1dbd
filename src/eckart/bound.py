"""Bounds: how far an approximation is from its target, and from the best possible one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FIGURES = ("lower", "achieved", "upper")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """``lower <= achieved <= upper`` for the error of one approximation in one norm.

    ``lower`` is what no operator of the same rank can beat in this norm; ``None`` where no theorem applies.
    ``achieved`` is the error of the factors as stored, after rounding to their dtype; ``upper`` encloses it from
    above, rounding of the measurement included. ``norm`` names the norm, ``scale`` is the norm of the target, so that
    ``achieved / scale`` is the relative error. ``delta`` maps each figure that is only probable to the
    probability that it fails; a figure that is not named there is certain.

    >>> bound = Bound(norm="frobenius", lower=1.0, achieved=1.5, upper=1.6, scale=10.0)
    >>> bound.relative, bound.excess
    (0.15, 1.5)
    >>> Bound.from_json(bound.to_json()) == bound
    True

    Raises ``ValueError`` if the three figures are out of order, negative or not finite, the scale is no size, or a
    probability is none.
    """

    norm: str
    lower: float | None
    achieved: float
    upper: float
    scale: float
    delta: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        lower = 0.0 if self.lower is None else self.lower
        if not 0.0 <= lower <= self.achieved <= self.upper < math.inf:
            raise ValueError(f"not in order: 0 <= {lower} <= {self.achieved} <= {self.upper} ({self.norm} norm)")
        if not 0.0 <= self.scale < math.inf:
            raise ValueError(f"the scale {self.scale} is no size ({self.norm} norm)")
        for figure, probability in (self.delta or {}).items():
            if figure not in FIGURES or not 0.0 < probability < 1.0:
                raise ValueError(f"delta holds no probability of a figure: {figure} {probability} ({self.norm} norm)")

    @property
    def relative(self) -> float:
        """The achieved error over the norm of the target; 0 for a zero target met exactly."""
        return self.achieved / self.scale if self.scale else (0.0 if self.achieved == 0.0 else math.inf)

    @property
    def excess(self) -> float | None:
        """``achieved / lower``: 1 is optimal; ``None`` where nothing below is known."""
        return self.achieved / self.lower if self.lower else None

    @property
    def certain(self) -> dict[str, bool]:
        """For each figure that there is, whether it always holds."""
        return {f: f not in (self.delta or {}) for f in FIGURES if getattr(self, f) is not None}

    def to_json(self) -> dict[str, object]:
        """The bound as it stands in ``eckart.json``."""
        record: dict[str, object] = {
            "norm": self.norm,
            "lower": self.lower,
            "achieved": self.achieved,
            "upper": self.upper,
            "scale": self.scale,
            "certain": self.certain,
        }
        return record | ({"delta": dict(self.delta)} if self.delta else {})

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Bound:
        """Read back what ``to_json`` wrote. Raises ``KeyError``, ``TypeError`` or ``ValueError`` if it is something else."""

        def number(key: str) -> float:
            value = record[key]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{key} is not a number: {value!r}")
            return float(value)

        delta, norm = record.get("delta"), record["norm"]
        if delta is not None and not (isinstance(delta, dict) and all(isinstance(p, float) for p in delta.values())):
            raise TypeError("delta is not a table of probabilities")
        if not isinstance(norm, str):
            raise TypeError(f"the norm {norm!r} is no name")
        found = cls(
            norm=norm,
            lower=None if record["lower"] is None else number("lower"),
            achieved=number("achieved"),
            upper=number("upper"),
            scale=number("scale"),
            delta=delta or None,
        )
        if record["certain"] != found.certain:
            raise ValueError(f"what is called certain contradicts delta ({norm} norm)")
        return found
