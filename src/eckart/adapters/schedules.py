"""How many directions adapters have while they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.roles import Role
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Params

PRODUCT = "product"  # the name of the gradient of a whole update (m, n) among those of its tensors
GRAIN = 1_000_000  # parts of a share that a budget counts
State = dict[str, Tensor]
Written = dict[str, dict[str, Tensor]]  # by adapter and tensor


class Schedule(Protocol):
    """Acts on all adapters after every step of the optimiser, while the gradients of that step are there. Its state is data."""

    def check(self, roles: Mapping[str, Role]) -> None:
        """Raise ``ValueError`` where adapters with these tensors do not have what it works on."""

    def begin(self, adapters: Mapping[str, Params]) -> State:
        """The state before the first step."""

    def __call__(
        self, step: int, steps: int, adapters: Mapping[str, Params], gradients: Mapping[str, Params], state: State
    ) -> tuple[State, Written]:
        """The state after a step, counted from 1, of so many, and the tensors that are to be written anew."""


@runtime_checkable
class Watching(Schedule, Protocol):
    """A schedule that is also shown the gradient of each update as a whole, which training does not form by itself."""

    def watches(self, step: int, steps: int) -> bool:
        """Whether it wants those of a step, counted from 1, of so many."""


@dataclass(frozen=True)
class Constant:
    """They keep what they have."""

    def check(self, roles: Mapping[str, Role]) -> None:
        """Whatever there is will do."""

    def begin(self, adapters: Mapping[str, Params]) -> State:
        """Nothing to remember."""
        return {}

    def __call__(
        self, step: int, steps: int, adapters: Mapping[str, Params], gradients: Mapping[str, Params], state: State
    ) -> tuple[State, Written]:
        """Nothing changes."""
        return state, {}


@dataclass(frozen=True)
class _Course:
    """Something stays for the share ``before`` of the steps, changes, and stays for the share ``after``."""

    before: float = 0.1
    after: float = 0.3

    def __post_init__(self) -> None:
        if not (self.before >= 0 and self.after >= 0 and self.before + self.after < 1):
            raise ValueError(f"{self.before:g} of the steps before and {self.after:g} after leave none in between")

    def between(self, steps: int) -> tuple[int, int]:
        """The last step before it changes, and the one at which it has."""
        return round(self.before * steps), steps - round(self.after * steps)


@dataclass(frozen=True)
class Cubic(_Course):
    """A budget that stays for the share ``before`` of the steps, falls as a cube, and stays where it ends for the share ``after``.

    >>> [Cubic(before=0.2, after=0.2)(step, 10, 90, 10) for step in (2, 3, 5, 8, 10)]
    [90, 56, 20, 10, 10]
    """

    def __call__(self, step: int, steps: int, first: int, last: int) -> int:
        """The budget at a step, counted from 1, of so many."""
        begins, ends = self.between(steps)
        if step <= begins:
            return first
        if step > ends:
            return last
        return int((first - last) * (1 - (step - begins) / (ends - begins)) ** 3 + last)

    def is_final(self, step: int, steps: int) -> bool:
        """Whether the budget has come to its end."""
        return step > self.between(steps)[1]


@dataclass(frozen=True)
class Straight(_Course):
    """A budget that stays for the share ``before`` of the steps, comes to its end by even steps, and stays there for the share ``after``.

    >>> [Straight(before=0.2, after=0.2)(step, 10, 10, 70) for step in (2, 3, 5, 8, 10)]
    [10, 20, 40, 70, 70]
    """

    def __call__(self, step: int, steps: int, first: int, last: int) -> int:
        """The budget at a step, counted from 1, of so many."""
        begins, ends = self.between(steps)
        if step <= begins:
            return first
        if step >= ends:
            return last
        return first + (last - first) * (step - begins) // (ends - begins)


@dataclass(frozen=True)
class Sensitivity:
    """How much the loss feels a number, ``|p g|``, as a running mean, times how much that varies, ``| |p g| - mean |``, as another one.

    Raises ``ValueError`` unless mean and spread are from 0 to 1.
    """

    mean: float = 0.85
    spread: float = 0.85

    def __post_init__(self) -> None:
        check_number("mean", self.mean, least=0, most=1)
        check_number("spread", self.spread, least=0, most=1)

    def begin(self, params: Params, prefix: str) -> State:
        """Zeros for every number."""
        return {
            f"{prefix}|{name}|{kind}": torch.zeros_like(tensor.detach())
            for name, tensor in params.items()
            for kind in ("mean", "spread")
        }

    def seen(self, params: Params, gradients: Params, prefix: str, state: State) -> State:
        """The running means after another step."""
        found: State = {}
        for name, gradient in gradients.items():
            found |= self.after((params[name].detach() * gradient).abs(), name, prefix, state)
        return found

    def after(self, felt: Tensor, name: str, prefix: str, state: State) -> State:
        """The running means of what this name stands for, after a step that felt it so much."""
        key = f"{prefix}|{name}|"
        mean = self.mean * state[key + "mean"] + (1 - self.mean) * felt
        off = (felt - mean).abs()
        return {key + "mean": mean, key + "spread": self.spread * state[key + "spread"] + (1 - self.spread) * off}

    def score(self, name: str, prefix: str, state: State) -> Tensor:
        """The product of both means for each number of a tensor."""
        return state[f"{prefix}|{name}|mean"] * state[f"{prefix}|{name}|spread"]


@dataclass(frozen=True)
class Freeze:
    """Factors that the loss feels least stop training for good, more and more of them (Liu et al. 2024).

    Every ``every`` steps the mean magnitude of each number's gradient since then goes into running means of itself and of how much it
    varies; their product scores the number. A budget says which share of all numbers that still train may go on: a tensor whose mean
    score is below the threshold that this sets stays as it is from there on.

    Raises ``ValueError`` unless mean is from 0 to 1, and spread is from 0 to 1, and every is at least 1.
    """

    budget: Cubic = Cubic()
    mean: float = 0.85
    spread: float = 0.95
    every: int = 10

    def __post_init__(self) -> None:
        check_number("mean", self.mean, least=0, most=1)
        check_number("spread", self.spread, least=0, most=1)
        check_number("every", self.every, least=1)

    def check(self, roles: Mapping[str, Role]) -> None:
        """Both sides have to train."""
        missing = [name for name in (LEFT, RIGHT) if name not in roles or not roles[name].trains]
        if missing:
            raise ValueError(f"sides stop training one by one, and the {missing[0]} one does not train")

    def begin(self, adapters: Mapping[str, Params]) -> State:
        """Nothing felt yet."""
        return {
            f"{name}|{side}|{kind}": torch.zeros_like(params[side].detach())
            for name, params in adapters.items()
            for side in (LEFT, RIGHT)
            for kind in ("sum", "mean", "spread")
        }

    def __call__(
        self, step: int, steps: int, adapters: Mapping[str, Params], gradients: Mapping[str, Params], state: State
    ) -> tuple[State, Written]:
        """The state, and what is frozen as it was."""
        state = dict(state)
        sides = [(name, side) for name in adapters for side in (LEFT, RIGHT)]
        free = [(name, side) for name, side in sides if f"{name}|{side}|frozen" not in state]
        for name, side in free:
            state[f"{name}|{side}|sum"] = state[f"{name}|{side}|sum"] + gradients[name][side].abs() / self.every
        if step % self.every == 0 and free:
            scores = {}
            for name, side in free:
                key = f"{name}|{side}|"
                felt = state[key + "sum"]
                mean = self.mean * state[key + "mean"] + (1 - self.mean) * felt
                spread = self.spread * state[key + "spread"] + (1 - self.spread) * (felt - mean).abs()
                state |= {key + "sum": torch.zeros_like(felt), key + "mean": mean, key + "spread": spread}
                scores[name, side] = mean * spread
            share = self.budget(step, steps, GRAIN, 0) / GRAIN
            threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values
            below = threshold[min(len(threshold) - 1, int((1 - share) * len(threshold)))] if share < 1 else None
            for (name, side), score in scores.items():
                if below is not None and (share == 0 or float(score.mean()) < float(below)):
                    state[f"{name}|{side}|frozen"] = adapters[name][side].detach().clone()
        written: Written = {}
        for name, side in sides:
            if f"{name}|{side}|frozen" in state:
                written.setdefault(name, {})[side] = state[f"{name}|{side}|frozen"]
        return state, written


@dataclass(frozen=True)
class Prune:
    """Of all adapters' directions those that matter least are set to zero, down to what a budget allows (Zhang et al. 2023).

    A direction scores that of its number in the middle and the means of its column and its row. Every ``every`` steps, and after every
    one once the budget has come to its end, as many as exceed it are set to zero, the first of equals; they may come back between.
    In the end the share ``target`` of all directions is left. Scores are no longer taken then.
    """

    budget: Cubic = Cubic()
    score: Sensitivity = Sensitivity()
    target: float = 2 / 3
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1 or self.every < 1:
            raise ValueError(
                f"a share {self.target:g} of the directions, every {self.every} steps: give one up to 1, and at least 1"
            )

    def check(self, roles: Mapping[str, Role]) -> None:
        """All three parts have to train."""
        missing = [name for name in (LEFT, MIDDLE, RIGHT) if name not in roles or not roles[name].trains]
        if missing:
            raise ValueError(f"directions are dropped by their numbers in the middle, and no {missing[0]} part trains")

    def begin(self, adapters: Mapping[str, Params]) -> State:
        """Nothing felt yet."""
        return {
            key: value for name, params in adapters.items() for key, value in self.score.begin(params, name).items()
        }

    def __call__(
        self, step: int, steps: int, adapters: Mapping[str, Params], gradients: Mapping[str, Params], state: State
    ) -> tuple[State, Written]:
        """Scores, and at its steps the middles with fewer numbers."""
        final = self.budget.is_final(step, steps)
        if not final:
            state = {
                key: value
                for name, params in adapters.items()
                for key, value in self.score.seen(params, gradients[name], name, state).items()
            }
        first = sum(len(params[MIDDLE]) for params in adapters.values())
        drop = first - self.budget(step, steps, first, max(1, round(self.target * first)))
        if drop <= 0 or not (final or step % self.every == 0):
            return state, {}
        scores = {name: self._scores(name, state) for name in adapters}
        least = torch.cat(list(scores.values())).argsort(stable=True)[:drop]
        gone = torch.zeros(first, dtype=torch.bool, device=least.device)
        gone[least] = True
        parts = gone.split([len(found) for found in scores.values()])
        return state, {
            name: {MIDDLE: adapters[name][MIDDLE].detach().masked_fill(part, 0.0)}
            for name, part in zip(scores, parts, strict=True)
        }

    def _scores(self, name: str, state: State) -> Tensor:
        sides = self.score.score(LEFT, name, state).mean(0), self.score.score(RIGHT, name, state).mean(1)
        return self.score.score(MIDDLE, name, state) + sides[0] + sides[1]
