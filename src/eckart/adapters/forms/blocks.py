"""Some blocks of a weight train, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, FROZEN, Role
from eckart.adapters.seed import PLACES, Params, Seed
from eckart.operator import Dense, Operator

VALUES, SIZES = "values", "sizes"


@dataclass(frozen=True)
class Blocks:
    """What is added to chosen blocks of a side ``size``: ``values`` (b, size, size), at the ``places`` (b, 2), counted in blocks.

    Blocks at the edge reach beyond the weight; what lies there is left out.

    Raises ``ValueError`` unless size is at least 1.
    """

    size: int = 256
    is_product: ClassVar[bool] = False
    is_factored: ClassVar[bool] = False
    roles: ClassVar[Mapping[str, Role]] = {VALUES: FREE, PLACES: FROZEN, SIZES: FROZEN}

    def __post_init__(self) -> None:
        check_number("size", self.size, least=1)

    def check(self, gives: frozenset[str]) -> None:
        """The places."""
        take(gives, "Blocks", needed=(PLACES,))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Zeros, the places, and the shape of the weight."""
        assert seed.places is not None
        values = torch.zeros(len(seed.places), self.size, self.size, dtype=torch.float64)
        return {VALUES: values, PLACES: seed.places, SIZES: torch.tensor(weight.flatten(1).shape)}

    def update(self, params: Params) -> Operator:
        """A matrix that is zero but for those blocks."""
        m, n = (int(size) for size in params[SIZES])
        rows, columns = params[PLACES].unbind(1)
        if params[VALUES].shape[1:] != (self.size, self.size):
            raise ValueError(
                f"blocks of {list(params[VALUES].shape[1:])}, where the form has {self.size} x {self.size}"
            )
        whole = params[VALUES].new_zeros(-(-m // self.size), -(-n // self.size), self.size, self.size)
        whole = whole.index_put((rows, columns), params[VALUES])
        return Dense(whole.transpose(1, 2).flatten(2).flatten(0, 1)[:m, :n])


def block_means(matrix: Tensor, size: int) -> Tensor:
    """The mean magnitude of the entries of each block (rows of blocks, columns of blocks); at the edge of those that are there.

    >>> block_means(torch.tensor([[1.0, -1.0, 4.0], [1.0, -1.0, -2.0]]), 2).tolist()
    [[1.0, 3.0]]
    """
    m, n = matrix.shape
    padding = (0, -n % size, 0, -m % size)

    def summed(entries: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(entries, padding)
        return padded.unfold(0, size, size).unfold(1, size, size).sum((2, 3))

    return summed(matrix.abs()) / summed(torch.ones_like(matrix))
