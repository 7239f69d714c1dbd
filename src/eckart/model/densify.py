"""From a compressed checkpoint back to a stock one, with the products multiplied out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eckart.errors import EckartError
from eckart.model.certificate import NAME, Certificate
from eckart.model.checkpoint import Checkpoint
from eckart.model.entries import read_entry
from eckart.model.linear import stored_name
from eckart.model.progress import Progress, quiet
from eckart.model.quantizer import METHOD
from eckart.model.rewrite import Rewriting, check_place, rewrite
from eckart.model.skeleton import Skeleton
from eckart.model.tensorfile import TensorSpec
from eckart.operator import Blueprint, Operator, in_dtype


class OperatorModules:
    """The operators of a compressed checkpoint, read one at a time.

    ``names`` lists the modules that hold one; of modules that share an operator only the one whose tensors are stored. ``resized`` are
    those of another shape than the architecture gives them, ``links`` the maps at which the directions of the stream change.
    A tensor that several modules share belongs to the one that stores it.
    Raises ``EckartError`` if the checkpoint was not made by this library; with ``optional``, one without any operator is
    taken for a result all of whose matrices stayed dense.
    """

    def __init__(self, checkpoint: Checkpoint, *, optional: bool = False) -> None:
        none = {"quant_method": METHOD, "modules": {}} if optional else None
        entry = checkpoint.config.get("quantization_config", none)
        if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
            raise EckartError(f"{checkpoint.folder} is not compressed by eckart: its config.json says nothing of it")
        modules = entry.get("modules")
        if not isinstance(modules, dict):
            raise EckartError(f"{checkpoint.folder / 'config.json'} lists no compressed modules: it is damaged")
        self.checkpoint = checkpoint
        self._entries: dict[str, tuple[Blueprint, dict[str, str], frozenset[str]]] = {}
        self.resized: list[str] = []
        links = entry.get("links", {})
        self.links = list(links) if isinstance(links, dict) else []
        for name, spec in modules.items():
            try:
                entry = read_entry(spec)
            except ValueError as error:
                raise EckartError(f"{checkpoint.folder / 'config.json'} is damaged: it gives {name} {error}") from error
            layout = tuple(entry.shapes)
            stored = {side: entry.shared.get(side, f"{name}.{stored_name(side, layout)}") for side in layout}
            there = [disk for disk in stored.values() if disk in checkpoint.tensors]
            if not there:
                continue  # tied: the module that it follows holds the tensors
            if len(there) < len(stored):
                raise EckartError(f"{checkpoint.folder}: of the operator {name} only a part is stored; fetch it again")
            specs = {side: checkpoint.tensors[disk][1] for side, disk in stored.items()}
            if any(specs[side].shape != shape for side, shape in entry.shapes.items()):
                raise EckartError(f"{checkpoint.folder}: {name} is not stored in the shapes that config.json gives it")
            if any(specs[side].dtype != dtype for side, dtype in entry.dtypes.items()):
                raise EckartError(f"{checkpoint.folder}: {name} is not stored in the dtypes that config.json gives it")
            self.resized += [name] if entry.resized else []
            self._entries[name] = (Blueprint.of(entry.record), stored, frozenset(entry.shared))

    @property
    def names(self) -> list[str]:
        """The modules whose operators are stored."""
        return list(self._entries)

    def kind(self, name: str) -> str:
        """The kind of a module's operator, a key of ``KINDS``."""
        return self._entries[name][0].kind

    def tensors(self, name: str) -> Mapping[str, str]:
        """For each tensor of a module's operator its name on disk."""
        return self._entries[name][1]

    def own(self, name: str) -> frozenset[str]:
        """The names on disk of the tensors that a module stores itself."""
        _, stored, shared = self._entries[name]
        return frozenset(disk for side, disk in stored.items() if side not in shared)

    def read(self, name: str) -> Operator:
        """The operator of a module, in its stored dtype."""
        return self._entries[name][0].build(
            {side: self.checkpoint.read(disk) for side, disk in self.tensors(name).items()}
        )


