"""The spectral norm of a matrix, enclosed from both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
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

    A panel at a time through one piece of memory: a copy of the whole, or new memory for each panel, would take several times
    as long as the sum.

    >>> frobenius_norm(torch.tensor([[3.0], [4.0]]).to(torch.bfloat16))
    5.0
    """
    if a.numel() == 0:
        return 0.0
    rows = min(max(1, PANEL // a[0].numel()), len(a))
    wide, total = a.new_empty(rows, a[0].numel(), dtype=torch.float64), a.new_zeros((), dtype=torch.float64)
    for panel in a.split(rows):
        part = wide[: len(panel)].copy_(panel.reshape(len(panel), -1)).view(-1)
        total += part.dot(part)
    return float(total.sqrt())


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
    # Vectors lie as rows: products of a few rows with a matrix are several times faster than those with a few columns.
    return probed_norm(lambda x: x @ e.T, lambda y: y @ e, _shape(e), e.dtype, rng, e.device)


def probed_norm(
    forth: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    rng: Generator,
    device: torch.device | None = None,
) -> SpectralNorm:
    """``spectral_norm`` by probes of a matrix E (m, n) that is known by its products with a few rows in ``dtype``.

    ``forth`` gives ``x @ E.T`` (k, m) for x (k, n), and ``back`` gives ``y @ E`` (k, n) for y (k, m).

    >>> e = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    >>> bound = probed_norm(lambda x: x @ e.T, lambda y: y @ e, (2, 2), e.dtype, Generator().manual_seed(0))
    >>> round(bound.value, 6), bound.upper < 1.25 * 3
    (3.0, True)
    """
    x = torch.randn(PROBES, shape[1], generator=rng, dtype=torch.float64).to(dtype=dtype, device=device)
    logs = torch.zeros(PROBES, dtype=torch.float64, device=device)  # log norm(M w), rescaled against overflow
    for step in range(STEPS + 1):
        y, growth = _unit(forth(x))
        if not bool(growth.any()):  # a Gaussian vector is orthogonal to nothing but a zero matrix
            return SpectralNorm(0.0, 0.0, 0.0, x.new_zeros(0, shape[0], dtype=torch.float64))
        logs += growth.log()
        if step < STEPS:
            x, growth = _unit(back(y))
            logs += growth.log()
    grain = max(shape) * torch.finfo(dtype).eps  # what rounding does to the length of a product
    value = float(torch.linalg.vector_norm(back(y), dim=1, dtype=torch.float64).max()) * (1 - grain)
    upper = math.exp((math.log(10 * math.sqrt(2 / math.pi)) + float(logs.max())) / (2 * STEPS + 1)) * (1 + grain)
    return SpectralNorm(value, max(value, upper), 10.0**-PROBES, y)


def _shape(matrix: Tensor) -> tuple[int, int]:
    m, n = matrix.shape
    return m, n


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at unit length, and the lengths that they had, float64."""
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return rows / lengths[:, None].to(rows.dtype), lengths
