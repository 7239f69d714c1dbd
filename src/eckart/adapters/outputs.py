"""What is added to the loss to keep what a model says in shape, beside what the untouched model says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.adapters.checked import check_number


class OutputPenalty(Protocol):
    """A number for the logits ``own`` (rows, D) of a batch: a row for each token that counts, or for each text.

    ``reference`` are those of the untouched model.
    """

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The number, with its weight."""


@dataclass(frozen=True)
class Divergence:
    """``weight`` times the mean over rows of ``KL(softmax reference || softmax own)``.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> float(Divergence(1.0)(logits, logits))
    0.0

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The divergence."""
        return self.weight * F.kl_div(
            own.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
        )


@dataclass(frozen=True)
class Distance:
    """``weight`` times the mean square of what rows are apart once each has length 1.

    >>> float(Distance(1.0)(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])))
    1.0

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The distance."""
        return self.weight * F.mse_loss(F.normalize(own, dim=-1), F.normalize(reference, dim=-1))


@dataclass(frozen=True)
class Certainty:
    """``-weight`` times the mean entropy of a row: certainty costs.

    >>> round(float(Certainty(1.0)(torch.zeros(3, 4), torch.zeros(3, 4))), 4)
    -1.3863

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The negative entropy."""
        logs = own.log_softmax(-1)
        return self.weight * (logs.exp() * logs).sum(-1).mean()


@dataclass(frozen=True)
class Correlation:
    """``weight / D`` times the sum of the squares of all covariances between different columns, over the rows of a batch.

    >>> float(Correlation(1.0)(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2, 2)))
    4.0

    Raises ``ValueError`` unless weight is 0 or more.
    """

    weight: float

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The sum; nothing for a single row."""
        if len(own) < 2:
            return own.sum() * 0.0
        centred = own - own.mean(0)
        covariance = centred.T @ centred / (len(own) - 1)
        off = covariance - covariance.diagonal().diag()
        return self.weight * off.square().sum() / own.shape[1]


@dataclass(frozen=True)
class Spread:
    """``-weight`` times the share that the ``leading`` singular values of the logits have of the sum of all.

    Values come from the Gram matrix of the smaller side in float64; the gradient is ``U V^T`` over the leading ones and over all, no
    derivative of a vector being taken.

    >>> round(float(Spread(1.0, 1)(torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(2, 2))), 6)
    -0.75

    Raises ``ValueError`` unless weight is 0 or more, and leading is at least 1.
    """

    weight: float
    leading: int = 3

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)
        check_number("leading", self.leading, least=1)

    def __call__(self, own: Tensor, reference: Tensor) -> Tensor:
        """The negative share; 0 for logits of zero."""
        wide = own.to(torch.float64)
        gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
        energies = torch.linalg.eigvalsh(gram).flip(0)
        # A value of zero has no gradient of its own: the root is taken where rounding has not made it all.
        floor = energies.detach()[:1].clamp(min=0) * len(energies) * torch.finfo(torch.float64).eps
        values = torch.where(energies > floor, energies, torch.ones_like(energies)).sqrt() * (energies > floor)
        total = values.sum()
        share = values[: self.leading].sum() / torch.where(total > 0, total, torch.ones_like(total))
        return -self.weight * share.to(own.dtype)
