"""Adapters put into a model that is in memory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from eckart.adapters.forms import scaled
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.seed import Pool, Seen
from eckart.adapters.stored import Started
from eckart.errors import EckartError
from eckart.model.adapting.modules import (
    add_to_weight,
    check_takes,
    device_of,
    is_adaptable,
    kind_for,
    shape_of,
)
from eckart.model.adapting.observe import observe
from eckart.model.adapting.pieces import Batch
from eckart.model.adapting.places import check_replaceable, check_takeable, put
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.within import Itself
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.linear import OperatorLinear
from eckart.model.run import seeded
from eckart.model.skeleton import block_names
from eckart.model.targets import matches
from eckart.operator import Operator

DTYPE = torch.float32  # of what trains


@dataclass(frozen=True)
class Begun:
    """The tensors of an adapter as training begins, and what is to be taken from the weight.

    Where there is a ``base`` it replaces the weight, and ``errors`` are what each sweep left out of it, as a share of its norm.
    """

    params: Mapping[str, Tensor]
    taken: Operator | None
    scale: float
    base: Operator | None = None
    errors: tuple[float, ...] = ()


def wrap(
    model: Any,
    recipe: Adapt,
    *,
    rank: int = 8,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    batches: Sequence[Batch] = (),
    whole: Sequence[str] = (),
    dropout: float = 0.0,
    seed: int = 0,
) -> Wrapped:
    """Freeze a model and put an adapter beside its linear maps: those inside its blocks, or ``only`` those that patterns fit.

    An embedding is adapted where a pattern fits it, as the matrix (entries, width) that it is. A head that is tied to it keeps the
    weight as it was, as in PEFT.

    Modules that ``whole`` names train as they are. ``batches`` are keyword arguments of the model, which recipes that start from
    activations or gradients are measured on. The model is changed in place.

    Raises ``EckartError`` for a pattern that fits nothing, naming what is near, for a rank that a map is too small for, where batches are
    missing, where nothing is left to adapt, and for a recipe that trains within a smaller model.
    """
    if recipe.within != Itself():
        raise EckartError(
            "adapters of this recipe train within a smaller model, which is made of files: take tune (eckart adapt)"
        )
    names = targets_of(model, only, exclude)
    begun = begin_all(model, recipe, names, rank=rank, batches=batches, seed=seed)
    return install(model, recipe, begun, rank=rank, whole=whole, dropout=dropout)


def begin_all(
    model: Any, recipe: Adapt, names: Sequence[str], *, rank: int, batches: Sequence[Batch] = (), seed: int = 0
) -> dict[str, Begun]:
    """An adapter for each of these maps as training begins; the model stays as it is. Errors are those of ``wrap``."""
    modules = {name: model.get_submodule(name) for name in names}
    shapes = [shape_of(module) for module in modules.values()]
    pool = Pool((max(m for m, _ in shapes), max(n for _, n in shapes)), seeded(seed, "adapters"))
    begun: dict[str, Begun] = {}
    ranks, known = _ranks(model, recipe, names, rank, batches, seed)
    for group in observe(model, names, frozenset() if known else recipe.needs, batches):
        for name, seen in ((name, seen) for name, seen in group.items() if ranks[name]):
            try:
                check_takes(modules[name], recipe.form)
                rng = seeded(seed, f"adapter/{name}")
                seen = replace(seen, pool=pool, worked_out=known.get(name, seen.worked_out))
                begun[name] = begin(recipe, seen, ranks[name], recipe.scale(rank), rng)
                if begun[name].taken is not None:
                    check_takeable(model, modules[name])
                if begun[name].base is not None:
                    check_replaceable(model, modules[name])
            except ValueError as error:
                raise EckartError(f"{name} cannot be adapted so: {error}") from error
    return begun


def install(
    model: Any, recipe: Adapt, begun: Mapping[str, Begun], *, rank: int, whole: Sequence[str] = (), dropout: float = 0.0
) -> Wrapped:
    """Freeze a model, take from its weights what is to be taken, and put adapters beside them. The model is changed in place."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapters = {}
    # In the order of the model, wherever the starts come from: optimisers know tensors by their number.
    for name in [name for name, _ in model.named_modules() if name in begun]:
        module, start = model.get_submodule(name), begun[name]
        if start.base is not None:
            held = OperatorLinear.of(start.base, module.bias).to(device_of(module))
            module = held.requires_grad_(False).train(module.training)
        if start.taken is not None:
            add_to_weight(module, start.taken, -1.0)
        adapters[name] = kind_for(module)(
            module, recipe.form, start.params, recipe.tensors, start.scale, taken=start.taken, dropout=dropout
        )
        put(model, name, adapters[name])
    errors = {name: begun[name].errors for name in adapters if begun[name].base is not None}
    made = Wrapped(model, recipe, rank, adapters, tuple(whole), errors)
    for _, parameter, _ in made.trainable():
        parameter.requires_grad_(True)
    return made


