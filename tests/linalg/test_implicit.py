"""Truncation of operators: by factors where the rank is low, by products elsewhere, against the dense matrix."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from market import as_if_large, float64, gaussian, generator, lapack_values, with_spectrum
from safetensors import safe_open
from safetensors.torch import save_file

from eckart.fit import Fit
from eckart.kernels.randomized import Products, Subspace
from eckart.linalg import Automatic, BlockKrylov, truncated_svd
from eckart.linalg.factored import low_rank_form
from eckart.linalg.implicit import ImplicitTruncation, Through
from eckart.linalg.remainder import Implicit, magnitude
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Operator, Panelled, Product, Sum, in_dtype, rows


def update(m: int, n: int, rank: int, seed: int) -> Factors:
    return Factors(gaussian(m, rank, seed), gaussian(rank, n, seed + 1) / 10)


def base(m: int = 90, n: int = 70) -> torch.Tensor:
    return with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -0.5)


OPERATORS: dict[str, Operator] = {
    "base plus adapter": Sum((Dense(base()), update(90, 70, 4, 1))),
    "product": Product((Dense(base()), Dense(gaussian(70, 80, 3) / 8))),
    "mapped": Panelled(base().to(torch.bfloat16)),
    "mapped, transposed": Panelled(base(70, 90).T.contiguous()).T,
    "sum of a product": Sum((Product((Dense(base()), Dense(gaussian(70, 70, 5) / 8))), Panelled(base()))),
    "bfloat16 and float32": Sum((Dense(base().to(torch.bfloat16)), in_dtype(update(90, 70, 2, 6), torch.float32))),
    "nearly cancelling": Sum((Dense(1e6 * base()), Dense(base() - 1e6 * base()))),
}
METRICS = {
    "plain": lambda n: Metric.plain(),
    "diagonal": lambda n: Metric("scale", torch.logspace(0, -1.5, n, dtype=torch.float64)),
}


def check(dense: np.ndarray, fit: Fit, metric: Metric, excess: float) -> None:
    """That the error is near the optimum and that every bound holds."""
    assert isinstance(fit.op, Factors)
    rank = fit.op.rank
    rest = dense - float64(fit.op.left) @ float64(fit.op.right)
    scale = 1.0 if metric.right is None else float64(metric.right)
    for bound, matrix, error in zip(fit.bounds[:-1], (dense * scale, dense), (rest * scale, rest), strict=False):
        optimum, found = float(np.linalg.norm(lapack_values(matrix)[rank:])), float(np.linalg.norm(error))
        grain = 1e-8 * np.linalg.norm(matrix)
        assert bound.lower is not None
        assert bound.lower <= optimum + 1e-14 * np.linalg.norm(matrix)
        assert found <= bound.upper
        assert bound.achieved == pytest.approx(max(found, bound.lower), rel=1e-6, abs=grain)
    own = float(np.linalg.norm(lapack_values(dense * scale)[rank:]))
    assert np.linalg.norm(rest * scale) <= own * (1 + excess) + 1e-9 * np.linalg.norm(dense)
    spectral, values = fit.bounds[-1], lapack_values(dense)
    assert spectral.lower is not None
    assert spectral.lower <= (values[rank] if rank < len(values) else 0.0) + 1e-14 * values[0]
    assert lapack_values(rest)[0] <= spectral.upper


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_all_that_is_needed(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = OPERATORS[name]
    dense = float64(in_dtype(op, torch.float64).dense())
    as_if_large(monkeypatch)
    for kind in {type(op), Dense, Sum, Product}:  # from here on nobody forms anything
        monkeypatch.setattr(kind, "dense", lambda self: pytest.fail("formed"))
    metric = METRICS[form](op.shape[1])
    for rank in (1, 12):
        fit = truncated_svd(
            op, rank, metric=metric, dtype=torch.float64, spectral=True, rng=generator(2), accuracy=5e-3
        )
        assert "subspace iteration" in fit.how
        check(dense, fit, metric, excess=5e-3)
        # Not idle: a lower figure of zero would hold as well.
        assert fit.bounds[0].lower is not None
        assert fit.bounds[0].lower >= 0.8 * fit.bounds[0].achieved


@pytest.mark.parametrize("name", OPERATORS)
def test_small_operators_are_formed_and_exact(name: str) -> None:
    op = OPERATORS[name]
    fit = truncated_svd(in_dtype(op, torch.float64), 12, dtype=torch.float64, spectral=True)
    assert fit.how.endswith("the operator was formed for it")
    assert not fit.bounds[0].delta
    check(float64(in_dtype(op, torch.float64).dense()), fit, Metric.plain(), excess=1e-9)


def test_a_matrix_in_a_file_is_read_through_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    w = base().to(torch.bfloat16)
    save_file({"w": w}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as handle:
        fit = truncated_svd(Panelled(handle.get_tensor("w")), 9, dtype=torch.float32, spectral=True)
    check(float64(w), fit, Metric.plain(), excess=5e-3)


# ---- what is of low rank --------------------------------------------------------------------------------------------

LOW: dict[str, Operator] = {
    "an adapter": update(200, 150, 8, 1),
    "two adapters": Sum((update(200, 150, 8, 1), update(200, 150, 5, 3))),
    "an adapter behind a map": Product((Dense(gaussian(200, 60, 5)), update(60, 150, 7, 6))),
    "an adapter before a map": Product((update(200, 60, 7, 6), Dense(gaussian(60, 150, 5)))),
    "adapters that cancel": Sum((update(200, 150, 8, 1), Factors(-gaussian(200, 8, 1), gaussian(8, 150, 2) / 10))),
    "a nested one": Product((update(200, 90, 9, 1), Sum((update(90, 150, 3, 4), update(90, 150, 2, 8))))),
    "of rank one, tall": update(400, 3, 1, 2),
}


@pytest.mark.parametrize("form", ["plain", "diagonal", "gram"])
@pytest.mark.parametrize("name", LOW)
def test_what_is_of_low_rank_goes_by_its_factors(name: str, form: str) -> None:
    op = LOW[name]
    dense = op.dense()
    n = dense.shape[1]
    x = gaussian(2 * n, n, 9) * torch.logspace(0, -1, n, dtype=torch.float64)
    metric = {**{k: make(n) for k, make in METRICS.items()}, "gram": Metric.gram("gram", x.T @ x, len(x))}[form]
    size = float(np.linalg.norm(float64(metric.whiten(dense))))
    values = lapack_values(metric.whiten(dense))
    form_of = low_rank_form(op)
    assert form_of is not None
    reach = magnitude(form_of) * metric.reach
    for rank in {1, 2, min(*dense.shape, 20)}:
        fit = truncated_svd(op, rank, metric=metric, dtype=torch.float64, spectral=True)
        assert "by the factors" in fit.how
        assert isinstance(fit.op, Factors)
        assert fit.op.rank == rank
        rest = float64(dense) - float64(fit.op.left) @ float64(fit.op.right)
        found = float(np.linalg.norm(float64(metric.whiten(torch.from_numpy(rest)))))
        optimum = float(np.linalg.norm(values[rank:]))
        bound = fit.bounds[0]
        assert bound.lower is not None
        assert found <= optimum + 1e-13 * reach
        assert bound.lower <= optimum + 1e-15 * reach
        assert max(optimum, found) <= bound.upper + 1e-15 * reach
        assert bound.upper <= optimum + 1e-9 * (size + reach)  # certain, and narrow
        assert bound.delta is None


def test_ranks_beyond_that_of_the_factors_are_completed() -> None:
    op = update(30, 20, 3, 1)
    fit = truncated_svd(op, 7, dtype=torch.float64, spectral=True)
    assert isinstance(fit.op, Factors)
    assert fit.op.rank == 7
    assert float64(fit.op.dense()) == pytest.approx(float64(op.dense()), abs=1e-12)


def test_the_form_is_found_only_where_the_rank_is_low() -> None:
    low, dense = update(30, 20, 3, 1), Dense(gaussian(30, 20))
    assert low_rank_form(Sum((low, dense))) is None
    assert low_rank_form(dense) is None
    product = low_rank_form(Product((dense, update(20, 40, 2, 4), Dense(gaussian(40, 25, 6)))))
    assert product is not None
    assert (product.rank, product.shape) == (2, (30, 25))
    wide = Factors(gaussian(6, 9), gaussian(9, 5, 1))  # wider inside than outside: nothing is gained
    assert "formed" in truncated_svd(wide, 2).how


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_refused() -> None:
    broken = base()
    broken[3, 4] = math.nan
    for op in (Sum((Dense(broken), Dense(base()))), Panelled(broken)):
        with pytest.raises(ValueError, match="the 90 x 70 operator holds NaN or infinity"):
            truncated_svd(op, 3)


def test_ranks_are_checked() -> None:
    for op in OPERATORS.values(), LOW.values():
        for entry in op:
            with pytest.raises(ValueError, match="rank 0 of a"):
                truncated_svd(entry, 0)


def test_a_full_metric_forms_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    x = gaussian(200, 70)
    fit = truncated_svd(OPERATORS["product"], 5, metric=Metric.gram("inputs", torch.eye(80)))
    assert fit.how.endswith("formed for it")
    added = Sum((Dense(base()), update(90, 70, 2, 1)))
    fit = truncated_svd(added, 5, metric=Metric.gram("g", x.T @ x), route=BlockKrylov())
    assert fit.how == "2 steps of block Krylov iteration, as asked; the operator was formed for it"


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_are_those_of_the_matrix(name: str) -> None:
    op = in_dtype(OPERATORS[name], torch.float64)
    for part in (op, op.T):
        dense = part.dense().double()
        for start, stop in ((0, 1), (5, 17), (60, 200)):
            expected = float64(dense[start:stop])
            assert float64(rows(part, start, stop)) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_what_rounding_may_have_done_grows_with_the_operator(scale: float) -> None:
    """Also with terms that cancel: the error is what it was, but it is the difference of larger ones."""
    w, op = base(), update(90, 70, 4, 1)
    one = Implicit(Dense(w), op)
    other = Implicit(Dense(w * scale), Factors(op.left * scale, op.right))
    assert other.slack == pytest.approx(one.slack * scale, rel=1e-12, abs=0)
    apart = Implicit(Sum((Dense(w), Dense(1e6 * w), Dense(-1e6 * w))), op)
    assert apart.slack > 1e5 * one.slack
    weighed = Implicit(Dense(w), op, torch.full((70,), 8.0, dtype=torch.float64))
    assert weighed.slack == pytest.approx(8 * one.slack, rel=1e-12, abs=0)


@pytest.mark.parametrize("rank", [0, -1, 151])
def test_a_rank_that_no_matrix_has_is_refused_before_anything_is_multiplied(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_large(monkeypatch)
    op = Sum((Dense(gaussian(200, 150)), update(200, 150, 2, 1)))
    with pytest.raises(ValueError, match=f"rank {rank} of a 200 x 150 matrix: give one from 1 to 150"):
        truncated_svd(op, rank)


@pytest.mark.parametrize("form", ["plain", "diagonal"])
def test_the_spectral_bound_alone_is_left_out_of_factors(form: str) -> None:
    metric = METRICS[form](150)
    names = [
        [bound.norm for bound in truncated_svd(update(200, 150, 8, 1), 3, metric=metric, spectral=spectral).bounds]
        for spectral in (True, False)
    ]
    assert names[0] == [*names[1], "spectral"]
    assert names[1][-1] == "frobenius"


def test_products_say_where_their_tensors_lie() -> None:
    assert Through(update(9, 7, 2, 1), None, torch.float32).device == torch.device("cpu")


@dataclass(frozen=True)
class Looking(Automatic):
    """A route that notes in what type it is given products, and goes nowhere."""

    seen: list[torch.dtype] = field(default_factory=list)

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        return None

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: torch.Generator
    ) -> tuple[Subspace | None, str]:
        if isinstance(a, Through):  # the second time the operator has been formed
            self.seen.append(a.dtype)
        return None, "looked"


@pytest.mark.parametrize(("more", "dtype"), [(0.0, torch.float32), (0.5, torch.float64)])
def test_parts_up_to_a_hundred_times_the_whole_are_seen_in_float32(more: float, dtype: torch.dtype) -> None:
    one, route = torch.eye(4, dtype=torch.float64), Looking()
    op = Sum((Dense((50.5 + more) * one), Dense(-(49.5 + more) * one)))
    ImplicitTruncation(op, Metric.plain(), 1e-3, route).tails(1, generator())
    assert route.seen == [dtype]
