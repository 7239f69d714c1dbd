"""Randomised subspace iteration: the leading singular subspace of a matrix from a few products with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.kernels.norms import frobenius_norm

CAUTION = 1.5  # convergence slows down: what the last factor promises is not quite kept
STEPS = 8  # products with A A^T at the most; who has not converged by then is better served by an exact route
# A product in bfloat16 buries what lies below 2^-9 of the largest value; the margin keeps it from being missed.
BFLOAT16_RANGE = 2.0**-5
# In float32 the same happens at 1e-7; what the caller wants to see must be well above.
FLOAT32_RANGE = 1e-4
# What may be missing must be more of the energy than the sums of squares by which it is judged are off by.
FLOAT32_ENERGY = 1e-6
# The energies by which convergence is judged are as good as the products: in bfloat16 to about this, relatively.
BFLOAT16_ENERGY = 2e-4


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The ``rank`` leading left singular vectors of a matrix A (m, n), nearly, in float32.

    ``image`` is ``u.T @ A``. ``s`` are the Ritz values: never above the true singular values (but for rounding in float32).
    ``steps`` products with ``A @ A.T`` were made, and ``excess`` estimates by which share the error ``norm(A - u @ image)``
    is above the smallest possible one.
    """

    u: Tensor  # (m, rank)
    s: Tensor  # (rank,) float64
    image: Tensor  # (rank, n)
    steps: int
    excess: float


def oversampling(rank: int, side: int) -> int:
    """How many directions are taken along beyond ``rank``: half as many again, at least 8, where there are so many.

    Every further direction costs a product once, a further step costs two products with all of them.

    >>> oversampling(64, 4096), oversampling(2, 4096), oversampling(9, 10)
    (32, 8, 1)
    """
    return min(max(8, rank // 2), side - rank)


def leading_subspace(a: Tensor, rank: int, *, accuracy: float, rng: Generator) -> Subspace | None:
    """Subspace iteration with a Gaussian start (Halko, Martinsson and Tropp 2011, algorithm 4.4), stopped by its gain.

    After every step the energy that the ``rank`` best directions capture is known from the products themselves. It
    grows by a falling factor; iteration ends when what is still to come, extrapolated, leaves the error within
    ``1 + accuracy`` of the smallest possible one. Products run in bfloat16 where the matrix unit has them and the range
    of the values allows it, those of the last step always in float32.

    ``None`` where that is not reached in ``STEPS`` steps, or where the wanted values or what remains beyond them are so small
    that float32 can't tell them from rounding: an exact route is needed there. Deterministic for a state of ``rng``.

    >>> falling = torch.diag(torch.arange(1, 201) ** -1.0)
    >>> found = leading_subspace(falling, 10, accuracy=1e-3, rng=Generator().manual_seed(0))
    >>> [round(float(x), 3) for x in found.s[:3]]
    [1.0, 0.5, 0.333]
    """
    m, n = a.shape
    side = rank + oversampling(rank, min(m, n))
    exact = a.to(torch.float32)
    energy = frobenius_norm(exact) ** 2
    x = torch.randn(n, side, generator=rng).to(a.device)
    rough = a.to(torch.bfloat16) if _has_bfloat16(a.device) else exact
    passes = rough
    captured: list[float] = []
    for step in range(1, STEPS + 1):
        q = conditioned(_product(passes, x))  # (m, side)
        z = _product(passes.T, q)  # (n, side)
        ritz = torch.linalg.eigvalsh(z.T @ z).flip(0).clamp(min=0)  # to judge by: float32 will do
        captured.append(float(ritz[:rank].sum(dtype=torch.float64)))
        reach = float(ritz[rank - 1] / ritz[0]) ** 0.5 if float(ritz[0]) > 0 else 0.0
        tail = max(energy - captured[-1], 0.0)
        allowed = 2 * accuracy * tail
        if reach < FLOAT32_RANGE or allowed < FLOAT32_ENERGY * energy:
            return None
        if passes is not exact and (reach < BFLOAT16_RANGE or allowed < BFLOAT16_ENERGY * captured[-1]):
            passes = exact
        missing = _missing(captured, float(ritz[-1] / ritz[rank - 1]))
        x = z if reach >= BFLOAT16_RANGE else conditioned(z)  # q is orthonormal, so z is as uneven as the values
        if missing is not None and missing <= allowed:
            return _finished(exact, x, rank, step + 1, missing / (2 * tail) if tail else 0.0)
    return None


def _missing(captured: list[float], gap: float) -> float | None:
    """The energy that will be missing after one more step, extrapolated; ``None`` where nothing can be said yet.

    What is missing shrinks by a factor per step: the larger one of the last two gains' ratio and of what the values themselves
    say about the slowest direction that is wanted, ``gap`` being the ratio of the last energy kept to the last one wanted.
    """
    if len(captured) < 2:
        return None
    gain = max(captured[-1] - captured[-2], 0.0)
    factor = gap**2
    if len(captured) > 2 and captured[-2] > captured[-3]:
        factor = max(factor, gain / (captured[-2] - captured[-3]))
    factor = min(factor, 0.9)
    return CAUTION * gain * factor / (1 - factor) * factor


def _finished(a: Tensor, x: Tensor, rank: int, steps: int, excess: float) -> Subspace:
    """The last step, in float32 with a Householder factorisation, and the best directions within its subspace."""
    q = torch.linalg.qr(a @ x).Q
    b = q.T @ a  # (side, n)
    gram = b.to(torch.float64)
    energies, turn = torch.linalg.eigh(gram @ gram.T)
    turn = turn.flip(1)[:, :rank].to(torch.float32)
    s = energies.flip(0)[:rank].clamp(min=0).sqrt()
    return Subspace(u=q @ turn, s=s, image=turn.T @ b, steps=steps, excess=excess)


def conditioned(y: Tensor) -> Tensor:
    """Columns that span those of ``y`` (m, k) and are nearly orthonormal: enough for one more product.

    Cholesky of the Gram matrix of the columns at unit length, in float32. That fails silently where they are nearly dependent,
    so the pivots are looked at, and Householder's factorisation takes over where one is small.

    >>> q = conditioned(torch.tensor([[1.0, 1.0], [0.0, 1e-6], [0.0, 0.0]]))
    >>> torch.allclose(q.T @ q, torch.eye(2), atol=1e-3)
    True
    """
    lengths = torch.linalg.vector_norm(y, dim=0)
    y = y / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    root, failed = torch.linalg.cholesky_ex((y.T @ y).to(torch.float64), upper=True)
    if int(failed) or float(root.diagonal().min()) < 1e-2:
        return torch.linalg.qr(y).Q
    return torch.linalg.solve_triangular(root.to(y.dtype), y, upper=True, left=False)


def _product(a: Tensor, x: Tensor) -> Tensor:
    """``a @ x`` in the dtype of ``a``, as float32."""
    return (a @ x.to(a.dtype)).to(torch.float32)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than those in float32 on this device, without it emulating them."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
