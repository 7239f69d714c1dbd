"""Adapters that get more directions while they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.adapters.checked import check_number
from eckart.adapters.roles import Role
from eckart.adapters.schedules import PRODUCT, Sensitivity, State, Straight, Written
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Params


@dataclass(frozen=True)
class Grow:
    """Adapters begin with ``first`` directions each; those that the loss feels most get more, as a budget allows (Zhang et al. 2023).

    Of the directions that the tensors of an adapter hold some act, and their numbers in the middle train. The share ``waiting`` of all
    wait behind them: their sides train, their numbers are held at ``small``. The rest are idle: their numbers are zero, and their sides
    stay as they were drawn. Every ``every`` steps, and when the budget comes to its end, adapters in the order of their scores let those
    that wait act, and as many idle ones wait, until as many act as the budget says. So a direction that begins to act changes nothing,
    and one that begins to wait changes the weight by ``small`` times the product of its sides. In the end the share ``target`` of all
    directions acts, and none waits.

    An adapter's score is that of ``sum |D G| / sqrt(m n)``, D (m, n) being its update and G the gradient of the loss by it.
    """

    budget: Straight = Straight()
    score: Sensitivity = Sensitivity()
    first: int = 1
    waiting: float = 1 / 4
    target: float = 1 / 2
    small: float = 1e-5
    every: int = 10

    def __post_init__(self) -> None:
        check_number("small", self.small, least=0)
        if not 0 < self.target <= 1 or not 0 <= self.waiting <= 1 or min(self.first, self.every) < 1:
            raise ValueError(
                f"from {self.first} directions on, a share {self.waiting:g} of them waiting, to a share {self.target:g}, every "
                f"{self.every} steps: give shares up to 1, and at least 1"
            )

    def check(self, roles: Mapping[str, Role]) -> None:
        """There have to be all three parts, all of which train, and nothing else."""
        if set(roles) != {LEFT, MIDDLE, RIGHT} or not all(role.trains for role in roles.values()):
            raise ValueError(f"directions are added to three factors that all train, not to {', '.join(roles)}")

    def begin(self, adapters: Mapping[str, Params]) -> State:
        """Nothing felt yet; how many directions act and wait, and the sides of those that are idle."""
        state: State = {}
        for name, params in adapters.items():
            middle = params[MIDDLE].detach()
            acting = min(self.first, len(middle))
            state |= self.score.begin({PRODUCT: middle.new_zeros(())}, name)
            state |= {f"{name}|{side}": params[side].detach().clone() for side in (LEFT, RIGHT)}
            state |= self._standing(name, acting, len(middle))
        return state

    def watches(self, step: int, steps: int) -> bool:
        """Until the budget has come to its end."""
        return self.budget(step - 1, steps, 0, steps) < steps

    def __call__(
        self, step: int, steps: int, adapters: Mapping[str, Params], gradients: Mapping[str, Params], state: State
    ) -> tuple[State, Written]:
        """Scores, how many directions act and wait, and what does not train of them."""
        before, state = state, dict(state)
        for name, params in adapters.items():
            if PRODUCT in gradients[name]:
                state |= self.score.after(_felt(params, gradients[name][PRODUCT]), PRODUCT, name, state)
        first = sum(min(self.first, len(params[MIDDLE])) for params in adapters.values())
        last = max(first, round(self.target * sum(len(params[MIDDLE]) for params in adapters.values())))
        allowed = self.budget(step, steps, first, last)
        if step % self.every == 0 or allowed == last:
            self._grow(allowed, {name: len(params[MIDDLE]) for name, params in adapters.items()}, state)
        if allowed == last:
            state |= {f"{name}|waiting": torch.tensor(0) for name in adapters}
        return state, {name: self._written(name, params, before, state) for name, params in adapters.items()}

    def acting(self, state: State) -> dict[str, int]:
        """How many directions of each adapter act."""
        return {key.rpartition("|")[0]: int(count) for key, count in state.items() if key.endswith("|acting")}

    def _grow(self, allowed: int, widths: Mapping[str, int], state: State) -> None:
        acting = self.acting(state)
        order = sorted(widths, key=lambda name: -float(self.score.score(PRODUCT, name, state)))
        left = allowed - sum(acting.values())
        while left > 0:  # once round the adapters, but where more is due than can wait
            for name in order:
                more = min(self._waiting(widths[name]), widths[name] - acting[name], left)
                acting[name] += more
                left -= more
        for name, width in widths.items():
            state |= self._standing(name, acting[name], width)

    def _standing(self, name: str, acting: int, width: int) -> State:
        waiting = min(self._waiting(width), width - acting)
        return {f"{name}|acting": torch.tensor(acting), f"{name}|waiting": torch.tensor(waiting)}

    def _waiting(self, width: int) -> int:
        return max(1, int(self.waiting * width))

    def _written(self, name: str, params: Params, before: State, state: State) -> dict[str, Tensor]:
        middle = params[MIDDLE].detach()
        numbers = torch.arange(len(middle), device=middle.device)
        idle = numbers >= int(state[f"{name}|acting"]) + int(state[f"{name}|waiting"])
        held = torch.full_like(middle, self.small).masked_fill(idle, 0.0)
        return {
            MIDDLE: torch.where(numbers < int(before[f"{name}|acting"]), middle, held),
            LEFT: torch.where(idle, state[f"{name}|{LEFT}"], params[LEFT].detach()),
            RIGHT: torch.where(idle[:, None], state[f"{name}|{RIGHT}"], params[RIGHT].detach()),
        }


def _felt(params: Params, gradient: Tensor) -> Tensor:
    """What the loss feels of an update as a whole."""
    update = (params[LEFT].detach() * params[MIDDLE].detach()) @ params[RIGHT].detach()
    return (update * gradient).abs().sum() / update.numel() ** 0.5
