"""Gradients of weights, from what a map is given and the gradients at what it gives, without forming them."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 1024  # of a sequence at once


def column_energies(inputs: Tensor, gradients: Tensor) -> Tensor:
    """``sum_w sum_i (G_w^T X_w)_ij^2`` (n,) in float64, for inputs X (w, t, n) and gradients G (w, t, m) at the outputs of a map.

    ``G_w^T X_w`` is the gradient of its weight for sequence w of t tokens. Its squared columns are the diagonal of ``X^T (G G^T) X``,
    which takes ``t^2 (m + n)`` products and no room for the gradient.

    >>> x, g = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), torch.tensor([[[3.0], [1.0]]])
    >>> column_energies(x, g).tolist()  # the gradient is [3, 7]
    [9.0, 49.0]
    """
    x, g = inputs.to(torch.float64), gradients.to(torch.float64)
    found = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
    for some, above in zip(x.split(TOKENS, dim=1), g.split(TOKENS, dim=1), strict=True):
        found += (some * (above @ g.mT @ x)).sum((0, 1))
    return found.clamp_min_(0.0)  # rounding may leave a column of zeros a little below
