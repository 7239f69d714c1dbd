"""What a parametrisation is: how the change of a weight is expressed by tensors that train and tensors that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Generator, Tensor

from eckart.adapters.roles import Role
from eckart.adapters.seed import Params, Seed
from eckart.operator import Operator


class Form(Protocol):
    """An update of a weight (m, n), a function of its tensors. Forward, merged weight and export all follow from ``update``."""

    @property
    def roles(self) -> Mapping[str, Role]:
        """The tensors by name, and how each takes part in training."""

    @property
    def is_product(self) -> bool:
        """Whether it begins as the product of the parts that a start makes, and not at zero between or beside them."""

    @property
    def is_factored(self) -> bool:
        """Whether what it adds to a matrix is a product of two factors, whatever it learns and whatever comes in."""

    def check(self, gives: frozenset[str]) -> None:
        """Raise ``ValueError`` where a start that makes these parts does not fit."""

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The tensors by name, in float64, as training begins; ``ValueError`` where a rank does not fit."""

    def update(self, params: Params) -> Operator:
        """What is added to the weight, scale aside."""


def take(gives: frozenset[str], form: str, *, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> None:
    """Raise ``ValueError`` where parts are missing or there are parts that a form has no place for.

    >>> take(frozenset({"right"}), "Pair", needed=("right",), allowed=("left",))
    """
    missing = [name for name in needed if name not in gives]
    if missing:
        raise ValueError(
            f"{form} begins with a {missing[0]} part, which the start does not make: it makes {_listed(gives)}"
        )
    beyond = sorted(gives - {*needed, *allowed})
    if beyond:
        raise ValueError(f"{form} has no place for the {beyond[0]} part of the start: split it off")


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"
