"""Adapters put into a model that is in memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from eckart.adapters.forms import scaled
from eckart.adapters.redistribute import Redistribute
from eckart.adapters.roles import FREE, Role
from eckart.adapters.schedules import PRODUCT, State, Watching
from eckart.adapters.seed import Pool, Seen
from eckart.adapters.stored import Started
from eckart.errors import EckartError
from eckart.model.adapting.modules import (
    CONVOLUTIONS,
    Adapted,
    AdaptedConvolution,
    AdaptedLinear,
    device_of,
    is_adaptable,
    matrix_of,
    put_matrix,
    shape_of,
    why_packed,
    without_operator,
)
from eckart.model.adapting.observe import Batch, observe
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.records import MASKED
from eckart.model.adapting.within import Itself
from eckart.model.linear import OperatorLinear
from eckart.model.run import seeded
from eckart.model.skeleton import block_names
from eckart.model.targets import matches
from eckart.operator import Operator

DTYPE = torch.float32  # of what trains


@dataclass(frozen=True)
class Wrapped:
    """A model with adapters in it; everything else in it is frozen."""

    model: Any
    recipe: Adapt
    rank: int
    adapters: Mapping[str, Adapted]
    whole: tuple[str, ...] = ()  # modules that train as they are: a new classifier's head
    rounded: Mapping[str, tuple[float, ...]] = field(
        default_factory=dict
    )  # where the base is: what each sweep left out

    def trainable(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """The tensors that train by the name that they have in the model, with their roles."""
        for name, adapter in self.adapters.items():
            for tensor, role in adapter.roles.items():
                if role.trains:
                    yield f"{name}.{tensor}", getattr(adapter, tensor), role
        for name in self.whole:
            for tensor, parameter in self.model.get_submodule(name).named_parameters():
                yield f"{name}.{tensor}", parameter, FREE

    @property
    def numbers(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for _, parameter, _ in self.trainable())

    def groups(self, rate: float, decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser of ``torch.optim``: tensors with the same rate and decay together."""
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for _, parameter, role in self.trainable():
            key = (rate * role.rate, decay if role.decay else 0.0)
            found.setdefault(key, []).append(parameter)
        return [{"params": part, "lr": lr, "weight_decay": wd} for (lr, wd), part in found.items()]

    def penalty(self) -> Tensor:
        """What is to be added to the loss: each penalty's mean over the adapters; zero where there is none."""
        found = [penalty(adapter.params) for penalty in self.recipe.penalties for adapter in self.adapters.values()]
        return torch.stack(found).sum() / len(self.adapters) if found else torch.zeros(())

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """For the time of the context the model does what it did before it was adapted; modules that train whole stay as they are."""
        for adapter in self.adapters.values():
            adapter.untouched = True
        try:
            yield
        finally:
            for adapter in self.adapters.values():
                adapter.untouched = False

    def output_penalty(self, batch: Batch, logits: Tensor) -> Tensor:
        """What is to be added to the loss of a batch for the ``logits`` that the model has there; zero where nothing is."""
        if not self.recipe.outputs:
            return logits.new_zeros(())
        with torch.no_grad(), self.untouched():
            reference = self.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        own, theirs = counted(logits, batch), counted(reference, batch)
        return torch.stack([penalty(own, theirs) for penalty in self.recipe.outputs]).sum()

    def rule(self) -> None:
        """Change the gradients by the rule of the recipe; to be called once they are complete, before the optimiser's step."""
        for adapter in self.adapters.values():
            tensors = {name: parameter for name, parameter in adapter.params.items() if adapter.roles[name].trains}
            there = {name: parameter.grad for name, parameter in tensors.items() if parameter.grad is not None}
            if len(there) == len(tensors):
                for name, gradient in self.recipe.rule(there, adapter.params, adapter.scale).items():
                    tensors[name].grad = gradient

    def begin(self) -> State:
        """The state of the recipe's schedule before the first step."""
        return self.recipe.schedule.begin({name: adapter.params for name, adapter in self.adapters.items()})

    def watch(self, step: int, steps: int) -> None:
        """Have the gradients of whole updates kept, where the schedule wants those of this step; to be called before it begins.

        While they are, each map holds one of the size of its weight.
        """
        schedule = self.recipe.schedule
        wanted = isinstance(schedule, Watching) and schedule.watches(step, steps)
        for adapter in self.adapters.values():
            first = next(iter(adapter.params.values()))
            adapter.felt = first.new_zeros(adapter.update.shape) if wanted else None

    def scheduled(self, step: int, steps: int, state: State) -> State:
        """What the schedule makes of the adapters after a step, counted from 1, of so many; its new state.

        To be called after the optimiser's step, while its gradients are there.
        """
        params = {name: adapter.params for name, adapter in self.adapters.items()}
        gradients = {
            name: {key: tensor.grad for key, tensor in table.items() if tensor.grad is not None}
            for name, table in params.items()
        }
        for name, adapter in self.adapters.items():
            if adapter.felt is not None:
                gradients[name][PRODUCT] = adapter.felt
        state, written = self.recipe.schedule(step, steps, params, gradients, state)
        for name, tensors in written.items():
            for key, tensor in tensors.items():
                params[name][key].data.copy_(tensor)
        return state

    def remove(self) -> Any:
        """The model without adapters, with what was taken from its weights back in them; where nothing was it is bitwise as before."""
        for name, adapter in self.adapters.items():
            if adapter.taken is not None:
                put_matrix(adapter.base, matrix_of(adapter.base).to(torch.float32) + adapter.taken.dense())
            _put(self.model, name, adapter.base)
        return self.model

    def merge(self) -> Any:
        """The model with every adapter merged into a plain weight, in the dtype that it had; the adapters are gone.

        Raises ``EckartError`` where a weight is packed, and where what an adapter does depends on the token.
        """
        for name, adapter in self.adapters.items():
            packed = why_packed(adapter.base)
            if packed is not None:
                raise EckartError(f"{name} can't be merged: {packed}")
        for name, adapter in self.adapters.items():
            base = without_operator(adapter.base)
            put_matrix(base, adapter.merged())
            _put(self.model, name, base)
        return self.model

    @contextmanager
    def bare(self) -> Iterator[Any]:
        """For the time of the context the model has what lies under its adapters in their place."""
        for name, adapter in self.adapters.items():
            _put(self.model, name, adapter.base)
        try:
            yield self.model
        finally:
            for name, adapter in self.adapters.items():
                _put(self.model, name, adapter)


