"""Square roots of positive semidefinite matrices, without inverses and without Cholesky."""

from __future__ import annotations

import torch
from torch import Tensor


def psd_root(gram: Tensor) -> Tensor:
    """``R`` (n, k) in float64 with ``R @ R.T == gram``, for a symmetric positive semidefinite ``gram`` (n, n).

    From the eigenvectors, ``R = Q diag(sqrt(l))``; directions whose eigenvalue rounding made zero or negative are
    left out, so a rank-deficient matrix gives a narrower root instead of a failure. Only the lower triangle is read, and
    ``R`` takes the place of the eigenvectors: beside ``gram`` there are 3 n^2 numbers in memory at the most.

    >>> psd_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).abs().round(decimals=9).tolist()
    [[2.0], [0.0]]
    """
    values, vectors = torch.linalg.eigh(gram.to(torch.float64))
    first = int((values <= 0).sum())  # eigenvalues ascend
    return vectors[:, first:].mul_(values[first:].sqrt())
