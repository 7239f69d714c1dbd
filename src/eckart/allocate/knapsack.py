"""The multiple-choice knapsack in whole numbers: one choice of every curve, the least sum of losses, costs within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from eckart.allocate.curves import Step, steps

# Costs, which do not fall, and losses from 0 on, which do not rise.
Points = tuple[Sequence[int], Sequence[int]]

# No sum reaches 2^63: a partial loss and a choice stay below 2^61, and what completes them is at most NEVER.
LARGEST_LOSS = 1 << 60  # of the incumbent
LARGEST_COST = 1 << 62  # of all curves together
NEVER = 1 << 62
BLOCK = 1 << 19  # candidates that are looked at in one go
UP = 1 + 2.0**-50  # more than what rounding takes from a product and a quotient


@dataclass(frozen=True)
class Solved:
    """The best choices ``at`` that were found, their ``loss``, and ``least``: no choices within the budget lose less."""

    at: tuple[int, ...]
    loss: int
    least: int


def solve(curves: Sequence[Points], budget: int, incumbent: Sequence[int], nodes: int) -> Solved:
    """Branch and bound, breadth first, from the choices ``incumbent``, which keep the budget and lose at most ``LARGEST_LOSS``.

    Curve by curve, partial solutions are extended by every choice. Those go that another beats in both cost and loss, and
    those whose bound (the relaxed optimum of the curves to come within what is left of the budget) is no less than the best
    loss found. Each is also completed along the hulls. ``nodes`` is how many may be looked at in all: half of them shared out
    equally, and of what is to spare every curve may take a quarter. Where that is too little those of least bound
    stay, one at least.

    >>> curves = [([1, 2, 3], [9, 5, 0]), ([2, 4, 7], [8, 3, 1]), ([1, 5], [4, 0])]
    >>> solve(curves, 9, incumbent=[0, 0, 0], nodes=100)
    Solved(at=(2, 1, 0), loss=7, least=7)
    """
    at = tuple(incumbent)
    best = dropped = sum(losses[i] for (_, losses), i in zip(curves, at, strict=True))
    cores, scale, relaxed = _cores(curves, budget, best)
    if not all(core.choices for core in cores):
        return Solved(at, best, best)
    undoing = steps((core.costs, core.losses) for core in cores)[::-1]
    ordered = (
        torch.tensor([(step.curve, step.extra, step.gain) for step in undoing], dtype=torch.int64).reshape(-1, 3).T
    )
    share = nodes // 2 // max(1, len(cores))
    spare = nodes - share * len(cores)
    partial, trail = _Partial.start(), list[tuple[Tensor, Tensor]]()
    for stage, core in enumerate(cores):
        open_ = [i for i, penalty in enumerate(core.penalties) if penalty < best * scale - relaxed]
        allowed = max(1, (share + spare // 4) // max(1, len(open_)))
        if len(partial.cost) > allowed:
            by_bound = partial.bound.argsort(stable=True)
            dropped = min(dropped, int(partial.bound[by_bound[allowed]]))
            partial = partial.only(by_bound[:allowed].sort().values)
            trail[-1] = (partial.parent, partial.choice)
        spare = max(0, spare + share - len(partial.cost) * len(open_))
        tail = _Tail.after(stage, cores, ordered, best)
        blocks = []
        for parents in torch.arange(len(partial.cost)).split(max(1, BLOCK // max(1, len(open_)))):
            block, completed, undone = _extended(partial, parents, core, open_, tail, budget)
            if len(completed) and int(completed.min()) < best:
                i = int(completed.argmin())
                best = int(completed[i])
                back = [undoing[k] for k in tail.undone[: int(undone[i])].tolist()]
                at = _trace(cores, [*trail, (block.parent, block.choice)], i, back)
            blocks.append(_undominated(block, best))
        partial = _undominated(_Partial.joined(blocks), best)
        if not len(partial.cost):
            break
        trail.append((partial.parent, partial.choice))
    return Solved(at, best, min(best, dropped))


# ---- which choices may be better -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Core:
    """The choices of a curve that may be better than the incumbent's."""

    curve: int
    choices: Sequence[int]  # where they are on the curve
    costs: Sequence[int]
    losses: Sequence[int]
    penalties: Sequence[int]  # what each adds to the relaxed optimum


def _cores(curves: Sequence[Points], budget: int, best: int) -> tuple[list[_Core], int, int]:
    """Cores, those of the widest range of costs first; the unit of a loss in that of the penalties; the relaxed optimum in it.

    The multiplier is a fraction gain / extra, so with losses and penalties in units of 1 / extra everything is whole.
    """
    left = budget - sum(costs[0] for costs, _ in curves)
    gain, extra = 0, 1
    for step in steps(curves):
        left -= step.extra
        if left < 0:
            gain, extra = int(step.gain), step.extra
            break
    totals = [[loss * extra + gain * cost for cost, loss in zip(*points, strict=True)] for points in curves]
    relaxed = sum(map(min, totals)) - gain * budget
    cores = []
    for number, ((costs, losses), total) in enumerate(zip(curves, totals, strict=True)):
        least = min(total)
        kept: list[int] = []
        for i, loss in enumerate(losses):
            if total[i] - least < best * extra - relaxed and loss < best and not (kept and loss >= losses[kept[-1]]):
                kept.append(i)
        cores.append(
            _Core(
                number,
                kept,
                [costs[i] for i in kept],
                [losses[i] for i in kept],
                [total[i] - least for i in kept],
            )
        )
    cores.sort(key=lambda core: (core.costs[0] - core.costs[-1] if core.costs else 0, core.curve))
    return cores, extra, relaxed


