"""Large matrices in float64 a few rows at a time: a copy of the whole would take twice the room of the matrix, or four times."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 512  # rows at once


def panels(matrix: Tensor) -> Iterator[Tensor]:
    """Rows of a matrix (m, n) in float64, ``PANEL`` at a time.

    >>> [len(rows) for rows in panels(torch.ones(1000, 2))]
    [512, 488]
    """
    return (rows.to(torch.float64) for rows in matrix.split(PANEL))
