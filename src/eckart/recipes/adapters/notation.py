"""Recipes of adapters as TOML: the names of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eckart.adapters.base import LessAll, LessStart, LessTail, Untouched
from eckart.adapters.choosing import AboveShare, TopShare
from eckart.adapters.draws import Gaussian, Kaiming, Level, SparseRows
from eckart.adapters.forms import (
    Aligned,
    Band,
    Blocks,
    Cored,
    Directed,
    Gated,
    Nested,
    Pair,
    Residual,
    Scattered,
    SparseMiddle,
    Spectral,
    Train,
    Tucker,
    Vectors,
    Whole,
)
from eckart.adapters.gates import Router, TopRanks
from eckart.adapters.growth import Grow
from eckart.adapters.hypergradients import Direct, Unrolled
from eckart.adapters.mixing import InGroup, Simplex, Switch
from eckart.adapters.outputs import Certainty, Correlation, Distance, Divergence, Spread
from eckart.adapters.penalties import MiddleEnergy, OfActing, Orthonormal, Outside, SameEnergy
from eckart.adapters.pick import Bottom, BottomFirst, Crossed, Ends, Top
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.roles import Role
from eckart.adapters.rules import Nearest, PerExpert, Plain, Preconditioned, Projected, RowsByLength, Unfree
from eckart.adapters.scale import Constant, OverRank, OverRoot
from eckart.adapters.schedules import Constant as Unchanged
from eckart.adapters.schedules import Cubic, Freeze, Prune, Sensitivity, Straight
from eckart.adapters.sources import (
    Crossing,
    Drawn,
    InCommon,
    OfBlocks,
    OfFirstStep,
    OfGradient,
    OfInputs,
    OfSemiNonnegative,
    OfTrain,
    OfWeight,
    OrthogonalTriangular,
)
from eckart.adapters.split import Apart, Even, Levelled, OneSided, Outer, ToTheRight
from eckart.adapters.start import Start
from eckart.adapters.stored import AsItIs, Rounded, RoundedFirst
from eckart.adapters.width import All, AsAsked, Counted, ForEach, PartOf
from eckart.allocate import Greedy, Uniform
from eckart.approx import NormalFloat, RoundToNearest
from eckart.errors import EckartError
from eckart.linalg import DEIM, Entries, Largest, LeadingVectors, PivotedQR, Rarest, RidgeVectors, Sampled, StrongRRQR
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.search import Search
from eckart.model.adapting.within import Smaller
from eckart.model.compression import Narrow, Paper
from eckart.model.files import shown
from eckart.recipes.notation import compose
from eckart.recipes.parts import check_setting, part_of, read_table
from eckart.stats import ActivationScale, Covariance, Gram, RootMeanSquare
from eckart.stats import Plain as PlainMetric

FORMS = (Pair, Spectral, Residual, Cored, Nested, Vectors, SparseMiddle, Tucker, Train, Blocks, Whole)
DRAWS = (Kaiming, Gaussian, SparseRows, Level)
PENALTIES = (Orthonormal, MiddleEnergy, OfActing, Outside, SameEnergy)
RULES = (Plain, Projected, Preconditioned, PerExpert, RowsByLength)

PARTS: Mapping[str, Mapping[str, type]] = {
    role: {part.__name__: part for part in parts}
    for role, parts in {
        "form": (*FORMS, Directed, Gated),
        "Directed.of": FORMS,
        "gate": (TopRanks, Router),
        "places": (Band, Scattered, Aligned),
        "start": (Start,),
        "source": (
            Drawn,
            InCommon,
            OfWeight,
            OfGradient,
            OfFirstStep,
            OfInputs,
            OrthogonalTriangular,
            OfSemiNonnegative,
            Crossing,
            OfTrain,
            OfBlocks,
        ),
        "pick": (Top, Bottom, BottomFirst, Ends, Crossed),
        "split": (Apart, Even, ToTheRight, Levelled, OneSided, Outer),
        **dict.fromkeys(("left", "middle", "core", "right", "draw", "within"), DRAWS),
        "metric": (PlainMetric, ActivationScale, RootMeanSquare, Gram, Covariance),
        **dict.fromkeys(("columns", "rows"), (DEIM, PivotedQR, StrongRRQR, Largest, Sampled, Rarest)),
        "on": (Entries, LeadingVectors, RidgeVectors),
        "base": (Untouched, LessStart, LessTail, LessAll),
        "stored": (AsItIs, Rounded, RoundedFirst),
        "to": (RoundToNearest, NormalFloat),
        "scale": (OverRank, OverRoot, Constant),
        "width": (AsAsked, Counted, All, ForEach, PartOf),
        "rule": RULES,
        "PerExpert.of": RULES,
        "free": (Unfree, Nearest),
        "penalties": PENALTIES,
        "OfActing.of": PENALTIES,
        "outputs": (Divergence, Distance, Certainty, Correlation, Spread),
        "ranks": (Redistribute, Search),
        "mixing": (Simplex, Switch, InGroup),
        "choose": (AboveShare, TopShare),
        "gradient": (Direct, Unrolled),
        "allocate": (Uniform, Greedy),
        "schedule": (Unchanged, Prune, Freeze, Grow),
        "budget": (Cubic,),
        "Grow.budget": (Straight,),
        "score": (Sensitivity,),
    }.items()
}
SEVERAL = ("penalties", "outputs")  # of which a recipe may have any number
ONE = ("form", "start", "base", "stored", "scale", "width", "rule", "ranks", "schedule")
WITHIN = ("part", "narrow", "keep")  # what is told of a smaller model, ``narrow`` as a recipe of bonds


def read_adapter_recipe(path: Path) -> Adapt:
    """Compose a recipe of adapters from a TOML file such as::

        [form]
        part = "Pair"
        [start]
        part = "Start"
        source = { part = "OfWeight" }
        split = { part = "Even" }
        [base]
        part = "LessStart"
        [roles.left]
        rate = 4.0

    Raises ``EckartError`` naming the file and the entry for anything unknown, missing or of another type.
    """
    return compose_adapter(read_table(path), str(path))


def compose_adapter(table: Mapping[str, Any], origin: str) -> Adapt:
    """The recipe that a table describes, the inverse of ``Adapt.describe``.

    >>> table = {"form": {"part": "Pair"}, "start": {"part": "Start", "source": {"part": "OrthogonalTriangular"}}}
    >>> compose_adapter(table, "example").start.source
    OrthogonalTriangular()
    """
    unknown = sorted(set(table) - {*ONE, *SEVERAL, "roles", "within"})
    if unknown:
        raise EckartError(
            f"{origin}: unknown entry {shown(unknown[0])}; a recipe of adapters has {', '.join(ONE)}, {', '.join(SEVERAL)}, roles "
            "and within"
        )
    given: dict[str, Any] = {
        role: part_of(PARTS, role, table.get(role), origin)
        for role in ONE
        if role in table or role in ("form", "start")
    }
    for role in SEVERAL:
        entries = table.get(role, [])
        if not isinstance(entries, list):
            raise EckartError(f"{origin}: {role} is a list of parts: write [[{role}]]")
        given[role] = tuple(part_of(PARTS, role, entry, origin) for entry in entries)
    if "within" in table:
        given["within"] = _within(table["within"], f"{origin}: [within]")
    try:
        return Adapt(paper=Paper(f"composed in {Path(origin).name}", ""), roles=_roles(table, origin), **given)
    except ValueError as error:
        raise EckartError(f"{origin}: {error}") from error


def _within(table: Any, origin: str) -> Smaller:
    keep = table.get("keep") if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or set(table) != set(WITHIN) or table["part"] != Smaller.__name__:
        raise EckartError(f'{origin} has part = "Smaller", keep, and narrow, a recipe of bonds')
    narrow = compose(table["narrow"], origin) if isinstance(table["narrow"], Mapping) else None
    if not isinstance(narrow, Narrow):
        raise EckartError(f"{origin}: narrow is a recipe of bonds, with hidden or groups")
    check_setting(f"{origin}: keep", keep, 0.5)
    try:
        return Smaller(narrow, float(table["keep"]))
    except (ValueError, OverflowError) as error:
        raise EckartError(f"{origin}: {error}") from error


def _roles(table: Mapping[str, Any], origin: str) -> dict[str, Role]:
    entries = table.get("roles", {})
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise EckartError(f"{origin}: roles are tables by tensor: write [roles.left]")
    plain = {"trains": True, "rate": 1.0, "decay": True}
    for name, entry in entries.items():
        for key, value in entry.items():
            if key not in plain:
                raise EckartError(f"{origin}: a role has no setting {shown(key)}; it has {', '.join(plain)}")
            check_setting(f"{origin}: roles.{name}.{key}", value, plain[key])
    made = {}
    for name, entry in entries.items():
        try:
            made[name] = Role(**{**entry, "rate": float(entry.get("rate", 1.0))})
        except (ValueError, OverflowError) as error:
            raise EckartError(f"{origin}: roles.{shown(name)}: {error}") from error
    return made
