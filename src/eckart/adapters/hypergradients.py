"""Gradients of what is chosen by one loss, where factors follow another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eckart.adapters.checked import check_number

Loss = Callable[[], Tensor]  # computed anew from tensors as they stand


class Hypergradient(Protocol):
    """The gradient of a loss ``judged`` by free numbers h, where factors w learn by a loss ``learnt``."""

    def __call__(
        self, learnt: Loss, judged: Loss, factors: Sequence[Tensor], free: Sequence[Tensor], rate: float
    ) -> tuple[Tensor, ...]:
        """The gradient for each of the free numbers, at the factors' learning rate; all tensors are afterwards as they were."""


@dataclass(frozen=True)
class Direct:
    """``dJ/dh`` at the factors as they are.

    >>> w, h = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> [float(found) for found in Direct()(lambda: h * w, lambda: h * w * w, [w], [h], 0.1)]
    [9.0]
    """

    def __call__(
        self, learnt: Loss, judged: Loss, factors: Sequence[Tensor], free: Sequence[Tensor], rate: float
    ) -> tuple[Tensor, ...]:
        """The gradient."""
        return _gradient(judged, free)


@dataclass(frozen=True)
class Unrolled:
    """The gradient by h of ``J(w - t dL/dw, h)``, which is what is judged after a step of rate t.

    It is ``dJ/dh - t (d/dh dL/dw) v`` with ``v = dJ/dw`` after the step. The product with v is the difference of ``dL/dh`` at
    ``w + e v`` and ``w - e v`` over 2 e, e being ``nudge`` over the length of v (Liu et al. 2019).

    >>> w, h = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    >>> [round(float(found), 3) for found in Unrolled()(lambda: h * w, lambda: h * w * w, [w], [h], 0.1)]
    [6.72]

    Raises ``ValueError`` unless nudge is above 0.
    """

    nudge: float = 1e-2

    def __post_init__(self) -> None:
        check_number("nudge", self.nudge, above=0)

    def __call__(
        self, learnt: Loss, judged: Loss, factors: Sequence[Tensor], free: Sequence[Tensor], rate: float
    ) -> tuple[Tensor, ...]:
        """The gradient."""
        begun = [factor.detach().clone() for factor in factors]
        step = _gradient(learnt, factors)
        _put(factors, begun, step, -rate)
        found = _gradient(judged, [*free, *factors])
        direct, along = found[: len(free)], found[len(free) :]
        length = torch.stack([torch.linalg.vector_norm(part) for part in along]).norm()
        if float(length) == 0:
            _put(factors, begun, step, 0.0)
            return direct
        nudge = self.nudge / float(length)
        sides = []
        for sign in (1, -1):
            _put(factors, begun, along, sign * nudge)
            sides.append(_gradient(learnt, free))
        _put(factors, begun, step, 0.0)
        return tuple(
            own - rate * (above - below) / (2 * nudge) for own, above, below in zip(direct, *sides, strict=True)
        )


def _gradient(loss: Loss, by: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros for what the loss does not depend on."""
    return torch.autograd.grad(loss(), by, allow_unused=True, materialize_grads=True)


def _put(factors: Sequence[Tensor], begun: Sequence[Tensor], along: Sequence[Tensor], much: float) -> None:
    """Put factors where they began, and so much of a direction further; nothing of it, and they are bitwise there again."""
    for factor, start, direction in zip(factors, begun, along, strict=True):
        factor.data.copy_(start + much * direction if much else start)
