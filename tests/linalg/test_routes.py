"""Every way to a truncated SVD, chosen by hand, against LAPACK; what each is good for and what it is not."""

import math
import sys

import numpy as np
import pytest
import torch
from market import (
    MATRICES,
    as_if_large,
    float64,
    gaussian,
    generator,
    inputs,
    lapack_values,
    metrics_for,
    whitened,
    with_spectrum,
)

from eckart.linalg import (
    Automatic,
    BlockKrylov,
    GramMatrix,
    Lanczos,
    Lapack,
    Route,
    SubspaceIteration,
    truncated_svd,
)
from eckart.metric import Metric
from eckart.operator import Factors

ROUTES: dict[str, Route] = {
    "automatic": Automatic(),
    "lapack": Lapack(),
    "gram": GramMatrix(),
    "subspace": SubspaceIteration(steps=8),
    "krylov": BlockKrylov(steps=4),
    "lanczos": Lanczos(),
}
EXACT = ("automatic", "lapack", "gram")


def error(w: torch.Tensor, op: object, metric: Metric | None = None) -> float:
    assert isinstance(op, Factors)
    rest = float64(w) - float64(op.left) @ float64(op.right)
    return float(
        np.linalg.norm(
            rest if metric is None or metric.root is None else float64(metric.whiten(torch.from_numpy(rest)))
        )
    )


