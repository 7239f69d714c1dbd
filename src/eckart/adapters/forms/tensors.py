"""Updates that are tensors of several modes: Tucker's form, and tensor trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.draws import Gaussian
from eckart.adapters.forms.protocol import take
from eckart.adapters.roles import FREE, Role
from eckart.adapters.seed import CORE, CORES, Params, Seed
from eckart.operator import Dense, Factors, Operator, TensorTrain

MOST_MODES = 5  # outputs, inputs, and the three axes of a kernel
MOST_CORES = 64  # so many digits has no side more


@dataclass(frozen=True)
class Tucker:
    """``G x_1 U_1 ... x_N U_N`` for a weight of N modes: a factor (d_i, r_i) for each, ``mode_i``, around a ``core`` that begins at zero.

    Outputs and inputs have the rank that is asked for, modes of a kernel ``kernel``; none has more than its size. Factors are normal
    with deviation ``sqrt(1 / (2 r_i))``. A linear map is of two modes.
    """

    modes: int = 2
    kernel: int = 2
    is_product: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("modes", self.modes, least=2, most=MOST_MODES)
        check_number("kernel", self.kernel, least=1)

    @property
    def is_factored(self) -> bool:
        """That of two modes."""
        return self.modes == 2

    @property
    def roles(self) -> Mapping[str, Role]:
        """The core and the factors."""
        return {CORE: FREE, **{f"mode_{i}": FREE for i in range(self.modes)}}

    def check(self, gives: frozenset[str]) -> None:
        """Nothing is begun with."""
        take(gives, "Tucker", needed=())

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """Core and factors; ``ValueError`` for a weight of another order."""
        if weight.ndim != self.modes:
            raise ValueError(f"a weight of {weight.ndim} modes, where the form has {self.modes}: name others with only")
        ranks = [min(size, self.kernel if i > 1 else rank) for i, size in enumerate(weight.shape)]
        factors = {
            f"mode_{i}": Gaussian(math.sqrt(0.5 / r))((size, r), rng)
            for i, (size, r) in enumerate(zip(weight.shape, ranks, strict=True))
        }
        return {CORE: torch.zeros(ranks, dtype=torch.float64), **factors}

    def update(self, params: Params) -> Operator:
        """The tensor, flattened behind its first mode; of two modes a product."""
        if self.modes == 2:
            return Factors(params["mode_0"] @ params[CORE], params["mode_1"].T)
        tensor = params[CORE]
        for i in reversed(range(self.modes)):  # kernels first: they are the smallest
            tensor = torch.tensordot(params[f"mode_{i}"], tensor, dims=([1], [self.modes - 1]))
        return Dense(tensor.flatten(1))


@dataclass(frozen=True)
class Train:
    """A tensor train of ``count`` cores, all of which train.

    Raises ``ValueError`` unless there are 1 to 64.
    """

    count: int = 3
    is_product: ClassVar[bool] = True
    is_factored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("count", self.count, least=1, most=MOST_CORES)

    @property
    def roles(self) -> Mapping[str, Role]:
        """The cores."""
        return {f"core_{i}": FREE for i in range(self.count)}

    def check(self, gives: frozenset[str]) -> None:
        """All cores."""
        take(gives, "Train", needed=(CORES,))

    def init(self, seed: Seed, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The cores; ``ValueError`` where the start makes another number of them."""
        if len(seed.cores) != self.count:
            raise ValueError(f"a train of {self.count} cores, and a start of {len(seed.cores)}")
        return {f"core_{i}": core for i, core in enumerate(seed.cores)}

    def update(self, params: Params) -> Operator:
        """The train."""
        return TensorTrain(tuple(params[name] for name in self.roles))
