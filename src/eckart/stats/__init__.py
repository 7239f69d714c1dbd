"""Streaming statistics of activations, and the metrics made from them."""

from eckart.stats.moments import Moments
from eckart.stats.rules import (
    WITHOUT_TEXT,
    ActivationScale,
    Covariance,
    FisherColumns,
    Gram,
    MetricRule,
    Need,
    Plain,
    RootMeanSquare,
)

__all__ = [
    "WITHOUT_TEXT",
    "ActivationScale",
    "Covariance",
    "FisherColumns",
    "Gram",
    "MetricRule",
    "Moments",
    "Need",
    "Plain",
    "RootMeanSquare",
]
