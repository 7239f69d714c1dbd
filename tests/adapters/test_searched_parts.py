"""What a search is made of: weights from free numbers, ranks from weights, and gradients through a step, against autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.choosing import AboveShare, TopShare
from eckart.adapters.hypergradients import Direct, Unrolled
from eckart.adapters.mixing import InGroup, Simplex, Switch

GROUPS = [["a", "b", "c"], ["d"]]
WIDTHS = {"a": 4, "b": 4, "c": 3, "d": 2}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_are_equal_at_first_and_follow_their_numbers() -> None:
    for mixing, first in ((Simplex(), None), (Switch(), 0.5), (InGroup(), 1 / 3)):
        free = mixing.begin(WIDTHS)
        found = mixing(free, WIDTHS, GROUPS)
        assert {name: len(weights) for name, weights in found.items()} == WIDTHS
        for name, width in WIDTHS.items():
            expected = 1 / width if first is None else 1.0 if name == "d" and first < 0.5 else first
            assert found[name].tolist() == pytest.approx([expected] * width)
    free = {name: draw(width, seed=width) for name, width in WIDTHS.items()}
    for name, weights in Simplex()(free, WIDTHS, GROUPS).items():
        powers = [math.exp(float(number)) for number in free[name]]
        assert weights.tolist() == pytest.approx([power / sum(powers) for power in powers])
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    one = {name: number[0] for name, number in free.items()}
    assert float(Switch()(one, WIDTHS, GROUPS)["a"][3]) == pytest.approx(1 / (1 + math.exp(-float(one["a"]))))
    shared = InGroup()(one, WIDTHS, GROUPS)
    total = sum(math.exp(float(one[name])) for name in "abc")
    assert {name: float(shared[name][0]) for name in "abc"} == pytest.approx(
        {name: math.exp(float(one[name])) / total for name in "abc"}
    )


def test_directions_that_carry_more_than_their_share_are_counted() -> None:
    weights = {"a": torch.full((6,), 1 / 6), "b": torch.tensor([0.9, 0.05, 0.05]), "c": torch.tensor([0.3, 0.3, 0.4])}
    assert AboveShare()(weights, [], 6) == {"a": 6, "b": 1, "c": 1}
    assert AboveShare(1.5)(weights, [], 6) == {"a": 0, "b": 1, "c": 0}
    for size in range(1, 33):  # equal ones are all there, whatever their rounding
        assert AboveShare()({"a": torch.ones(size).softmax(-1)}, [], size) == {"a": size}
    with pytest.raises(ValueError, match=r"times is 0\.0: take a number that is above 0"):
        AboveShare(0.0)


def test_a_share_of_maps_is_chosen_exactly() -> None:
    names = [f"{block}{kind}" for block in range(5) for kind in "abcdefg"]
    groups = [names[i : i + 7] for i in range(0, 35, 7)]
    weights = {name: value.expand(3) for name, value in zip(names, draw(35, seed=1), strict=True)}
    for share in (0.1, 0.3, 0.5, 0.9, 1.0):
        for together in (False, True):
            ranks = TopShare(share, together=together)(weights, groups, 8)
            assert set(ranks.values()) <= {0, 8}
            assert list(ranks) == names
            for group in [names] if together else groups:
                chosen = [name for name in group if ranks[name]]
                assert len(chosen) == max(1, math.floor(share * len(group) + 0.5))
                worst = min(float(weights[name][0]) for name in chosen)
                assert all(float(weights[name][0]) < worst for name in group if not ranks[name])
    equal = {name: torch.ones(2) for name in names}
    assert [name for name, rank in TopShare(0.3)(equal, groups, 4).items() if rank] == [
        name for group in groups for name in group[:2]
    ]
    with pytest.raises(ValueError, match="a share 0 of the maps"):
        TopShare(0.0)


def problem() -> tuple[list[Tensor], list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """Two factors and two tensors of free numbers, and two losses that hang on all of them and are no quadratic forms."""
    factors = [(0.3 * draw(4, 3, seed=1)).requires_grad_(), (0.3 * draw(3, 5, seed=2)).requires_grad_()]
    free = [draw(3, seed=3).requires_grad_(), draw(5, seed=4).requires_grad_()]
    x, goals = draw(5, 20, seed=5), (draw(4, 20, seed=6), draw(4, 20, seed=7))

    def loss(goal: Tensor) -> Callable[..., Tensor]:
        def found(left: Tensor, right: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
            return (torch.tanh((left * mix.softmax(-1)) @ right @ (x + shift[:, None])) - goal).square().mean()

        return found

    return factors, free, loss(goals[0]), loss(goals[1])


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_a_gradient_through_a_step_is_that_of_autograd(rate: float) -> None:
    factors, free, learnt, judged = problem()
    steps = torch.autograd.grad(learnt(*factors, *free), factors, create_graph=True)
    moved = [factor - rate * step for factor, step in zip(factors, steps, strict=True)]
    exact = torch.autograd.grad(judged(*moved, *free), free)
    before = [tensor.detach().clone() for tensor in (*factors, *free)]
    found, coarse = (
        Unrolled(nudge)(lambda: learnt(*factors, *free), lambda: judged(*factors, *free), factors, free, rate)
        for nudge in (1e-4, 1e-2)
    )
    for one, other, wanted in zip(found, coarse, exact, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-6, atol=1e-9)
        assert torch.allclose(other, wanted, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(now, old) for now, old in zip((*factors, *free), before, strict=True))
    direct = Direct()(lambda: learnt(*factors, *free), lambda: judged(*factors, *free), factors, free, rate)
    plain = torch.autograd.grad(judged(*factors, *free), free)
    assert all(torch.equal(one, other) for one, other in zip(direct, plain, strict=True))
    # The step matters: what is exact is not what is direct.
    assert max(float((one - other).abs().max()) for one, other in zip(direct, exact, strict=True)) > 1e-4


def test_how_far_apart_the_differences_are_taken() -> None:
    """A cube shows it: between a hundredth above and a hundredth below, its slope is larger by the square of that."""
    w, h = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (3.0, 2.0))
    [found] = Unrolled()(lambda: h * w**3, lambda: h * w, [w], [h], 0.1)
    after = 3.0 - 0.1 * 2.0 * 3 * 3.0**2
    assert float(found.detach()) == pytest.approx(after - 0.1 * 2.0 * (3 * 3.0**2 + 0.01**2), rel=1e-9)


def test_what_a_loss_does_not_hang_on_gets_nothing() -> None:
    w, h, other = (torch.tensor(2.0, requires_grad=True) for _ in range(3))
    for rule in (Direct(), Unrolled()):
        found = rule(lambda: w * h, lambda: h * 1.0, [w], [h, other], 0.1)
        assert [float(part) for part in found] == [1.0, 0.0]
