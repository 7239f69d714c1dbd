"""Randomised iterations: the leading singular subspace of a matrix from a few products with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.kernels.convergence import Outlook
from eckart.kernels.norms import frobenius_norm

STEPS = 8  # products with A A^T at the most; what has not converged by then is better served by an exact route
MORE_STEPS = 32  # or so many where they are so narrow that all together cost less than an exact route does
# The mean square of what rounding to bfloat16 does to a number, relative to its square: noise in every column of a
# product, of the size of the column, which takes room from the weak directions.
BFLOAT16_NOISE = 2.0**-16 / 6
# Weak directions are lost in the rounding of strong ones, at 1e-7 of them in float32, and in float64, whose Ritz values come from a
# Gram matrix, at 1e-8; what the caller wants to see must be well above.
RANGE = {torch.float32: 1e-4, torch.float64: 1e-6}
# What may be missing must be more of the energy than the sums of squares by which it is judged are off by.
ENERGY = {torch.float32: 1e-6, torch.float64: 1e-12}
# Between these energies of a matrix in float64 it can be rounded to float32, and squares of energies are numbers in float64.
LEAST, MOST = 1e-150, 1e70
# The energies by which convergence is judged are as good as the products: in bfloat16 to about this, relatively.
BFLOAT16_ENERGY = 5e-5
# Energies below this share of the largest are not to be had from a Gram matrix in float32.
ROUGH = 1e-4
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

    @property
    def wide(self) -> bool:
        """Whether there is more to be seen in float64 than in float32."""

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

    @property
    def wide(self) -> bool:
        """Of a matrix in float64."""
        return self.matrix.dtype == torch.float64

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
        found = y.new_zeros(y.shape[1], self.shape[1])  # few rows instead of few columns: up to half as fast again
        for rows, part in zip(self.matrix.split(CHAIN), y.split(CHAIN), strict=True):
            found.addmm_(part.T, rows.to(y.dtype))
        return found.T.contiguous()

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
    is above the smallest possible one, where that was looked at. No error of this rank is below ``floor``, where that is known otherwise.
    """

    u: Tensor  # (m, rank) float64
    s: Tensor  # (rank,) float64
    image: Tensor  # (rank, n) float64
    basis: Tensor  # (m, k) float32, orthonormal: ``u`` lies in its span
    beyond: float
    steps: int
    excess: float | None
    floor: float = 0.0

    @cached_property
    def skew(self) -> float:
        """``norm(basis.T @ basis - 1)``, Frobenius: how far the basis is from being orthonormal, and ``u`` at the most."""
        wide = self.basis.to(torch.float64)
        gram = wide.T @ wide
        gram.diagonal().sub_(1.0)
        return float(torch.linalg.vector_norm(gram))


