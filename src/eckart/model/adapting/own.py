"""Adapters that no LoRA says, kept as what they are: a recipe, and the tensors that it has for each map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart._version import __version__
from eckart.adapters.forms import Form, Gated, applied
from eckart.errors import EckartError
from eckart.model.adapting.kept import begun_of, laid_out
from eckart.model.adapting.modules import check_is_matrix, is_adaptable, operator_of, shape_of
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import Begun, install
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.files import make_folder, read_json, sha256_of, write_json
from eckart.model.progress import Progress, quiet
from eckart.model.rewrite import check_place
from eckart.model.surgery.adapter import Embedding, Linear, kind_of, nearest
from eckart.model.surgery.base import Base
from eckart.model.surgery.merge import merge_changes
from eckart.model.tensorfile import TensorFile, write_all
from eckart.operator import Dense, Factors, Operator, Sum, in_dtype
from eckart.operator.protocol import apply

TENSORS, TABLE = "eckart_adapter.safetensors", "eckart_adapter.json"
WHOLE = "whole:"  # before the names of tensors of modules that trained as they are


@dataclass(frozen=True)
class Own:
    """What lies in a folder: what the recipe consists of, adapters by module, and tensors of modules that trained as they are."""

    parts: Mapping[str, Any]
    rank: int
    begun: Mapping[str, Begun]
    whole: Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What an adapter makes of the weight of one module; stands where a ``Layer`` of two factors would."""

    recipe: Adapt
    begun: Begun
    shape: tuple[int, int]  # of the weight as a matrix (outputs, inputs)
    kind: Linear

    def changed(self, weight: Tensor) -> Tensor:
        """The weight (m, n) with what was taken from it and with what was added, in its dtype."""
        # The adapter is one of the table (entries, width), which as a map is (width, entries).
        return self._added(weight.T).T if isinstance(self.kind, Embedding) else self._added(weight)

    def _added(self, weight: Tensor) -> Tensor:
        params = {key: t.to(weight.dtype) if t.is_floating_point() else t for key, t in self.begun.params.items()}
        base: Operator = Dense(weight)
        if self.begun.base is not None:
            base = Dense(in_dtype(self.begun.base, weight.dtype).dense())
        elif self.begun.taken is not None:
            base = Sum((base, Dense(-in_dtype(self.begun.taken, weight.dtype).dense())))
        return applied(self.recipe.form, base, params, self.begun.scale).dense()


def keep(wrapped: Wrapped, folder: Path) -> None:
    """Write the adapters of a model to a folder that is not yet where it belongs, tensors first."""
    make_folder(folder)
    now = {
        name: Begun(
            {key: tensor.detach() for key, tensor in adapter.params.items()},
            adapter.taken,
            adapter.scale,
            operator_of(adapter.base) if name in wrapped.rounded else None,
            wrapped.rounded.get(name, ()),
        )
        for name, adapter in wrapped.adapters.items()
    }
    tensors, table = laid_out(now)
    for name in wrapped.whole:
        state = wrapped.model.get_submodule(name).state_dict()
        tensors |= {f"{WHOLE}{name}.{key}": tensor for key, tensor in state.items()}
    write_all(folder / TENSORS, tensors)
    told = {
        "version": __version__,
        "base_model_name_or_path": getattr(wrapped.model, "name_or_path", "") or None,
        "rank": wrapped.rank,
        "recipe": wrapped.recipe.describe(),
        "modules": table,
    }
    write_json(folder / TABLE, told)