def heads_of(model: Any) -> list[str]:
    """The modules of a classifier that give its labels, beside the model that it stands on.

    Raises ``EckartError`` where there is none that holds weights.
    """
    base = getattr(model, "base_model", None)
    found = [
        name for name, module in model.named_children() if module is not base and any(True for _ in module.parameters())
    ]
    if not found or base is None or base is model:
        raise EckartError(f"{type(model).__name__} has no head of its own that gives labels")
    return found


def _ranks(
    model: Any, recipe: Adapt, names: Sequence[str], rank: int, batches: Sequence[Batch], seed: int
) -> tuple[Mapping[str, int], Mapping[str, dict[str, Any]]]:
    """The rank of each map, and where that is enough to start what was worked out for it: else statistics are to be taken anew."""
    if recipe.ranks is None:
        return dict.fromkeys(names, rank), {}
    if not isinstance(recipe.ranks, Redistribute):
        return recipe.ranks(model, names, batches, rank=rank, scale=recipe.scale, seed=seed), {}
    source: Any = recipe.start.source
    shares: dict[str, Tensor] = {}
    known: dict[str, dict[str, Any]] = {}
    for group in observe(model, names, recipe.needs, batches):
        shares |= {name: source.shares(seen, recipe.ranks.cap(rank)) for name, seen in group.items()}
        known |= {name: seen.worked_out for name, seen in group.items()}
    return recipe.ranks(shares, rank), known if all(known.values()) else {}


def begin(recipe: Adapt, seen: Seen, rank: int, scale: float, rng: Generator) -> Begun:
    """An adapter of one map as training begins; raises ``ValueError`` where the recipe does not fit the map."""
    width = recipe.width(rank, seen.shape)

    def started(matrix: Tensor) -> Started:
        seed = recipe.start(replace(seen, weight=matrix), width, scale, rng)
        made = recipe.form.init(seed, seen.natural, width, rng)
        params = {key: stored(tensor).to(seen.weight.device) for key, tensor in made.items()}
        update = scaled(recipe.form.update(params), scale)
        return Started(params, update, recipe.base(matrix, update, width, rng))

    settled = recipe.stored(seen.weight, started)
    start, base = settled.start, settled.base
    return Begun(start.params, start.taken if base is None else None, scale, base, settled.errors)


def stored(tensor: Tensor) -> Tensor:
    """A tensor of an adapter as it is held: floating ones in float32."""
    return tensor.to(DTYPE) if tensor.is_floating_point() else tensor


def targets_of(model: Any, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """The modules to adapt: linear maps inside the blocks of a model, or those that ``only`` names, less those that ``exclude`` does.

    Embeddings are adapted only where they are named.
    """
    fit = {name for name, module in model.named_modules() if is_adaptable(module)}
    blocks = block_names(model)
    for pattern in (*only, *exclude):
        if not any(matches(name, [pattern]) for name in fit):
            leaves = {name.split(".")[-1] for name in fit}
            near = difflib.get_close_matches(pattern.split(".")[-1], sorted(leaves), cutoff=0.3)
            told = f"near are {', '.join(near)}" if near else f"there are {', '.join(sorted(leaves))}"
            raise EckartError(f"no linear map of the model is called {pattern!r}: {told}")
    if only:
        found = {name for name in fit if matches(name, only)}
    else:
        maps = {name for name in fit if not isinstance(model.get_submodule(name), nn.Embedding)}
        found = {name for name in maps if any(f"{name}.".startswith(f"{block}.") for block in blocks)}
    found -= {name for name in found if matches(name, exclude)}
    if not found:
        raise EckartError(f"{type(model).__name__} has no linear map that is to be adapted")
    return [name for name, _ in model.named_modules() if name in found]
