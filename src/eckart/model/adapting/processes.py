"""Several processes that train one model together, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from eckart.errors import EckartError

LONGEST = timedelta(days=7)  # that processes wait for the first one, which may have a large model to measure
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this one is.

    >>> Processes().once(lambda: 3), Processes().share([5, 6, 7])
    (3, [5, 6, 7])
    >>> Processes(1, 2).share([5, 6, 7])
    [6]
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, whole: list[Value]) -> list[Value]:
        """What is this one's of a list that all have; of a short list it may be nothing."""
        return whole[self.index :: self.count]

    def once(self, function: Callable[[], Value]) -> Value:
        """What a function gives in the first process, in all of them; where it raises ``EckartError`` there, all do."""
        if self.count == 1:
            return function()
        told: list[tuple[Value | None, EckartError | None]] = [(None, None)]
        if self.first:
            try:
                told = [(function(), None)]
            except EckartError as error:
                told = [(None, error)]
        broadcast_object_list(told)
        value, refused = told[0]
        if refused is not None:
            raise refused
        return value  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def total(self, own: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.count == 1:
            return own
        found = own.detach().clone()
        dist.all_reduce(found)
        return found

    def rows(self, own: Tensor) -> Tensor:
        """The rows (k, n) of all processes, whose numbers k may differ; only through one's own ones gradients flow."""
        if self.count == 1:
            return own
        sizes = [own.new_zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, own.new_full((1,), len(own), dtype=torch.int64))
        padded = own.new_zeros(int(max(sizes)), *own.shape[1:])
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        parts = [part[: int(size)] for part, size in zip(found, sizes, strict=True)]
        parts[self.index] = own
        return torch.cat(parts)


ALONE = Processes()


def together() -> Processes:
    """The processes that a launcher started beside this one, which can tell each other things from now on; else this one alone."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST)
    return Processes(dist.get_rank(), dist.get_world_size())
