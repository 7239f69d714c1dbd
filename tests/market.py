"""The market: one seeded matrix of every kind that has ever broken a factorisation, each under a name.

A law about matrices is tested on all of ``MATRICES``; a law about errors also under all metrics of ``metrics_for``.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator, Tensor

from eckart.metric import Metric


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gaussian(m: int, n: int, seed: int = 0) -> Tensor:
    """Independent normal entries (m, n) in float64."""
    return torch.randn(m, n, generator=generator(seed), dtype=torch.float64)


def orthonormal(m: int, k: int, seed: int = 0) -> Tensor:
    """Orthonormal columns (m, k) in float64, k at most m."""
    return torch.linalg.qr(gaussian(m, k, seed)).Q


def with_spectrum(m: int, n: int, s: Tensor, seed: int = 0) -> Tensor:
    """A matrix (m, n) whose singular values are ``s`` up to rounding."""
    k = len(s)
    return orthonormal(m, k, seed) * s @ orthonormal(n, k, seed + 1).T


def hadamard(order: int) -> Tensor:
    """Entries ±1, columns of squared length ``order`` = 2^k: products with integers stay exact in float64."""
    return torch.from_numpy(scipy.linalg.hadamard(order)).to(torch.float64)


def with_exact_spectrum(order: int, s: tuple[int, ...]) -> tuple[Tensor, list[float]]:
    """A matrix (order, order) of integers, and its singular values without any rounding (order a power of two)."""
    k = len(s)
    left, right = hadamard(order)[:, :k], hadamard(order).flip(0)[:, -k:]
    return left * torch.tensor(s, dtype=torch.float64) @ right.T, sorted(
        (float(order * abs(v)) for v in s), reverse=True
    )


def _outlier() -> Tensor:
    matrix = gaussian(16, 24, 6)
    matrix[5, 7] = 1e6
    return matrix.to(torch.float32)


MATRICES: Mapping[str, Callable[[], Tensor]] = MappingProxyType(
    {
        "tall": lambda: gaussian(40, 12, 1).to(torch.float32),
        "wide": lambda: gaussian(12, 40, 2).to(torch.float32),
        "square": lambda: gaussian(24, 24, 3).to(torch.float32),
        "rank-deficient": lambda: gaussian(20, 4, 4) @ gaussian(4, 30, 5),
        "ill-conditioned": lambda: with_spectrum(24, 20, torch.logspace(0, -12, 20, dtype=torch.float64), 7),
        "zero": lambda: torch.zeros(9, 7),
        "huge outlier": _outlier,
        "one row": lambda: gaussian(1, 9, 8).to(torch.float32),
        "one column": lambda: gaussian(9, 1, 9).to(torch.float32),
        "one entry": lambda: torch.tensor([[-3.0]]),
        "bfloat16": lambda: gaussian(20, 28, 10).to(torch.bfloat16),
        "float16": lambda: gaussian(28, 20, 11).to(torch.float16),
        "constant": lambda: torch.full((10, 14), -0.75),
        "repeated values": lambda: with_exact_spectrum(16, (4,) * 5 + (2,) * 7)[0],
        "decaying": lambda: with_spectrum(32, 20, 1 / torch.arange(1, 21, dtype=torch.float64), 12).to(torch.float32),
        "tiny entries": lambda: gaussian(8, 10, 13) * 1e-30,
    }
)


def inputs(n: int, count: int, seed: int = 20) -> Tensor:
    """Inputs (count, n) such as layers see: correlated, with channels of very different size and one far above all."""
    mixing = gaussian(n, n, seed) * torch.logspace(0, -2, n, dtype=torch.float64)
    mixing[:, n // 2] *= 30
    return gaussian(count, n, seed + 1) @ mixing


def metrics_for(n: int) -> dict[str, Metric]:
    """One metric of every form for matrices with n columns."""
    few = inputs(n, max(1, n // 3))
    many = inputs(n, 3 * n)
    return {
        "plain": Metric.plain(),
        "diagonal": Metric("diagonal", many.abs().mean(0).sqrt()),
        "gram": Metric.gram("gram", many.T @ many / len(many)),
        "rank-deficient gram": Metric.gram("rank-deficient gram", few.T @ few / len(few)),
    }


# Every module that asks whether a matrix is small enough for LAPACK.
PANELLED = ("kernels.panels", "operator.panels", "linalg.factors", "linalg.remainder", "metric")
SIZED = (
    "kernels.svd",
    "kernels.norms",
    "linalg.certified",
    "linalg.remainder",
    "linalg.routes",
    "linalg.weighed",
    "metric",
)


def as_if_large(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Send matrices of any size down the routes of large ones, in all modules or in these."""
    for name in modules or SIZED:
        monkeypatch.setattr(import_module(f"eckart.{name}"), "LAPACK_SIDE", 0)
    for name in PANELLED:
        monkeypatch.setattr(import_module(f"eckart.{name}"), "PANEL", 7)


METRICS = tuple(metrics_for(1))


def float64(t: Tensor) -> np.ndarray:
    """The tensor for NumPy, in float64."""
    return t.to(torch.float64).numpy()


def lapack_values(a: Tensor | np.ndarray) -> np.ndarray:
    """Singular values by SciPy's QR iteration, which shares neither code nor algorithm with the library."""
    a = float64(a) if isinstance(a, Tensor) else a
    return scipy.linalg.svd(a, compute_uv=False, lapack_driver="gesvd")


def whitened(w: Tensor, metric: Metric) -> np.ndarray:
    """``w @ R`` by NumPy, whatever the form of R."""
    if metric.root is None:
        return float64(w)
    right = float64(metric.root)
    return float64(w) @ (np.diag(right) if right.ndim == 1 else right)


def ranks_of(matrix: Tensor) -> list[int]:
    """Every rank of a small matrix that is worth a test: the ends and a few between."""
    k = min(matrix.shape)
    return sorted({1, 2, max(1, k // 3), max(1, k // 2), k - 1, k} & set(range(1, k + 1)))
