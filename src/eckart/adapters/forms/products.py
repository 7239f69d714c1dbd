"""Updates that are products of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.draws import Draw, Kaiming, Level
from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, FROZEN, Role
from eckart.adapters.seed import CORE, LEFT, MIDDLE, RIGHT, Params, Seed
from eckart.operator import Factors

OUTPUTS, WITHIN = "outputs", "within"


@dataclass(frozen=True)
class Pair:
    """``B A`` with B (m, r) and A (r, n): ``left`` and ``right``. A left side that the start does not make is zero (Hu et al. 2021)."""

    is_product: ClassVar[bool] = True
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {LEFT: FREE, RIGHT: FREE}

    def check(self, gives: frozenset[str]) -> None:
        """Both sides, or the right one."""
        take(gives, "Pair", needed=(RIGHT,), allowed=(LEFT,))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Both factors."""
        return _sides(seed, weight, rank)

    def update(self, params: Params) -> Factors:
        """The product."""
        return Factors(params[LEFT], params[RIGHT])


@dataclass(frozen=True)
class Spectral:
    """``B diag(d) A`` with a number for each of r directions: ``left``, ``middle``, ``right``, as in a singular value decomposition."""

    is_product: ClassVar[bool] = True
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {LEFT: FREE, MIDDLE: FREE, RIGHT: FREE}

    def check(self, gives: frozenset[str]) -> None:
        """The right side; a middle or a left one that the start does not make is zero."""
        take(gives, "Spectral", needed=(RIGHT,), allowed=(LEFT, MIDDLE))
        if not gives & {LEFT, MIDDLE}:
            raise ValueError(
                "with its left and its middle part at zero a Spectral form has no gradient: begin with one of them"
            )

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The three of them."""
        middle = torch.zeros(rank, dtype=torch.float64) if seed.middle is None else seed.middle
        return {**_sides(seed, weight, rank), MIDDLE: middle}

    def update(self, params: Params) -> Factors:
        """The product."""
        return Factors(params[LEFT] * params[MIDDLE], params[RIGHT])


@dataclass(frozen=True)
class Cored:
    """``B N A`` with a square N (r, r) in the middle: ``left``, ``core`` and ``right``.

    Singular values that the start leaves apart become the diagonal of N; without any N is zero where the sides are there.
    """

    is_product: ClassVar[bool] = True
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {LEFT: FREE, CORE: FREE, RIGHT: FREE}

    def check(self, gives: frozenset[str]) -> None:
        """Two of the three at least."""
        take(gives, "Cored", needed=(RIGHT,), allowed=(LEFT, CORE, MIDDLE))
        if not gives & {LEFT, CORE, MIDDLE}:
            raise ValueError("with its left and its core at zero a Cored form has no gradient: begin with one of them")

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The three of them."""
        core = torch.zeros(rank, rank, dtype=torch.float64) if seed.middle is None else seed.middle.diag()
        return {**_sides(seed, weight, rank), CORE: core if seed.core is None else seed.core}

    def update(self, params: Params) -> Factors:
        """The product."""
        return Factors(params[LEFT] @ params[CORE], params[RIGHT])


@dataclass(frozen=True)
class Nested:
    """``B (B' A') A``: a pair of rank ``inner`` trains between sides that are frozen; B' begins at zero, A' is drawn.

    Raises ``ValueError`` unless inner is at least 1.
    """

    inner: int = 16
    draw: Draw = Kaiming()
    is_product: ClassVar[bool] = False
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {LEFT: FROZEN, "inner_left": FREE, "inner_right": FREE, RIGHT: FROZEN}

    def __post_init__(self) -> None:
        check_number("inner", self.inner, least=1)

    def check(self, gives: frozenset[str]) -> None:
        """Both sides."""
        take(gives, "Nested", needed=(LEFT, RIGHT))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The sides and what lies between them; ``ValueError`` where the inner rank is above the outer one."""
        if not 1 <= self.inner <= rank:
            raise ValueError(f"an inner rank of {self.inner} within a rank of {rank}: take at most that")
        return {
            **_sides(seed, weight, rank),
            "inner_left": torch.zeros(rank, self.inner, dtype=torch.float64),
            "inner_right": self.draw((self.inner, rank), rng),
        }

    def update(self, params: Params) -> Factors:
        """The product, of the inner rank."""
        return Factors(params[LEFT] @ params["inner_left"], params["inner_right"] @ params[RIGHT])


@dataclass(frozen=True)
class Vectors:
    """``diag(b) B diag(d) A`` with sides that are frozen: b (m,), ``outputs``, begins at zero, d (r,), ``within``, at one value."""

    within: Draw = Level(0.1)
    is_product: ClassVar[bool] = False
    is_factored: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        LEFT: FROZEN,
        RIGHT: FROZEN,
        OUTPUTS: Role(decay=False),
        WITHIN: Role(decay=False),
    }

    def check(self, gives: frozenset[str]) -> None:
        """Both sides."""
        take(gives, "Vectors", needed=(LEFT, RIGHT))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The sides and the vectors."""
        assert seed.left is not None
        assert seed.right is not None
        return {
            LEFT: seed.left,
            RIGHT: seed.right,
            OUTPUTS: torch.zeros(len(weight), dtype=torch.float64),
            WITHIN: self.within((rank,), rng),
        }

    def update(self, params: Params) -> Factors:
        """The product."""
        return Factors(params[OUTPUTS][:, None] * params[LEFT], params[WITHIN][:, None] * params[RIGHT])


def _sides(seed: Seed, weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Left and right of a seed, the left one zero where it made none."""
    assert seed.right is not None
    left = torch.zeros(len(weight), rank, dtype=torch.float64) if seed.left is None else seed.left
    return {LEFT: left, RIGHT: seed.right}
