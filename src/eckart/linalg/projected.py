"""The projection on a subspace that an iteration found: its factors as stored, and bounds from what the iteration leaves behind.

Both cost a fraction of the iteration: the error follows from inner products that are known already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.bound import Bound
from eckart.kernels.randomized import InMemory, Subspace
from eckart.kernels.svd import EPS, SAFETY, fix_signs
from eckart.linalg.factors import lengths, stored
from eckart.linalg.remainder import COARSE, Formed
from eckart.operator import Factors

SINGLE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Projected:
    """Factors, and what ``||W - L R||_F^2`` comes to by inner products, with a bound on how far off that is."""

    op: Factors
    energy: float
    doubt: float

    @classmethod
    def on(cls, found: Subspace, target: Tensor, size: float, dtype: torch.dtype) -> Projected:
        """The projection of ``target`` (m, n), of Frobenius norm ``size``, in ``dtype``.

        With D the lengths of the columns of L, ``G = D^-1 L^T W``, ``S = D R`` and ``C = D^-1 L^T L D^-1``, the squared error is
        ``||W||^2 - 2 <G, S> + <S, S> + <(C - 1) S, S>``. For a dtype as wide as the products G is the image that the iteration came to,
        and R that image; for a narrower one G is another product, and R is solved for what rounding made of L.
        """
        u, products = fix_signs(found.u), InMemory(target)
        flipped = (u * found.u).sum(0).sign()
        length = lengths(found.image, dtype)
        left = (u * length).to(dtype).contiguous()
        unit = left.to(torch.float64) / length
        gram: Tensor | None = None
        if torch.finfo(dtype).eps <= SINGLE:
            image, span = found.image * flipped[:, None], found.basis
            away = float(torch.linalg.vector_norm(unit - u))
            # norm(unit.T unit - 1), u lying in the span of the basis and being as orthonormal as that is
            skew = found.skew + 2 * away * (1 + found.skew) + away**2
            scaled = image
        else:
            gram = unit.T @ unit
            skew = float(torch.linalg.vector_norm(_beside(gram)))
            narrow = left.to(torch.float32)
            image = products.transposed_times(narrow, narrow=False).T.to(torch.float64) / length[:, None]
            span, away = unit, 0.0
            root, failed = torch.linalg.cholesky_ex(gram)
            if int(failed):  # columns that rounding made dependent
                op, _ = stored(u, target, dtype)
                return cls(op, 0.0, size**2)
            scaled = torch.cholesky_solve(image, root)
        right = (scaled / length[:, None]).to(dtype).contiguous()
        scaled = right.to(torch.float64) * length[:, None]
        grain = (products.rounding * float(torch.linalg.vector_norm(span)) + away) * size
        kept = float(scaled.square().sum())
        energy = size**2 - 2 * float((image * scaled).sum()) + kept
        doubt = 2 * grain * math.sqrt(kept) + SAFETY * EPS * max(target.shape) * size**2
        skew *= kept
        if skew > COARSE / 10 * energy:
            beside, s = _beside(unit.T @ unit if gram is None else gram), scaled.to(torch.float32)
            energy += float(((beside.to(torch.float32) @ s) * s).sum(dtype=torch.float64))
            skew = (len(beside) + 3) * SINGLE * float(torch.linalg.vector_norm(beside)) * kept
        return cls(Factors(left, right), energy, doubt + skew)

    def error(self, target: Tensor, size: float) -> tuple[float, float]:
        """The Frobenius norm of the error, and how far rounding may have put it off; formed where inner products are too coarse."""
        if self.doubt <= 2 * COARSE * self.energy and self.energy > 0:
            error = math.sqrt(self.energy)
            return error, self.doubt / error
        formed = Formed.of(target, self.op, size)
        return formed.size, formed.slack


def frobenius_bound(projected: Projected, found: Subspace, target: Tensor, size: float) -> Bound:
    """The bound in the Frobenius norm, certain in all figures.

    ``lower`` is what the further directions of the basis hold: of the singular values of W after the rank, none is below theirs
    (Cauchy's interlacing). It costs nothing and is loose, since it knows nothing of what lies beside the basis. Where the basis
    came with a better one (``Subspace.floor``), that is taken.
    """
    error, slack = projected.error(target, size)
    length = float(torch.linalg.vector_norm(found.basis, dtype=torch.float64))
    off = (InMemory(target).rounding * length + found.skew) * size
    floor = max(found.floor, math.sqrt(found.beyond) - off)
    achieved = max(error, floor)
    return Bound(norm="frobenius", lower=floor, achieved=achieved, upper=achieved + slack, scale=size)


def _beside(gram: Tensor) -> Tensor:
    """What a Gram matrix of unit columns has beside the identity."""
    return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
