"""The one definition of a map with an adapter."""

from __future__ import annotations

from eckart.adapters.forms.directed import Directed
from eckart.adapters.forms.protocol import Form
from eckart.adapters.seed import Params
from eckart.operator import Dense, Diagonal, Factors, Operator, Product, Sum


def applied(form: Form, base: Operator, params: Params, scale: float) -> Operator:
    """``base + scale update``, and where the form says so its rows brought to lengths.

    >>> import torch
    >>> from eckart.adapters.forms.products import Pair
    >>> one = torch.ones(1, 1)
    >>> applied(Pair(), Dense(one), {"left": one, "right": one}, 2.0).dense().tolist()
    [[3.0]]
    """
    summed = Sum((base, scaled(form.update(params), scale)))
    return form.directed(summed, params) if isinstance(form, Directed) else summed


def scaled(op: Operator, scale: float) -> Operator:
    """``scale op``; of factors the left one takes it.

    >>> import torch
    >>> scaled(Dense(torch.ones(1, 1)), 2.0).dense().tolist()
    [[2.0]]
    """
    if isinstance(op, Factors):
        return Factors(scale * op.left, op.right)
    if isinstance(op, Dense):
        return Dense(scale * op.matrix)
    first = next(iter(op.tensors().values()))
    return Product((Diagonal(first.new_full((op.shape[0],), scale)), op))
