"""What an adapter is made of: the value that recipes build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from eckart.adapters.base import Base, Untouched
from eckart.adapters.forms import Form
from eckart.adapters.outputs import OutputPenalty
from eckart.adapters.penalties import Penalty
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.roles import Role
from eckart.adapters.rules import GradientRule, Plain
from eckart.adapters.scale import OverRank, Scale
from eckart.adapters.schedules import Constant, Schedule
from eckart.adapters.start import Start
from eckart.adapters.stored import AsItIs, Stored
from eckart.adapters.width import AsAsked, Width
from eckart.model.adapting.pieces import Batch
from eckart.model.adapting.within import Itself, Within
from eckart.model.compression import Narrow, Paper
from eckart.stats import Need

BATCHES = 8  # that starts are measured on


class Ranks(Protocol):
    """Gives maps their ranks by what it does with the model and batches; the model is afterwards as it was."""

    @property
    def batches(self) -> int:
        """How many batches it wants."""

    def __call__(
        self, model: Any, names: Sequence[str], batches: Sequence[Batch], *, rank: int, scale: Scale, seed: int
    ) -> Mapping[str, int]:
        """The rank of each map, where one for all would be ``rank``; a map of rank 0 gets no adapter."""


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """How a model is fine-tuned by few numbers: a ``form`` of update, how it begins, and what becomes of the weight under it:
    what is taken from it (``base``), and how the rest is ``stored``.

    ``roles`` replaces those of the form where a recipe has others, ``rule`` changes gradients before an optimiser sees them,
    ``penalties`` on tensors and on ``outputs`` are added to the loss. ``ranks`` differ from map to map, and a ``schedule`` changes them
    while they train. What they train ``within`` may be a smaller model.

    Raises ``ValueError`` where parts do not fit each other.
    """

    paper: Paper
    form: Form
    start: Start
    base: Base = Untouched()
    stored: Stored = AsItIs()
    scale: Scale = OverRank()
    width: Width = AsAsked()
    roles: Mapping[str, Role] = field(default_factory=dict)
    rule: GradientRule = Plain()
    penalties: tuple[Penalty, ...] = ()
    outputs: tuple[OutputPenalty, ...] = ()
    ranks: Redistribute | Ranks | None = None
    schedule: Schedule = Constant()
    within: Within = Itself()

    def __post_init__(self) -> None:
        self.form.check(self.start.gives)
        self.base.check(self.start, self.form)
        unknown = sorted(set(self.roles) - set(self.form.roles))
        if unknown:
            raise ValueError(f"there is no tensor {unknown[0]} to give a role: {', '.join(self.form.roles)}")
        if not any(role.trains for role in self.tensors.values()):
            raise ValueError("nothing would train: leave the role of one tensor free")
        self.rule.check(self.tensors)
        self.schedule.check(self.tensors)
        self.within.check(self.form, self.base, self.stored)
        if isinstance(self.ranks, Redistribute) and not hasattr(self.start.source, "shares"):
            raise ValueError(
                f"ranks go by what directions explain, which {type(self.start.source).__name__} does not tell: leave ranks out"
            )
        if self.outputs and not self.stored.keeps_the_weight:
            raise ValueError(
                f"outputs can't be held to those of a model that is {type(self.stored).__name__}: leave outputs or stored out"
            )
        for penalty in self.penalties:
            penalty.check(self.tensors)

    @property
    def tensors(self) -> Mapping[str, Role]:
        """All tensors and their roles."""
        return {**self.form.roles, **self.roles}

    @property
    def batches(self) -> int:
        """How many batches of a text it is begun with."""
        return (
            BATCHES if self.ranks is None or isinstance(self.ranks, Redistribute) else max(BATCHES, self.ranks.batches)
        )

    @property
    def needs(self) -> frozenset[Need]:
        """What is to be measured before it can start."""
        return self.start.needs

    def describe(self) -> dict[str, object]:
        """The parts and their settings as a table, as a TOML recipe would write them; what is as it always is, is left out."""
        plain = {f.name: f.default for f in fields(self) if f.name not in ("paper", "form", "start", "roles")}
        found = {name: getattr(self, name) for name, default in plain.items() if getattr(self, name) != default}
        roles = {"roles": {name: asdict(role) for name, role in self.roles.items()}} if self.roles else {}
        return {name: _told(part) for name, part in {"form": self.form, "start": self.start, **found}.items()} | roles


def _told(value: Any) -> Any:
    """A part as a table of its settings without those that there are none of."""
    if isinstance(value, tuple):
        return [_told(part) for part in value]
    if isinstance(value, Narrow):
        return value.describe()
    if not is_dataclass(value):
        return value
    told = {f.name: _told(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    return {"part": type(value).__name__, **told}
