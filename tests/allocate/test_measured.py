"""Greedy removal by measured loss, against a search that measures everything in every round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from eckart.allocate import BondSlot, GreedyByLoss, total_cost
from eckart.allocate.slots import BudgetError
from eckart.stats import Need

SIZES = {"a": (16, 3), "b": (24, 5), "c": (40, 2), "d": (7, 11), "e": (1, 50)}
SLOTS = {name: BondSlot(size=size, unit_bytes=weight) for name, (size, weight) in SIZES.items()}
WEIGHTS = {"a": 1.0, "b": 0.5, "c": 2.0, "d": 0.1, "e": 0.0}
WHOLE = sum(size * weight for size, weight in SIZES.values())

Loss = Callable[[Mapping[str, int]], float]


def apart(ranks: Mapping[str, int]) -> float:
    """Every bond by itself, the more the less is left of it."""
    return 1.0 + sum(WEIGHTS[name] * (1 - rank / SIZES[name][0]) ** 2 for name, rank in ranks.items())


def joint(ranks: Mapping[str, int]) -> float:
    """A bond costs the more, the less is left of the others; the first steps lower the loss."""
    missing = sum(WEIGHTS[name] * (1 - rank / SIZES[name][0]) for name, rank in ranks.items())
    return 1.0 + missing**2 - 0.1 * missing


@dataclass
class Table:
    """A loss that is a formula."""

    formula: Loss
    now: dict[str, int] = field(default_factory=lambda: {name: size for name, (size, _) in SIZES.items()})
    tried: list[tuple[int, str, int]] = field(default_factory=list)
    taken: list[tuple[str, int, float]] = field(default_factory=list)

    def loss(self, name: str, rank: int) -> float:
        assert rank < self.now[name]
        self.tried.append((len(self.taken), name, rank))
        return self.formula({**self.now, name: rank})

    def take(self, name: str, rank: int, loss: float) -> None:
        assert loss == self.formula({**self.now, name: rank})
        self.now[name] = rank
        self.taken.append((name, rank, loss))


def thorough(formula: Loss, budget: int, steps: int) -> list[tuple[str, int]]:
    """The same steps, every bond measured in every round, as long as all of them are whole steps."""
    now = {name: size for name, (size, _) in SIZES.items()}
    found: list[tuple[str, int]] = []
    longest = max((size // steps + 1) * weight for size, weight in SIZES.values())
    while sum(now[n] * w for n, (_, w) in SIZES.items()) - budget >= longest:
        options = []
        for name, (size, weight) in SIZES.items():
            smaller = [size * part // steps for part in range(1, steps) if 0 < size * part // steps < now[name]]
            if smaller:
                rank = max(smaller)
                rate = (formula({**now, name: rank}) - formula(now)) / ((now[name] - rank) * weight)
                options.append((rate, name, rank))
        _, name, rank = min(options)
        now[name] = rank
        found.append((name, rank))
    return found


@pytest.mark.parametrize("formula", [apart, joint])
@pytest.mark.parametrize("steps", [2, 3, 8, 100])
@pytest.mark.parametrize("share", [1.0, 0.99, 0.8, 0.6])
def test_steps_are_those_of_a_search_that_measures_everything(formula: Loss, steps: int, share: float) -> None:
    budget, trials = int(share * WHOLE), Table(formula)
    found = GreedyByLoss(steps).search(SLOTS, budget, formula(trials.now), trials)
    assert total_cost(SLOTS, found.ranks) <= budget
    expected = thorough(formula, budget, steps)
    assert [(name, rank) for name, rank, _ in trials.taken][: len(expected)] == expected
    assert len(expected) > 3 or steps < 8 or share > 0.6
    assert {name: SIZES[name][0] if rank is None else rank for name, rank in found.ranks.items()} == trials.now
    assert found.ranks["e"] is None  # of one unit none may go
    assert len(set(trials.tried)) == len(trials.tried)  # nothing is measured twice
    rounds = {turn for turn, *_ in trials.tried}
    assert rounds == set(range(len(trials.taken)))


def test_few_are_measured_again() -> None:
    trials = Table(apart)
    GreedyByLoss(100).search(SLOTS, int(0.6 * WHOLE), 1.0, trials)
    assert len(trials.taken) > 20
    assert len(trials.tried) < 2 * len(trials.taken) < 0.5 * len(trials.taken) * len(SLOTS)


def test_the_last_step_goes_no_further_than_it_must() -> None:
    slots, trials = {"c": SLOTS["c"]}, Table(apart, {"c": 40})
    assert GreedyByLoss(4).search(slots, 57, 1.0, trials).ranks == {"c": 28}
    assert [rank for _, rank, _ in trials.taken] == [30, 28]


def test_ties_go_to_the_first_name() -> None:
    slots = {name: BondSlot(size=8, unit_bytes=1) for name in ("z", "b", "q")}
    trials = Table(lambda ranks: 0.0, dict.fromkeys(slots, 8))
    GreedyByLoss(2).search(slots, 16, 0.0, trials)
    assert [name for name, *_ in trials.taken] == ["b", "q"]


def test_one_step_stays_of_every_bond() -> None:
    trials = Table(apart)
    least = sum({"a": 4, "b": 6, "c": 10, "d": 1, "e": 1}[name] * weight for name, (_, weight) in SIZES.items())
    assert total_cost(SLOTS, GreedyByLoss(4).search(SLOTS, least, 1.0, trials).ranks) == least
    with pytest.raises(BudgetError) as error:
        GreedyByLoss(4).search(SLOTS, least - 1, 1.0, Table(apart))
    assert error.value.smallest == least


def test_steps_are_at_least_two() -> None:
    assert GreedyByLoss().needs == {Need.LOSS}
    for steps in (1, 0, -8):
        with pytest.raises(ValueError, match=r"steps .* must be at least 2"):
            GreedyByLoss(steps)
