"""A model with adapters in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.roles import FREE, Role
from eckart.adapters.schedules import PRODUCT, State, Watching
from eckart.errors import EckartError
from eckart.model.adapting.modules import (
    Adapted,
    add_to_weight,
    put_matrix,
    why_packed,
    without_operator,
)
from eckart.model.adapting.pieces import Batch
from eckart.model.adapting.places import holders, put, untie
from eckart.model.adapting.processes import ALONE, Processes
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.records import MASKED


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

    def output_penalty(self, batch: Batch, logits: Tensor, processes: Processes = ALONE) -> Tensor:
        """What is to be added to the loss of a batch for the ``logits`` that the model has there; zero where nothing is.

        Of several ``processes`` each has a share of the batch, and all get the number of the whole one.
        """
        if not self.recipe.outputs:
            return logits.new_zeros(())
        with torch.no_grad(), self.untouched():
            reference = self.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        own, theirs = (processes.rows(counted(rows, batch)) for rows in (logits, reference))
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

    def scheduled(self, step: int, steps: int, state: State, processes: Processes = ALONE) -> State:
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
                gradients[name][PRODUCT] = processes.total(adapter.felt) / processes.count
        state, written = self.recipe.schedule(step, steps, params, gradients, state)
        for name, tensors in written.items():
            for key, tensor in tensors.items():
                params[name][key].data.copy_(tensor)
        return state

    def remove(self) -> Any:
        """The model without adapters, with what was taken from its weights back in them; where nothing was it is bitwise as before."""
        for name, adapter in self.adapters.items():
            if adapter.taken is not None:
                add_to_weight(adapter.base, adapter.taken, 1.0)
            put(self.model, name, adapter.base)
        return self.model

    def merge(self) -> Any:
        """The model with every adapter merged into a plain weight, in the dtype that it had; the adapters are gone.

        A weight that was tied to another one stands alone then, since the other one never had an adapter. Raises ``EckartError`` where a
        weight is packed, and where what an adapter does depends on the token.
        """
        for name, adapter in self.adapters.items():
            packed = why_packed(adapter.base)
            if packed is not None:
                raise EckartError(f"{name} can't be merged: {packed}")
        for name, adapter in self.adapters.items():
            merged, base = adapter.merged(), without_operator(adapter.base)
            if len(holders(self.model, base)) > 1:
                untie(self.model, base)
            put_matrix(base, merged)
            put(self.model, name, base)
        return self.model

    @contextmanager
    def bare(self) -> Iterator[Any]:
        """For the time of the context the model has what lies under its adapters in their place."""
        for name, adapter in self.adapters.items():
            put(self.model, name, adapter.base)
        try:
            yield self.model
        finally:
            for name, adapter in self.adapters.items():
                put(self.model, name, adapter)


def counted(logits: Tensor, batch: Batch) -> Tensor:
    """The rows of logits that labels or an attention mask say count: of tokens that have a next one, or of a classifier's texts.

    >>> counted(torch.tensor([[[1.0], [2.0], [3.0]]]), {"labels": torch.tensor([[-100, -100, 7]])}).tolist()
    [[2.0]]
    """
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if logits.ndim == 2:
        return logits if labels is None else logits[labels != MASKED]
    next_one = mask[:, 1:].bool() if mask is not None else torch.ones_like(logits[:, 1:, 0], dtype=torch.bool)
    if labels is not None:
        next_one = next_one & (labels[:, 1:] != MASKED)
    return logits[:, :-1][next_one]
