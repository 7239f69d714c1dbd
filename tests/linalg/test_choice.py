"""Which way to a truncated SVD is taken, and why: sides, ranks, metrics and accuracies on both sides of where they decide."""

from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import pytest
import torch
from market import MATRICES, float64, gaussian, generator, lapack_values, with_spectrum
from torch import Tensor

from eckart.kernels.randomized import InMemory, Products, Subspace
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

MODULE = import_module("eckart.linalg.routes")
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
    assert Lapack().lapack_side >= 10**9
    assert GramMatrix().lapack_side == 0
    assert {route.lapack_side for route in (Automatic(), SubspaceIteration(), BlockKrylov(), Lanczos())} == {1024}


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


@pytest.mark.parametrize(
    ("rank", "steps", "how"),
    [
        (400, 5, "5 steps of subspace iteration, 0.12 % above the optimum"),
        (401, 0, "a float64 Gram matrix, its eigenvectors in float32: at most 0.12 % above the optimum"),
    ],
)
def test_what_was_found_is_given_with_its_excess(
    rank: int, steps: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = torch.zeros(0, 0)
    found = Subspace(u=none, s=none, image=none, basis=none, beyond=0.0, steps=steps, excess=1.2e-3)
    name = "leading_subspace" if steps else "single_precision_subspace"
    monkeypatch.setattr(MODULE, name, lambda *_, **__: found)
    given, said = SINGLE.leading(unformed(1200, 1300), rank, energy=1.0, accuracy=0.1, rng=generator())
    assert given is found
    assert said == how


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


@pytest.mark.parametrize(("name", "rank"), [("tall", 1), ("constant", 5), ("wide", 1), ("repeated values", 3)])
def test_lanczos_reaches_the_optimum_where_it_does_not_converge(name: str, rank: int) -> None:
    """Values too close for ten products, or an invariant subspace of less than the rank: an exact way is taken there."""
    w = MATRICES[name]()
    op = truncated_svd(w, rank, route=Lanczos(), dtype=torch.float64).op
    s = lapack_values(w)
    rest = float(np.linalg.norm(float64(w) - float64(op.dense())))
    assert rest == pytest.approx(float(np.linalg.norm(s[rank:])), rel=1e-6, abs=1e-12 * float(s[0]))


@pytest.mark.parametrize(("side", "by"), [(1024, "LAPACK"), (1025, "a float64 Gram matrix")])
def test_the_exact_way_beyond_lanczos_is_named(side: int, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError

    monkeypatch.setattr("scipy.sparse.linalg.svds", failing)
    for a in (unformed(side, 2000), unformed(2000, side)):
        found, how = Lanczos().leading(a, 3, energy=1.0, accuracy=0.1, rng=generator())
        assert found is None
        assert how == f"exact, by {by}: Lanczos bidiagonalisation did not converge"
