"""Which tensors a compressed checkpoint holds, in which file, and how many bytes that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eckart.allocate.slots import Rank
from eckart.approx import Approximator
from eckart.model.checkpoint import Checkpoint
from eckart.model.entries import entry_of
from eckart.model.linear import stored_name
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target
from eckart.model.tensorfile import TensorSpec, file_bytes
from eckart.operator import Operator

Ranks = Mapping[str, Rank]
Forms = Mapping[str, Operator]  # what is stored of the targets that do not stay dense, on the meta device


@dataclass(frozen=True)
class Piece:
    """One tensor to write: copied from ``source`` on disk, or ``made``, a work file and the name that it has there."""

    spec: TensorSpec
    source: str | None = None
    made: tuple[str, str] | None = None


def factors_file(label: str, block: int | None) -> str:
    """The work file of a block's factors under one choice of ranks."""
    return f"factors-{label}-{'outside' if block is None else format(block, '04d')}.safetensors"


def forms_of(approx: Approximator, targets: Sequence[Target], ranks: Ranks) -> Forms:
    """What is stored of every target that does not stay dense, on the meta device."""
    formed = ((target.name, target.form(approx, ranks[target.name])) for target in targets)
    return {name: form for name, form in formed if form is not None}


def names_held(target: Target, form: Operator) -> dict[str, str]:
    """What a target's module calls the tensors of its operator, and what they are called in the work file of the fit."""
    sides = tuple(form.tensors())
    return {f"{target.name}.{stored_name(side, sides)}": f"{target.name}:{side}" for side in sides}


def layout(skeleton: Skeleton, targets: Sequence[Target], forms: Forms, label: str = "") -> dict[str, list[Piece]]:
    """For each weight file of the source the pieces that the result's file of the same name holds, for the choice of ranks ``label``.

    An operator's tensors take the place of the weight that they replace, under the names that the modules have: the first one keeps
    the stock name, whose shape a stock loader refuses.
    """
    checkpoint = skeleton.checkpoint
    factored = {target.disk: target for target in targets if target.name in forms}
    replaced = _copies(skeleton, factored)
    pieces: dict[str, list[Piece]] = {}
    for file in checkpoint.files:
        table = pieces.setdefault(file, [])
        for spec in checkpoint.specs(file):
            if spec.name in factored:
                target = factored[spec.name]
                made = names_held(target, forms[target.name])
                for (name, key), tensor in zip(made.items(), forms[target.name].tensors().values(), strict=True):
                    spec = TensorSpec(name, tensor.dtype, tuple(tensor.shape))
                    table.append(Piece(spec, made=(factors_file(label, target.block), key)))
            elif spec.name not in replaced:
                table.append(Piece(spec, source=spec.name))
    return {file: table for file, table in pieces.items() if table}


def _copies(skeleton: Skeleton, factored: Mapping[str, Target]) -> set[str]:
    """Tensors on disk that only repeat a tied weight which is now factored."""
    twins = {f"{twin}.weight" for target in factored.values() for twin in target.twins}
    return {disk for disk, place in skeleton.places.items() if place in twins}


def modules_entry(targets: Sequence[Target], forms: Forms) -> dict[str, object]:
    """The ``modules`` table of the result's ``quantization_config``."""
    held = [target for target in targets if target.name in forms]
    return {name: entry_of(forms[target.name]) for target in held for name in (target.name, *target.twins)}


def metadata(checkpoint: Checkpoint, file: str) -> dict[str, str]:
    """The metadata of a file of the result: that of the source, and the framework tag that transformers asks for."""
    return {"format": "pt"} | checkpoint.metadata(file)


def output_bytes(skeleton: Skeleton, targets: Sequence[Target], forms: Forms) -> int:
    """The bytes of all safetensors files of the result, headers included."""
    return bytes_of(skeleton.checkpoint, layout(skeleton, targets, forms))


def bytes_of(checkpoint: Checkpoint, pieces: Mapping[str, Sequence[Piece]]) -> int:
    """The bytes of files with these pieces, headers included."""
    return sum(
        file_bytes([piece.spec for piece in table], metadata(checkpoint, file)) for file, table in pieces.items()
    )


def index_table(pieces: Mapping[str, Sequence[Piece]]) -> dict[str, object] | None:
    """The index of a sharded result; ``None`` where there is one file."""
    if list(pieces) == ["model.safetensors"]:
        return None
    total = sum(piece.spec.nbytes for table in pieces.values() for piece in table)
    names = {piece.spec.name: file for file, table in pieces.items() for piece in table}
    return {"metadata": {"total_size": total}, "weight_map": names}
