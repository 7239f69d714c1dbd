"""A sparse matrix between all singular vectors of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, FROZEN, Role
from eckart.adapters.seed import LEFT, RIGHT, Params, Seed
from eckart.operator import Dense, Operator, Product


class Places(Protocol):
    """Which entries of a matrix (k, k) train."""

    def __call__(self, left: Tensor, right: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Their rows and columns, for singular vectors ``left`` (m, k) and ``right`` (k, n)."""


@dataclass(frozen=True)
class Band:
    """The diagonal, and as many diagonals to either side of it as the ``width`` says: k (2 width + 1) - width (width + 1) entries.

    >>> [part.tolist() for part in Band(1)(torch.eye(2), torch.eye(2), torch.Generator())]
    [[0, 0, 1, 1], [0, 1, 0, 1]]

    Raises ``ValueError`` unless width is 0 or more.
    """

    width: int = 0

    def __post_init__(self) -> None:
        check_number("width", self.width, least=0)

    def __call__(self, left: Tensor, right: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """The places."""
        size = torch.arange(left.shape[1])
        return _where((size[:, None] - size).abs() <= self.width)


@dataclass(frozen=True)
class Scattered:
    """As many different entries as a band of the width has, anywhere.

    Raises ``ValueError`` unless width is 0 or more.
    """

    width: int = 1

    def __post_init__(self) -> None:
        check_number("width", self.width, least=0)

    def __call__(self, left: Tensor, right: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """The places."""
        k = left.shape[1]
        count = _of_band(k, self.width)
        places = torch.rand(k * k, generator=rng, dtype=torch.float64).argsort()[:count].sort().values
        return places // k, places % k


@dataclass(frozen=True)
class Aligned:
    """The diagonal, and of the other entries those with the largest ``|u_i . v_j|``; for square weights.

    Raises ``ValueError`` unless width is 0 or more.
    """

    width: int = 1

    def __post_init__(self) -> None:
        check_number("width", self.width, least=0)

    def __call__(self, left: Tensor, right: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """The places; ``ValueError`` where the weight is not square."""
        if left.shape[0] != right.shape[1]:
            raise ValueError(
                f"left and right vectors of a {left.shape[0]} x {right.shape[1]} weight can't be compared: take a Band"
            )
        k = left.shape[1]
        alike = (left.T @ right.T).abs().fill_diagonal_(torch.inf)
        places = alike.flatten().argsort(descending=True, stable=True)[: _of_band(k, self.width)].sort().values
        return places // k, places % k


@dataclass(frozen=True)
class SparseMiddle:
    """``U M V^T`` with all singular vectors of the weight and a matrix M of which only some ``places`` train, from zero on.

    The others stay zero. Its rank may be that of the weight.
    """

    places: Places = Band()
    is_product: ClassVar[bool] = False
    is_factored: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, Role]] = {
        LEFT: FROZEN,
        "rows": FROZEN,
        "columns": FROZEN,
        "values": FREE,
        RIGHT: FROZEN,
    }

    def check(self, gives: frozenset[str]) -> None:
        """Both sides."""
        take(gives, "SparseMiddle", needed=(LEFT, RIGHT))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The sides, the places and their values."""
        assert seed.left is not None
        assert seed.right is not None
        rows, columns = self.places(seed.left, seed.right, rng)
        values = torch.zeros(len(rows), dtype=torch.float64)
        return {LEFT: seed.left, "rows": rows, "columns": columns, "values": values, RIGHT: seed.right}

    def update(self, params: Params) -> Operator:
        """The product of the three."""
        k = params[LEFT].shape[1]
        middle = params["values"].new_zeros(k, k).index_put((params["rows"], params["columns"]), params["values"])
        return Product((Dense(params[LEFT]), Dense(middle), Dense(params[RIGHT])))


def _of_band(k: int, width: int) -> int:
    width = min(width, k - 1)
    return k * (2 * width + 1) - width * (width + 1)


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns
