"""Every way to a truncated SVD, chosen by hand, against LAPACK; what each is good for and what it is not."""

import math
import sys
from dataclasses import dataclass, field
from importlib import import_module

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
from torch import Tensor

from eckart.kernels.randomized import InMemory, Products
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

MODULE = import_module("eckart.linalg.routes")
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


# ---- which way is chosen ---------------------------------------------------------------------------------------------

PLAIN = Metric.plain()
SCALE = Metric("scale", torch.ones(1))
FULL = Metric.gram("inputs", torch.eye(3, dtype=torch.float64))
MOMENT = Metric("inputs", moment=torch.eye(3, dtype=torch.float64), count=3)


@pytest.mark.parametrize(
    ("route", "shape", "rank", "metric", "accuracy", "why"),
    [
        (Automatic(), (1024, 2000), 1, PLAIN, 0.1, "exact, by LAPACK: the smaller side is 1024"),
        (Automatic(), (1025, 2000), 1, PLAIN, 0.1, None),
        (Automatic(), (2000, 1024), 1, PLAIN, 0.1, "exact, by LAPACK: the smaller side is 1024"),
        (Automatic(), (2000, 1025), 1, PLAIN, 0.1, None),
        (Automatic(256), (256, 256), 1, PLAIN, 0.1, "exact, by LAPACK: the smaller side is 256"),
        (Automatic(256), (257, 300), 1, PLAIN, 0.1, None),
        (Automatic(2000), (1025, 1025), 1, PLAIN, 0.1, None),
        (
            Automatic(256),
            (300, 300),
            1,
            PLAIN,
            0.0,
            "exact, by LAPACK: no error above the smallest possible is allowed",
        ),
        (
            Automatic(),
            (1025, 1025),
            1,
            PLAIN,
            0.0,
            "exact, by a float64 Gram matrix: no error above the smallest possible is allowed",
        ),
        # a third of the side, and a sixth in a full metric
        (Automatic(256), (300, 400), 100, PLAIN, 0.1, None),
        (Automatic(256), (300, 400), 101, PLAIN, 0.1, "exact, by LAPACK: rank 101 is more than a third of 300"),
        (Automatic(256), (400, 300), 101, SCALE, 0.1, "exact, by LAPACK: rank 101 is more than a third of 300"),
        (Automatic(256), (300, 400), 50, FULL, 0.1, None),
        (
            Automatic(256),
            (300, 400),
            51,
            FULL,
            0.1,
            "exact, by LAPACK in the inputs metric: rank 51 is more than a sixth of 300",
        ),
        (
            Automatic(),
            (1200, 1200),
            401,
            PLAIN,
            0.1,
            "exact, by a float64 Gram matrix: rank 401 is more than a third of 1200",
        ),
        # in single precision: large plain matrices only
        (Automatic(256, single=True), (1200, 1200), 401, PLAIN, 0.1, None),
        (
            Automatic(256, single=True),
            (1200, 1200),
            401,
            SCALE,
            0.1,
            "exact, by a float64 Gram matrix: rank 401 is more than a third of 1200",
        ),
        (
            Automatic(256, single=True),
            (1024, 1200),
            400,
            PLAIN,
            0.1,
            "exact, by LAPACK: rank 400 is more than a third of 1024",
        ),
        (Automatic(256, single=True), (1025, 1200), 400, PLAIN, 0.1, None),
        # a moment on the side of the outputs, where these are no more than the inputs
        (
            Automatic(),
            (300, 300),
            1,
            MOMENT,
            0.1,
            "exact, by a float64 Gram matrix in the inputs metric: the smaller side is 300",
        ),
        (Automatic(), (301, 300), 1, MOMENT, 0.1, "exact, by LAPACK in the inputs metric: the smaller side is 300"),
        (Automatic(), (200, 300), 1, FULL, 0.1, "exact, by LAPACK in the inputs metric: the smaller side is 200"),
        (Lapack(), (5000, 5000), 1, PLAIN, 0.1, "exact, by LAPACK, as asked"),
        (GramMatrix(), (5, 5), 1, FULL, 0.1, "exact, by a float64 Gram matrix, as asked"),
        (SubspaceIteration(), (5, 5), 5, FULL, 0.0, None),
        (BlockKrylov(), (5, 5), 5, FULL, 0.0, None),
        (Lanczos(), (5, 5), 5, FULL, 0.0, None),
    ],
)
def test_an_exact_way_is_taken_for_a_reason(
    route: Route, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float, why: str | None
) -> None:
    assert route.exact(shape, rank, metric, accuracy) == why


