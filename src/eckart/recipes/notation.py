"""Recipes as TOML: the one place where the names of parts are strings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from eckart.allocate import (
    Entropic,
    EqualMarginalLoss,
    Exact,
    Greedy,
    GreedyByLoss,
    Later,
    LeastInfluential,
    Level,
    Proportional,
    Threshold,
    Uniform,
    ValuesFirst,
)
from eckart.approx import BrainSurgeon, ColumnsRows, Compensated, LowRank, Prune, RoundToNearest, Unweighted
from eckart.bonds.choosing import EachNorm, Principal, Select
from eckart.bonds.correction import Refit, Tune
from eckart.bonds.depth import LastBlocks, LeastInfluence, LeastLoss
from eckart.bonds.heads import CosineOfKeys
from eckart.bonds.scores import (
    Activation,
    Condition,
    Gain,
    Interpolation,
    Leverage,
    Magnitude,
    RidgeLeverage,
    SecondMoment,
    Similarity,
)
from eckart.bonds.words import Used
from eckart.errors import EckartError
from eckart.linalg import DEIM, Entries, LeadingVectors, PivotedQR, RidgeVectors, StrongRRQR
from eckart.linalg.patterns import OfGroup, PerMatrix, PerRow, Tiles
from eckart.model.compression import AnyRecipe, Compress, Narrow, Paper, Share, Statistics
from eckart.model.files import read_small, shown
from eckart.stats import ActivationScale, FisherColumns, Gram, MetricRule, Need, Plain, RootMeanSquare

LARGEST = 100_000  # bytes of a recipe

PARTS: Mapping[str, Mapping[str, type]] = {
    role: {part.__name__: part for part in parts}
    for role, parts in {
        "metric": (Plain, ActivationScale, RootMeanSquare, FisherColumns, Gram),
        "approx": (LowRank, Prune, BrainSurgeon, RoundToNearest, Compensated, ColumnsRows, Unweighted),
        "pattern": (PerMatrix, PerRow, OfGroup, Tiles),
        "damage": (Prune, BrainSurgeon, RoundToNearest, Unweighted),
        "branch": (LowRank, Unweighted),
        "rule": (DEIM, PivotedQR, StrongRRQR),
        "on": (Entries, LeadingVectors, RidgeVectors),
        "allocate": (
            Uniform,
            Greedy,
            EqualMarginalLoss,
            Exact,
            Level,
            Later,
            LeastInfluential,
            Threshold,
            Entropic,
            Proportional,
            ValuesFirst,
            GreedyByLoss,
        ),
        "stream": (Principal, Select, EachNorm),
        "choice": (Principal, Select),
        "hidden": (Select,),
        "values": (Principal, Select),
        "keys": (Select,),
        "groups": (Select,),
        "depth": (LastBlocks, LeastInfluence, LeastLoss),
        "score": (
            Magnitude,
            Activation,
            SecondMoment,
            Leverage,
            RidgeLeverage,
            Interpolation,
            Similarity,
            Gain,
            Condition,
        ),
        "correct": (Refit, Tune),
        "vocabulary": (Used,),
        "heads": (CosineOfKeys,),
    }.items()
}
OF_GRADIENTS = [name for name, part in PARTS["metric"].items() if Need.GRADIENTS in getattr(part, "needs", ())]
MATRICES = ("metric", "approx", "allocate")  # what a recipe of matrices has, all of them
BONDS = ("stream", "hidden", "values", "keys", "groups", "depth", "vocabulary")  # what one of bonds has, at least one
HEADS = "heads"  # what one that shares heads has, and nothing else


def read_recipe(path: Path) -> AnyRecipe:
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


def compose(table: Mapping[str, Any], origin: str) -> AnyRecipe:
    """The recipe that a table describes, the inverse of the ``describe`` of ``Compress``, ``Narrow`` and ``Share``.

    >>> table = {"metric": {"part": "Plain"}, "approx": {"part": "LowRank"}, "allocate": {"part": "Uniform"}}
    >>> compose(table, "example").describe()["approx"]
    {'part': 'LowRank', 'accuracy': 0.002}
    >>> table = {"hidden": {"part": "Select", "score": {"part": "Magnitude"}}, "allocate": {"part": "Level"}}
    >>> compose(table, "example").describe()["hidden"]
    {'part': 'Select', 'score': {'part': 'Magnitude'}, 'correct': None, 'spared': 0.0}
    """
    if HEADS in table:
        return _of_heads(table, origin)
    bonds = [role for role in BONDS if role in table]
    known = (*BONDS, "allocate", "share", "maps") if bonds else MATRICES
    unknown = sorted(set(table) - {*known, "statistics"})
    if unknown:
        raise EckartError(
            f"{origin}: unknown entry {shown(unknown[0])}; a recipe has {', '.join(MATRICES)} and statistics, or for bonds some of "
            f"{', '.join(BONDS)} with share, maps, allocate and statistics"
        )
    statistics = table.get("statistics", Statistics.ORIGINAL.value)
    values = [s.value for s in Statistics]
    if statistics not in values:
        raise EckartError(f"{origin}: statistics is {shown(statistics)}; give one of {', '.join(values)}")
    paper = Paper(f"composed in {Path(origin).name}", "")
    if not bonds:
        parts = {role: _part(role, table.get(role), origin) for role in MATRICES}
        try:
            return Compress(paper=paper, statistics=Statistics(statistics), **parts)
        except ValueError as error:
            raise EckartError(f"{origin}: {error}") from error
    parts = {role: _part(role, table[role], origin) for role in (*bonds, "allocate") if role in table}
    share = table.get("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise EckartError(f"{origin}: share is {shown(share)}; give a number")
    if "maps" in table:
        parts["maps"] = _of_matrices(table["maps"], f"{origin}: [maps]")
    try:
        return Narrow(paper=paper, statistics=Statistics(statistics), share=float(share), **parts)
    except ValueError as error:
        raise EckartError(f"{origin}: {error}") from error


def _of_heads(table: Mapping[str, Any], origin: str) -> Share:
    """The recipe that shares heads."""
    unknown = sorted(set(table) - {HEADS})
    if unknown:
        raise EckartError(
            f"{origin}: unknown entry {shown(unknown[0])}; a recipe that shares heads has {HEADS} and nothing else"
        )
    return Share(paper=Paper(f"composed in {Path(origin).name}", ""), heads=_part(HEADS, table[HEADS], origin))


def _of_matrices(table: Any, origin: str) -> Compress:
    """The recipe of matrices inside one of bonds."""
    found = compose(table, origin) if isinstance(table, Mapping) and not any(role in table for role in BONDS) else None
    if not isinstance(found, Compress):
        raise EckartError(f"{origin} is a recipe of matrices, with {', '.join(MATRICES)} and statistics")
    return found


def recorded_recipe(table: Mapping[str, Any], origin: str) -> AnyRecipe | None:
    """The recipe that a certificate tells of, where it takes more than figures of factors and moments of inputs to check its result.

    ``None`` for recipes of factors alone in such metrics, whose approximator may be anybody's.
    """
    approx, metric = table.get("approx"), table.get("metric")
    others = [name for name in PARTS["approx"] if name != LowRank.__name__]
    of_factors = isinstance(approx, Mapping) and approx.get("part") not in others
    of_inputs = not isinstance(metric, Mapping) or metric.get("part") not in OF_GRADIENTS
    if of_factors and of_inputs and not any(role in table for role in BONDS):
        return None
    return compose({key: value for key, value in table.items() if key not in ("title", "link", "deviations")}, origin)


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
    settings = {key: value for key, value in entry.items() if key != "part" and value is not None}
    defaults = {field.name: field.default for field in fields(kind)}
    for key, default in defaults.items():
        if key in PARTS and (key in settings or default is MISSING):
            settings[key] = _part(key, settings.get(key), origin)
        elif default is MISSING and key not in settings:
            raise EckartError(f"{origin}: {kind.__name__} needs a setting {key}")
    for key, value in settings.items():
        if key not in defaults:
            raise EckartError(
                f"{origin}: {kind.__name__} has no setting {shown(key)}; it has {', '.join(defaults) or 'none'}"
            )
        if key not in PARTS:
            _check_setting(f"{origin}: {kind.__name__}.{key}", value, defaults[key])
    try:
        # A float where a float is meant, so that 1 and 1.0 describe the same part.
        return kind(**{k: float(value) if isinstance(defaults[k], float) else value for k, value in settings.items()})
    except (ValueError, OverflowError) as error:
        told = ", ".join(f"{key} = {shown(value, 20)}" for key, value in settings.items())
        raise EckartError(f"{origin}: {kind.__name__} with {told}: {error}") from error


def _check_setting(name: str, value: Any, default: Any) -> None:
    """Raise ``EckartError`` for a value of another type than the default has."""
    if isinstance(default, bool) or isinstance(value, bool):
        if not (isinstance(default, bool) and isinstance(value, bool)):
            raise EckartError(
                f"{name} is {shown(value)}; give {'true or false' if isinstance(default, bool) else 'a number'}"
            )
        return
    if not isinstance(value, int | float):
        raise EckartError(f"{name} is {shown(value)}; give a number")
    if isinstance(default, int) and not isinstance(value, int):
        raise EckartError(f"{name} is {shown(value)}; give a whole number")
