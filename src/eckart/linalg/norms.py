"""The spectral norm of a matrix, enclosed from both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.linalg.svd import LAPACK_SIDE, singular_values

PROBES = 10  # random starts; the upper bound fails with probability 10 ** -PROBES
STEPS = 24  # products with E E^T; the bound is then at most (10 sqrt(2 / pi)) ** (1 / 49) = 1.044 too large


@dataclass(frozen=True)
class SpectralNorm:
    """``value <= true norm <= upper``; ``delta`` is the probability that ``upper`` fails, 0 where it is certain."""

    value: float
    upper: float
    delta: float


def spectral_norm(e: Tensor, rng: Generator) -> SpectralNorm:
    """Enclose the largest singular value of ``e`` (m, n) in float64.

    Up to a smaller side of ``LAPACK_SIDE`` all singular values are computed, the enclosure is that of rounding. Above it,
    ``PROBES`` Gaussian vectors w are taken through ``STEPS`` products: with M = (E E^T)^q E,
    ``norm(M) <= 10 sqrt(2/pi) max norm(M w)`` but for a probability 10^-PROBES (Halko, Martinsson and Tropp 2011,
    lemma 4.1), and ``norm(E) = norm(M) ** (1 / (2 q + 1))``.

    >>> bound = spectral_norm(torch.diag(torch.tensor([3.0, 1.0])), Generator().manual_seed(0))
    >>> round(bound.value, 9), bound.value <= bound.upper, bound.delta
    (3.0, True, 0.0)
    """
    e = e.to(torch.float64)
    if min(e.shape) <= LAPACK_SIDE:
        exact = singular_values(e)
        top = float(exact.s[0]) if len(exact.s) else 0.0
        return SpectralNorm(top, top + exact.slack, 0.0)
    if not bool(e.any()):
        return SpectralNorm(0.0, 0.0, 0.0)
    probes = torch.randn(e.shape[1], PROBES, generator=rng, dtype=torch.float64).to(e.device)
    logs = torch.zeros(PROBES, dtype=torch.float64, device=e.device)  # log norm(M w), rescaled against overflow
    x = probes
    for step in range(STEPS + 1):
        y = e @ x
        growth = torch.linalg.vector_norm(y, dim=0)
        logs += growth.log()
        y = y / growth
        if step < STEPS:
            x = e.T @ y
            growth = torch.linalg.vector_norm(x, dim=0)
            logs += growth.log()
            x = x / growth
    value = float(torch.linalg.vector_norm(e.T @ y, dim=0).max())  # y has unit columns: a value of the quotient
    upper = math.exp((math.log(10 * math.sqrt(2 / math.pi)) + float(logs.max())) / (2 * STEPS + 1))
    return SpectralNorm(value, max(value, upper * (1 + 1e-9)), 10.0**-PROBES)
