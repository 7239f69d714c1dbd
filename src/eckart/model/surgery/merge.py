"""A base and its adapter as one dense checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import sha256_of
from eckart.model.progress import Progress, quiet
from eckart.model.rewrite import Rewriting, check_place, rewrite
from eckart.model.surgery.adapter import Changing
from eckart.model.surgery.base import Base
from eckart.model.surgery.reading import home, read
from eckart.model.tensorfile import TensorSpec

Produced = tuple[TensorSpec, Callable[[], Tensor]]


def merge(
    model: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    restart: bool = False,
    progress: Progress = quiet,
) -> Path:
    """Write the checkpoint whose weights are ``W + s B A``, with magnitudes (DoRA) ``diag(c / |rows|) (W + s B A)``.

    Sums of 16-bit weights are formed in float32, of wider ones in float64, and rounded once to the stored dtype, one matrix at a time.
    Tensors that trained as a whole take the place of the base's, or come beside them. Where a weight that is tied to another one
    changes, each gets its own in the result. A run that was killed goes on when it is repeated; ``restart`` begins anew.

    Raises ``EckartError`` for a base that is compressed or quantised, for an adapter of another model, and if ``out`` is not free.
    """
    check_place(Path(out))
    found = read(adapter, alpha=alpha)
    told = {"adapter": _hashes(home(adapter)), "alpha": alpha}
    return merge_changes(Base(model), found.layers, found.others, Path(out), told, restart=restart, progress=progress)


def merge_changes(
    base: Base,
    layers: Mapping[str, Changing],
    others: Mapping[str, Tensor],
    out: Path,
    told: Mapping[str, object],
    *,
    restart: bool = False,
    progress: Progress = quiet,
) -> Path:
    """Write the checkpoint whose weights are what ``layers`` make of them, ``others`` in the place of tensors of their names.

    ``told`` identifies what changes them. Otherwise as ``merge``.
    """
    changes = _changes(base, layers, others)
    loose = {base.skeleton.ties.get(name, name) for name in changes} & {*base.skeleton.ties.values()}
    made = _on_disk(base, changes | _own_copies(base, changes, loose))
    homes = _homes(base, made)

    def specs(file: str) -> list[TensorSpec]:
        return [made[spec.name][0] if spec.name in made else spec for spec in base.checkpoint.specs(file)] + homes.get(
            file, []
        )

    plan = Rewriting(
        stage="merge",
        source=base.checkpoint,
        specs=specs,
        metadata=lambda file: {"format": "pt"} | base.checkpoint.metadata(file),
        produce=lambda name: made[name][1]() if name in made else base.checkpoint.read(name),
        config=_untied(base.checkpoint.config) if loose else None,
    )
    finite = [disk for disk in made if disk in base.checkpoint.tensors]
    header = {"source": base.checkpoint.file_hashes(finite), **told}
    return rewrite(plan, out, header, restart=restart, progress=progress)


def _changes(base: Base, layers: Mapping[str, Changing], others: Mapping[str, Tensor]) -> dict[str, Produced]:
    """The parameters that are not the base's."""
    # Of adapted modules PEFT may store what is below the adapter as well, which is the base's own unless it trained.
    whole = {name.replace(".base_layer.", "."): tensor for name, tensor in others.items()}
    changes: dict[str, Produced] = {}
    for name, layer in layers.items():
        changes[f"{name}.weight"] = _merged(base, name, layer, whole.pop(f"{name}.weight", None))
    for name, tensor in whole.items():
        replaced = _replaced(base, name, tensor)
        if replaced is not None:
            changes[name] = replaced
    return changes


def _own_copies(base: Base, changes: Mapping[str, Produced], loose: Collection[str]) -> dict[str, Produced]:
    """Of parameters that were tied to one that changes, ``loose`` being the sources, the tensors that they keep."""
    found: dict[str, Produced] = {}
    for source in sorted(loose):
        for name in (source, *(copy for copy, other in base.skeleton.ties.items() if other == source)):
            disk = base.disk_of(name)
            if name not in changes and disk is not None:
                found[name] = base.checkpoint.tensors[disk][1], partial(base.checkpoint.read, disk)
    return found


def _on_disk(base: Base, changes: Mapping[str, Produced]) -> dict[str, Produced]:
    """Changes by the names of their tensors; what the base did not store is called as its parameter."""
    made: dict[str, Produced] = {}
    for name, (spec, produce) in changes.items():
        disk = base.disks.get(name) or (base.disk_of(name) if name not in base.skeleton.ties else None) or name
        made[disk] = TensorSpec(disk, spec.dtype, spec.shape), produce
    return made


def _merged(base: Base, name: str, layer: Changing, below: Tensor | None) -> Produced:
    """The weight of an adapted module; ``below`` takes the place of the base's."""
    weight = base.weight_of(name, layer)
    spec = base.checkpoint.tensors[weight.disk][1]
    if below is not None:
        _check_shape(base, weight.parameter, spec, below)

    def produce() -> Tensor:
        wide = torch.float64 if spec.dtype.itemsize >= 4 else torch.float32
        stored = base.checkpoint.read_finite(weight.disk) if below is None else below
        changed = layer.changed(weight.turned(stored.to(wide)))
        made = (changed.T if weight.transposed else changed).reshape(spec.shape).to(spec.dtype).contiguous()
        if not bool(torch.isfinite(made).all()):
            raise EckartError(
                f"{name}: weight and update together leave the range of {spec.dtype}, or a row of them is zero: check the adapter"
            )
        return made

    return spec, produce


def _replaced(base: Base, name: str, tensor: Tensor) -> Produced | None:
    """A tensor that trained as a whole; ``None`` where it is the base's own."""
    disk = base.disk_of(name)
    if disk is None:  # such as the head of a classifier, which the base never had
        return TensorSpec(name, tensor.dtype, tuple(tensor.shape)), lambda: tensor
    spec = base.checkpoint.tensors[disk][1]
    _check_shape(base, name, spec, tensor)
    made = tensor.to(spec.dtype)
    return None if torch.equal(made, base.checkpoint.read(disk)) else (spec, lambda: made)


def _check_shape(base: Base, name: str, spec: TensorSpec, tensor: Tensor) -> None:
    if spec.shape != tuple(tensor.shape):
        raise EckartError(
            f"{name} is {list(spec.shape)} in {base.checkpoint.folder}, but {list(tensor.shape)} in the adapter, which stores it "
            "whole: resize the base first (resize_token_embeddings), or take the base that it was trained on"
        )


def _homes(base: Base, made: Mapping[str, Produced]) -> dict[str, list[TensorSpec]]:
    """For each file of the result the tensors that the base's did not have: all in the last one."""
    new = [spec for name, (spec, _) in made.items() if name not in base.checkpoint.tensors]
    return {base.checkpoint.files[-1]: new} if new else {}


def _untied(config: Mapping[str, object]) -> dict[str, object]:
    inner = config.get("text_config")
    told = {"tie_word_embeddings": False}
    return {**config, **({"text_config": {**inner, **told}} if isinstance(inner, dict) else {}), **told}


def _hashes(adapter: Path) -> dict[str, str]:
    """The SHA-256 of the adapter's files."""
    files = [path for path in adapter.glob("adapter_*") if path.is_file()] if adapter.is_dir() else [adapter]
    return {path.name: sha256_of(path) for path in sorted(files)}
