"""What a compression is made of: the value that recipes build and the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

from eckart.allocate import Allocator, Uniform
from eckart.approx import Approximator
from eckart.stats import MetricRule, Need


class Statistics(Enum):
    """Which model's activations the statistics are taken from."""

    ORIGINAL = "original"  # all maps see what they saw before
    COMPRESSED = "compressed"  # every block sees what the compressed blocks before it give


@dataclass(frozen=True)
class Paper:
    """Where a recipe comes from, and where it deliberately differs."""

    title: str
    link: str
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compress:
    """A post-training compression: approximate every map in a metric, and allocate one budget over them."""

    paper: Paper
    metric: MetricRule
    approx: Approximator
    allocate: Allocator = Uniform()
    statistics: Statistics = Statistics.ORIGINAL

    @property
    def needs(self) -> frozenset[Need]:
        """What its parts need together; empty where no text is wanted."""
        sequential = frozenset({Need.ACTIVATIONS}) if self.statistics is Statistics.COMPRESSED else frozenset()
        return self.metric.needs | self.allocate.needs | sequential

    def describe(self) -> dict[str, object]:
        """The parts and their settings as a table, as a TOML recipe would write them."""
        return {
            "metric": describe(self.metric),
            "approx": describe(self.approx),
            "allocate": describe(self.allocate),
            "statistics": self.statistics.value,
        }


def describe(part: object) -> Mapping[str, object]:
    """A part's kind and fields.

    >>> describe(Uniform())
    {'part': 'Uniform'}
    """
    return {"part": type(part).__name__} | {f.name: getattr(part, f.name) for f in fields(part)}  # type: ignore[arg-type]
