"""How the blocks of a model are called, learnt from the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is given beside the hidden states


@contextmanager
def doing(blocks: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """For the time of the context blocks do something else than their own forward."""
    before = [block.__dict__.get("forward") for block in blocks]  # what accelerate put there, where it did
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


@torch.no_grad()
def listen(blocks: Sequence[nn.Module], run: Callable[[], object]) -> tuple[Tensor, list[Call]] | None:
    """What the first block is given when the model runs, and how each one is called beside that; no block is run.

    ``None`` where the model comes to its end before it has called as many blocks.
    """
    received: list[Tensor] = []
    calls: list[Call] = []

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        received.append(hidden)
        calls.append((args, kwargs))
        if len(calls) == len(blocks):
            raise _LastBlockReached
        return hidden

    with doing(blocks, forward):
        try:
            run()
        except _LastBlockReached:
            return received[0], calls
    return None


class _LastBlockReached(Exception):
    """Ends a run of the model that is only made to listen."""