def is_own(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in its own form."""
    return (Path(folder) / TABLE).is_file()


def read_own(folder: Path) -> Own:
    """What ``keep`` wrote; raises ``EckartError`` where a folder holds no such adapter, or a damaged one."""
    if not is_own(folder):
        raise EckartError(f"{folder} holds no {TABLE}: name a folder that eckart adapt wrote in its own form")
    told: Mapping[str, Any] = read_json(folder / TABLE)
    parts, modules, rank = told.get("recipe"), told.get("modules"), told.get("rank")
    if not isinstance(parts, dict) or not isinstance(modules, dict) or not isinstance(rank, int):
        raise EckartError(f"{folder / TABLE} lacks recipe, modules or rank: it is damaged, or was edited")
    file = TensorFile(folder / TENSORS)
    tensors = {name: file.read(name) for name in file.specs}
    whole = {name.removeprefix(WHOLE): tensor for name, tensor in tensors.items() if name.startswith(WHOLE)}
    beside = {name: tensor for name, tensor in tensors.items() if not name.startswith(WHOLE)}
    return Own(parts, rank, begun_of(modules, beside, folder / TENSORS), whole)


def attach(model: Any, recipe: Adapt, own: Own) -> Wrapped:
    """Put kept adapters into a model, which is changed in place and frozen but for them.

    Raises ``EckartError`` where the model has no such maps, or maps of other shapes.
    """
    modules = {name: module for name, module in model.named_modules() if is_adaptable(module)}
    for name, begun in own.begun.items():
        if name not in modules:
            raise EckartError(
                f"{type(model).__name__} has no {name}, which the adapter is for; {nearest(name, modules)}"
            )
        shape, meant = shape_of(modules[name]), _shape_of(name, begun, recipe)
        if shape != meant:
            raise EckartError(
                f"{name} is a map of {shape[0]} x {shape[1]}, and the adapter changes one of {meant[0]} x {meant[1]}"
            )
    owners = sorted({name.rpartition(".")[0] for name in own.whole})
    made = install(model, recipe, own.begun, rank=own.rank, whole=owners)
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in own.whole.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise EckartError(f"the adapter has {name} of {list(tensor.shape)}, which {type(model).__name__} has not")
        with torch.no_grad():
            parameters[name].copy_(tensor)
    return made


def changes_of(own: Own, recipe: Adapt, modules: Mapping[str, Any]) -> dict[str, Change]:
    """What each module's weight becomes; ``modules`` are those of the model, which may be without weights.

    Raises ``EckartError`` where what an adapter does depends on the token.
    """
    found = {}
    for name, begun in own.begun.items():
        rows, columns = _shape_of(name, begun, recipe)
        check_is_matrix(recipe.form, begun.params)
        kind = kind_of(modules.get(name))
        shape = (columns, rows) if isinstance(kind, Embedding) else (rows, columns)
        found[name] = Change(recipe, begun, shape, kind)
    return found


def _shape_of(name: str, begun: Begun, recipe: Adapt) -> tuple[int, int]:
    """Of the matrix that an adapter changes; raises ``EckartError`` where its tensors are not those of the recipe."""
    other = sorted(set(recipe.tensors) ^ set(begun.params))
    if other:
        there = "is there" if other[0] in begun.params else "is missing"
        raise EckartError(
            f"{name}: of the tensors of a {type(recipe.form).__name__} ({', '.join(recipe.tensors)}) {other[0]} {there}: the adapter "
            "was edited, or is damaged"
        )
    whole = [key for key, role in recipe.tensors.items() if role.trains and not begun.params[key].is_floating_point()]
    if whole:
        raise EckartError(
            f"{name}: its {whole[0]} are {begun.params[whole[0]].dtype}, which can't train: the adapter is damaged"
        )
    under = [op for op in (begun.taken, begun.base) if op is not None]
    try:
        shape = Sum((recipe.form.update(begun.params), *under)).shape
        _try(recipe.form, begun, shape)
    except (ValueError, RuntimeError, IndexError) as error:  # which torch raises for tensors of other shapes and dtypes
        raise EckartError(
            f"{name}: its tensors make no {type(recipe.form).__name__}: the adapter was edited, or is damaged"
        ) from error
    return shape


def _try(form: Form, begun: Begun, shape: tuple[int, int]) -> None:
    """Let an adapter act on a row of zeros above a weight of zeros; raises whatever torch raises."""
    m, n = shape
    row = torch.zeros(1, n)
    nothing = Factors(torch.zeros(m, 1), row)
    with torch.no_grad():
        for op in (applied(form, nothing, begun.params, begun.scale), begun.taken, begun.base):
            if op is not None:
                apply(op, row.T)
        if isinstance(form, Gated):
            weights = form.outputs(begun.params, row, row)[1]
            for name, tensor in form.gate.moved(begun.params, weights).items():
                if tensor.shape != begun.params[name].shape:
                    raise ValueError(f"{name} is {list(begun.params[name].shape)}, not {list(tensor.shape)}")


def merge_own(
    model: str | Path,
    folder: Path,
    recipe: Adapt,
    out: str | Path,
    *,
    restart: bool = False,
    progress: Progress = quiet,
) -> Path:
    """Write the dense checkpoint of a base with an adapter in its own form, as ``surgery.merge`` does it with a LoRA.

    Raises ``EckartError`` as that does, and where what the adapter does depends on the token.
    """
    check_place(Path(out))
    own, base = read_own(folder), Base(model)
    told = {"adapter": {name: sha256_of(folder / name) for name in (TABLE, TENSORS)}}
    changes = changes_of(own, recipe, base.modules)
    return merge_changes(base, changes, own.whole, Path(out), told, restart=restart, progress=progress)
