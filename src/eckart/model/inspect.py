"""Looking at the matrices of a checkpoint: their shapes, bytes and spectra."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eckart.errors import EckartError
from eckart.measure import Spectrum, spectrum
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.densify import OperatorModules
from eckart.model.progress import Progress, quiet
from eckart.model.quantizer import METHOD
from eckart.model.targets import Untouched, matches, natural
from eckart.model.workers import side_by_side
from eckart.operator import Dense, Factors, Operator, kind_of, nbytes

FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class MatrixRow:
    """One matrix of a checkpoint as it is stored, and its singular values.

    ``name`` is the tensor's name without ``.weight``, ``shape`` that of the matrix or of the product. ``operator`` is a
    key of ``KINDS``; ``rank`` is the inner dimension of a factored matrix, ``None`` for others. ``bytes`` counts what
    is stored, and what several share where it is stored.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    operator: str
    rank: int | None
    bytes: int
    spectrum: Spectrum

    def to_json(self) -> dict[str, object]:
        """The row as a table, with the figures of the spectrum but not its values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "operator": self.operator,
            "rank": self.rank,
            "bytes": self.bytes,
            "spectrum": self.spectrum.to_json(),
        }


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found: a row per matrix, by name with layer 10 after layer 9, and what it could not look at."""

    rows: tuple[MatrixRow, ...]
    untouched: tuple[Untouched, ...]

    def to_json(self) -> dict[str, object]:
        """Both lists as a table."""
        return {
            "matrices": [row.to_json() for row in self.rows],
            "untouched": [{"name": u.name, "shape": list(u.shape), "reason": u.reason} for u in self.untouched],
        }


def inspect(
    model: str | Path, only: Sequence[str] = (), exclude: Sequence[str] = (), progress: Progress = quiet
) -> Inspection:
    """The spectrum of every floating-point matrix that a checkpoint stores: maps, embeddings, head, experts.

    ``model`` is a local Hugging Face directory or a hub id, original or compressed by this library. Names and shapes on
    disk decide, the model itself is not built; one matrix per thread is in memory at a time. ``only`` and ``exclude`` are patterns
    on the names of the rows. Tensors of one dimension are passed over; those of three or more, and codes that are no
    plain floating-point numbers, are listed as untouched.

    Raises ``EckartError`` if the checkpoint is damaged or holds NaN or infinity, if a pattern fits nothing, or if nothing
    is left.
    """
    checkpoint = Checkpoint(resolve(model))
    operators = _operators(checkpoint)
    factored = {name: tuple(operators.tensors(name).values()) for name in operators.names} if operators else {}
    dense, untouched = _dense(checkpoint, {disk for disks in factored.values() for disk in disks})
    _check_patterns([*only, *exclude], [*factored, *dense, *(u.name for u in untouched)])
    chosen = sorted((name for name in [*factored, *dense] if _chosen(name, only, exclude)), key=natural)
    if not chosen:
        left = "is left by --only and --exclude" if only or exclude else "is stored in it"
        raise EckartError(f"{checkpoint.folder}: no floating-point matrix {left}")

    def measure(name: str) -> MatrixRow:
        if operators is None or name not in factored:
            matrix = Dense(checkpoint.read_finite(dense[name]))
            return _row(name, matrix, nbytes(matrix))
        for disk in factored[name]:
            checkpoint.read_finite(disk)
        size = sum(checkpoint.tensors[disk][1].nbytes for disk in operators.own(name))
        return _row(name, operators.read(name), size)

    rows = []
    for row in side_by_side(measure, chosen):
        rows.append(row)
        progress("inspect", len(rows), len(chosen), row.name)
    kept = [u for u in untouched if _chosen(u.name, only, exclude)]
    return Inspection(tuple(rows), tuple(sorted(kept, key=lambda u: natural(u.name))))


def _row(name: str, op: Operator, size: int) -> MatrixRow:
    dtype = next(iter(op.tensors().values())).dtype
    rank = op.rank if isinstance(op, Factors) else None
    return MatrixRow(name, op.shape, dtype, kind_of(op), rank, size, spectrum(op))


def _dense(checkpoint: Checkpoint, parts: Collection[str]) -> tuple[dict[str, str], list[Untouched]]:
    """The matrices that are not ``parts`` of an operator, with their names on disk, and what is none."""
    found: dict[str, str] = {}
    untouched: list[Untouched] = []
    for disk, (_, spec) in checkpoint.tensors.items():
        if disk in parts or len(spec.shape) < 2:
            continue
        name = disk.removesuffix(".weight")
        if len(spec.shape) > 2:
            untouched.append(Untouched(name, spec.shape, f"{len(spec.shape)}-dimensional"))
        elif spec.dtype not in FLOATING:
            reason = f"stored as {spec.dtype}: not a plain floating-point matrix"
            untouched.append(Untouched(name, spec.shape, reason))
        else:
            found[name] = disk
    return found, untouched


def _operators(checkpoint: Checkpoint) -> OperatorModules | None:
    """The operators of a checkpoint that this library compressed; ``None`` for any other."""
    entry = checkpoint.config.get("quantization_config")
    if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
        return None
    return OperatorModules(checkpoint)


def _chosen(name: str, only: Sequence[str], exclude: Sequence[str]) -> bool:
    return (not only or matches(name, only)) and not matches(name, exclude)


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            example = f"; names look like {names[0]}" if names else ""
            raise EckartError(f"the pattern {pattern!r} fits no matrix of the checkpoint{example}")
