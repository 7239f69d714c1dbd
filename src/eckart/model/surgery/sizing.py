"""How large an adapter is to be: one rank, a share of energy or of error for each module, or bytes for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eckart.allocate import BondSlot, Greedy
from eckart.allocate.slots import BudgetError
from eckart.errors import EckartError
from eckart.fit import Fit
from eckart.linalg import truncated_svd
from eckart.linalg.certified import PLAIN
from eckart.metric import Metric
from eckart.operator import Operator


@dataclass(frozen=True)
class ToRank:
    """The same rank for every module."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise EckartError(f"--rank is {self.rank}: give at least 1")


@dataclass(frozen=True)
class ToEnergy:
    """For each module the least rank that keeps this share of the squared Frobenius norm."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise EckartError(f"--energy is {self.share:g}: give a share above 0 and up to 1")


@dataclass(frozen=True)
class ToError:
    """For each module the least rank whose certified error is at most this share of the Frobenius norm."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise EckartError(f"--error is {self.share:g}: give a share from 0 to below 1")


@dataclass(frozen=True)
class ToBytes:
    """The bytes of the whole file of tensors: ranks go where the next one saves most squared error a byte."""

    size: int


Size = ToRank | ToEnergy | ToError | ToBytes


def fitted(
    update: Operator | Tensor,
    size: ToRank | ToEnergy | ToError,
    dtype: torch.dtype,
    *,
    accuracy: float = 0.0,
    metric: Metric = PLAIN,
    close: bool = False,
) -> Fit:
    """The best factors in ``dtype`` of a size, in a metric; of a rank above the sides of the matrix, those of the smaller side.

    With ``close`` the lower bound comes near the optimum whichever way they were found, and there is one in the spectral norm.

    >>> from eckart.operator import Factors
    >>> update = Factors(torch.eye(4)[:, :2] * torch.tensor([2.0, 1.0]), torch.eye(4)[:2])
    >>> round(fitted(update, ToRank(1), torch.float32).bounds[0].relative, 6)  # the root of 1 / 5
    0.447214
    >>> fitted(update, ToEnergy(0.9), torch.float32).op.rank
    2

    Raises ``ValueError`` as ``truncated_svd`` does.
    """
    found = partial(truncated_svd, update, accuracy=accuracy, metric=metric, dtype=dtype, spectral=close)
    match size:
        case ToRank(rank):
            return found(min(rank, *update.shape))
        case ToEnergy(share):
            return found(energy=float(share))
        case ToError(share):
            return found(error=float(share))


@dataclass(frozen=True)
class Costs:
    """What the ranks of one module leave out, ``tails`` (k + 1,) of squared norm from rank 0 to k, and the bytes of one rank."""

    tails: Tensor
    rank_bytes: int

    @classmethod
    def of(cls, values: Tensor, rank_bytes: int) -> Costs:
        """From the singular values (k,) of the module's update."""
        squares = torch.cat([values.double().square(), values.new_zeros(1, dtype=torch.float64)])
        return cls(squares.flip(0).cumsum(0).flip(0), rank_bytes)


def spread(modules: Mapping[str, Costs], budget: int, rest: int) -> dict[str, ToRank]:
    """Ranks for a file of ``budget`` bytes of which ``rest`` are not for factors: from rank 1 on, always the largest gain a byte.

    Squared singular values fall, so that this is the best there is to within one step.

    >>> steep, flat = Costs.of(torch.tensor([9.0, 1.0]), 8), Costs.of(torch.tensor([4.0, 3.0]), 8)
    >>> {name: size.rank for name, size in spread({"steep": steep, "flat": flat}, 24, 0).items()}
    {'steep': 1, 'flat': 2}

    Raises ``EckartError`` where rank 1 everywhere is too much.
    """
    slots = {
        name: BondSlot(size=len(costs.tails) - 1, unit_bytes=costs.rank_bytes, losses=costs.tails)
        for name, costs in modules.items()
    }
    try:
        ranks = Greedy()(slots, budget - rest).ranks
    except BudgetError as error:
        raise EckartError(
            f"--bytes is {budget:,}: rank 1 for each of the {len(slots)} modules takes {error.smallest + rest:,} bytes; give at least those"
        ) from error
    return {name: ToRank(slots[name].size if rank is None else rank) for name, rank in ranks.items()}
