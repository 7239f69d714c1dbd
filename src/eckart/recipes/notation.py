"""Recipes as TOML: the one place where the names of parts are strings."""

from __future__ import annotations

from collections.abc import Mapping
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
from eckart.approx import (
    BrainSurgeon,
    ColumnsRows,
    Compensated,
    LowRank,
    NormalFloat,
    Prune,
    RoundToNearest,
    Unweighted,
)
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
from eckart.model.files import shown
from eckart.recipes.parts import part_of, read_table
from eckart.stats import ActivationScale, FisherColumns, Gram, MetricRule, Need, Plain, RootMeanSquare

PARTS: Mapping[str, Mapping[str, type]] = {
    role: {part.__name__: part for part in parts}
    for role, parts in {
        "metric": (Plain, ActivationScale, RootMeanSquare, FisherColumns, Gram),
        "approx": (LowRank, Prune, BrainSurgeon, RoundToNearest, NormalFloat, Compensated, ColumnsRows, Unweighted),
        "pattern": (PerMatrix, PerRow, OfGroup, Tiles),
        "damage": (Prune, BrainSurgeon, RoundToNearest, NormalFloat, Unweighted),
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
    return compose(read_table(path), str(path))


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
        parts = {role: part_of(PARTS, role, table.get(role), origin) for role in MATRICES}
        try:
            return Compress(paper=paper, statistics=Statistics(statistics), **parts)
        except ValueError as error:
            raise EckartError(f"{origin}: {error}") from error
    parts = {role: part_of(PARTS, role, table[role], origin) for role in (*bonds, "allocate") if role in table}
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
    return Share(paper=Paper(f"composed in {Path(origin).name}", ""), heads=part_of(PARTS, HEADS, table[HEADS], origin))


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
    rule: MetricRule = part_of(PARTS, "metric", table.get("metric"), origin)
    return rule, Statistics(statistics)
