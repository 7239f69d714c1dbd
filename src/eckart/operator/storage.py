"""How operators are called in files, what they weigh, and how any of them is written down and built again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eckart.operator.algebra import Product, Sum, Transposed
from eckart.operator.codebook import Levels
from eckart.operator.codes import Codes
from eckart.operator.fields import Role, prefix, roles, tensor_name
from eckart.operator.masked import Masked
from eckart.operator.matrices import Dense, Factors
from eckart.operator.protocol import Operator
from eckart.operator.row_sparse import RowSparse
from eckart.operator.sparse import Sparse
from eckart.operator.stacked import Stacked
from eckart.operator.structured import BlockDiagonal, Diagonal, Kronecker, Shuffle
from eckart.operator.train import TensorTrain

_CLASSES: Mapping[str, type] = {
    "dense": Dense,
    "factors": Factors,
    "diagonal": Diagonal,
    "kronecker": Kronecker,
    "block_diagonal": BlockDiagonal,
    "shuffle": Shuffle,
    "tensor_train": TensorTrain,
    "sparse": Sparse,
    "row_sparse": RowSparse,
    "masked": Masked,
    "stacked": Stacked,
    "codes": Codes,
    "levels": Levels,
    "sum": Sum,
    "product": Product,
    "transposed": Transposed,
}
# What a file calls an operator, and what makes it of its fields. Not changed at run time.
KINDS: Mapping[str, Callable[..., Operator]] = _CLASSES
FIELDS: Mapping[str, Mapping[str, Role | type]] = {kind: roles(cls) for kind, cls in _CLASSES.items()}
# The kinds that consist of nothing but tensors, each a field: KINDS[kind](**tensors) makes one.
PLAIN = frozenset(kind for kind, table in FIELDS.items() if set(table.values()) == {Role.TENSOR})

Record = Mapping[str, Any]  # JSON: {"kind": …, "settings": {…}, "children": {…}}


def kind_of(op: Operator) -> str:
    """The name under which ``op`` is stored, a key of ``KINDS``.

    >>> import torch
    >>> kind_of(Dense(torch.eye(2)))
    'dense'

    Raises ``ValueError`` if it is of no kind that files know.
    """
    for name, maker in KINDS.items():
        if type(op) is maker:
            return name
    raise ValueError(f"a {type(op).__name__} is of no kind that can be stored; known are {', '.join(KINDS)}")


def nbytes(op: Operator) -> int:
    """The bytes that ``op`` stores: the sum over ``op.tensors()``.

    >>> import torch
    >>> nbytes(Factors(torch.zeros(4, 1), torch.zeros(1, 6)))
    40
    """
    return sum(t.numel() * t.element_size() for t in op.tensors().values())


def describe(op: Operator) -> Record:
    """What is to be known of ``op`` besides its tensors: its kind, its settings and its children, as a table for JSON.

    ``settings`` are the plain fields and the length of each tuple of tensors, ``children`` lists for each field the records of the
    operators in it. Either is left out where it is empty.

    >>> import torch
    >>> describe(Sum((Dense(torch.eye(6)), Shuffle(2, 3))))
    {'kind': 'sum', 'children': {'terms': [{'kind': 'dense'}, {'kind': 'shuffle', 'settings': {'rows': 2, 'columns': 3}}]}}

    Raises ``ValueError`` if ``op``, or something in it, is of no known kind.
    """
    kind = kind_of(op)
    settings: dict[str, Any] = {}
    children: dict[str, list[Record]] = {}
    for field, role in FIELDS[kind].items():
        value = getattr(op, field)
        if role is Role.OPERATOR:
            children[field] = [describe(value)]
        elif role is Role.OPERATORS:
            children[field] = [describe(part) for part in value]
        elif role is Role.TENSORS:
            settings[field] = len(value)
        elif role is not Role.TENSOR:
            settings[field] = value
    return {"kind": kind} | ({"settings": settings} if settings else {}) | ({"children": children} if children else {})


def rebuild(record: Record, tensors: Mapping[str, Tensor]) -> Operator:
    """The operator that ``describe`` wrote down, on these tensors.

    >>> import torch
    >>> rebuild({"kind": "factors"}, {"left": torch.ones(2, 1), "right": torch.ones(1, 3)}).shape
    (2, 3)

    Raises ``ValueError`` if the record is none or names an unknown kind, a tensor is missing or not asked for, or the tensors have
    shapes that do not make such an operator.
    """
    blueprint = Blueprint.of(record)
    blueprint.check_names(tensors)
    return blueprint.build(tensors)


@dataclass(frozen=True)
class Blueprint:
    """A record that was read and checked: it lists the names of its tensors and builds the operator, as often as wanted.

    >>> blueprint = Blueprint.of({"kind": "kronecker", "children": {"a": [{"kind": "dense"}], "b": [{"kind": "factors"}]}})
    >>> list(blueprint.names())
    ['a_matrix', 'b_left', 'b_right']
    """

    kind: str
    settings: Mapping[str, Any]
    children: Mapping[str, tuple[Blueprint, ...]]

    @classmethod
    def of(cls, record: Record) -> Blueprint:
        """Raises ``ValueError`` if ``describe`` could not have written this record."""
        if not isinstance(record, Mapping) or not {"kind"} <= set(record) <= {"kind", "settings", "children"}:
            raise ValueError(
                "the record of an operator is a table of its kind, and of settings and children if it has any"
            )
        kind, settings, children = record["kind"], record.get("settings", {}), record.get("children", {})
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"the operator {kind!r} is not known; known are {', '.join(KINDS)}")
        table = FIELDS[kind]
        wanted = {name: int if role is Role.TENSORS else role for name, role in table.items() if _is_setting(role)}
        if (
            not isinstance(settings, Mapping)
            or set(settings) != set(wanted)
            or any(type(settings[name]) is not wanted[name] for name in wanted)
        ):
            listed = ", ".join(f"{name} ({getattr(role, '__name__', role)})" for name, role in wanted.items())
            raise ValueError(
                f"the settings of a {kind} operator are {listed or 'none'}, which its record does not give"
            )
        single = {name: role is Role.OPERATOR for name, role in table.items() if _is_child(role)}
        if (
            not isinstance(children, Mapping)
            or set(children) != set(single)
            or any(
                not isinstance(children[name], list) or (one and len(children[name]) != 1)
                for name, one in single.items()
            )
        ):
            raise ValueError(
                f"the children of a {kind} operator are {', '.join(single) or 'none'}, which its record does not list"
            )
        return cls(kind, dict(settings), {name: tuple(map(cls.of, children[name])) for name in single})

    def names(self) -> Iterator[str]:
        """The names of the tensors, in the order of ``tensors()``."""
        for field, role in FIELDS[self.kind].items():
            if role is Role.TENSOR:
                yield field
            elif role is Role.TENSORS:
                yield from (tensor_name(field, i) for i in range(self.settings[field]))
            elif _is_child(role):
                for i, part in enumerate(self.children[field]):
                    before = prefix(field, i if role is Role.OPERATORS else None)
                    yield from (before + name for name in part.names())

    def check_names(self, given: Mapping[str, object]) -> None:
        """Raise ``ValueError`` unless ``given`` has the names of all tensors and no others."""
        missing = next((name for name in self.names() if name not in given), None)
        if missing is not None:
            raise ValueError(f"a {self.kind} operator by its record has a tensor {missing!r}, which is not there")
        surplus = sorted(set(given) - set(self.names()))
        if surplus:
            raise ValueError(f"a {self.kind} operator by its record has no tensor {surplus[0]!r}, which is there")

    def build(self, tensors: Mapping[str, Tensor]) -> Operator:
        """The operator on these tensors, which ``check_names`` lets pass.

        Raises ``ValueError`` if their shapes do not fit, naming the child in which that is.
        """
        return self._build(tensors, "")

    def _build(self, tensors: Mapping[str, Tensor], before: str) -> Operator:
        values: dict[str, Any] = {}
        for field, role in FIELDS[self.kind].items():
            if role is Role.TENSOR:
                values[field] = tensors[before + field]
            elif role is Role.TENSORS:
                values[field] = tuple(tensors[before + tensor_name(field, i)] for i in range(self.settings[field]))
            elif role is Role.OPERATOR:
                values[field] = self.children[field][0]._build(tensors, before + prefix(field))
            elif role is Role.OPERATORS:
                listed = enumerate(self.children[field])
                values[field] = tuple(part._build(tensors, before + prefix(field, i)) for i, part in listed)
            else:
                values[field] = self.settings[field]
        try:
            return KINDS[self.kind](**values)
        except ValueError as error:
            raise ValueError(f"in the tensors {before}…: {error}" if before else str(error)) from error


def _is_child(role: Role | type) -> bool:
    return role is Role.OPERATOR or role is Role.OPERATORS


def _is_setting(role: Role | type) -> bool:
    return role is not Role.TENSOR and not _is_child(role)
