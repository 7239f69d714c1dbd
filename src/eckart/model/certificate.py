"""``eckart.json``: what was done, and for every matrix how far it is from its original."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.model.files import read_json
from eckart.model.targets import Target, Untouched
from eckart.operator import Operator, kind_of, nbytes

NAME = "eckart.json"
FORMAT = 1

T = TypeVar("T")


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


@dataclass(frozen=True)
class BondRecord:
    """A bond that was made narrower: its size, what is left of it, ``kept`` entries where they were picked, the error of what is read."""

    name: str
    size: int
    rank: int
    kept: tuple[int, ...] | None
    bound: Bound | None

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return {
            "name": self.name,
            "size": self.size,
            "rank": self.rank,
            "kept": None if self.kept is None else list(self.kept),
            "bound": None if self.bound is None else self.bound.to_json(),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> BondRecord:
        """Read back what ``to_json`` wrote; ``KeyError``, ``TypeError`` or ``ValueError`` if it is something else."""
        name, size, rank, kept, bound = (entry[key] for key in ("name", "size", "rank", "kept", "bound"))
        picked = kept is None or (isinstance(kept, list) and all(type(place) is int for place in kept))
        if not (isinstance(name, str) and type(size) is int and type(rank) is int and 0 < rank <= size and picked):
            raise TypeError(f"no bond with its size and what is left of it: {str(entry)[:40]!r}")
        if bound is not None and not isinstance(bound, dict):
            raise TypeError(f"{name}: no bound of an error")
        entries = tuple(kept) if isinstance(kept, list) else None
        return cls(name, size, rank, entries, None if bound is None else Bound.from_json(bound))


@dataclass(frozen=True)
class Removal:
    """What went by its measured loss: a block, of which nothing is ``left``, or all but so many units of a site; with the loss then."""

    name: str
    left: int
    loss: float

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return {"name": self.name, "left": self.left, "loss": self.loss}


@dataclass(frozen=True)
class HeadRecord:
    """A head that takes the weights of ``root``: of its ``match`` or, where that is shared as well, of what the match takes."""

    name: str
    match: str
    root: str
    likeness: float

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return {"name": self.name, "match": self.match, "root": self.root, "likeness": self.likeness}

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> HeadRecord:
        """Read back what ``to_json`` wrote; ``KeyError`` or ``TypeError`` if it is something else."""
        name, match, root = (_text(entry[key]) for key in ("name", "match", "root"))
        return cls(name, match, root, _number(entry["likeness"]))


def record(target: Target, form: Operator | None, rank: int | None, bounds: Sequence[Bound]) -> MatrixRecord:
    """The record of a target that is stored at a rank in this form; ``None``: dense."""
    kind, size = ("dense", target.bytes) if form is None else (kind_of(form), nbytes(form))
    return MatrixRecord(target.name, target.shape, kind, rank, size, tuple(bounds))


@dataclass(frozen=True)
class CalibrationRecord:
    """Which text and which windows of it the statistics came from; ``ids`` is the SHA-256 of the windows' token ids."""

    sha256: str
    ids: str
    tokens: int
    asked_tokens: int
    window: int
    seed: int


@dataclass(frozen=True)
class HeldOut:
    """Losses on windows that nothing trained on: nats per token of the text, and ``KL(original || this)`` in nats per token.

    ``None`` stands for what came out as no number.
    """

    nats: float | None
    divergence: float | None

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return {"nats": self.nats, "divergence": self.divergence}


