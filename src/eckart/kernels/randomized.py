"""Randomised iterations: the leading singular subspace of a matrix from a few products with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.kernels.norms import frobenius_norm

# What the remainders promise is too little: by a factor of two at the most, but for the first steps.
CAUTION, AT_FIRST = 2.25, 24.0
STEPS = 8  # products with A A^T at the most; who has not converged by then is better served by an exact route
# The mean square of what rounding to bfloat16 does to a number, relative to its square: noise in every column of a
# product, of the size of the column, which takes room from the weak directions.
BFLOAT16_NOISE = 2.0**-16 / 6
# Products with nearly orthonormal columns are as uneven as the values: to here they need no conditioning of their own.
EVEN = 2.0**-5
# In float32 the same happens at 1e-7; what the caller wants to see must be well above.
FLOAT32_RANGE = 1e-4
# What may be missing must be more of the energy than the sums of squares by which it is judged are off by.
FLOAT32_ENERGY = 1e-6
# The energies by which convergence is judged are as good as the products: in bfloat16 to about this, relatively.
BFLOAT16_ENERGY = 5e-5
# Rows whose products are added up before they are added to the others: the rounding of a sum grows with its longest chain.
CHAIN = 128


class Products(Protocol):
    """A matrix A (m, n) that is known by products with a few columns, which come in the type of these."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (m, n)."""

    @property
    def device(self) -> torch.device:
        """Where the columns are to lie."""

    @property
    def narrows(self) -> bool:
        """Whether ``narrow`` products are another thing at all."""

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        """``A @ x`` (m, k), to the precision of bfloat16 if ``narrow``, else to that of ``x``."""

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        """``A.T @ y`` (n, k), to the precision of bfloat16 if ``narrow``, else to that of ``y``."""


@dataclass(frozen=True)
class InMemory:
    """The products of a tensor, in bfloat16 where they may be narrow and the matrix unit has it."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m, n = self.matrix.shape
        return m, n

    @property
    def device(self) -> torch.device:
        """That of the tensor."""
        return self.matrix.device

    @property
    def narrows(self) -> bool:
        """Where products in bfloat16 are faster."""
        return _has_bfloat16(self.device)

    @cached_property
    def _copies(self) -> dict[torch.dtype, Tensor]:
        return {self.matrix.dtype: self.matrix}

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        """``matrix @ x``."""
        dtype = torch.bfloat16 if narrow else x.dtype
        return (self._in(dtype) @ x.to(dtype)).to(x.dtype)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        """``matrix.T @ y``; if not ``narrow``, every entry is off by at most ``rounding`` of the sum of its terms' magnitudes."""
        if narrow:
            return (self._in(torch.bfloat16).T @ y.to(torch.bfloat16)).to(y.dtype)
        found = y.new_zeros(self.shape[1], y.shape[1])
        for rows, part in zip(self.matrix.split(CHAIN), y.split(CHAIN), strict=True):
            found.addmm_(rows.T.to(y.dtype), part)
        return found

    @property
    def rounding(self) -> float:
        """How far ``transposed_times`` is off in float32, relatively; the matrix itself is off where it is in float64."""
        eps = torch.finfo(torch.float32).eps
        return (CHAIN + len(self.matrix) / CHAIN + 2) * eps / 2 + (eps if self.matrix.dtype == torch.float64 else 0.0)

    def _in(self, dtype: torch.dtype) -> Tensor:
        """A copy of the matrix, made once for all products."""
        if dtype not in self._copies:
            self._copies[dtype] = self.matrix.to(dtype)
        return self._copies[dtype]


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The ``rank`` leading left singular vectors of a matrix A (m, n), nearly, and the basis that they were found in.

    ``image`` is ``u.T @ A`` to the precision of the products in float32. ``s`` are the Ritz values: never above the true singular
    values but for rounding, ``beyond`` the sum of the squares of the further ones that the basis has.
    ``steps`` products with ``A @ A.T`` were made, and ``excess`` estimates by which share the error ``norm(A - u @ image)``
    is above the smallest possible one, where that was looked at.
    """

    u: Tensor  # (m, rank) float64
    s: Tensor  # (rank,) float64
    image: Tensor  # (rank, n) float64
    basis: Tensor  # (m, k) float32, orthonormal: ``u`` lies in its span
    beyond: float
    steps: int
    excess: float | None


def oversampling(rank: int, side: int) -> int:
    """How many directions are taken along beyond ``rank``: half as many again, at least 8, where there are so many.

    Every further direction costs a product once, a further step costs two products with all of them.

    >>> oversampling(64, 4096), oversampling(2, 4096), oversampling(9, 10)
    (32, 8, 1)
    """
    return min(max(8, rank // 2), side - rank)


def leading_subspace(
    a: Tensor | Products, rank: int, *, accuracy: float, rng: Generator, energy: float | None = None
) -> Subspace | None:
    """Subspace iteration with a Gaussian start (Halko, Martinsson and Tropp 2011, algorithm 4.4), stopped by its remainders.

    Every step comes to a basis Q and the energies that its best directions capture. The next product shows how much of each
    direction's image lies beside Q, and so how much energy a basis that contains it will still miss (``still_missing``); iteration ends
    when that leaves the error within ``1 + accuracy`` of the smallest possible one. Products run in bfloat16 where the matrix unit
    has them and the range of the values allows it, else in float32; the last one, with what is returned, always in float32.
    ``energy`` is the sum of all squared entries; of a tensor it is found out.

    ``None`` where that is not reached in ``STEPS`` steps, or where the wanted values or what remains beyond them are so small
    that float32 can't tell them from rounding: an exact route is needed there. Deterministic for a state of ``rng``.

    >>> falling = torch.diag(torch.arange(1, 201) ** -1.0)
    >>> found = leading_subspace(falling, 10, accuracy=1e-3, rng=Generator().manual_seed(0))
    >>> [round(float(x), 2) for x in found.s[:3]]
    [1.0, 0.5, 0.33]
    """
    if isinstance(a, Tensor):
        energy = frobenius_norm(a) ** 2 if energy is None else energy
        a = InMemory(a)
    if energy is None:
        raise ValueError("the energy of a matrix that is known by products must be given")
    m, n = a.shape
    side = rank + oversampling(rank, min(m, n))
    narrow = a.narrows
    y = a.times(torch.randn(n, side, generator=rng).to(a.device), narrow=narrow)  # (m, side)
    captured: float | None = None
    missed = 0.0
    for step in range(1, STEPS + 1):
        q = conditioned(y)  # (m, side)
        z = a.transposed_times(q, narrow=narrow)  # (n, side)
        energies, turn = torch.linalg.eigh((z.T @ z).to(torch.float64))
        energies, turn = energies.flip(0).clamp(min=0), turn.flip(1).to(z.dtype)
        before, captured = captured, float(energies[:rank].sum())
        reach = float(energies[rank - 1] / energies[0]) ** 0.5 if float(energies[0]) > 0 else 0.0
        tail = max(energy - captured, 0.0)
        allowed = 2 * accuracy * tail
        if reach < FLOAT32_RANGE or allowed < FLOAT32_ENERGY * energy:
            return None
        noise = BFLOAT16_NOISE * float(energies.sum())
        blurred = narrow and (noise > allowed / 4 or allowed < BFLOAT16_ENERGY * captured)
        narrow = narrow and not blurred
        lengths = energies.clamp(min=float(energies[0]) * FLOAT32_RANGE**2).sqrt().to(z.dtype)
        even = reach >= EVEN
        y = a.times(z / lengths[0] if even else z @ (turn / lengths), narrow=narrow)
        # The images of the best directions' images, as far as they lie beside the basis.
        image = lengths[0] * (y @ turn[:, :rank]) if even else y[:, :rank] * lengths[:rank]
        beside = torch.linalg.vector_norm(
            image - q @ (turn * energies.to(z.dtype))[:, :rank], dim=0, dtype=torch.float64
        )
        now, then = still_missing(energies, beside.square())
        caution = CAUTION + AT_FIRST / step**3
        if before is not None and missed and not blurred:
            caution *= max(0.0, captured - before + now) / missed  # how the last promise was kept
        missed, excess = now, caution * then / (2 * tail) if tail else 0.0
        if excess <= accuracy and not blurred:
            return ritz_subspace(a, torch.linalg.qr(y).Q, rank, step, excess)
    return None


def subspace_iteration(a: Products, rank: int, *, steps: int, oversampling: int, rng: Generator) -> Subspace:
    """A fixed number of steps of the same iteration, in float32, whatever they lead to.

    >>> falling = torch.diag(torch.arange(1, 201) ** -1.0)
    >>> found = subspace_iteration(InMemory(falling), 2, steps=3, oversampling=8, rng=Generator().manual_seed(0))
    >>> [round(float(x), 3) for x in found.s]
    [1.0, 0.5]

    Raises ``ValueError`` for a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"a number of steps is not below 0: {steps}")
    m, n = a.shape
    x = torch.randn(n, min(rank + oversampling, m, n), generator=rng).to(a.device)
    for _ in range(steps):
        x = conditioned(a.transposed_times(conditioned(a.times(x, narrow=False)), narrow=False))
    return ritz_subspace(a, torch.linalg.qr(a.times(x, narrow=False)).Q, rank, steps, None)


