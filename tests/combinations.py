"""All parts of adapters, which of them go together, and the page of the documentation that says so: ``python tests/combinations.py``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.adapters import base, draws, forms, gates, penalties, pick, rules, schedules, sources, split, stored, width
from eckart.adapters.growth import Grow
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.start import Start
from eckart.approx import NormalFloat
from eckart.linalg import PivotedQR
from eckart.model.adapting.recipe import Adapt
from eckart.model.compression import Paper
from eckart.stats import Gram

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
PAPER = Paper("composed", "")

SOURCES: Mapping[str, Any] = {
    "Drawn, right": sources.Drawn(right=draws.Kaiming()),
    "Drawn, both": sources.Drawn(left=draws.Gaussian(0.1), right=draws.SparseRows(0.5)),
    "Drawn, all": sources.Drawn(left=draws.Gaussian(0.1), middle=draws.Level(0.1), right=draws.Kaiming()),
    "Drawn, nothing": sources.Drawn(),
    "InCommon": sources.InCommon(left=draws.Kaiming(), right=draws.Kaiming()),
    "OfWeight": sources.OfWeight(),
    "OfWeight, Gram": sources.OfWeight(Gram()),
    "OfGradient": sources.OfGradient(),
    "OfFirstStep": sources.OfFirstStep(1e-3),
    "OfInputs": sources.OfInputs(),
    "OrthogonalTriangular": sources.OrthogonalTriangular(),
    "OfSemiNonnegative": sources.OfSemiNonnegative(),
    "Crossing": sources.Crossing(PivotedQR(), PivotedQR()),
    "OfTrain": sources.OfTrain(2),
    "OfBlocks": sources.OfBlocks(4),
}
SPLITS: Mapping[str, split.Split] = {
    type(part).__name__: part
    for part in (split.Apart(), split.Even(), split.ToTheRight(), split.Levelled(), split.OneSided(), split.Outer())
}
PICKS: Mapping[str, pick.Pick] = {
    type(part).__name__: part for part in (pick.Top(), pick.Bottom(), pick.BottomFirst(), pick.Ends(), pick.Crossed())
}
FORMS: Mapping[str, forms.Form] = {
    "Pair": forms.Pair(),
    "Spectral": forms.Spectral(),
    "Residual": forms.Residual(),
    "Cored": forms.Cored(),
    "Nested": forms.Nested(2),
    "Vectors": forms.Vectors(),
    "SparseMiddle": forms.SparseMiddle(forms.Band(1)),
    "Tucker": forms.Tucker(2),
    "Train": forms.Train(2),
    "Blocks": forms.Blocks(4),
    "Whole": forms.Whole(),
    "Directed": forms.Directed(forms.Pair()),
    "Gated": forms.Gated(gates.TopRanks(2)),
    "Gated, routed": forms.Gated(gates.Router(2, 2), rooted=True),
}
BASES: Mapping[str, base.Base] = {
    type(part).__name__: part for part in (base.Untouched(), base.LessStart(), base.LessTail(), base.LessAll())
}
STORED: Mapping[str, stored.Stored] = {
    "AsItIs": stored.AsItIs(),
    "Rounded": stored.Rounded(NormalFloat(group=4)),
    "RoundedFirst": stored.RoundedFirst(NormalFloat(group=4), 2),
}
RULES: Mapping[str, rules.GradientRule] = {
    "Plain": rules.Plain(),
    "Projected": rules.Projected(),
    "Preconditioned": rules.Preconditioned(),
    "PerExpert": rules.PerExpert(rules.Preconditioned(), 2),
    "RowsByLength": rules.RowsByLength(),
}
PENALTIES: Mapping[str, penalties.Penalty] = {
    "Orthonormal": penalties.Orthonormal(0.1),
    "MiddleEnergy": penalties.MiddleEnergy(0.1),
    "OfActing": penalties.OfActing(penalties.Orthonormal(0.1)),
    "Outside": penalties.Outside(0.1),
    "SameEnergy": penalties.SameEnergy(0.1),
}
SCHEDULES: Mapping[str, schedules.Schedule] = {
    "Constant": schedules.Constant(),
    "Prune": schedules.Prune(every=2),
    "Freeze": schedules.Freeze(every=2),
    "Grow": Grow(every=2),
}
# What goes with a form besides, so that it has as many directions as it takes.
WIDTHS: Mapping[str, width.Width] = {"Blocks": width.Counted(), "Whole": width.Counted()}


@dataclass(frozen=True)
class Combination:
    """Two parts by their names, the recipe of both, or why there is none."""

    kind: str
    first: str
    second: str
    recipe: Adapt | None
    why: str = ""


def starts() -> Iterator[tuple[str, Start]]:
    """Every source with every way to split what it makes, and with every other pick that it has an order for."""
    for name, source in SOURCES.items():
        for split_name, part in SPLITS.items():
            made = _built(Start, source=source, split=part)
            if isinstance(made, Start):
                yield f"{name}, {split_name}", made
    for pick_name, chosen in [*PICKS.items()][1:]:
        for part in (split.Apart(), split.Even()):
            yield f"OfWeight, {pick_name}, {type(part).__name__}", Start(sources.OfWeight(), chosen, part)


def started() -> Iterator[Combination]:
    """Every start with every form."""
    for name, start in starts():
        for form_name in FORMS:
            yield _combined("start", name, form_name, **_parts(form_name, start))


def others() -> Iterator[Combination]:
    """Every form with everything that is not a start, with the first start that goes with both."""
    for form_name in FORMS:
        begun = [_parts(form_name, start) for _, start in starts() if _fit(form_name, start)]
        for kind, parts in (("base", BASES), ("stored", STORED), ("rule", RULES), ("schedule", SCHEDULES)):
            for name, part in parts.items():
                yield _first(_combined(kind, name, form_name, **given, **{kind: part}) for given in begun)
        for name, penalty in PENALTIES.items():
            yield _first(_combined("penalties", name, form_name, **given, penalties=(penalty,)) for given in begun)
    for name, source in SOURCES.items():
        start = next(start for label, start in starts() if start.source == source)
        form = next(form for form in FORMS if _fit(form, start))
        yield _combined("ranks", "Redistribute", name, **_parts(form, start), ranks=Redistribute(most=math.inf))


def _first(tried: Iterable[Combination]) -> Combination:
    """The first that goes together, or where none does the first."""
    found = list(tried)
    return next((made for made in found if made.recipe is not None), found[0])


def _parts(form: str, start: Start) -> dict[str, Any]:
    return {"form": FORMS[form], "start": start, "width": WIDTHS.get(form, width.AsAsked())}


def _fit(form: str, start: Start) -> bool:
    return not isinstance(_built(Adapt, paper=PAPER, **_parts(form, start)), str)


def _combined(kind: str, first: str, second: str, **parts: Any) -> Combination:
    made = _built(Adapt, paper=PAPER, **parts)
    return (
        Combination(kind, first, second, None, made)
        if isinstance(made, str)
        else Combination(kind, first, second, made)
    )


def _built(kind: type, **parts: Any) -> Any:
    try:
        return kind(**parts)
    except ValueError as error:
        return str(error)


TITLES = {
    "start": "Starts and forms",
    "base": "What is taken from the weight, and forms",
    "stored": "How the rest is stored, and forms",
    "rule": "Rules for gradients, and forms",
    "schedule": "Schedules, and forms",
    "penalties": "Penalties, and forms",
    "ranks": "Ranks that differ, and sources",
}


def page() -> str:
    """The page in Markdown."""
    lines = [
        "# What goes with what",
        "",
        "Parts of adapters, in pairs: + goes together, and is run in the tests; a number says why not, as its recipe does when built.",
        "Written by `python tests/combinations.py`.",
    ]
    reasons: dict[str, int] = {}
    found = [*started(), *others()]
    for kind, title in TITLES.items():
        chosen = [made for made in found if made.kind == kind]
        columns = list(dict.fromkeys(made.second for made in chosen))
        lines += ["", f"## {title}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in dict.fromkeys(made.first for made in chosen):
            cells = {made.second: _cell(made, reasons) for made in chosen if made.first == row}
            lines.append(f"| {row} | {' | '.join(cells[column] for column in columns)} |")
    lines += ["", "## Why not", "", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]
    return "\n".join(lines)


def _cell(made: Combination, reasons: dict[str, int]) -> str:
    # What differs from pair to pair in a sentence is what the row and the column say already.
    why = re.split(r", which the start|: it makes|, not to |, and there are |, which \w+ does not tell", made.why)[0]
    return "+" if made.recipe is not None else str(reasons.setdefault(why, len(reasons) + 1))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
