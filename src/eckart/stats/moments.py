"""Moments of the inputs of a linear map, accumulated batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.kernels.panels import panels
from eckart.kernels.symmetric import add_gram


@dataclass(kw_only=True)
class Moments:
    """Sums over inputs x of width n, in float64: how many, of x, of ``|x|``, of ``x^2`` and, if wanted, of ``x x^T``.

    Products run in float64 as well: in float32 their rounding would drown every direction below 3e-4 of the strongest,
    and trained models have inputs a thousand times stronger in a few directions than in the others.

    ``gradient``, where a rule needs it, belongs to one map with weight W that is given these inputs: the sum over windows w of
    ``sum_i (dl_w / dW_ij)^2`` for each column j, ``l_w`` being the loss of all tokens of a window together.

    >>> moments = Moments.zeros(2, gram=True)
    >>> moments.add(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    >>> moments.count, moments.magnitude.tolist(), moments.gram.tolist()
    (2, [1.0, 3.0], [[1.0, 2.0], [2.0, 5.0]])
    """

    count: int
    total: Tensor  # (n,)
    magnitude: Tensor  # (n,)
    square: Tensor  # (n,)
    gram: Tensor | None  # (n, n)
    gradient: Tensor | None = None  # (n,)

    @classmethod
    def zeros(cls, width: int, *, gram: bool, device: torch.device | None = None) -> Moments:
        """Nothing seen yet, for inputs of this width."""
        zero = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(
            count=0,
            total=zero.clone(),
            magnitude=zero,
            square=zero.clone(),
            gram=torch.zeros(width, width, dtype=torch.float64, device=device) if gram else None,
        )

    def add(self, x: Tensor) -> None:
        """Take in a batch of inputs (…, n)."""
        x = x.reshape(-1, x.shape[-1])
        self.count += x.shape[0]
        for rows in panels(x):
            self.total += rows.sum(0)
            self.magnitude += rows.abs().sum(0)
            self.square += rows.square().sum(0)
        if self.gram is not None:
            add_gram(self.gram, panels(x))  # in place: a product beside it would take as much room again

    @property
    def energy(self) -> float:
        """``sum ||x||^2``, the trace of the Gram matrix."""
        return float(self.square.sum())

    @property
    def mean_square(self) -> Tensor:
        """``mean x^2`` (n,); zero where nothing was seen."""
        return self.square / max(1, self.count)

    def through(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``mean y y^T`` (m, m) of what a map ``y = W x + b`` makes of the inputs: ``W C W^T`` and what the bias adds to it.

        >>> moments = Moments.zeros(1, gram=True)
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments.through(torch.tensor([[2.0]]), torch.tensor([1.0])).tolist()
        [[29.0]]
        """
        assert self.gram is not None
        wide, count = weight.to(torch.float64), max(1, self.count)
        found = wide @ (self.gram / count) @ wide.T
        if bias is not None:
            added = bias.to(torch.float64)
            crossed = torch.outer(wide @ (self.total / count), added)
            found = found + crossed + crossed.T + torch.outer(added, added)
        return found

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of inputs together."""
        return Moments(
            count=self.count + other.count,
            total=self.total + other.total,
            magnitude=self.magnitude + other.magnitude,
            square=self.square + other.square,
            gram=_both(self.gram, other.gram),
            gradient=_both(self.gradient, other.gradient),
        )


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b
