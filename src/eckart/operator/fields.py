"""What an operator stores, by the fields of its dataclass: the names of its tensors are made here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum, auto
from typing import TYPE_CHECKING, get_type_hints

from torch import Tensor

from eckart.operator.protocol import Operator, TransposeProduct

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SETTINGS = (int, float, bool, str)  # what a record can hold besides operators


class Role(Enum):
    """What a field of an operator holds, where it is no plain setting."""

    TENSOR = auto()
    TENSORS = auto()  # a tuple of them
    OPERATOR = auto()
    OPERATORS = auto()  # a tuple of them


def roles(cls: type) -> Mapping[str, Role | type]:
    """For each field of an operator's class its role, or the type of its setting.

    >>> from eckart.operator import Factors
    >>> {name: role.name for name, role in roles(Factors).items()}
    {'left': 'TENSOR', 'right': 'TENSOR'}

    Raises ``TypeError`` if a field can't be stored.
    """
    known: dict[object, Role | type] = {
        Tensor: Role.TENSOR,
        tuple[Tensor, ...]: Role.TENSORS,
        Operator: Role.OPERATOR,
        TransposeProduct: Role.OPERATOR,
        tuple[Operator, ...]: Role.OPERATORS,
        **{setting: setting for setting in SETTINGS},
    }
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for name in names:
        if hints[name] not in known:
            raise TypeError(f"{cls.__name__}.{name} is a {hints[name]}, which no file of operators can hold")
    return {name: known[hints[name]] for name in names}


def tensor_name(field: str, index: int) -> str:
    """The name of one tensor of a tuple."""
    return f"{field}_{index}"


def prefix(field: str, index: int | None = None) -> str:
    """What stands before the names of the tensors of an operator inside another: its field, or its number in a tuple."""
    return f"{field}_" if index is None else f"{index}_"


def tensors_of(op: DataclassInstance) -> dict[str, Tensor]:
    """The tensors of an operator by name, in the order of its fields.

    >>> import torch
    >>> from eckart.operator import Diagonal, Kronecker
    >>> list(tensors_of(Kronecker(Diagonal(torch.ones(2)), Diagonal(torch.ones(3)))))
    ['a_values', 'b_values']
    """
    return {name: tensor for field in fields(op) for name, tensor in _named(field.name, getattr(op, field.name))}


def _named(field: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield field, value
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            if isinstance(part, Tensor):
                yield tensor_name(field, i), part
            else:
                yield from ((prefix(field, i) + name, tensor) for name, tensor in part.tensors().items())
    elif not isinstance(value, SETTINGS):
        assert hasattr(value, "tensors")
        yield from ((prefix(field) + name, tensor) for name, tensor in value.tensors().items())


def check_operand(op: Operator, x: Tensor) -> None:
    """Raise ``ValueError`` where ``op @ x`` has no meaning, for products that would broadcast instead."""
    m, n = op.shape
    if x.ndim not in (1, 2) or len(x) != n:
        raise ValueError(f"a {m} x {n} operator multiplies tensors ({n}, k) or ({n},), not {tuple(x.shape)}")


def dense_within(part: Operator, whole: Operator) -> Tensor:
    """``part.dense()``; if ``part`` stores nothing, in the dtype and on the device of what ``whole`` stores."""
    return within(part.dense(), part, whole)


def within(matrix: Tensor, part: Operator, whole: Operator) -> Tensor:
    """``matrix``, made of ``part``; if that stores nothing, in the dtype and on the device of what ``whole`` stores."""
    like = next((t for t in whole.tensors().values() if t.is_floating_point()), matrix)
    return matrix if part.tensors() else matrix.to(like)