def oversampling(rank: int, side: int) -> int:
    """How many directions are taken along beyond ``rank``: half as many again, at least 8, where there are so many.

    Every further direction costs a product once, a further step costs two products with all of them.

    >>> oversampling(64, 4096), oversampling(2, 4096), oversampling(9, 10)
    (32, 8, 1)
    """
    return min(max(8, rank // 2), side - rank)


def most_steps(columns: int, side: int) -> int:
    """After how many steps with so many columns an exact decomposition would have been the better way.

    >>> most_steps(24, 1024), most_steps(96, 4096), most_steps(1536, 4096)
    (21, 21, 8)
    """
    return max(STEPS, min(MORE_STEPS, side // (2 * columns)))


def leading_subspace(
    a: Tensor | Products, rank: int, *, accuracy: float, rng: Generator, energy: float | None = None
) -> Subspace | None:
    """Subspace iteration with shifts from a Gaussian start, stopped by its remainders.

    Every step comes to a basis Q and the energies that its best directions capture, and multiplies Q by ``A A^T - e / 2``, e being the
    last of them: what is between 0 and e comes out at e / 2 at most, so that wanted directions gain on it in one step what
    takes them about one and a half by ``A A^T`` alone (dynamic shifts: Feng, Yu, Xie and Tang 2024, arXiv 2404.09276). That product shows
    how much of each direction's image lies beside Q, and so how much the next basis will miss; where that leaves the error within
    ``1 + accuracy`` of the smallest possible one, the next basis is judged by what it gained, and returned if it holds
    (``convergence.Outlook``). Products run in bfloat16 where the matrix unit has them and the range of the values allows it,
    else in float32; what is returned comes from one in float32. Where the wanted values or what remains beyond them are so small that
    float32 can't tell them from rounding, iteration goes on in float64 with a matrix that is ``wide``. ``energy`` is the sum of all
    squared entries; of a tensor it is found out.

    ``None`` where that is not reached in ``most_steps``, or where rounding hides it, or where a matrix that is ``wide`` leaves the
    range of float32 by far: an exact route is needed there.
    Deterministic for a state of ``rng``.

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
    if a.wide and not LEAST < energy < MOST:
        return None
    m, n = a.shape
    side = rank + oversampling(rank, min(m, n))
    narrow = a.narrows
    y = a.times(torch.randn(n, side, generator=rng).to(a.device), narrow=narrow)  # (m, side)
    outlook: Outlook | None = None  # where there is one, the basis that comes may be the last
    before = y.new_zeros(side, dtype=torch.float64)
    most = most_steps(side, min(m, n))
    for step in range(most + 1):
        q = conditioned(y) if outlook is None else torch.linalg.qr(y).Q  # (m, side)
        z = a.transposed_times(q, narrow=narrow and outlook is None)  # (n, side)
        energies, turn = ritz_values(z, fine=outlook is not None)
        if a.wide and q.dtype == torch.float32 and _hidden(energies, rank, energy, accuracy, q.dtype):
            q, narrow, outlook = torch.linalg.qr(q.to(torch.float64)).Q, False, None
            z = a.transposed_times(q, narrow=False)
            energies, turn = ritz_values(z, fine=True)
        if _hidden(energies, rank, energy, accuracy, q.dtype):
            return None
        tail = energy - float(energies[:rank].sum())
        allowed = 2 * accuracy * tail
        if outlook is not None:
            missed = outlook.missed((energies - before)[:rank], energies, step)
            if missed <= allowed:
                return _subspace(q, z, energies, turn, rank, step, missed / (2 * tail))
        if step == most:
            return None
        blurred = narrow and _blurs(energies, rank, allowed)
        narrow = narrow and not blurred
        y, beside = _shifted(a, q, z, energies, turn, rank, narrow=narrow)
        found = Outlook.of(energies, beside)
        # Energies by which a gain is measured must not be blurred themselves.
        outlook = found if found.hoped(step) <= allowed and not blurred else None
        before = energies
    return None


def _hidden(energies: Tensor, rank: int, energy: float, accuracy: float, dtype: torch.dtype) -> bool:
    """Whether products in ``dtype`` can't tell from rounding the last wanted direction, or what may be missing."""
    tail = max(energy - float(energies[:rank].sum()), 0.0)
    return (
        float(energies[rank - 1]) <= RANGE[dtype] ** 2 * float(energies[0])
        or 2 * accuracy * tail < ENERGY[dtype] * energy
    )


def ritz_values(z: Tensor, *, fine: bool) -> tuple[Tensor, Tensor]:
    """The eigenvalues of ``z.T @ z`` (k, k), the largest first and none below zero, and the eigenvectors; both in float64.

    Unless it is to be ``fine``, float32 serves where the smallest one that is of use stands out from its rounding.

    >>> ritz_values(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), fine=True)[0].tolist()
    [4.0, 1.0]
    """
    if not fine and z.dtype == torch.float32:
        unit = _unit(float(z.abs().max()))  # LAPACK would scale small values by another number
        energies, turn = torch.linalg.eigh((z.T / unit) @ (z / unit))
        if float(energies[0]) > ROUGH * float(energies[-1]):
            return energies.to(torch.float64).flip(0) * unit**2, turn.to(torch.float64).flip(1)
    wide = z.to(torch.float64)
    energies, turn = torch.linalg.eigh(wide.T @ wide)
    return energies.flip(0).clamp(min=0), turn.flip(1)


def _unit(size: float) -> float:
    """A power of two of about this size: by it a scale of the matrix changes no digit, where its squares leave the range of float32."""
    return math.ldexp(0.5, math.frexp(size)[1])


def _blurs(energies: Tensor, rank: int, allowed: float) -> bool:
    """Whether rounding to bfloat16 takes room from wanted directions, or hides what is to be seen of them."""
    noise = BFLOAT16_NOISE * float(energies.sum())
    return noise > allowed / 4 or allowed < BFLOAT16_ENERGY * float(energies[:rank].sum())


def _shifted(
    a: Products, q: Tensor, z: Tensor, energies: Tensor, turn: Tensor, rank: int, *, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Columns that span ``(A A^T - e_k / 2) q``, and the squared parts (rank,) of ``A A^T`` of the best directions beside ``q``.

    ``z`` is ``A.T @ q``.
    """
    top, shift = float(energies[0]) ** 0.5, float(energies[-1]) / 2
    unit = _unit(top)
    y = a.times(z / top, narrow=narrow)
    turned, values = turn[:, :rank].to(z.dtype), (energies[:rank] / unit).to(z.dtype)
    image = (top / unit) * (y @ turned)
    image.sub_(q @ (turned * values))
    y.sub_(q, alpha=shift / top)
    return y, torch.linalg.vector_norm(image, dim=0, dtype=torch.float64).square() * unit**2


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


def ritz_subspace(a: Products, q: Tensor, rank: int, steps: int, excess: float | None) -> Subspace:
    """The ``rank`` best directions within the span of orthonormal ``q`` (m, k): Rayleigh's and Ritz' way."""
    z = a.transposed_times(q, narrow=False)  # (n, k)
    return _subspace(q, z, *ritz_values(z, fine=True), rank, steps, excess)


def _subspace(
    q: Tensor, z: Tensor, energies: Tensor, turn: Tensor, rank: int, steps: int, excess: float | None
) -> Subspace:
    turn = turn[:, :rank]
    return Subspace(
        u=q.to(torch.float64) @ turn,
        s=energies[:rank].sqrt(),
        image=(z.to(torch.float64) @ turn).T,
        basis=q,
        beyond=float(energies[rank:].sum()),
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
    y = y / _unit(float(y.abs().max()))
    lengths = torch.linalg.vector_norm(y, dim=0)
    y = y / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    root, failed = torch.linalg.cholesky_ex((y.T @ y).to(torch.float64), upper=True)
    if int(failed) or float(root.diagonal().min()) < 1e-2:
        return torch.linalg.qr(y).Q
    return torch.linalg.solve_triangular(root.to(y.dtype), y, upper=True, left=False)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than those in float32 on this device, without it emulating them."""
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def _cpu_has_bfloat16() -> bool:
    """With a matrix unit; or with vector instructions, twice as fast on AMD's processors but not on Intel's."""
    if torch.cpu._is_amx_tile_supported():
        return True
    told: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch tell less
    return torch.cpu._is_avx512_bf16_supported() and not str(told.get("cpu_name")).startswith("Intel")
