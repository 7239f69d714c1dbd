"""What a compression is made of: the value that recipes build and the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum

from eckart.allocate import Allocator, GreedyByLoss, Level, Uniform
from eckart.approx import Approximator
from eckart.bonds.choosing import Choice, EachNorm, Select
from eckart.bonds.depth import Depth
from eckart.bonds.heads import Likeness
from eckart.bonds.words import Words
from eckart.stats import WITHOUT_TEXT, MetricRule, Need


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
    """A post-training compression: approximate every map in a metric, and allocate one budget over them.

    Raises ``ValueError`` for an allocator that is one of bonds.
    """

    paper: Paper
    metric: MetricRule
    approx: Approximator
    allocate: Allocator = Uniform()
    statistics: Statistics = Statistics.ORIGINAL

    def __post_init__(self) -> None:
        if Need.LOSS in self.allocate.needs:
            raise ValueError("how the loss answers to every choice is measured for bonds: allocate by another rule")

    @property
    def needs(self) -> frozenset[Need]:
        """What its parts need together."""
        sequential = frozenset({Need.ACTIVATIONS}) if self.statistics is Statistics.COMPRESSED else frozenset()
        return self.metric.needs | self.allocate.needs | sequential

    @property
    def reads_text(self) -> bool:
        """Whether anything is measured on a calibration text."""
        return bool(self.needs - WITHOUT_TEXT)

    def describe(self) -> dict[str, object]:
        """The parts and their settings as a table, as a TOML recipe would write them."""
        return {
            "metric": describe(self.metric),
            "approx": describe(self.approx),
            "allocate": describe(self.allocate),
            "statistics": self.statistics.value,
        }


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A post-training compression of what crosses bonds: fewer hidden units, fewer directions of values, keys or the stream, fewer blocks.

    Each bond has a ``Choice`` or stays; that of a stream may be made at ``EachNorm``, and the loader then joins the stretches. What a stock
    configuration can say is written as one; values and keys that are narrower within their heads are put back in their places by
    row-sparse maps. ``groups`` leaves out heads whole, with the keys and values that they share, ``depth`` whole blocks: the share
    ``share`` of what is to go; the rest goes from the bonds. ``maps`` is how the other maps of the blocks are approximated, which then
    pay their own share.
    ``vocabulary`` leaves out token ids; how many, the text says, and no budget.

    Raises ``ValueError`` where nothing is chosen, a stream together with others, which it changes, or with a refit, for an allocator
    that goes by what is not measured, and for a vocabulary with anything beside it.
    """

    paper: Paper
    stream: Choice | EachNorm | None = None
    hidden: Choice | None = None
    values: Choice | None = None
    keys: Choice | None = None
    groups: Choice | None = None
    depth: Depth | None = None
    share: float = 1.0
    maps: Compress | None = None
    vocabulary: Words | None = None
    allocate: Allocator | GreedyByLoss = Level()
    statistics: Statistics = Statistics.ORIGINAL

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            own = ("paper", "vocabulary")
            beside = [f.name for f in fields(self) if f.name not in own and getattr(self, f.name) != f.default]
            if beside:
                raise ValueError(
                    f"a smaller vocabulary is as large as the text asks for, and stands alone: leave {beside[0]} out"
                )
            return
        if not self.inside and self.stream is None and self.depth is None:
            raise ValueError("a recipe of bonds chooses what crosses at least one, or leaves out blocks")
        if self.maps is not None and not self.inside:
            raise ValueError(
                "other maps are approximated beside narrower bonds: choose what crosses one, or take a recipe of matrices"
            )
        if self.stream is not None and (self.inside or self.depth is not None):
            raise ValueError("a narrower stream changes every other bond: narrow it by itself")
        stream = self.stream.choice if isinstance(self.stream, EachNorm) else self.stream
        if isinstance(stream, Select) and stream.correct is not None:
            raise ValueError(
                "a stream is read through norms, which measure its length: select its channels without a refit"
            )
        if self.stream is not None and Need.LOSS in self.allocate.needs:
            raise ValueError("a stream is one bond, among which there is nothing to allocate: do it by another rule")
        if self.groups is not None and (self.values is not None or self.keys is not None):
            raise ValueError("heads that go whole take their values and keys along: choose groups, or what is in them")
        if self.groups is not None and Need.LOSS in self.allocate.needs:
            raise ValueError("the loss without heads is not measured one by one: allocate by another rule")
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share:g} must be above 0 and at most 1")
        if Need.FORWARD_SENSITIVITY in self.allocate.needs:
            raise ValueError("how the loss answers to noise is not measured for bonds: allocate by another rule")
        if Need.SENSITIVITY in self.allocate.needs and self.stream is not None:
            raise ValueError("a stream is one bond, among which there is nothing to allocate: do it by another rule")
        if Need.SENSITIVITY in self.allocate.needs and not self.inside:
            raise ValueError("whole blocks leave no bonds among which to allocate by losses: allocate by another rule")
        if Need.SPECTRA in self.allocate.needs:
            raise ValueError(
                f"{type(self.allocate).__name__} goes by singular values, which are not measured for bonds: allocate by another rule"
            )
        if Need.INFLUENCE in self.allocate.needs and self.stream is not None:
            raise ValueError(
                f"{type(self.allocate).__name__} goes by the influence of blocks, and a stream lies in none: allocate by another rule"
            )

    @property
    def inside(self) -> Mapping[str, Choice]:
        """What is chosen for the bonds inside of blocks."""
        kinds = {"hidden": self.hidden, "values": self.values, "keys": self.keys, "groups": self.groups}
        return {kind: choice for kind, choice in kinds.items() if choice is not None}

    @property
    def needs(self) -> frozenset[Need]:
        """What its parts need together."""
        found = self.allocate.needs
        for part in (self.stream, *self.inside.values(), self.depth, self.maps, self.vocabulary):
            found |= part.needs if part is not None else frozenset()
        return found | (frozenset({Need.ACTIVATIONS}) if self.statistics is Statistics.COMPRESSED else frozenset())

    @property
    def reads_text(self) -> bool:
        """Whether anything is measured on a calibration text."""
        return bool(self.needs - WITHOUT_TEXT)

    def describe(self) -> dict[str, object]:
        """The parts and their settings as a table, as a TOML recipe would write them."""
        if self.vocabulary is not None:
            return {"vocabulary": describe(self.vocabulary)}
        chosen = {"stream": self.stream, **self.inside, "depth": self.depth}
        return {
            **{role: describe(part) for role, part in chosen.items() if part is not None},
            **({"share": self.share} if self.depth is not None else {}),
            **({"maps": self.maps.describe()} if self.maps is not None else {}),
            "allocate": describe(self.allocate),
            "statistics": self.statistics.value,
        }


@dataclass(frozen=True, kw_only=True)
class Share:
    """A post-training compression in which heads of attention take the weights of others, as many as the budget asks for.

    ``heads`` says how alike two heads are. Each has the most similar one of an earlier block for its match; those that are most like
    theirs take its weights, which are then stored once.
    """

    paper: Paper
    heads: Likeness

    @property
    def needs(self) -> frozenset[Need]:
        """What its part needs."""
        return self.heads.needs

    @property
    def reads_text(self) -> bool:
        """Whether anything is measured on a calibration text."""
        return bool(self.needs - WITHOUT_TEXT)

    def describe(self) -> dict[str, object]:
        """The part and its settings as a table, as a TOML recipe would write them."""
        return {"heads": describe(self.heads)}


AnyRecipe = Compress | Narrow | Share


def describe(part: object) -> Mapping[str, object]:
    """A part's kind and fields.

    >>> describe(Uniform())
    {'part': 'Uniform'}
    """
    values = {f.name: getattr(part, f.name) for f in fields(part)}  # type: ignore[arg-type]
    return {"part": type(part).__name__} | {
        name: describe(value) if is_dataclass(value) else value for name, value in values.items()
    }
