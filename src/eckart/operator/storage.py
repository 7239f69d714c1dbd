"""How operators are called in files, and what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eckart.operator.matrices import Dense, Factors
from eckart.operator.protocol import Operator

# What a file calls an operator, and how it is built again from its stored tensors. Not changed at run time.
KINDS: Mapping[str, Callable[..., Operator]] = {"dense": Dense, "factors": Factors}


def kind_of(op: Operator) -> str:
    """The name under which ``op`` is stored, a key of ``KINDS``.

    >>> import torch
    >>> kind_of(Dense(torch.eye(2)))
    'dense'
    """
    return next(name for name, maker in KINDS.items() if type(op) is maker)


def nbytes(op: Operator) -> int:
    """The bytes that ``op`` stores: the sum over ``op.tensors()``.

    >>> import torch
    >>> nbytes(Factors(torch.zeros(4, 1), torch.zeros(1, 6)))
    40
    """
    return sum(t.numel() * t.element_size() for t in op.tensors().values())
