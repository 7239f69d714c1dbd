"""Directions that are added while adapters train, against the rule told step by step, and the laws of all schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.growth import Grow
from eckart.adapters.penalties import OfActing, Orthonormal
from eckart.adapters.roles import FREE, FROZEN
from eckart.adapters.schedules import PRODUCT, Cubic, Freeze, Prune, Sensitivity, State, Straight, Watching

SHAPES = {"a": (8, 12, 8), "b": (5, 9, 8), "c": (7, 7, 8), "d": (9, 6, 8)}
FEELS = {"a": 1.0, "b": 3.0, "c": 0.3, "d": 2.0}  # how large the gradients of each are
STEPS = 40

Table = dict[str, dict[str, Tensor]]


def adapters(seed: int, *, middle: float = 1.0) -> Table:
    rng = Generator().manual_seed(seed)
    return {
        name: {
            "left": torch.randn(m, r, generator=rng),
            "middle": middle * torch.randn(r, generator=rng),
            "right": torch.randn(r, n, generator=rng),
        }
        for name, (m, n, r) in SHAPES.items()
    }


def gradients_of(seed: int) -> Table:
    rng = Generator().manual_seed(1000 + seed)
    return {
        name: {key: FEELS[name] * tensor for key, tensor in table.items()}
        | {PRODUCT: FEELS[name] * torch.randn(*SHAPES[name][:2], generator=rng)}
        for name, table in adapters(seed).items()
    }


def run(schedule: Any, own: Table, steps: int = STEPS) -> list[tuple[Table, Table, State]]:
    """For each step the tensors as the optimiser leaves them and as the schedule does, and the state."""
    found = []
    state = schedule.begin(own)
    for step in range(1, steps + 1):
        gradients = gradients_of(step)
        if not isinstance(schedule, Watching):
            for table in gradients.values():
                del table[PRODUCT]
        moved = {
            name: {key: tensor - 0.05 * gradients[name][key] for key, tensor in table.items()}
            for name, table in own.items()
        }
        state, written = schedule(step, steps, moved, gradients, state)
        own = {name: {**table, **written.get(name, {})} for name, table in moved.items()}
        found.append((moved, own, state))
    return found


def updates(table: Table) -> dict[str, Tensor]:
    return {name: (t["left"] * t["middle"]) @ t["right"] for name, t in table.items()}


def test_directions_are_added_where_the_loss_feels_most() -> None:
    """The scores by their formulas, and who gets more by counting; from four directions to sixteen of thirty-two."""
    schedule, own = Grow(Straight(0.1, 0.3), Sensitivity(0.85, 0.7), every=3), adapters(0, middle=0.0)
    begun = adapters(0, middle=0.0)
    mean, spread = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    acting = dict.fromkeys(SHAPES, 1)
    before = own
    totals = []
    for step, (moved, after, state) in enumerate(run(schedule, own), 1):
        acted = dict(acting)
        for name, (m, n, _) in SHAPES.items():
            t = moved[name]
            felt = ((t["left"] @ torch.diag(t["middle"]) @ t["right"]) * gradients_of(step)[name][PRODUCT]).abs().sum()
            felt = float(felt) / math.sqrt(m * n)
            mean[name] = 0.85 * mean[name] + 0.15 * felt
            spread[name] = 0.7 * spread[name] + 0.3 * abs(felt - mean[name])
            score = float(schedule.score.score(PRODUCT, name, state))
            assert score == pytest.approx(mean[name] * spread[name], rel=1e-4, abs=1e-12)
        budget = 4 + 12 * max(0, min(step, 28) - 4) // 24
        if step % 3 == 0 or step >= 28:
            for name in sorted(SHAPES, key=lambda name: -mean[name] * spread[name]):
                acting[name] += min(2, 8 - acting[name], budget - sum(acting.values()))
        assert schedule.acting(state) == acting, step
        for name in SHAPES:
            waits = 0 if step >= 28 else min(2, 8 - acting[name])
            middle = after[name]["middle"]
            # What acted before trains; what begins to act does so with the number that it waited with.
            assert torch.equal(middle[: acted[name]], moved[name]["middle"][: acted[name]])
            held = torch.full((acting[name] - acted[name] + waits,), 1e-5)
            assert torch.equal(middle[acted[name] : acting[name] + waits], held)
            assert not middle[acting[name] + waits :].any()
            trains = acting[name] + waits
            for key, cut in (("left", (slice(None), slice(trains))), ("right", (slice(trains),))):
                assert torch.equal(after[name][key][cut], moved[name][key][cut])
            assert torch.equal(after[name]["left"][:, trains:], begun[name]["left"][:, trains:])
            assert torch.equal(after[name]["right"][trains:], begun[name]["right"][trains:])
        totals.append(sum(acting.values()))
        before = after
    assert totals[:4] == [4] * 4
    assert totals[-1] == 16
    assert acting["b"] == 8  # the one with the largest gradients is full
    assert acting["c"] < 4
    assert sum(int((t["middle"] != 0).sum()) for t in before.values()) == 16
    assert {name: int(torch.linalg.matrix_rank(update)) for name, update in updates(before).items()} == {
        name: min(rank, *SHAPES[name][:2]) for name, rank in acting.items()
    }


def test_an_insertion_changes_the_weight_by_what_it_begins_with() -> None:
    """Beside the optimiser's step alone, and directions that act already, only 1e-5 times products of new sides are added."""
    schedule, state = Grow(Straight(0.0, 0.0), every=1), Grow().begin(adapters(0))
    own = adapters(0)
    for name, table in own.items():
        table["middle"] = torch.tensor([1.0, 1e-5, 1e-5, 0, 0, 0, 0, 0])
        assert int(state[f"{name}|waiting"]) == 2
    gradients = gradients_of(1)
    grown, written = schedule(20, 40, own, gradients, state)
    assert sum(schedule.acting(grown).values()) == 4 + 6
    new = {name: {**table, **written[name]} for name, table in own.items()}
    for name, (before, after) in {name: (updates(own)[name], updates(new)[name]) for name in SHAPES}.items():
        added = slice(3, 3 + schedule.acting(grown)[name] - 1)
        expected = 1e-5 * own[name]["left"][:, added] @ own[name]["right"][added]
        assert torch.allclose(
            after.double() - before.double(), expected.double(), atol=1e-6 * float(before.abs().max())
        )
        size = torch.linalg.matrix_norm(own[name]["left"]) * torch.linalg.matrix_norm(own[name]["right"])
        assert float((after - before).norm()) <= 1.1e-5 * float(size)


