"""Ranks that are searched for before training, on two parts of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.choosing import Choice
from eckart.adapters.draws import Kaiming, Level
from eckart.adapters.forms import Spectral
from eckart.adapters.hypergradients import Direct, Hypergradient
from eckart.adapters.mixing import Groups, Mixing
from eckart.adapters.roles import FROZEN
from eckart.adapters.scale import Scale
from eckart.adapters.seed import MIDDLE
from eckart.adapters.sources import Drawn
from eckart.adapters.start import Start
from eckart.errors import EckartError
from eckart.model.adapting.observe import evaluating
from eckart.model.adapting.pieces import Batch
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import begin_all, install
from eckart.model.compression import Paper
from eckart.model.skeleton import block_names


@dataclass(frozen=True, kw_only=True)
class Search:
    """Weights of directions are learnt before training beside pairs of factors, and a choice makes ranks of them.

    Beside each map stands ``scale B diag(a) A`` with weights a (r,) that ``mixing`` makes from free numbers, and B at zero. Factors
    learn on the first batches, a ``share`` of all, by AdamW; after ``warm_up`` steps the free numbers learn on the others, by Adam with
    the ``gradient`` of their loss. Then all of that is taken off again, and the model is bit by bit what it was. There is no dropout, and
    no other module of the model learns.

    Raises ``EckartError`` for numbers that are none of a search.
    """

    mixing: Mixing
    choose: Choice
    gradient: Hypergradient = Direct()
    steps: int = 100
    warm_up: int = 0
    share: float = 0.5
    rate: float = 3e-3  # of factors
    free_rate: float = 3e-2
    batches: int = 64  # how many it wants

    def __post_init__(self) -> None:
        check_number("rate", self.rate, above=0)
        check_number("free_rate", self.free_rate, above=0)
        check_number("batches", self.batches, least=2)
        if not 0 <= self.warm_up < self.steps or not 0 < self.share < 1:
            raise ValueError(
                f"a search of {self.steps} steps, {self.warm_up} of them to warm up, on a share {self.share:g} of the batches: warm up "
                "for less than all, and leave batches to either part"
            )

    def __call__(
        self, model: Any, names: Sequence[str], batches: Sequence[Batch], *, rank: int, scale: Scale, seed: int
    ) -> dict[str, int]:
        """The ranks of these maps, up to ``rank``.

        Raises ``EckartError`` where there are fewer than two batches, or one without labels, and where every rank would be none.
        """
        found = self.weights(model, names, batches, rank=rank, scale=scale, seed=seed)
        ranks = self.choose(found, groups_of(model, names), rank)
        if not any(ranks.values()):
            raise EckartError(
                "a search for ranks leaves no map a direction: search with other settings, or give one rank to all"
            )
        return ranks

    def weights(
        self, model: Any, names: Sequence[str], batches: Sequence[Batch], *, rank: int, scale: Scale, seed: int
    ) -> dict[str, Tensor]:
        """The weights (r,) of each map's directions that are learnt. Errors are those of the call, but for the last."""
        if len(batches) < 2:
            raise EckartError("ranks are searched for on two parts of a text: give at least two batches")
        if not all("labels" in batch for batch in batches):
            raise EckartError("ranks are searched for by the loss: give batches with labels")
        count = min(max(1, round(self.share * len(batches))), len(batches) - 1)
        probe = Adapt(
            paper=Paper("", ""),
            form=Spectral(),
            start=Start(Drawn(right=Kaiming(), middle=Level(1.0))),
            scale=scale,
            roles={MIDDLE: FROZEN},
        )
        begun = begin_all(model, probe, names, rank=rank, seed=seed)
        groups, widths = groups_of(model, names), dict.fromkeys(names, rank)
        free = {name: number.requires_grad_() for name, number in self.mixing.begin(widths).items()}
        wrapped = install(model, probe, begun, rank=rank)
        with ExitStack() as after:
            after.callback(wrapped.remove)
            after.enter_context(evaluating(model))
            factors = [parameter for _, parameter, _ in wrapped.trainable()]

            def loss(batch: Batch) -> Tensor:
                for name, weights in self.mixing(free, widths, groups).items():
                    wrapped.adapters[name].middle = weights.to(factors[0].device)
                found: Tensor = model(**batch).loss
                return found

            self._learn(loss, cycle(batches[:count]), cycle(batches[count:]), factors, list(free.values()))
        with torch.no_grad():
            return {name: found.clone() for name, found in self.mixing(free, widths, groups).items()}

    def _learn(
        self, loss: Any, learnt: Iterator[Batch], judged: Iterator[Batch], factors: list[Any], free: list[Tensor]
    ) -> None:
        inner = torch.optim.AdamW(factors, lr=self.rate, weight_decay=0.0)
        outer = torch.optim.Adam(free, lr=self.free_rate, betas=(0.5, 0.999))
        for step in range(self.steps):
            batch = next(learnt)
            if step >= self.warm_up:
                other = next(judged)
                found = self.gradient(partial(loss, batch), partial(loss, other), factors, free, self.rate)
                for number, gradient in zip(free, found, strict=True):
                    number.grad = gradient.detach()
                outer.step()
            for factor, gradient in zip(factors, torch.autograd.grad(loss(batch), factors), strict=True):
                factor.grad = gradient
            inner.step()


def groups_of(model: Any, names: Sequence[str]) -> Groups:
    """Names of maps by the block that they stand in; those that stand in none together.

    Groups come in the order of the blocks, names in theirs.
    """
    blocks = block_names(model)
    found: dict[str, list[str]] = {block: [] for block in [*blocks, ""]}
    for name in names:
        found[next((block for block in blocks if name == block or name.startswith(f"{block}.")), "")].append(name)
    return [group for group in found.values() if group]
