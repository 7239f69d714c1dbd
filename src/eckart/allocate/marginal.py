"""Equal marginal loss per byte: the budget goes where the next byte saves most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from eckart.allocate.slots import Allocation, Rank, Slot, check_budget, smallest, total_bytes
from eckart.stats import Need

# A step from one vertex of a matrix's lower convex hull to the next: what a byte of it saves, and where it leads.
Step = tuple[float, str, Rank]


@dataclass(frozen=True)
class EqualMarginalLoss:
    """Minimises the sum of the slots' expected losses within the budget, by the Lagrangian of that problem.

    Each matrix may take the points (bytes, loss) of its ranks and of staying dense; along the lower convex hull of those
    points every step saves less a byte than the one before. Taking the steps of all matrices in the order of what they save a
    byte solves the relaxed problem; it stops at the first step that does not fit. What is left then buys the best
    single points that still fit. ``gap`` is the relaxed optimum's lead, a bound on what any allocation could be better.

    >>> import torch
    >>> steep, flat = torch.tensor([9.0, 1.0, 0.5, 0.0, 0.0]), torch.tensor([4.0, 3.5, 3.0, 2.5, 0.0])
    >>> slots = {n: Slot(rows=4, columns=12, itemsize=1, losses=c) for n, c in (("a", steep), ("b", flat))}
    >>> EqualMarginalLoss()(slots, budget=48).ranks
    {'a': 2, 'b': 1}
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENSITIVITY})

    def __call__(self, slots: Mapping[str, Slot], budget: int) -> Allocation:
        """Ranks of least expected loss whose bytes add up to at most ``budget``; ``BudgetError`` where none do."""
        check_budget(slots, budget)
        ranks = smallest(slots)
        left = budget - total_bytes(slots, ranks)
        steps: list[Step] = [step for name, slot in slots.items() if slot.max_rank for step in _hull(name, slot)]
        # Steepest first; of equal ones a matrix's own order must be kept, hence the cost as the last key.
        steps.sort(key=lambda step: (-step[0], step[1], slots[step[1]].cost(step[2])))
        relaxed: float | None = None  # the loss that the relaxed problem reaches; no allocation can be below
        stuck: set[str] = set()
        for slope, name, target in steps:
            extra = slots[name].cost(target) - slots[name].cost(ranks[name])
            if name in stuck or extra > left:
                if relaxed is None:  # this step would use up the budget in part
                    relaxed = _total_loss(slots, ranks) - slope * left
                stuck.add(name)
                continue
            ranks[name] = target
            left -= extra
        _fill(slots, ranks, left)
        gap = 0.0 if relaxed is None else max(0.0, _total_loss(slots, ranks) - relaxed)
        return Allocation(ranks, gap)


def _total_loss(slots: Mapping[str, Slot], ranks: Mapping[str, Rank]) -> float:
    return sum(_loss(slot, ranks[name]) for name, slot in slots.items() if slot.max_rank)


def _loss(slot: Slot, rank: Rank) -> float:
    assert slot.losses is not None
    return 0.0 if rank is None else float(slot.losses[rank])


def _hull(name: str, slot: Slot) -> list[Step]:
    """The steps along the lower convex hull of (bytes, loss) over ranks 1 … max_rank and dense."""
    assert slot.losses is not None
    losses = slot.losses.tolist()
    hull: list[tuple[int, float, Rank]] = []
    choices: list[Rank] = [*range(1, slot.max_rank + 1), None]
    for rank in choices:
        point = (slot.cost(rank), 0.0 if rank is None else losses[rank], rank)
        while len(hull) >= 2 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), name, b[2]) for a, b in pairwise(hull)]


def _slope(a: tuple[int, float, Rank], b: tuple[int, float, Rank]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])


def _fill(slots: Mapping[str, Slot], ranks: dict[str, Rank], left: int) -> None:
    """Move single matrices to the larger choice that saves most a byte, until none fits."""
    while True:
        best: tuple[float, str, Rank] | None = None
        for name, slot in slots.items():
            rank = ranks[name]
            if rank is None:
                continue
            choices: list[Rank] = [rank + 1 if rank < slot.max_rank else None]
            if choices[0] is not None:
                choices.append(None)  # dense may pay where no further rank does
            for choice in choices:
                extra = slot.cost(choice) - slot.cost(rank)
                gain = _loss(slot, rank) - _loss(slot, choice)
                if extra <= left and (best is None or gain / extra > best[0]):
                    best = (gain / extra, name, choice)
        if best is None:
            return
        _, name, choice = best
        left -= slots[name].cost(choice) - slots[name].cost(ranks[name])
        ranks[name] = choice
