"""Recipes as TOML: the one place where the names of parts are strings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from eckart.allocate import EqualMarginalLoss, Exact, Greedy, Uniform
from eckart.approx import LowRank
from eckart.errors import EckartError
from eckart.model.compression import Compress, Paper, Statistics
from eckart.model.files import read_small, shown
from eckart.stats import ActivationScale, Gram, MetricRule, Plain

LARGEST = 100_000  # bytes of a recipe

PARTS: Mapping[str, Mapping[str, type]] = {
    "metric": {part.__name__: part for part in (Plain, ActivationScale, Gram)},
    "approx": {part.__name__: part for part in (LowRank,)},
    "allocate": {part.__name__: part for part in (Uniform, Greedy, EqualMarginalLoss, Exact)},
}


def read_recipe(path: Path) -> Compress:
    """Compose a recipe from a TOML file such as::

        statistics = "compressed"      # or "original", the default
        [metric]
        part = "ActivationScale"
        power = 0.75
        [approx]
        part = "LowRank"
        [allocate]
        part = "EqualMarginalLoss"

    Raises ``EckartError`` naming the file and the entry for anything unknown, missing or of another type.
    """
    try:
        table = tomllib.loads(read_small(path, LARGEST).decode())
    except FileNotFoundError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise EckartError(f"{path} is not valid TOML: {str(error)[:200]}") from error
    return compose(table, str(path))


def compose(table: Mapping[str, Any], origin: str) -> Compress:
    """The recipe that a table describes, the inverse of ``Compress.describe``.

    >>> table = {"metric": {"part": "Plain"}, "approx": {"part": "LowRank"}, "allocate": {"part": "Uniform"}}
    >>> compose(table, "example").describe()["approx"]
    {'part': 'LowRank', 'accuracy': 0.002}
    """
    unknown = sorted(set(table) - {*PARTS, "statistics"})
    if unknown:
        raise EckartError(
            f"{origin}: unknown entry {shown(unknown[0])}; a recipe has {', '.join(PARTS)} and statistics"
        )
    statistics = table.get("statistics", Statistics.ORIGINAL.value)
    known = [s.value for s in Statistics]
    if statistics not in known:
        raise EckartError(f"{origin}: statistics is {shown(statistics)}; give one of {', '.join(known)}")
    parts = {role: _part(role, table.get(role), origin) for role in PARTS}
    return Compress(paper=Paper(f"composed in {Path(origin).name}", ""), statistics=Statistics(statistics), **parts)


def recorded_metric(table: Mapping[str, Any], origin: str) -> tuple[MetricRule, Statistics]:
    """The metric rule and the statistics of a table that ``Compress.describe`` made; other parts may be anybody's."""
    statistics = table.get("statistics")
    if statistics not in [s.value for s in Statistics]:
        raise EckartError(f"{origin}: statistics is {shown(statistics)}: it is damaged or was edited")
    rule: MetricRule = _part("metric", table.get("metric"), origin)
    return rule, Statistics(statistics)


def _part(role: str, entry: Any, origin: str) -> Any:
    choices = PARTS[role]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("part"), str) or entry["part"] not in choices:
        raise EckartError(f"{origin}: [{role}] needs part = one of {', '.join(choices)}")
    kind = choices[entry["part"]]
    settings = {key: value for key, value in entry.items() if key != "part"}
    defaults = {field.name: field.default for field in fields(kind)}
    for key, value in settings.items():
        if key not in defaults:
            raise EckartError(
                f"{origin}: {kind.__name__} has no setting {shown(key)}; it has {', '.join(defaults) or 'none'}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EckartError(f"{origin}: {kind.__name__}.{key} is {shown(value)}; give a number")
        if isinstance(defaults[key], int) and not isinstance(value, int):
            raise EckartError(f"{origin}: {kind.__name__}.{key} is {shown(value)}; give a whole number")
    try:
        # A float where a float is meant, so that 1 and 1.0 describe the same part.
        return kind(**{k: value if isinstance(defaults[k], int) else float(value) for k, value in settings.items()})
    except (ValueError, OverflowError) as error:
        told = ", ".join(f"{key} = {shown(value, 20)}" for key, value in settings.items())
        raise EckartError(f"{origin}: {kind.__name__} with {told}: {error}") from error
