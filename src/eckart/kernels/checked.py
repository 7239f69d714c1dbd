"""What functions of matrices ask of their argument, in one sentence each."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_matrix(a: Tensor) -> Tensor:
    """``a`` itself, if it is a real matrix without NaN and infinity; else ``ValueError``.

    >>> finite_matrix(torch.ones(3))
    Traceback (most recent call last):
    ValueError: a matrix is wanted, not a tensor of shape (3,)
    """
    if a.ndim != 2:
        raise ValueError(f"a matrix is wanted, not a tensor of shape {tuple(a.shape)}")
    if a.is_complex():
        raise ValueError(
            f"a real matrix is wanted, not one of {a.dtype}: give its real and imaginary part on their own"
        )
    if not bool(torch.isfinite(a).all()):
        raise ValueError(f"the {a.shape[0]} x {a.shape[1]} matrix holds NaN or infinity")
    return a


def finite_square(a: Tensor) -> Tensor:
    """``a`` itself, if it is a square real matrix without NaN and infinity; else ``ValueError``.

    >>> finite_square(torch.ones(2, 3))
    Traceback (most recent call last):
    ValueError: a square matrix is wanted, not one of shape 2 x 3
    """
    a = finite_matrix(a)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"a square matrix is wanted, not one of shape {a.shape[0]} x {a.shape[1]}")
    return a
