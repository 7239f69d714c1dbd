"""Budgets of directions while adapters train, against PEFT's allocator and the formulas of the paper."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from peft.tuners.adalora import RankAllocator
from torch import Generator, Tensor, nn

from eckart.adapters.roles import FREE, FROZEN
from eckart.adapters.schedules import Constant, Cubic, Freeze, Prune, Sensitivity, Straight

SHAPES = {"a": (8, 12, 6), "b": (5, 9, 4), "c": (7, 7, 6)}
STEPS = 40


def adapters(seed: int) -> dict[str, dict[str, Tensor]]:
    rng = Generator().manual_seed(seed)
    return {
        name: {
            "left": torch.randn(m, r, generator=rng),
            "middle": torch.randn(r, generator=rng),
            "right": torch.randn(r, n, generator=rng),
        }
        for name, (m, n, r) in SHAPES.items()
    }


def test_a_budget_stays_falls_and_stays() -> None:
    budget = Cubic()  # a tenth of the steps before and three tenths after
    found = [budget(step, 100, 48, 16) for step in range(1, 101)]
    assert set(found[:10]) == {48}
    assert set(found[70:]) == {16}
    assert all(one >= other for one, other in pairwise(found))
    for step in range(11, 71):
        assert found[step - 1] == int((48 - 16) * (1 - (step - 10) / 60) ** 3 + 16)
    assert not budget.is_final(70, 100)
    assert budget.is_final(71, 100)
    assert [Cubic(0, 0)(step, 2, 8, 0) for step in (1, 2)] == [1, 0]
    with pytest.raises(ValueError, match="leave none in between"):
        Cubic(before=0.5, after=0.5)


def test_a_budget_stays_rises_evenly_and_stays() -> None:
    """A tenth of the steps before and three tenths after, unless they are told."""
    found = [Straight()(step, 100, 10, 70) for step in range(1, 101)]
    assert found == [10] * 10 + list(range(11, 71)) + [70] * 30
    assert [Straight(0, 0)(step, 4, 0, 8) for step in range(1, 5)] == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="leave none in between"):
        Straight(before=0.5, after=0.5)


def test_the_same_directions_go_as_in_peft() -> None:
    """Step by step beside PEFT's allocator, which is given the same numbers and gradients."""

    class Lora(nn.Module):
        def __init__(self, params: dict[str, Tensor]) -> None:
            super().__init__()
            self.lora_A = nn.ParameterDict({"default": nn.Parameter(params["right"].clone())})
            self.lora_B = nn.ParameterDict({"default": nn.Parameter(params["left"].clone())})
            self.lora_E = nn.ParameterDict({"default": nn.Parameter(params["middle"][:, None].clone())})

    own = adapters(0)
    model = nn.ModuleDict({name: Lora(params) for name, params in own.items()})
    total = sum(r for *_, r in SHAPES.values())
    target = round(0.5 * total)

    class Settings:
        target_r, init_r, tinit, tfinal, deltaT = 0, 0, 4, 12, 3
        beta1, beta2, total_step = 0.85, 0.85, STEPS

    theirs: Any = RankAllocator(model, Settings(), "default")
    theirs.init_bgt, theirs.target_bgt = total, target
    schedule = Prune(Cubic(before=0.1, after=0.3), Sensitivity(0.85, 0.85), target=0.5, every=3)
    state = schedule.begin(own)
    counts = set()
    for step in range(1, STEPS + 1):
        gradients = adapters(100 + step)
        for name, params in own.items():
            for key, place in (("left", "lora_B"), ("right", "lora_A"), ("middle", "lora_E")):
                params[key] = params[key] - 0.05 * gradients[name][key]
                parameter = model[name].get_submodule(place)["default"]
                parameter.data.sub_(0.05 * gradients[name][key].reshape(parameter.shape))
                parameter.grad = gradients[name][key].reshape(parameter.shape).clone()
        state, written = schedule(step, STEPS, own, gradients, state)
        for name, tensors in written.items():
            own[name].update(tensors)
        theirs.update_and_allocate(model, step)
        for name, params in own.items():
            assert torch.allclose(params["middle"], model[name].lora_E["default"][:, 0], atol=1e-7), (step, name)
        left = sum(int((params["middle"] != 0).sum()) for params in own.values())
        assert not (written and step <= 4)  # there is nothing to drop yet
        if written:
            assert left == schedule.budget(step, STEPS, total, target)
            counts.add(left)
    assert target in counts
    assert len(counts) > 3