@pytest.mark.parametrize("route", EXACT)
@pytest.mark.parametrize("name", MATRICES)
def test_exact_routes_reach_the_optimum_in_every_metric(name: str, route: str) -> None:
    w = MATRICES[name]()
    for metric in metrics_for(w.shape[1]).values():
        s = lapack_values(metric.whiten(w))
        for rank in {1, max(1, min(w.shape) // 2)}:
            fit = truncated_svd(w, rank, metric=metric, route=ROUTES[route], dtype=torch.float64)
            size, optimum = float(np.linalg.norm(s)), float(np.linalg.norm(s[rank:]))
            assert error(w, fit.op, metric) <= optimum + 1e-7 * size  # the root of rounding, on the Gram route
            assert fit.bounds[0].lower is not None
            assert fit.bounds[0].lower <= optimum <= fit.bounds[0].upper
            assert not fit.bounds[0].delta


@pytest.mark.parametrize("route", ["subspace", "krylov", "lanczos"])
@pytest.mark.parametrize("decay", [0.2, 0.5, 1.0])
def test_iterations_come_near_the_optimum(decay: float, route: str) -> None:
    s = torch.arange(1, 121, dtype=torch.float64) ** -decay
    w = with_spectrum(140, 120, s)
    weights = torch.logspace(0, -1, 120, dtype=torch.float64)
    for metric, values in ((Metric.plain(), s.numpy()), (Metric("scale", weights), lapack_values(w * weights))):
        fit = truncated_svd(w, 10, metric=metric, route=ROUTES[route], dtype=torch.float64, rng=generator(1))
        optimum = float(np.linalg.norm(values[10:]))
        assert optimum * (1 - 1e-9) <= error(w, fit.op, metric) <= optimum * (1 + {"lanczos": 1e-6}.get(route, 5e-3))
        assert "as asked" in fit.how


def test_krylov_steps_are_worth_more_than_subspace_steps_on_slow_spectra() -> None:
    """As many products of as many columns each: the blocks that are kept still say something."""
    s = torch.arange(1, 301, dtype=torch.float64) ** -0.2
    w = with_spectrum(320, 300, s)
    best = float(s[:8].square().sum())
    missed = {}
    for name, route in (("krylov", BlockKrylov(3, 4)), ("subspace", SubspaceIteration(3, 4))):
        op = truncated_svd(w, 8, route=route, dtype=torch.float64).op
        missed[name] = best - (float(s.square().sum()) - error(w, op) ** 2)
    assert missed["subspace"] > 0.01 * best
    assert missed["krylov"] < missed["subspace"] / 4


def test_more_steps_are_better() -> None:
    w = with_spectrum(320, 300, torch.arange(1, 301, dtype=torch.float64) ** -0.3)
    for kind in (SubspaceIteration, BlockKrylov):
        errors = [error(w, truncated_svd(w, 8, route=kind(steps=n), dtype=torch.float64).op) for n in (1, 2, 4)]
        assert errors[0] > errors[1] > errors[2]


def test_the_gram_route_loses_what_lapack_sees() -> None:
    """Values of 1e-10 of the largest: squared they are below what float64 holds beside it. Its slack says so."""
    w = with_spectrum(40, 30, torch.logspace(0, -10, 30, dtype=torch.float64))
    fits = {name: truncated_svd(w, 25, route=ROUTES[name], dtype=torch.float64) for name in ("lapack", "gram")}
    optimum = float(np.linalg.norm(lapack_values(w)[25:]))
    assert error(w, fits["lapack"].op) <= optimum * (1 + 1e-3)
    assert fits["lapack"].bounds[0].lower == pytest.approx(optimum, rel=1e-2)
    assert fits["gram"].bounds[0].lower == 0.0


def test_a_moment_goes_through_its_root_where_lapack_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    x = gaussian(100, 30) * torch.logspace(0, -3, 30, dtype=torch.float64)
    metric = Metric.gram("inputs", x.T @ x, len(x))
    assert metric.moment is not None
    w = gaussian(20, 30, 1)
    optimum = float(np.linalg.norm(lapack_values(float64(w) @ float64(x).T)[5:])) / 10
    for route in (Lapack(), GramMatrix()):
        fit = truncated_svd(w, 5, metric=metric, route=route, dtype=torch.float64)
        assert fit.bounds[0].achieved == pytest.approx(optimum, rel=1e-9)
    assert "Gram matrix" in truncated_svd(w, 5, metric=metric, accuracy=0).how


@pytest.mark.parametrize("shape", [(20, 30), (50, 30)])
def test_iterations_see_full_metrics(shape: tuple[int, int]) -> None:
    x = inputs(30, 100)
    metric = Metric.gram("inputs", x.T @ x, 100)
    w = with_spectrum(*shape, 1 / torch.arange(1, min(shape) + 1, dtype=torch.float64))
    optimum = float(np.linalg.norm(lapack_values(whitened(w, metric))[4:]))
    for name in ("subspace", "krylov", "lanczos"):
        fit = truncated_svd(w, 4, metric=metric, route=ROUTES[name], dtype=torch.float64)
        assert fit.bounds[0].achieved <= 1.01 * optimum
        assert "as asked" in fit.how


def test_lanczos_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match="the route Lanczos needs SciPy: pip install scipy"):
        truncated_svd(gaussian(5, 6), 2, route=Lanczos())


@pytest.mark.parametrize("route", ROUTES)
def test_a_seed_decides(route: str) -> None:
    w = gaussian(60, 50)
    one, same, other = (
        truncated_svd(w, 5, route=ROUTES[route], rng=generator(seed)).op.tensors()["left"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    # Lanczos converges until the start no longer shows in float32.
    assert torch.equal(one, other) == (route not in ("subspace", "krylov"))


def test_steps_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step, not 0"):
        truncated_svd(gaussian(5, 6), 2, route=BlockKrylov(steps=0))
    with pytest.raises(ValueError, match="not below 0: -1"):
        truncated_svd(gaussian(5, 6), 2, route=SubspaceIteration(steps=-1))
    assert math.isfinite(truncated_svd(gaussian(5, 6), 2, route=SubspaceIteration(steps=0)).bounds[0].achieved)


def test_the_exact_way_is_named_as_it_is_gone() -> None:
    """A moment is decomposed on the side of the outputs where these are fewer, and there by a Gram matrix whatever the size."""
    moment = Metric.gram("inputs", torch.eye(1500, dtype=torch.float64), 1500)
    ways = [
        Automatic().exact(shape, 1, metric, 0.0)
        for shape, metric in (((900, 1500), Metric.plain()), ((1200, 1500), Metric.plain()), ((900, 1500), moment))
    ]
    names = [str(way).partition(":")[0] for way in ways]
    gram = "exact, by a float64 Gram matrix"
    assert names == ["exact, by LAPACK", gram, f"{gram} in the inputs metric"]
