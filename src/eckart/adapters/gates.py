"""Which directions of an adapter act on which token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.draws import Kaiming
from eckart.adapters.roles import FROZEN, Role
from eckart.adapters.seed import Params

BALANCE, ROUTER = "balance", "router"


class Gate(Protocol):
    """Gives each of r directions a weight for each token."""

    @property
    def roles(self) -> Mapping[str, Role]:
        """Its tensors by name, and how each takes part in training."""

    def init(self, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """The tensors as training begins; ``ValueError`` where a rank does not fit."""

    def __call__(self, params: Params, x: Tensor, z: Tensor) -> Tensor:
        """The weights (…, r) for inputs x (…, n), of which the right factor makes z (…, r)."""

    def moved(self, params: Params, weights: Tensor) -> dict[str, Tensor]:
        """Tensors that no gradient moves, as they are after a batch of training that had these weights."""

    def is_open(self, rank: int) -> bool:
        """Whether every direction always acts in full."""


@dataclass(frozen=True)
class TopRanks:
    """For each token the ``count`` directions with the largest ``|z + d|`` act, the first of equals; d (r,) balances how often each does.

    In training d moves by ``step`` towards the directions that acted less often than the mean. It has no part in what is computed.

    >>> params = {"balance": torch.zeros(3)}
    >>> TopRanks(2)(params, torch.zeros(1), torch.tensor([1.0, -5.0, 2.0])).tolist()
    [0.0, 1.0, 1.0]

    Raises ``ValueError`` unless count is at least 1, and step is 0 or more.
    """

    count: int = 8
    step: float = 1e-3
    roles: ClassVar[Mapping[str, Role]] = {BALANCE: FROZEN}

    def __post_init__(self) -> None:
        check_number("count", self.count, least=1)
        check_number("step", self.step, least=0)

    def init(self, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """A balance of zeros."""
        if not 1 <= self.count <= rank:
            raise ValueError(f"{self.count} directions of a rank of {rank}: take at most that")
        return {BALANCE: torch.zeros(rank, dtype=torch.float64)}

    def __call__(self, params: Params, x: Tensor, z: Tensor) -> Tensor:
        """Ones and zeros."""
        sizes = (z + params[BALANCE]).abs().detach()
        chosen = sizes.argsort(dim=-1, descending=True, stable=True)[..., : self.count]
        return torch.zeros_like(z).scatter(-1, chosen, 1.0)

    def moved(self, params: Params, weights: Tensor) -> dict[str, Tensor]:
        """The balance after the batch."""
        often = weights.flatten(0, -2).sum(0)
        return {BALANCE: params[BALANCE] + self.step * torch.sign(often.mean() - often)}

    def is_open(self, rank: int) -> bool:
        """Where none is left out."""
        return self.count >= rank


@dataclass(frozen=True)
class Router:
    """For each token the ``top`` of ``experts`` equal parts of the directions act, with the softmax of ``R x``, brought to a sum of one.

    >>> params = {"router": torch.tensor([[0.0], [0.0], [-9.0]])}
    >>> Router(3, 2)(params, torch.ones(1), torch.ones(6)).tolist()
    [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    """

    experts: int
    top: int
    rate: float = 3e-3  # of the learning rate of the experts

    def __post_init__(self) -> None:
        if not 1 <= self.top <= self.experts:
            raise ValueError(f"{self.top} of {self.experts} experts: let at least one act, and no more than there are")
        if self.top == 1 < self.experts:
            raise ValueError("the weight of a single expert is always 1, so that nothing would route: let two act")

    @property
    def roles(self) -> Mapping[str, Role]:
        """The matrix that routes."""
        return {ROUTER: Role(rate=self.rate)}

    def init(self, weight: Tensor, rank: int, rng: Generator) -> dict[str, Tensor]:
        """A random matrix (experts, n)."""
        if rank % self.experts:
            raise ValueError(f"a rank of {rank} is no multiple of {self.experts} experts")
        return {ROUTER: Kaiming()((self.experts, weight.shape[1]), rng)}

    def __call__(self, params: Params, x: Tensor, z: Tensor) -> Tensor:
        """The weight of its expert for each direction."""
        shares = (x @ params[ROUTER].T).softmax(-1)
        chosen = shares.detach().argsort(dim=-1, descending=True, stable=True)[..., : self.top]
        kept = shares * torch.zeros_like(shares).scatter(-1, chosen, 1.0)
        return (kept / kept.sum(-1, keepdim=True)).repeat_interleave(z.shape[-1] // self.experts, dim=-1)

    def moved(self, params: Params, weights: Tensor) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def is_open(self, rank: int) -> bool:
        """Where there is one expert."""
        return self.experts == 1