# ---- partial solutions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Partial:
    """Partial solutions, one an entry: cost, loss and bound, and the partial solution and the choice that it comes from."""

    cost: Tensor
    loss: Tensor
    bound: Tensor
    parent: Tensor
    choice: Tensor

    @staticmethod
    def start() -> _Partial:
        return _Partial(*torch.zeros(5, 1, dtype=torch.int64))

    @staticmethod
    def joined(blocks: Sequence[_Partial]) -> _Partial:
        return _Partial(*(torch.cat([getattr(b, f.name) for b in blocks]) for f in fields(_Partial)))

    def only(self, index: Tensor) -> _Partial:
        return _Partial(*(getattr(self, f.name)[index] for f in fields(_Partial)))


def _extended(
    partial: _Partial, parents: Tensor, core: _Core, open_: Sequence[int], tail: _Tail, budget: int
) -> tuple[_Partial, Tensor, Tensor]:
    """The ``parents`` with every open choice of the core: all of them, their completed losses, and the tail's steps undone."""
    choice = torch.tensor(open_, dtype=torch.int64)
    costs, losses = torch.tensor(core.costs)[choice], torch.tensor(core.losses)[choice]
    cost = (partial.cost[parents, None] + costs).flatten()
    loss = (partial.loss[parents, None] + losses).flatten()
    bound, completed, undone = tail.within(budget - cost)
    origin, choice = parents.repeat_interleave(len(open_)), choice.repeat(len(parents))
    return _Partial(cost, loss, loss + bound, origin, choice), loss + completed, undone


def _undominated(partial: _Partial, best: int) -> _Partial:
    """Those of bound below ``best``, by cost; of equal or more cost only those that lose less."""
    partial = partial.only(partial.bound < best)
    by_loss = partial.loss.argsort(stable=True)
    partial = partial.only(by_loss[partial.cost[by_loss].argsort(stable=True)])
    before = torch.cat([torch.tensor([NEVER]), partial.loss.cummin(0).values])[: len(partial.loss)]
    return partial.only(partial.loss < before)


def _trace(
    cores: Sequence[_Core], trail: Sequence[tuple[Tensor, Tensor]], last: int, undone: Sequence[Step]
) -> tuple[int, ...]:
    """The choices of the curves behind a partial solution; where none was made yet the dearest, less the steps undone."""
    chosen = [len(core.choices) - 1 for core in cores]
    for stage in reversed(range(len(trail))):
        parent, choice = trail[stage]
        chosen[stage], last = int(choice[last]), int(parent[last])
    for step in undone:
        chosen[step.curve] = step.start
    at = {core.curve: core.choices[i] for core, i in zip(cores, chosen, strict=True)}
    return tuple(at[number] for number in range(len(cores)))


# ---- what is still to come -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tail:
    """The relaxed problem of the cores after a stage, for any budget: all at their dearest, and steps undone, flattest first.

    Entry i of ``costs``, which fall, and ``losses``, which rise, is what the first i steps undone lead to.
    """

    undone: Tensor  # where those steps are among the steps of all cores
    costs: Tensor
    losses: Tensor

    @staticmethod
    def after(stage: int, cores: Sequence[_Core], ordered: Tensor, best: int) -> _Tail:
        """``ordered`` (3, all steps), the flattest first: stage, extra cost and gain. What loses twice ``best`` is of no use."""
        cost = sum(core.costs[-1] for core in cores[stage + 1 :])
        loss = min(best, sum(core.losses[-1] for core in cores[stage + 1 :]))
        undone = (ordered[0] > stage).nonzero()[:, 0]
        of_use = int((ordered[2, undone].double().cumsum(0) < 2.0 * best).sum()) + 1
        undone = undone[:of_use]
        zero = torch.zeros(1, dtype=torch.int64)
        costs = cost - torch.cat([zero, ordered[1, undone].cumsum(0)])
        return _Tail(undone, costs, loss + torch.cat([zero, ordered[2, undone].cumsum(0)]))

    def within(self, budgets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Below what no choices within the budgets lose, what the vertices before lose, and how many steps back these are."""
        undone = torch.searchsorted(-self.costs, -budgets)
        possible = undone < len(self.costs)
        undone = undone.clamp(max=len(self.costs) - 1)
        completed = self.losses[undone]
        gain = torch.cat([torch.zeros(1, dtype=torch.int64), self.losses.diff()])[undone]
        extra = torch.cat([torch.ones(1, dtype=torch.int64), -self.costs.diff()])[undone]
        # The part of the last step undone that the budget still pays; rounded so that the bound is not too high.
        share = (budgets - self.costs[undone]).double() / extra
        bound = completed - (gain * share * UP).floor().long().clamp(max=gain)
        return bound.where(possible, NEVER), completed.where(possible, NEVER), undone
