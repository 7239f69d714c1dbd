"""Penalties on what a model says, against their formulas and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.outputs import Certainty, Correlation, Distance, Divergence, Spread


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


ALL = {
    "divergence": Divergence(0.7),
    "distance": Distance(0.7),
    "certainty": Certainty(0.7),
    "correlation": Correlation(0.7),
    "spread": Spread(0.7, 2),
}


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_values_are_those_of_the_formulas(shape: tuple[int, int]) -> None:
    own, theirs = draw(*shape, seed=1), draw(*shape, seed=2)
    p, q = own.softmax(-1), theirs.softmax(-1)
    s = torch.linalg.svdvals(own)
    covariance = torch.cov(own.T)
    units = [x / x.norm(dim=1, keepdim=True) for x in (own, theirs)]
    expected = {
        "divergence": (q * (q.log() - p.log())).sum(1).mean(),
        "distance": (units[0] - units[1]).square().mean(),
        "certainty": (p * p.log()).sum(1).mean(),
        "correlation": (covariance.square().sum() - covariance.diagonal().square().sum()) / shape[1],
        "spread": -s[:2].sum() / s.sum(),
    }
    for name, penalty in ALL.items():
        assert float(penalty(own, theirs)) == pytest.approx(0.7 * float(expected[name]), rel=1e-9), name


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_values(name: str) -> None:
    own, theirs = draw(5, 7, seed=1).requires_grad_(), draw(5, 7, seed=2)
    assert torch.autograd.gradcheck(lambda x: ALL[name](x, theirs), (own,), rtol=1e-4)


def test_ends_of_their_ranges() -> None:
    same = draw(4, 6, seed=3)
    assert float(Divergence(1.0)(same, same)) == pytest.approx(0, abs=1e-12)
    assert float(Distance(1.0)(same, 3 * same)) == pytest.approx(0, abs=1e-12)
    q = torch.linalg.qr(draw(8, 3, seed=4)).Q
    assert float(Correlation(1.0)(q - q.mean(0), q)) < float(Correlation(1.0)(q @ draw(3, 3, seed=5), q))
    assert float(Correlation(1.0)(same[:1], same[:1])) == 0
    low = draw(8, 2, seed=6) @ draw(2, 9, seed=7)
    assert float(Spread(1.0, 2)(low, low)) == pytest.approx(-1.0)
    assert float(Spread(1.0, 2)(torch.zeros(3, 4), low)) == 0.0
    for rows in (low, torch.zeros(3, 4, dtype=torch.float64)):  # of a low rank, and of none
        x = rows.clone().requires_grad_()
        Spread(1.0, 1)(x, x).backward()
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())
