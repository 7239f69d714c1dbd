"""Most of the directions of a matrix: eigenvectors in float32 of a Gram matrix in float64, with a certificate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from eckart.kernels.randomized import InMemory, Subspace
from eckart.kernels.svd import EPS, SAFETY, smaller_gram
from eckart.kernels.symmetric import add_gram

SINGLE = torch.finfo(torch.float32).eps


def single_precision_subspace(matrix: Tensor, rank: int, *, accuracy: float, energy: float) -> Subspace | None:
    """The ``rank`` leading left singular vectors of ``matrix`` (m, n), float32 or narrower, in about half the time of float64.

    With ``G = A A^T`` (or ``A^T A`` of a tall A) in float64 and its eigenvectors U and values D in float32, let ``E = G - U D U^T`` and
    ``F = D^(1/2) (U^T U - 1) D^(1/2)``, both formed in float64. Then the r largest eigenvalues of G add up to at most
    ``sum(D_r) + sqrt(r) (norm(E) + norm(F))``, Frobenius: those of a sum of matrices add up to at most the sums of theirs, and r of
    one matrix to at most the root of r times its norm. What that leaves of the ``energy``, the sum of all squared entries, no matrix
    of rank r can come below (``Subspace.floor``), whatever float32 did to U. ``excess`` is the share by which the error is above that
    at the most.

    ``None`` where that is more than ``accuracy``: where little is left, float32 can't tell how little.

    >>> falling = torch.diag(torch.arange(1, 101) ** -0.5)
    >>> found = single_precision_subspace(falling, 50, accuracy=1e-3, energy=float((1 / torch.arange(1, 101)).sum()))
    >>> round(found.floor**2, 3), 0 <= found.excess < 1e-3  # 1/51 + 1/52 + ... + 1/100
    (0.688, True)
    """
    gram = smaller_gram(matrix)
    unit = float(gram.diagonal().max())
    if not unit > 0:
        return None
    values, vectors = torch.linalg.eigh((gram / unit).to(torch.float32))
    values, vectors = values.to(torch.float64).flip(0).clamp(min=0) * unit, vectors.flip(1)
    tail = float(values[rank:].sum())
    # LAPACK's eigenvectors in float32 reproduce a matrix to 1 to 3 units of rounding times the root of its side.
    if math.sqrt(rank * len(gram)) * SINGLE * float(torch.linalg.vector_norm(gram)) > 2 * accuracy * tail:
        return None
    most = float(values[:rank].sum()) + math.sqrt(rank) * _misfit(gram, values, vectors)
    rounding = SAFETY * EPS * (max(matrix.shape) + len(gram)) * math.sqrt(rank) * float(gram.trace())
    floor = math.sqrt(max(0.0, energy - most - rounding))
    leading = vectors[:, :rank].contiguous()
    if matrix.shape[0] > matrix.shape[1]:  # then these are right ones
        leading = torch.linalg.qr(matrix.to(torch.float32) @ leading).Q
    image = InMemory(matrix).transposed_times(leading, narrow=False).T.to(torch.float64)
    found = Subspace(
        u=leading.to(torch.float64),
        s=values[:rank].sqrt(),
        image=image,
        basis=leading,
        beyond=0.0,
        steps=0,
        excess=None,
        floor=floor,
    )
    # Columns that are not quite orthonormal capture a little less than their image says.
    left = energy - (1 - found.skew) * float(image.square().sum())
    if not floor > 0 or left > (1 + accuracy) ** 2 * floor**2:
        return None
    return replace(found, excess=math.sqrt(max(left, floor**2)) / floor - 1)


def _misfit(gram: Tensor, values: Tensor, vectors: Tensor) -> float:
    """``norm(G - U D U^T) + norm(D^(1/2) (U^T U - 1) D^(1/2))``, Frobenius, in float64."""
    wide, roots = vectors.to(torch.float64), values.sqrt()
    beside = add_gram(torch.zeros_like(gram), [wide])
    beside.diagonal().sub_(1.0)
    skew = float(torch.linalg.vector_norm(beside.mul_(roots).mul_(roots[:, None])))
    del beside
    made = add_gram(torch.zeros_like(gram), [(wide * roots).T.contiguous()])
    return skew + float(torch.linalg.vector_norm(made.sub_(gram)))