def test_more_than_can_wait_is_given_in_rounds() -> None:
    """All twelve at the last moment, where two of each can wait."""
    schedule = Grow(Straight(0.0, 0.5), every=100)
    totals = [sum(schedule.acting(state).values()) for _, _, state in run(schedule, adapters(0, middle=0.0), 8)]
    assert totals == [4, 4, 4, 16, 16, 16, 16, 16]
    whole = Grow(Straight(0.0, 0.0), target=1.0)
    *_, (_, _, state) = run(whole, adapters(0), 3)
    assert whole.acting(state) == dict.fromkeys(SHAPES, 8)


WHOLE = sum(r for *_, r in SHAPES.values())


def numbers(table: Table) -> int:
    return sum(int((tensors["middle"] != 0).sum()) for tensors in table.values())


@pytest.mark.parametrize("steps", [7, 12, 40, 41])
@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (Grow(Straight(0.1, 0.3), every=3), 4, 16),
        (Grow(Straight(0.0, 0.1), first=2, waiting=0.5, target=0.9, every=1), 8, 29),
        (Grow(Straight(0.0, 0.0), target=0.1, every=5), 4, 4),
    ],
)
def test_what_grows_has_what_its_budget_says_at_every_step(schedule: Grow, first: int, last: int, steps: int) -> None:
    begins, ends = round(schedule.budget.before * steps), steps - round(schedule.budget.after * steps)
    for step, (_, after, state) in enumerate(run(schedule, adapters(0, middle=0.0), steps), 1):
        at = step // schedule.every * schedule.every  # when it acted last
        expected = last if step >= ends else first + (last - first) * max(0, at - begins) // (ends - begins)
        acting = schedule.acting(state)
        assert sum(acting.values()) == expected
        for name, tensors in after.items():
            beyond = tensors["middle"][acting[name] :]
            assert set(beyond.tolist()) <= {0.0, float(torch.tensor(1e-5))}
            assert bool(beyond.any()) == (expected < last and acting[name] < 8)
    assert numbers(after) == last