def test_equal_scores_go_one_by_one() -> None:
    params = {"a": {"left": torch.ones(2, 4), "middle": torch.ones(4), "right": torch.ones(4, 2)}}
    schedule = Prune(Cubic(before=0.0, after=0.5), target=0.5, every=1)
    state, written = schedule(4, 4, params, params, schedule.begin(params))
    assert written["a"]["middle"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert set(state) == set(schedule.begin(params))


def test_sides_stop_training_one_by_one_and_stay() -> None:
    """AFLoRA by its formulas, number by number; what is frozen is never written otherwise again."""
    own = adapters(0)
    schedule = Freeze(Cubic(before=0.1, after=0.2), every=4)
    state = schedule.begin(own)
    sums = {(name, side): torch.zeros_like(own[name][side]) for name in own for side in ("left", "right")}
    means = {key: torch.zeros_like(value) for key, value in sums.items()}
    spreads = {key: torch.zeros_like(value) for key, value in sums.items()}
    frozen: dict[tuple[str, str], Tensor] = {}
    counts = []
    for step in range(1, STEPS + 1):
        gradients = adapters(100 + step)
        for name, table in own.items():
            for side in ("left", "right"):
                # What matters differs from tensor to tensor.
                gradients[name][side] *= {"a": 1.0, "b": 3.0, "c": 0.3}[name] * (2.0 if side == "left" else 1.0)
                table[side] = table[side] - 0.05 * gradients[name][side]
        state, written = schedule(step, STEPS, own, gradients, state)
        for name, tensors in written.items():
            own[name].update(tensors)
        for key in sums.keys() - frozen.keys():
            sums[key] += gradients[key[0]][key[1]].abs() / 4
        if step % 4 == 0:
            scores = {}
            for key in sums.keys() - frozen.keys():
                means[key] = 0.85 * means[key] + 0.15 * sums[key]
                spreads[key] = 0.95 * spreads[key] + 0.05 * (sums[key] - means[key]).abs()
                scores[key] = means[key] * spreads[key]
                sums[key] = torch.zeros_like(sums[key])
            share = schedule.budget(step, STEPS, 10**6, 0) / 10**6
            every = sorted(float(x) for score in scores.values() for x in score.flatten())
            for key, score in scores.items():
                if share < 1 and (
                    share == 0 or float(score.mean()) < every[min(len(every) - 1, int((1 - share) * len(every)))]
                ):
                    frozen[key] = own[key[0]][key[1]].clone()
        assert {(name, side) for name, tensors in written.items() for side in tensors} == set(frozen)
        assert all(torch.equal(own[name][side], value) for (name, side), value in frozen.items())
        counts.append(len(frozen))
    assert counts == sorted(counts)
    assert counts[3] == 0
    assert counts[-1] == 6
    assert len(set(counts)) > 2
    with pytest.raises(ValueError, match="the right one does not train"):
        Freeze().check({"left": FREE, "right": FROZEN})


def test_what_is_constant_stays() -> None:
    assert Constant()(1, 2, adapters(0), adapters(1), Constant().begin({})) == ({}, {})


def test_parts_that_do_not_train_are_told() -> None:
    with pytest.raises(ValueError, match="no middle part trains"):
        Prune().check({"left": FREE, "right": FREE})
    with pytest.raises(ValueError, match="no left part trains"):
        Prune().check({"left": FROZEN, "middle": FREE, "right": FREE})
    with pytest.raises(ValueError, match="a share 0 of the directions"):
        Prune(target=0)
