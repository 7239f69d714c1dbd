"""``eckart.json``: what was done, and for every matrix how far it is from its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.model.files import read_json
from eckart.model.targets import Target

NAME = "eckart.json"
FORMAT = 1


@dataclass(frozen=True)
class MatrixRecord:
    """One targeted matrix: its operator, rank (``None``: dense), bytes and bounds, the recipe's metric first."""

    name: str
    shape: tuple[int, int]
    operator: str
    rank: int | None
    bytes: int
    bounds: tuple[Bound, ...]

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "operator": self.operator,
            "rank": self.rank,
            "bytes": self.bytes,
            "bounds": [bound.to_json() for bound in self.bounds],
        }


def record(target: Target, rank: int | None, bounds: Sequence[Bound]) -> MatrixRecord:
    """The record of a target at a rank."""
    operator = "dense" if rank is None else "factors"
    return MatrixRecord(target.name, target.shape, operator, rank, target.slot().cost(rank), tuple(bounds))


@dataclass(frozen=True)
class Certificate:
    """A certificate read back: the whole table, and its matrices and tensor hashes in typed form."""

    table: Mapping[str, object]
    matrices: tuple[MatrixRecord, ...]
    tensors: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """Read ``eckart.json``; raises ``EckartError`` if it is missing or not a certificate."""
        path = folder / NAME
        if not path.exists():
            raise EckartError(f"{folder} holds no {NAME}: it was not made by eckart compress")
        table = read_json(path)
        if table.get("format") != FORMAT:
            raise EckartError(f"{path} has format {table.get('format')!r}, this version of eckart reads {FORMAT}")
        try:
            matrices = tuple(_matrix(entry) for entry in _list(table["matrices"]))
            tensors = {str(name): str(digest) for name, digest in _dict(table["tensors"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise EckartError(f"{path} is damaged or was edited: {error}") from error
        return cls(table, matrices, tensors)

    def section(self, name: str) -> Mapping[str, object]:
        """A sub-table; raises ``EckartError`` if it is not there."""
        value = self.table.get(name)
        if not isinstance(value, dict):
            raise EckartError(f"{NAME} holds no table {name!r}: it is damaged or was edited")
        return value


def _matrix(entry: object) -> MatrixRecord:
    fields = _dict(entry)
    rows, columns = (int(str(size)) for size in _list(fields["shape"]))
    rank = fields["rank"]
    return MatrixRecord(
        name=str(fields["name"]),
        shape=(rows, columns),
        operator=str(fields["operator"]),
        rank=None if rank is None else int(str(rank)),
        bytes=int(str(fields["bytes"])),
        bounds=tuple(Bound.from_json(_dict(bound)) for bound in _list(fields["bounds"])),
    )


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"a table is wanted where {str(value)[:40]!r} stands")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"a list is wanted where {str(value)[:40]!r} stands")
    return value