def densify(folder: str | Path, out: str | Path, *, restart: bool = False, progress: Progress = quiet) -> Path:
    """Write a stock checkpoint whose weights are the products of a compressed one, rounded to the stored dtype.

    Products are formed in float32 (float64 for float64 factors), one matrix at a time. The result needs nothing but
    transformers. A run that was killed goes on when it is repeated; ``restart`` begins anew.

    Raises ``EckartError`` if ``folder`` is not a compressed checkpoint, if its blocks have widths of their own, or ``out`` is not free.
    """
    folder, out = Path(folder), Path(out)
    check_place(out)
    checkpoint = Checkpoint(folder)
    if "quantization_config" not in checkpoint.config and _was_left_stock(folder):
        raise EckartError(f"{folder} is a stock checkpoint already: load it as it is")
    modules = OperatorModules(checkpoint)
    if modules.links:
        raise EckartError(
            f"{folder}: the directions of the stream change at {modules.links[0]}, which no stock config tells of: use the result as it "
            "is, or compress the original anew with one set of directions (slicegpt)"
        )
    if modules.resized:
        raise EckartError(
            f"{folder}: {modules.resized[0]} has a width of its own, which no stock config tells of: use the result as it is, or compress "
            "the original anew with one width for all blocks (Level in [allocate])"
        )
    plan = _plan(checkpoint, modules, _transposed(checkpoint))
    return rewrite(plan, out, {"source": checkpoint.file_hashes()}, restart=restart, progress=progress)


def _was_left_stock(folder: Path) -> bool:
    """Whether this is a result without any operator: nothing was factored, or its config tells of all that is narrower."""
    return (folder / NAME).is_file() and all(matrix.rank is None for matrix in Certificate.read(folder).matrices)


def _plan(checkpoint: Checkpoint, modules: OperatorModules, transposed: set[str]) -> Rewriting:
    """What becomes of each file."""
    weights = {f"{name}.weight": name for name in modules.names}
    parts = {disk for name in modules.names for disk in modules.tensors(name).values()}
    # A weight goes where the first tensor of its own is, or, of a module that has none, the first of all.
    homes: dict[str, list[str]] = {}
    for name in modules.names:
        stored = list(modules.tensors(name).values())
        homes.setdefault(next((disk for disk in stored if disk in modules.own(name)), stored[0]), []).append(name)

    def specs_of(stored: TensorSpec) -> list[TensorSpec]:
        if stored.name not in parts:
            return [stored]
        found = []
        for name in homes.get(stored.name, []):
            rows, columns = modules.read(name).shape
            shape = (columns, rows) if name in transposed else (rows, columns)
            found.append(TensorSpec(f"{name}.weight", stored.dtype, shape))
        return found

    def produce(name: str) -> Tensor:
        if name not in weights:
            return checkpoint.read(name)
        op = modules.read(weights[name])
        stored = next(iter(op.tensors().values())).dtype
        wide = torch.promote_types(stored, torch.float32)
        product = in_dtype(op, wide).dense().to(stored)
        return (product.T if weights[name] in transposed else product).contiguous()

    return Rewriting(
        stage="densify",
        source=checkpoint,
        specs=lambda file: [entry for stored in checkpoint.specs(file) for entry in specs_of(stored)],
        metadata=lambda file: {"format": "pt"} | checkpoint.metadata(file),
        produce=produce,
        config={k: v for k, v in checkpoint.config.items() if k != "quantization_config"},
    )


def _transposed(checkpoint: Checkpoint) -> set[str]:
    """The modules that store their weight as (inputs, outputs)."""
    skeleton = Skeleton(checkpoint)
    return {name for name, module in skeleton.model.named_modules() if isinstance(module, Conv1D)}