@dataclass(frozen=True, kw_only=True)
class HealingRecord:
    """One healing: parts, course, text, and losses on held-out windows of the original, before and after.

    ``trained`` names the tensors on disk that training gave; none where the result was worse and the ones before were kept.
    ``curve`` holds the mean training loss of every few steps, ``source`` the files of the checkpoint that was healed.
    """

    match: Mapping[str, object]
    train: Mapping[str, object]
    steps: int
    rate: float
    batch_tokens: int
    seed: int
    device: str
    text: CalibrationRecord
    held_out: int
    source: Mapping[str, str]
    original: HeldOut
    before: HeldOut
    after: HeldOut
    curve: tuple[float, ...]
    trained: tuple[str, ...]
    environment: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """The entry in ``eckart.json``."""
        return asdict(self) | {"trained": list(self.trained), "curve": list(self.curve)}

    @classmethod
    def from_json(cls, entry: Mapping[str, object]) -> HealingRecord:
        """Read back what ``to_json`` wrote; ``KeyError``, ``TypeError`` or ``ValueError`` if it is something else."""
        return cls(
            match=_table(entry["match"]),
            train=_table(entry["train"]),
            steps=_whole(entry["steps"], least=1),
            rate=_number(entry["rate"]),
            batch_tokens=_whole(entry["batch_tokens"], least=1),
            seed=_whole(entry["seed"], least=None),
            device=_text(entry["device"]),
            text=_calibration(_table(entry["text"])),
            held_out=_whole(entry["held_out"], least=1),
            source=_mapping(entry["source"], _text),
            original=_held_out(entry["original"]),
            before=_held_out(entry["before"]),
            after=_held_out(entry["after"]),
            curve=tuple(_number(loss) for loss in _list(entry["curve"])),
            trained=tuple(_text(name) for name in _list(entry["trained"])),
            environment=_table(entry["environment"]),
        )


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate read back in typed form.

    Pairs of sizes are those before and after; ``losses`` are mean negative log-likelihoods on the calibration windows. ``healing`` lists
    what training did afterwards.
    """

    matrices: tuple[MatrixRecord, ...]
    bonds: tuple[BondRecord, ...]
    heads: tuple[HeadRecord, ...]
    dropped: tuple[str, ...]
    removals: tuple[Removal, ...]
    untouched: tuple[Untouched, ...]
    tensors: Mapping[str, str]
    source: Mapping[str, str]
    recipe: Mapping[str, object]
    only: tuple[str, ...]
    exclude: tuple[str, ...]
    keep: float | None
    size: int | None
    seed: int
    quick: bool
    calibration: CalibrationRecord | None
    target_bytes: tuple[int, int]
    file_bytes: tuple[int, int]
    losses: Mapping[str, float]
    kept: str
    gap: float | None
    healing: tuple[HealingRecord, ...]

    @property
    def trained(self) -> frozenset[str]:
        """The tensors on disk that a training gave."""
        return frozenset(name for entry in self.healing for name in entry.trained)

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """Read ``eckart.json``; raises ``EckartError`` if it is missing, damaged or not a certificate."""
        path = folder / NAME
        if not folder.is_dir():
            raise EckartError(f"{folder} is not a directory: name one that eckart compress wrote")
        if not path.exists():
            raise EckartError(f"{folder} holds no {NAME}: it was not made by eckart compress")
        table = read_json(path)
        if table.get("format") != FORMAT:
            raise EckartError(f"{path} has format {table.get('format')!r}, this version of eckart reads {FORMAT}")
        try:
            return cls._from_json(table)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise EckartError(f"{path} is damaged or was edited: {told}") from error

    @classmethod
    def _from_json(cls, table: Mapping[str, object]) -> Certificate:
        request, sizes, ranks = (_table(table[key]) for key in ("request", "sizes", "ranks"))
        calibration = table["calibration"]
        return cls(
            matrices=tuple(_matrix(entry) for entry in _list(table["matrices"])),
            bonds=tuple(_bond(_table(entry)) for entry in _list(table.get("bonds", []))),
            heads=tuple(HeadRecord.from_json(_table(entry)) for entry in _list(table.get("heads", []))),
            dropped=tuple(_text(entry) for entry in _list(table.get("dropped", []))),
            removals=tuple(_removal(_table(entry)) for entry in _list(table.get("removals", []))),
            untouched=tuple(_untouched(_table(entry)) for entry in _list(table["untouched"])),
            tensors=_mapping(table["tensors"], _text),
            source=_mapping(table["source"], _text),
            recipe=_table(table["recipe"]),
            only=tuple(_text(entry) for entry in _list(request["only"])),
            exclude=tuple(_text(entry) for entry in _list(request["exclude"])),
            keep=None if request["keep"] is None else _number(request["keep"]),
            size=None if request["bytes"] is None else _whole(request["bytes"], least=1),
            seed=_whole(request["seed"], least=None),
            quick=_truth(request.get("quick", False)),  # older certificates never were
            calibration=None if calibration is None else _calibration(_table(calibration)),
            target_bytes=_before_after(_table(sizes["targets"])),
            file_bytes=_before_after(_table(sizes["files"])),
            losses=_mapping(ranks["losses"], _number),
            kept=_text(ranks["kept"]),
            gap=None if ranks["gap"] is None else _number(ranks["gap"]),
            healing=tuple(_healing(_table(entry)) for entry in _list(table.get("healing", []))),
        )


def _matrix(entry: object) -> MatrixRecord:
    fields = _table(entry)
    name = _text(fields["name"])
    try:
        rows, columns = (_whole(size) for size in _list(fields["shape"]))
        return MatrixRecord(
            name=name,
            shape=(rows, columns),
            operator=_text(fields["operator"]),
            rank=None if fields["rank"] is None else _whole(fields["rank"]),
            bytes=_whole(fields["bytes"]),
            bounds=tuple(Bound.from_json(_table(bound)) for bound in _list(fields["bounds"])),
        )
    except KeyError as error:
        raise ValueError(f"{name}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def _bond(fields: Mapping[str, object]) -> BondRecord:
    try:
        return BondRecord.from_json(fields)
    except KeyError as error:
        raise ValueError(f"a bond lacks {error.args[0]!r}") from error


def _removal(fields: Mapping[str, object]) -> Removal:
    return Removal(_text(fields["name"]), _whole(fields["left"]), _number(fields["loss"]))


def _healing(fields: Mapping[str, object]) -> HealingRecord:
    try:
        return HealingRecord.from_json(fields)
    except KeyError as error:
        raise ValueError(f"a healing lacks {error.args[0]!r}") from error


def _held_out(value: object) -> HeldOut:
    found = {name: None if entry is None else _number(entry) for name, entry in _table(value).items()}
    return HeldOut(nats=found["nats"], divergence=found["divergence"])


def _untouched(fields: Mapping[str, object]) -> Untouched:
    shape = tuple(_whole(size) for size in _list(fields["shape"]))
    return Untouched(_text(fields["name"]), shape, _text(fields["reason"]))


def _calibration(fields: Mapping[str, object]) -> CalibrationRecord:
    return CalibrationRecord(
        sha256=_text(fields["sha256"]),
        ids=_text(fields["ids"]),
        tokens=_whole(fields["tokens"], least=1),
        asked_tokens=_whole(fields["asked_tokens"], least=1),
        window=_whole(fields["window"], least=2),
        seed=_whole(fields["seed"], least=None),
    )


def _before_after(fields: Mapping[str, object]) -> tuple[int, int]:
    return _whole(fields["before"]), _whole(fields["after"])


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"a table is wanted where {str(value)[:40]!r} stands")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"a list is wanted where {str(value)[:40]!r} stands")
    return value


def _mapping(value: object, read: Callable[[object], T]) -> dict[str, T]:
    return {name: read(entry) for name, entry in _table(value).items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is wanted where {str(value)[:40]!r} stands")
    return value


def _whole(value: object, least: int | None = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        above = "" if least is None else f" of at least {least}"
        raise TypeError(f"a whole number{above} is wanted where {str(value)[:40]!r} stands")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false is wanted where {str(value)[:40]!r} stands")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"a number is wanted where {str(value)[:40]!r} stands")
    return float(value)
