"""Rules that turn statistics of a map's inputs into the metric in which its error is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Protocol

import torch

from eckart.metric import Metric
from eckart.stats.moments import Moments


class Need(Enum):
    """What a part must be given before it can work."""

    ACTIVATIONS = auto()  # magnitudes of the inputs
    GRAM = auto()  # second moments of the inputs
    SPECTRA = auto()  # how the error of each matrix falls with its rank
    SENSITIVITY = auto()  # how the loss answers to an error of each matrix
    INFLUENCE = auto()  # how much each block turns the stream
    KINDS = auto()  # which bond inside of its block each map meets
    GRADIENTS = auto()  # how the loss answers to each column of each matrix
    FORWARD_SENSITIVITY = auto()  # how the loss answers to noise on the matrices of each block, without gradients
    LOSS = auto()  # the loss, measured again for every choice that is tried
    WORDS = auto()  # how often each token id occurs in the text


WITHOUT_TEXT = frozenset({Need.SPECTRA, Need.KINDS})  # what the weights alone tell, in a metric that needs nothing


class MetricRule(Protocol):
    """Makes a metric from what was seen of a map's inputs."""

    needs: ClassVar[frozenset[Need]]

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric; ``moments`` may be ``None`` where ``needs`` is empty."""


@dataclass(frozen=True)
class Plain:
    """Every entry of the error counts the same: the Frobenius norm.

    >>> Plain()(None).norm(__import__("torch").eye(4))
    2.0
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        return Metric.plain()


@dataclass(frozen=True)
class ActivationScale:
    """Column j of the error counts ``(mean |x_j|)^power + floor``, floor being relative to the largest.

    >>> import torch
    >>> moments = Moments.zeros(2, gram=False)
    >>> moments.add(torch.tensor([[4.0, 0.25]]))
    >>> ActivationScale(power=0.5, floor=0.0)(moments).right.tolist()
    [2.0, 0.5]
    """

    power: float = 0.5
    floor: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"power {self.power:g} must be finite, and floor {self.floor:g} finite and not below 0")

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        assert moments is not None
        if moments.count == 0 or moments.energy == 0:
            return Metric.plain()  # nothing ever arrives here: every error counts the same
        scale = (moments.magnitude / moments.count) ** self.power
        return Metric("activation scale", scale + self.floor * scale.max())


@dataclass(frozen=True)
class RootMeanSquare:
    """Column j of the error counts ``sqrt(mean x_j^2)``: the size of the output error over inputs that are not correlated.

    >>> import torch
    >>> moments = Moments.zeros(2, gram=False)
    >>> moments.add(torch.tensor([[3.0, 1.0], [-3.0, 1.0]]))
    >>> RootMeanSquare()(moments).right.tolist()
    [3.0, 1.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATIONS})

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        assert moments is not None
        if moments.count == 0 or moments.energy == 0:
            return Metric.plain()
        return Metric("input scale", moments.mean_square.sqrt())


@dataclass(frozen=True)
class FisherColumns:
    """Column j of the error counts ``f_j = sqrt(sum_i I_ij)``, at least ``floor`` times the largest.

    ``I_ij`` is the Fisher information of the entry ``W_ij`` per token: the mean squared gradient of the loss of a window, over its tokens,
    for labels drawn from the model.

    >>> import torch
    >>> moments = Moments.zeros(2, gram=False)
    >>> moments.add(torch.ones(4, 2))
    >>> moments.gradient = torch.tensor([36.0, 0.0], dtype=torch.float64)
    >>> FisherColumns(floor=0.01)(moments).right.tolist()
    [3.0, 0.03]
    """

    floor: float = 1e-6
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor {self.floor:g} must be from 0 to 1")

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        assert moments is not None
        if moments.count == 0 or moments.gradient is None or not bool(moments.gradient.any()):
            return Metric.plain()  # nothing that is done to this map changes the loss
        scale = (moments.gradient / moments.count).sqrt()
        return Metric("fisher columns", scale.clamp_min(self.floor * float(scale.max())))


@dataclass(frozen=True)
class Gram:
    """The mean size of the output error over the calibration inputs: ``||E R||_F`` with ``R R^T = mean x x^T``.

    >>> import torch
    >>> moments = Moments.zeros(2, gram=True)
    >>> moments.add(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    >>> round(Gram()(moments).norm(torch.eye(2)), 9)
    5.0
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        assert moments is not None
        assert moments.gram is not None
        if moments.count == 0 or moments.energy == 0:
            return Metric.plain()
        return Metric.gram("input gram", moments.gram, moments.count)


@dataclass(frozen=True)
class Covariance:
    """``||E R||_F`` with R the second moment ``mean x x^T`` itself, and ``damping`` times its mean energy on the diagonal.

    Not a size of output errors: directions count by their energy, where the root of the moment counts them by their length.

    >>> import torch
    >>> moments = Moments.zeros(2, gram=True)
    >>> moments.add(torch.tensor([[3.0, 0.0], [3.0, 2.0]]))
    >>> Covariance(damping=0.0)(moments).right.tolist()
    [[9.0, 3.0], [3.0, 2.0]]
    """

    damping: float = 0.01
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping {self.damping:g} must be finite and not below 0")

    def __call__(self, moments: Moments | None) -> Metric:
        """The metric of these moments."""
        assert moments is not None
        assert moments.gram is not None
        if moments.count == 0 or moments.energy == 0:
            return Metric.plain()
        mean = moments.gram / moments.count
        return Metric(
            "covariance", mean + self.damping * float(mean.diagonal().mean()) * torch.eye(len(mean), dtype=mean.dtype)
        )