def counted(logits: Tensor, batch: Batch) -> Tensor:
    """The rows of logits that labels or an attention mask say count: of tokens that have a next one, or all of a classifier's.

    >>> counted(torch.tensor([[[1.0], [2.0], [3.0]]]), {"labels": torch.tensor([[-100, -100, 7]])}).tolist()
    [[2.0]]
    """
    if logits.ndim == 2:
        return logits
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    next_one = mask[:, 1:].bool() if mask is not None else torch.ones_like(logits[:, 1:, 0], dtype=torch.bool)
    if labels is not None:
        next_one = next_one & (labels[:, 1:] != MASKED)
    return logits[:, :-1][next_one]


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
    ranks = _ranks(model, recipe, names, rank, batches, seed)
    for group in observe(model, names, recipe.needs, batches):
        for name, seen in ((name, seen) for name, seen in group.items() if ranks[name]):
            try:
                rng = seeded(seed, f"adapter/{name}")
                begun[name] = begin(recipe, replace(seen, pool=pool), ranks[name], recipe.scale(rank), rng)
                if begun[name].taken is not None and isinstance(modules[name], OperatorLinear):
                    raise ValueError(
                        "nothing can be taken from a weight that is stored as an operator: densify the checkpoint"
                    )
                packed = why_packed(modules[name])
                if begun[name].taken is not None and packed is not None:
                    raise ValueError(packed)
                if begun[name].base is not None:
                    _check_replaceable(model, modules[name])
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
            put_matrix(module, matrix_of(module).detach().to(torch.float32) - start.taken.dense().to(torch.float32))
        kind = AdaptedConvolution if isinstance(module, CONVOLUTIONS) else AdaptedLinear
        adapters[name] = kind(
            module, recipe.form, start.params, recipe.tensors, start.scale, taken=start.taken, dropout=dropout
        )
        _put(model, name, adapters[name])
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
) -> Mapping[str, int]:
    """The rank of each map; statistics are taken anew for it, so that not all of them are held."""
    if recipe.ranks is None:
        return dict.fromkeys(names, rank)
    if not isinstance(recipe.ranks, Redistribute):
        return recipe.ranks(model, names, batches, rank=rank, scale=recipe.scale, seed=seed)
    source: Any = recipe.start.source
    shares = {
        name: source.shares(seen)
        for group in observe(model, names, recipe.needs, batches)
        for name, seen in group.items()
    }
    return recipe.ranks(shares, rank)


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
    """The modules to adapt: linear maps inside the blocks of a model, or those that ``only`` names, less those that ``exclude`` does."""
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
        found = {name for name in fit if any(f"{name}.".startswith(f"{block}.") for block in blocks)}
    found -= {name for name in found if matches(name, exclude)}
    if not found:
        raise EckartError(f"{type(model).__name__} has no linear map that is to be adapted")
    return [name for name, _ in model.named_modules() if name in found]


def _check_replaceable(model: Any, module: Any) -> None:
    """Raise ``ValueError`` where an operator can't take the place of a weight."""
    if isinstance(module, CONVOLUTIONS):
        raise ValueError("the weight of a convolution can't be rounded: leave it out with exclude")
    if any(other is not module and getattr(other, "weight", None) is module.weight for other in model.modules()):
        raise ValueError("its weight is another module's as well and can't be rounded alone: leave it out with exclude")


def _put(model: Any, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
