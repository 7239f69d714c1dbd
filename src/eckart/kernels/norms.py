"""The spectral norm of a matrix, enclosed from both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from eckart.kernels.svd import LAPACK_SIDE, singular_values

PROBES = 10  # random starts; the upper bound fails with probability 10 ** -PROBES
PANEL = 1 << 18  # entries that are taken to float64 at once
STEPS = 8  # products with E^T E; the bound is then at most about (10 sqrt(2 / pi)) ** (1 / 17) = 1.13 too large


@dataclass(frozen=True)
class SpectralNorm:
    """``value <= true norm <= upper``; ``delta`` is the probability that ``upper`` fails, 0 where it is certain.

    ``directions`` (k, m) are unit vectors near the leading left singular ones, where products were made; else there are none.
    """

    value: float
    upper: float
    delta: float
    directions: Tensor = field(compare=False)


def frobenius_norm(a: Tensor) -> float:
    """The root of the sum of all squared entries of ``a``, added up in float64 whatever its dtype.

    A panel at a time: a copy of the whole in float64 would take several times as long as the sum.

    >>> frobenius_norm(torch.tensor([[3.0], [4.0]]).to(torch.bfloat16))
    5.0
    """
    if a.numel() == 0:
        return 0.0
    panels = a.split(max(1, PANEL // a[0].numel()))
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.to(torch.float64)) for p in panels])))


def spectral_norm(e: Tensor, rng: Generator) -> SpectralNorm:
    """Enclose the largest singular value of ``e`` (m, n).

    Up to a smaller side of ``LAPACK_SIDE`` all singular values are computed in float64, the enclosure is that of rounding.
    Above it, ``PROBES`` Gaussian vectors w are taken through ``STEPS`` products: with M = (E E^T)^q E,
    ``norm(M) <= 10 sqrt(2/pi) max norm(M w)`` but for a probability 10^-PROBES (Halko, Martinsson and Tropp 2011,
    lemma 4.1), and ``norm(E) = norm(M) ** (1 / (2 q + 1))``. These products run in float32 where ``e`` has it; their rounding
    widens both ends.

    >>> bound = spectral_norm(torch.diag(torch.tensor([3.0, 1.0])), Generator().manual_seed(0))
    >>> round(bound.value, 9), bound.value <= bound.upper, bound.delta
    (3.0, True, 0.0)
    """
    none = e.new_zeros(0, len(e), dtype=torch.float64)
    if min(e.shape) <= LAPACK_SIDE:
        exact = singular_values(e)
        top = float(exact.s[0]) if len(exact.s) else 0.0
        return SpectralNorm(top, top + exact.slack, 0.0, none)
    if e.dtype != torch.float32:
        e = e.to(torch.float64)
    if not bool(e.any()):
        return SpectralNorm(0.0, 0.0, 0.0, none)
    # Vectors lie as rows: products of a few rows with a matrix are several times faster than those with a few columns.
    x = torch.randn(PROBES, e.shape[1], generator=rng, dtype=torch.float64).to(e)
    logs = torch.zeros(PROBES, dtype=torch.float64, device=e.device)  # log norm(M w), rescaled against overflow
    for step in range(STEPS + 1):
        y, growth = _unit(x @ e.T)
        logs += growth.log()
        if step < STEPS:
            x, growth = _unit(y @ e)
            logs += growth.log()
    grain = max(e.shape) * torch.finfo(e.dtype).eps  # what rounding does to the length of a product
    value = float(torch.linalg.vector_norm(y @ e, dim=1, dtype=torch.float64).max()) * (1 - grain)
    upper = math.exp((math.log(10 * math.sqrt(2 / math.pi)) + float(logs.max())) / (2 * STEPS + 1)) * (1 + grain)
    return SpectralNorm(value, max(value, upper), 10.0**-PROBES, y)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at unit length, and the lengths that they had, float64."""
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return rows / lengths[:, None].to(rows.dtype), lengths
