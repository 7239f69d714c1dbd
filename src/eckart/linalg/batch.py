"""Many small matrices at once."""

from __future__ import annotations

import torch
from torch import Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.kernels.svd import EPS, SAFETY, fix_signs
from eckart.linalg.factors import stored


def truncated_svds(
    a: Tensor, rank: int, *, dtype: torch.dtype | None = None, spectral: bool = False
) -> tuple[Fit, ...]:
    """The best approximation of rank ``rank`` of every matrix of a batch (b, m, n), as ``truncated_svd`` gives it for one.

    All are decomposed by one batched call of LAPACK (or its like on the device) in float64, and their errors are measured
    together, with ``spectral`` those in the spectral norm as well; the bounds are certain. For the plain metric, and for
    matrices that are small: heads, blocks, experts.

    >>> w = torch.stack([torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.eye(3)])
    >>> [round(fit.bounds[0].achieved, 6) for fit in truncated_svds(w, 2)]
    [1.0, 1.0]

    Raises ``ValueError`` for a rank outside 1 … min(m, n), for what is no batch of matrices of floating-point numbers, and
    for NaN or infinity, naming the matrix.
    """
    if a.ndim != 3 or not a.is_floating_point():
        raise ValueError(f"a batch (b, m, n) of floating-point numbers is wanted, not {tuple(a.shape)} in {a.dtype}")
    _, m, n = a.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} of {m} x {n} matrices: give one from 1 to {min(m, n)}")
    if len(a) == 0:
        return ()
    bad = (~torch.isfinite(a).flatten(1).all(1)).nonzero()
    if len(bad):
        raise ValueError(f"matrix {int(bad[0])} of the batch holds NaN or infinity")
    dtype = dtype or a.dtype
    wide = a.to(torch.float64)
    tall = wide if m >= n else wide.mT
    x, s, yh = torch.linalg.svd(tall, full_matrices=False)
    u = (x if m >= n else yh.mT)[:, :, :rank]
    ops = [stored(fix_signs(u[i]), matrix, dtype)[0] for i, matrix in enumerate(wide)]
    left, right = (torch.stack([getattr(op, side) for op in ops]).to(torch.float64) for side in ("left", "right"))
    error = wide - left @ right
    norms = torch.linalg.vector_norm(error, dim=(1, 2))
    tops = torch.linalg.svdvals(error)[:, 0] if spectral else None
    sizes = torch.linalg.vector_norm(wide, dim=(1, 2))
    factors = torch.linalg.vector_norm(left, dim=(1, 2)) * torch.linalg.vector_norm(right, dim=(1, 2))
    tails = s[:, rank:].square().sum(1).sqrt()
    grain = SAFETY * EPS * max(m, n) * sizes
    slack = (rank + 3) * EPS / 2 * (factors + sizes)
    fits = []
    for i, op in enumerate(ops):
        bounds = [_bound("frobenius", tails[i], norms[i], grain[i], slack[i], float(sizes[i]))]
        if tops is not None:
            after = float(s[i, rank]) if rank < s.shape[1] else 0.0
            bounds.append(_bound("spectral", after, tops[i], grain[i], slack[i] + grain[i], float(s[i, 0])))
        fits.append(Fit(op=op, bounds=tuple(bounds), how="exact, by LAPACK, in a batch"))
    return tuple(fits)


def _bound(name: str, floor: Tensor | float, norm: Tensor, grain: Tensor, slack: Tensor, scale: float) -> Bound:
    lower = max(0.0, float(floor) - float(grain))
    achieved = max(float(norm), lower)
    return Bound(norm=name, lower=lower, achieved=achieved, upper=achieved + float(slack), scale=scale)
