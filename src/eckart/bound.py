"""Bounds: how far an approximation is from its target, and from the best possible one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


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

    Raises ``ValueError`` if the three figures are out of order, negative or not finite.
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

    @property
    def relative(self) -> float:
        """The achieved error over the norm of the target; 0 for a zero target met exactly."""
        return self.achieved / self.scale if self.scale else (0.0 if self.achieved == 0.0 else math.inf)

    @property
    def excess(self) -> float | None:
        """``achieved / lower``: 1 is optimal; ``None`` where nothing below is known."""
        return self.achieved / self.lower if self.lower else None

    def to_json(self) -> dict[str, object]:
        """The bound as it stands in ``eckart.json``."""
        probable = self.delta or {}
        record: dict[str, object] = {
            "norm": self.norm,
            "lower": self.lower,
            "achieved": self.achieved,
            "upper": self.upper,
            "scale": self.scale,
            "certain": {f: f not in probable for f in ("lower", "achieved", "upper") if getattr(self, f) is not None},
        }
        return record | ({"delta": dict(probable)} if probable else {})

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Bound:
        """Read back what ``to_json`` wrote. Raises ``KeyError``, ``TypeError`` or ``ValueError`` if it is something else."""

        def number(key: str) -> float:
            value = record[key]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{key} is not a number: {value!r}")
            return float(value)

        delta = record.get("delta")
        if delta is not None and not isinstance(delta, dict):
            raise TypeError("delta is not a table")
        return cls(
            norm=str(record["norm"]),
            lower=None if record["lower"] is None else number("lower"),
            achieved=number("achieved"),
            upper=number("upper"),
            scale=number("scale"),
            delta=delta,
        )