def still_missing(energies: Tensor, beside: Tensor) -> tuple[float, float]:
    """The energy that the leading directions of a basis miss, and that they will miss one step later; both estimated.

    ``energies`` (k,) are all Ritz values of ``A A^T`` in the basis. A direction of energy e whose image under ``A A^T`` has the squared
    part ``beside`` (rank,) outside of the basis, where energies are about the last one l at most, gains by the
    eigenvalue of ``[[e, c], [c, l]]`` over e. One step multiplies what it misses by ``(l / e)^2``.

    >>> still_missing(torch.tensor([2.0, 1.0]), torch.tensor([0.75]))
    (0.5, 0.125)
    """
    wanted, last = energies[: len(beside)], energies[-1]
    half = (wanted - last) / 2
    gain = (half.square() + beside).sqrt() - half
    factor = torch.where(wanted > 0, last / wanted, torch.ones_like(wanted)).square()
    return float(gain.sum()), float((gain * factor).sum())


def ritz_subspace(a: Products, q: Tensor, rank: int, steps: int, excess: float | None) -> Subspace:
    """The ``rank`` best directions within the span of orthonormal ``q`` (m, k): Rayleigh's and Ritz' way."""
    b = a.transposed_times(q, narrow=False)  # (n, k)
    wide = b.to(torch.float64)
    energies, turn = torch.linalg.eigh(wide.T @ wide)
    turn = turn.flip(1)[:, :rank]
    return Subspace(
        u=q.to(torch.float64) @ turn,
        s=energies.flip(0)[:rank].clamp(min=0).sqrt(),
        image=(wide @ turn).T,
        basis=q,
        beyond=float(energies.flip(0)[rank:].clamp(min=0).sum()),
        steps=steps,
        excess=excess,
    )


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


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than those in float32 on this device, without it emulating them."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
