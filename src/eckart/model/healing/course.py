"""How long and how fast a healing trains, and on which windows, all of it known from the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.run import seeded

HELD_OUT = 0.1  # the share of windows that only judges
HELD_OUT_TOKENS = 8192  # and the most that it needs to be
WARM_UP = 0.1  # the share of steps in which the rate rises


@dataclass(frozen=True, kw_only=True)
class Course:
    """Steps, the highest rate, tokens a step, tokens a window (``None``: the model's context, at most 2048), seed and device.

    Raises ``EckartError`` for values that make no sense.
    """

    steps: int = 300
    rate: float = 1e-4
    batch_tokens: int = 2048
    window: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EckartError(f"--steps is {self.steps}: give at least 1")
        if not 0 < self.rate < math.inf:
            raise EckartError(f"--rate is {self.rate:g}: give a number above 0, such as 1e-4")
        if self.batch_tokens < 1:
            raise EckartError(f"--batch-tokens is {self.batch_tokens}: give at least 1; whole windows are taken")

    def windows_at_once(self, length: int) -> int:
        """How many windows of this length a step takes.

        >>> Course(batch_tokens=1000).windows_at_once(256), Course(batch_tokens=1).windows_at_once(256)
        (3, 1)
        """
        return max(1, self.batch_tokens // length)

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0: linear up to the highest one, then half a cosine down.

        >>> [round(Course(steps=20, rate=1.0).rate_at(step), 4) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.0076]
        """
        rise = max(1, round(WARM_UP * self.steps))
        if step < rise:
            return self.rate * (step + 1) / rise
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def split(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """The windows (k, length) to train on, and those held out, at least one of each; k is at least 2."""
        share = min(int(HELD_OUT * len(windows)), HELD_OUT_TOKENS // windows.shape[1])
        order = torch.randperm(len(windows), generator=seeded(self.seed, "held-out"))
        held = max(1, share)
        return windows[order[held:].sort().values], windows[order[:held].sort().values]

    def batches(self, windows: Tensor, first: int) -> Iterator[Tensor]:
        """The windows of each step from ``first`` on: all of them in an order of the seed, then in another one, and so on.

        >>> [batch.T.tolist() for batch in Course(steps=3, batch_tokens=2).batches(torch.arange(3)[:, None], 1)]
        [[[1, 0]], [[1, 2]]]
        """
        size = self.windows_at_once(windows.shape[1])
        orders: dict[int, Tensor] = {}
        for step in range(first, self.steps):
            places = [divmod(step * size + i, len(windows)) for i in range(size)]
            for epoch in {epoch for epoch, _ in places} - orders.keys():
                orders[epoch] = torch.randperm(len(windows), generator=seeded(self.seed, f"epoch/{epoch}"))
            yield windows[torch.stack([orders[epoch][place] for epoch, place in places])]
