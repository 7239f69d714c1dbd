"""Components that train in sight of the others: where they begin, and the penalties, against LAPACK and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.forms import Residual
from eckart.adapters.penalties import Orthonormal, Outside, SameEnergy
from eckart.adapters.pick import BottomFirst
from eckart.adapters.roles import FREE, FROZEN
from eckart.adapters.seed import Seen
from eckart.adapters.sources import OfWeight
from eckart.adapters.start import Start

R = 3
SHAPES = [(14, 9), (9, 14), (10, 10)]


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def begun(weight: Tensor) -> dict[str, Tensor]:
    seed = Start(OfWeight(accuracy=0.0), BottomFirst())(Seen(weight), R, 1.0, rng())
    return Residual().init(seed, weight, R, rng())


def penalties(params: dict[str, Tensor]) -> list[float]:
    return [float(penalty(params)) for penalty in (Orthonormal(0.5, squared=True), Outside(1.0), SameEnergy(1.0))]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_smallest_components_train_and_the_others_stay(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=rng(1), dtype=torch.float64)
    params, k = begun(weight), min(shape)
    u, s, vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    assert np.allclose(Residual().update(params).dense(), (u[:, k - R :] * s[k - R :]) @ vh[k - R :], atol=1e-12)
    stays = (params["principal_left"] * params["principal_middle"]) @ params["principal_right"]
    assert np.allclose(stays, (u[:, : k - R] * s[: k - R]) @ vh[: k - R], atol=1e-12)
    assert np.allclose(params["middle"], s[k - R :], atol=1e-12)
    assert max(penalties(params)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_penalties_begin_at_zero_where_values_do(shape: tuple[int, int], rank: int) -> None:
    """A weight of low rank has no right vectors of its own to give."""
    left, right = (torch.randn(size, rank, generator=rng(size), dtype=torch.float64) for size in shape)
    weight = left @ right.T
    params = begun(weight)
    assert max(penalties(params)) < 1e-12
    stays = (params["principal_left"] * params["principal_middle"]) @ params["principal_right"]
    assert torch.allclose(stays + Residual().update(params).dense(), weight, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_are_those_of_all_vectors_and_of_the_whole_matrix(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=rng(1), dtype=torch.float64)
    params, k = begun(weight), min(shape)
    for name in ("left", "middle", "right"):
        params[name] = params[name] + 0.3 * torch.randn(params[name].shape, generator=rng(2), dtype=torch.float64)
    lefts = torch.cat([params["principal_left"], params["left"]], 1)
    rights = torch.cat([params["principal_right"], params["right"]])
    values = torch.cat([params["principal_middle"], params["middle"]])
    eye = torch.eye(k, dtype=torch.float64)
    off = [float((gram - eye).square().sum()) / 2 for gram in (lefts.T @ lefts, rights @ rights.T)]
    found = penalties(params)
    assert found[0] + found[1] == pytest.approx(sum(off))
    energies = [float(matrix.square().sum()) for matrix in ((lefts * values) @ rights, weight)]
    assert found[2] == pytest.approx(abs(energies[0] - energies[1]))
    assert float(SameEnergy(0.3)(params)) == pytest.approx(0.3 * found[2])
    assert float(Outside(0.3)(params)) == pytest.approx(0.3 * found[1])


def test_what_is_missing_is_told() -> None:
    three = {"left": FREE, "middle": FREE, "right": FREE}
    for penalty in (Outside(1.0), SameEnergy(1.0)):
        penalty.check(Residual.roles)
        with pytest.raises(
            ValueError, match="principal vectors are needed beside what trains, and there are left, middle"
        ):
            penalty.check(three)
    with pytest.raises(ValueError, match="a left part is penalised"):
        Outside(1.0).check({**Residual.roles, "left": FROZEN})
    with pytest.raises(ValueError, match="9 components of a matrix that has 8"):
        BottomFirst()(9, 8)