def test_sides_up_to_which_lapack_decomposes() -> None:
    sides = {name: route.lapack_side for name, route in ROUTES.items()}
    assert sides.pop("lapack") >= 10**9
    assert sides.pop("gram") == 0
    assert set(sides.values()) == {1024}


def unformed(m: int, n: int, dtype: torch.dtype = torch.float32) -> InMemory:
    """A matrix of any size that takes the room of one number."""
    return InMemory(torch.zeros(1, 1, dtype=dtype).expand(m, n))


@dataclass(frozen=True)
class Behind:
    """Products of a matrix that is not in memory, which are noted by their number of columns."""

    matrix: InMemory
    columns: list[int] = field(default_factory=list)
    narrows: bool = False
    wide: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def times(self, x: Tensor, *, narrow: bool) -> Tensor:
        self.columns.append(x.shape[1])
        return self.matrix.times(x, narrow=narrow)

    def transposed_times(self, y: Tensor, *, narrow: bool) -> Tensor:
        self.columns.append(y.shape[1])
        return self.matrix.transposed_times(y, narrow=narrow)


SINGLE = Automatic(256, single=True)
NO_STEPS = "subspace iteration did not get there"
NOT_TOLD = "float32 does not tell what rank 401 leaves"


@pytest.mark.parametrize(
    ("route", "a", "rank", "why"),
    [
        (SINGLE, unformed(1024, 1500), 1, f"exact, by LAPACK: {NO_STEPS}"),
        (SINGLE, unformed(1500, 1025), 1, f"exact, by a float64 Gram matrix: {NO_STEPS}"),
        (SINGLE, unformed(1200, 1300), 400, f"exact, by a float64 Gram matrix: {NO_STEPS}"),
        (SINGLE, unformed(1200, 1300), 401, f"exact, by a float64 Gram matrix: {NOT_TOLD}"),
        (SINGLE, unformed(1300, 1200), 401, f"exact, by a float64 Gram matrix: {NOT_TOLD}"),
        (Automatic(256), unformed(1200, 1300), 401, f"exact, by a float64 Gram matrix: {NO_STEPS}"),
        (
            SINGLE,
            unformed(1200, 1300, torch.float64),
            401,
            "exact, by a float64 Gram matrix: rank 401 is more than a third of 1200",
        ),
        (
            SINGLE,
            Behind(unformed(1200, 1300)),
            401,
            "exact, by a float64 Gram matrix: rank 401 is more than a third of 1200",
        ),
    ],
)
def test_who_was_asked_and_could_not_say(
    route: Automatic, a: Products, rank: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "single_precision_subspace", lambda *_, **__: None)
    monkeypatch.setattr(MODULE, "leading_subspace", lambda *_, **__: None)
    assert route.leading(a, rank, energy=1.0, accuracy=0.1, rng=generator()) == (None, why)


@pytest.mark.parametrize("route", [Lapack(), GramMatrix()])
def test_exact_routes_have_no_iteration(route: Route) -> None:
    found, why = route.leading(unformed(9, 9), 1, energy=1.0, accuracy=0.1, rng=generator())
    assert found is None
    assert why == route.exact((9, 9), 1, PLAIN, 0.1)


@pytest.mark.parametrize("m", [30, 45])
@pytest.mark.parametrize(
    ("route", "columns", "steps"),
    [
        # A start, two products a step, and one to see what there is.
        (SubspaceIteration(), [12] * 8, 3),
        (SubspaceIteration(1, 2), [6] * 4, 1),
        # All blocks together are looked at: three of twelve columns, two of six.
        (BlockKrylov(), [12] * 5 + [36], 2),
        (BlockKrylov(1, 2), [6] * 3 + [12], 1),
    ],
)
def test_iterations_make_the_products_that_are_asked_for(route: Route, columns: list[int], steps: int, m: int) -> None:
    a = Behind(InMemory(gaussian(m, 40).to(torch.float32)))
    found, how = route.leading(a, 4, energy=1.0, accuracy=0.1, rng=generator())
    assert found is not None
    assert (found.steps, found.excess) == (steps, None)
    assert how.startswith(f"{steps} steps of ")
    assert a.columns == [*columns[:-1], min(columns[-1], m)]


def test_lanczos_converges_whatever_the_products_are_of() -> None:
    w = with_spectrum(30, 24, torch.arange(1, 25, dtype=torch.float64) ** -0.3)
    found, how = Lanczos().leading(Behind(InMemory(w)), 5, energy=1.0, accuracy=0.1, rng=generator())
    assert how == "Lanczos bidiagonalisation by SciPy, as asked"
    assert found is not None
    assert (found.steps, found.excess) == (0, None)
    assert float64(found.s) == pytest.approx(lapack_values(w)[:5], rel=1e-6)
    assert found.basis.dtype == torch.float32