@pytest.mark.parametrize("steps", [7, 12, 40, 41])
@pytest.mark.parametrize(
    "schedule", [Prune(Cubic(0.1, 0.3), target=0.5, every=3), Prune(Cubic(0.0, 0.5), target=0.3, every=1)]
)
def test_what_is_pruned_has_what_its_budget_says_whenever_it_is(schedule: Prune, steps: int) -> None:
    last = round(schedule.target * WHOLE)
    for step, (_, after, _) in enumerate(run(schedule, adapters(0), steps), 1):
        if step % schedule.every == 0 or step > steps - round(schedule.budget.after * steps):
            assert numbers(after) == schedule.budget(step, steps, WHOLE, last)
    assert numbers(after) == last


@pytest.mark.parametrize("steps", [7, 12, 40, 41])
def test_what_freezes_does_so_between_its_first_and_its_last_step(steps: int) -> None:
    """Whole sides go, of any size, so that a budget of numbers says when they may, and when none is left."""
    schedule, before = Freeze(Cubic(0.1, 0.3), every=3), 0
    ends = steps - round(0.3 * steps)
    for step, (_, after, state) in enumerate(run(schedule, adapters(0), steps), 1):
        frozen = [key.split("|")[:2] for key in state if key.endswith("frozen")]
        assert len(frozen) == before or step % 3 == 0
        assert not frozen or step > round(0.1 * steps)
        assert len(frozen) == 8 or step < ends // 3 * 3 + 3
        assert len(frozen) >= before
        assert all(torch.equal(after[name][side], state[f"{name}|{side}|frozen"]) for name, side in frozen)
        before = len(frozen)
    assert before == 8


def test_only_a_schedule_that_grows_looks_at_whole_updates() -> None:
    schedule = Grow(Straight(0.1, 0.3))
    assert isinstance(schedule, Watching)
    assert not isinstance(Prune(), Watching)
    assert [schedule.watches(step, 10) for step in range(1, 11)] == [True] * 7 + [False] * 3


def test_a_penalty_looks_at_what_acts_alone() -> None:
    params = adapters(3)["a"]
    params["middle"] = torch.tensor([1.0, -2.0, 1e-5, 0.5, 0.0, 0.0, 0.0, 0.0])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    found = OfActing(Orthonormal(0.3))(leaves)
    left, right = params["left"][:, [0, 1, 3]], params["right"][[0, 1, 3]]
    expected = (left.T @ left - torch.eye(3)).norm() + (right @ right.T - torch.eye(3)).norm()
    assert float(found.detach()) == pytest.approx(0.3 * float(expected), rel=1e-6)
    found.backward()
    assert leaves["left"].grad is not None
    assert leaves["left"].grad.abs().amax(0).gt(0).tolist() == [True, True, False, True, False, False, False, False]
    nothing = {**leaves, "middle": torch.zeros(8)}
    assert float(OfActing(Orthonormal(1.0))(nothing).detach()) == 0


def test_what_cannot_grow_is_told() -> None:
    three = {"left": FREE, "middle": FREE, "right": FREE}
    Grow().check(three)
    for roles in ({**three, "middle": FROZEN}, {"left": FREE, "right": FREE}, {**three, "lengths": FREE}):
        with pytest.raises(ValueError, match="directions are added to three factors that all train, not to left"):
            Grow().check(roles)
    with pytest.raises(ValueError, match="a middle part is penalised"):
        OfActing(Orthonormal(1.0)).check({"left": FREE, "right": FREE})
    with pytest.raises(ValueError, match="to a share 2, every 10 steps"):
        Grow(target=2.0)
    with pytest.raises(ValueError, match="leave none in between"):
        Straight(0.5, 0.5)
