"""Rules for gradients and penalties against their equations, and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.penalties import MiddleEnergy, Orthonormal
from eckart.adapters.roles import FREE, FROZEN
from eckart.adapters.rules import Nearest, PerExpert, Plain, Preconditioned, Projected, RowsByLength, Unfree

M, N, R, S = 12, 9, 3, 1.7
PAIR = {"left": FREE, "right": FREE}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def case(*, zero: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Factors, the gradients of backpropagation, and the full gradient that they come from."""
    full = draw(M, N, seed=1)
    params = {
        "left": torch.zeros(M, R, dtype=torch.float64) if zero else draw(M, R, seed=2),
        "right": draw(R, N, seed=3),
    }
    gradients = {"left": S * full @ params["right"].T, "right": S * params["left"].T @ full}
    return params, gradients, full


def effect(params: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    return S * (params["left"] @ gradients["right"] + gradients["left"] @ params["right"])


@pytest.mark.parametrize("free", [Nearest(), Unfree()])
def test_the_joint_effect_is_the_projection_of_the_full_gradient(free: Nearest | Unfree) -> None:
    params, gradients, full = case()
    found = Projected(free, damping=0.0)(gradients, params, S)
    p_left = params["left"] @ torch.linalg.pinv(params["left"])
    p_right = torch.linalg.pinv(params["right"]) @ params["right"]
    expected = p_left @ full + full @ p_right - p_left @ full @ p_right
    assert torch.allclose(effect(params, found), expected, atol=1e-10)
    # No other pair comes nearer to the full gradient: a least-squares problem in all their entries.
    basis = []
    for index in range(M * R + R * N):
        one = torch.zeros(M * R + R * N, dtype=torch.float64)
        one[index] = 1.0
        basis.append(
            effect(params, {"left": one[: M * R].reshape(M, R), "right": one[M * R :].reshape(R, N)}).flatten()
        )
    solved = torch.linalg.lstsq(torch.stack(basis, 1), full.flatten(), driver="gelsd").solution
    nearest = (torch.stack(basis, 1) @ solved).reshape(M, N)
    assert torch.allclose(effect(params, found), nearest, atol=1e-8)


def test_of_those_with_this_effect_they_are_the_nearest_to_backpropagation() -> None:
    params, gradients, _ = case()
    found = Projected(damping=0.0)(gradients, params, S)

    def away(pair: dict[str, Tensor]) -> float:
        return sum(float((pair[name] - gradients[name]).square().sum()) for name in pair)

    least = away(found)
    # Sylvester's equation holds: its residual is what a step along X would gain.
    for seed in range(5):
        x = draw(R, R, seed=10 + seed) * 1e-3
        for sign in (1, -1):
            other = {
                "left": found["left"] - sign * params["left"] @ x,
                "right": found["right"] + sign * x @ params["right"],
            }
            assert torch.allclose(effect(params, other), effect(params, found), atol=1e-9)
            assert away(other) > least
    assert away(Projected(Unfree(), damping=0.0)(gradients, params, S)) > least


def test_the_projected_step_goes_downhill() -> None:
    params, gradients, _ = case()
    found = Projected()(gradients, params, S)
    assert sum(float((found[name] * gradients[name]).sum()) for name in found) > 0


def test_with_one_factor_at_zero_the_other_gets_it_all() -> None:
    params, gradients, full = case(zero=True)
    found = Projected(damping=0.0)(gradients, params, S)
    assert float(found["right"].abs().max()) == 0
    p_right = torch.linalg.pinv(params["right"]) @ params["right"]
    assert torch.allclose(effect(params, found), full @ p_right, atol=1e-10)
    narrow = {name: tensor.float() for name, tensor in gradients.items()}
    damped = Projected()(narrow, {name: tensor.float() for name, tensor in params.items()}, S)
    assert damped["left"].dtype == torch.float32
    assert torch.allclose(damped["left"].double(), found["left"], rtol=1e-4, atol=1e-5)


def test_no_split_of_a_product_changes_a_preconditioned_step() -> None:
    params, gradients, full = case()
    turn = draw(R, R, seed=5)
    other = {"left": params["left"] @ turn, "right": torch.linalg.solve(turn, params["right"])}
    others = {"left": S * full @ other["right"].T, "right": S * other["left"].T @ full}
    rule = Preconditioned(damping=0.0)
    steps = [effect(p, rule(g, p, S)) for p, g in ((params, gradients), (other, others))]
    assert torch.allclose(*steps, atol=1e-9)
    assert not torch.allclose(effect(params, gradients), effect(other, others), atol=1e-3)
    # By its formula, with the factors as they are before the step.
    found = Preconditioned(damping=0.3)(gradients, params, S)
    left, right, eye = params["left"], params["right"], 0.3 * torch.eye(R, dtype=torch.float64)
    assert torch.allclose(found["right"], torch.linalg.inv(left.T @ left + eye) @ gradients["right"])
    assert torch.allclose(found["left"], gradients["left"] @ torch.linalg.inv(right @ right.T + eye))


def test_experts_are_preconditioned_by_themselves() -> None:
    params = {"left": draw(M, 6, seed=2), "right": draw(6, N, seed=3)}
    gradients = {"left": draw(M, 6, seed=4), "right": draw(6, N, seed=5), "router": draw(2, N, seed=6)}
    found = PerExpert(Preconditioned(), 2)(gradients, params, S)
    for columns in (slice(0, 3), slice(3, 6)):
        own, theirs = ({"left": t["left"][:, columns], "right": t["right"][columns]} for t in (gradients, params))
        expected = Preconditioned()(own, theirs, S)
        assert torch.equal(found["left"][:, columns], expected["left"])
        assert torch.equal(found["right"][columns], expected["right"])
    assert torch.equal(found["router"], gradients["router"])
    with pytest.raises(ValueError, match="both train"):
        PerExpert(Preconditioned(), 2).check({"left": FREE, "right": FROZEN, "router": FREE})


def test_rows_by_length_start_at_eta_and_fall() -> None:
    left = torch.zeros(4, R, dtype=torch.float64)
    left[1], left[2], left[3] = 0.1, 1.0, 10.0
    gradients = {"left": torch.ones(4, R, dtype=torch.float64), "right": torch.ones(R, N, dtype=torch.float64)}
    found = RowsByLength(eta=3.0)(gradients, {"left": left, "right": gradients["right"]}, 1.0)
    expected = 1 / (left.norm(dim=1) + 1 / 9).sqrt()
    assert torch.allclose(found["left"], expected[:, None].expand(4, R))
    assert float(found["left"][0, 0]) == pytest.approx(3.0)
    assert torch.equal(found["right"], gradients["right"])


def test_a_plain_rule_changes_nothing() -> None:
    params, gradients, _ = case()
    assert all(torch.equal(tensor, gradients[name]) for name, tensor in Plain()(gradients, params, S).items())


def test_penalties_are_what_their_formulas_say() -> None:
    params = {"left": draw(M, R, seed=2), "middle": draw(R, seed=4), "right": draw(R, N, seed=3)}
    eye = torch.eye(R, dtype=torch.float64)
    sides = [(params["left"].T @ params["left"] - eye).norm(), (params["right"] @ params["right"].T - eye).norm()]
    assert float(Orthonormal(0.3)(params)) == pytest.approx(0.3 * float(sides[0] + sides[1]))
    squared = Orthonormal(0.3, squared=True)(params)
    assert float(squared) == pytest.approx(0.3 * float(sides[0] ** 2 + sides[1] ** 2))
    assert float(MiddleEnergy(0.3)(params)) == pytest.approx(0.3 * float((params["middle"] ** 2).sum()))
    q = {"left": torch.linalg.qr(params["left"]).Q, "right": torch.linalg.qr(params["right"].T).Q.T}
    assert float(Orthonormal(1.0)(q)) < 1e-13
    # At the optimum there is a gradient, and it is finite.
    q = {name: tensor.requires_grad_() for name, tensor in q.items()}
    Orthonormal(1.0, squared=True)(q).backward()
    assert all(float(tensor.grad.abs().max()) < 1e-12 for tensor in q.values() if tensor.grad is not None)
    exact = torch.eye(R, dtype=torch.float64).requires_grad_()
    Orthonormal(1.0)({"left": exact, "right": exact}).backward()
    assert exact.grad is not None
    assert bool(torch.isfinite(exact.grad).all())


def test_rules_and_penalties_say_what_they_need() -> None:
    for rule in (Projected(), Preconditioned()):
        rule.check(PAIR)
        for roles in ({**PAIR, "left": FROZEN}, {**PAIR, "middle": FREE}):
            with pytest.raises(ValueError, match="for a pair of factors that both train"):
                rule.check(roles)
    with pytest.raises(ValueError, match="rows of the left factor are to be scaled"):
        RowsByLength().check({"left": FROZEN, "right": FREE})
    with pytest.raises(ValueError, match="a middle part is penalised, and there is none that trains"):
        MiddleEnergy(1.0).check(PAIR)
    with pytest.raises(ValueError, match="a right part is penalised"):
        Orthonormal(1.0).check({"left": FREE, "right": FROZEN})
