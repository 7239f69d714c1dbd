"""Matrices near the ends of float64's range, against the same ones in other units and against exact fractions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from market import METRICS, gaussian, generator, metrics_for
from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.fit import Fit
from eckart.linalg import SubspaceIteration, Truncation, truncated_svd
from eckart.linalg.measured import Measured, measured
from eckart.metric import Metric, TwoSided
from eckart.operator import Dense, Factors, Operator, Sum

FIGURES = ("lower", "achieved", "upper", "scale")
NARROW = [torch.float32, torch.bfloat16, torch.float16]
NONE = Bound(norm="frobenius", lower=0.0, achieved=0.0, upper=0.0, scale=0.0)  # that of zeros


def near() -> Tensor:
    """A matrix whose largest entry is 1.5: far away it is measured in the very power of two that it was multiplied by."""
    w = gaussian(9, 7)
    return 1.5 * w / w.abs().max()


def moved(w: Tensor, exponent: int) -> Tensor:
    """``2^exponent w`` by NumPy's own exponents."""
    return torch.from_numpy(np.ldexp(w.double().numpy(), exponent)).to(w.dtype)


def metric_of(name: str) -> Metric | TwoSided:
    return TwoSided("rows", torch.arange(1.0, 10.0), metrics_for(7)["gram"]) if name == "rows" else metrics_for(7)[name]


def factors(op: Operator) -> tuple[Tensor, Tensor]:
    assert isinstance(op, Factors)
    return op.left, op.right


@dataclass(frozen=True)
class Prepared:
    """A matrix whose fit and tails are given."""

    op: Factors
    bound: Bound = NONE

    def tails(self, rank: int, rng: Generator) -> Tensor:
        return torch.tensor([4.0, 1.0])

    def fit(self, rank: int, *, dtype: torch.dtype, rng: Generator, spectral: bool) -> Fit:
        return Fit(op=self.op, bounds=(self.bound,), how="noted")


def scaled(op: Factors, exponent: int, bound: Bound = NONE) -> Fit:
    return Measured(Prepared(op, bound), exponent).fit(1, dtype=op.left.dtype, rng=generator(), spectral=False)


def column(*entries: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64).to(dtype)[:, None]


# ---- other units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-900, -401, -400, 399, 400, 1001])
@pytest.mark.parametrize("size", [{"rank": 2}, {"error": 0.4}, {"energy": 0.8}, {"bytes": 400}])
@pytest.mark.parametrize("name", [*METRICS, "rows"])
def test_far_matrices_are_met_to_the_last_bit(exponent: int, size: dict[str, float], name: str) -> None:
    """Half of the unit is in either factor, of an odd one the half above in the right."""
    w, metric = near(), metric_of(name)
    a = truncated_svd(w, metric=metric, **size)  # type: ignore[arg-type]
    b = truncated_svd(moved(w, exponent), metric=metric, **size)  # type: ignore[arg-type]
    for here, there, half in zip(factors(a.op), factors(b.op), (exponent // 2, -(-exponent // 2)), strict=True):
        assert torch.equal(there, moved(here, half))
    assert a.how == b.how
    for one, other in zip(a.bounds, b.bounds, strict=True):
        assert (one.norm, one.delta) == (other.norm, other.delta)
        for figure in FIGURES:
            value = getattr(one, figure)
            assert getattr(other, figure) == (None if value is None else math.ldexp(value, exponent))


@pytest.mark.parametrize("exponent", [-900, 900])
def test_what_is_iterated_on_is_measured_as_well(exponent: int) -> None:
    w = near()
    a, b = (truncated_svd(x, 2, route=SubspaceIteration(), spectral=True) for x in (w, moved(w, exponent)))
    assert [(x.norm, math.ldexp(x.upper, exponent)) for x in a.bounds] == [(x.norm, x.upper) for x in b.bounds]
    assert torch.equal(factors(b.op)[0], moved(factors(a.op)[0], exponent // 2))


@pytest.mark.parametrize("exponent", [-900, 900])
def test_a_matrix_as_an_operator_is_measured_as_well(exponent: int) -> None:
    w = moved(near(), exponent)
    assert truncated_svd(Dense(w), 2).bounds == truncated_svd(w, 2).bounds
    rows = metric_of("rows")
    halves = Sum((Dense(w / 2), Dense(w / 2)))  # formed for it
    assert truncated_svd(halves, 2, metric=rows).bounds == truncated_svd(w, 2, metric=rows).bounds


def test_tails_are_in_the_square_of_the_unit() -> None:
    w, plain = near(), Metric.plain()
    far = measured(moved(w, -800), lambda b: Truncation(b, plain, 0.0))
    assert torch.equal(far.tails(2, generator()), Truncation(w, plain, 0.0).tails(2, generator()))


@pytest.mark.parametrize(
    "w",
    [
        column(0.0, 0.0),
        column(1e-119, 0.0),
        column(1.0, 1e-300),
        column(1e119, 1e-300),
        column(math.nan, 1e300),
        column(math.inf, 1e300),
        column(1e30, dtype=torch.float32),
        torch.zeros(0, 3, dtype=torch.float64),
        torch.tensor([[10**18]]),
    ],
)
def test_what_is_not_far_is_left_as_it_is(w: Tensor) -> None:
    seen: list[Tensor] = []

    def analyse(b: Tensor) -> Prepared:
        seen.append(b)
        return Prepared(Factors(w, w.T))

    assert isinstance(measured(w, analyse), Prepared)
    assert seen[0] is w


@pytest.mark.parametrize(
    ("size", "exponent"), [(2.0**-1074, -1074), (3 * 2.0**-1074, -1073), (1e-121, -402), (1e121, 401), (1.7e308, 1023)]
)
def test_the_largest_entry_is_measured_as_one_to_two(size: float, exponent: int) -> None:
    seen: list[Tensor] = []

    def analyse(b: Tensor) -> Prepared:
        seen.append(b)
        return Prepared(Factors(b, b.T))

    found = measured(column(0.0, -size), analyse)
    assert isinstance(found, Measured)
    assert found.exponent == exponent
    assert 1 <= -float(seen[0][1]) < 2
    assert Fraction(-float(seen[0][1])) * Fraction(2) ** exponent == Fraction(size)


# ---- the range of the dtype -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("scale", [1e-310, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("size", [{"rank": 2}, {"error": 0.5}, {"energy": 0.5}, {"bytes": 200}])
@pytest.mark.parametrize("route", [None, SubspaceIteration()])
def test_a_type_that_cannot_hold_the_factors_is_named(
    dtype: torch.dtype, scale: float, size: dict[str, float], route: SubspaceIteration | None
) -> None:
    with pytest.raises(ValueError, match=rf"9 x 7 matrix leave the range of {dtype}: give a wider dtype"):
        truncated_svd(near() * scale, dtype=dtype, route=route, **size)  # type: ignore[arg-type]


def test_an_operator_in_float64_with_narrow_factors_is_refused_as_well() -> None:
    with pytest.raises(ValueError, match=r"leave the range of torch\.float32"):
        truncated_svd(Dense(near() * 1e150), 2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (torch.float32, -149, 127),
        (torch.bfloat16, -133, 127),
        (torch.float16, -24, 15),
        (torch.float64, -1022, 1022),
    ],
)
def test_types_are_used_up_to_their_ends(dtype: torch.dtype, low: int, high: int) -> None:
    """Powers of two down to the least one and up to the largest, in both factors; one further and a factor is refused."""
    one = Factors(column(1.0, 0.0, dtype=dtype), column(-1.0, dtype=dtype))
    for half in (low, high):
        left, right = factors(scaled(one, 2 * half).op)
        assert left.dtype == right.dtype == dtype
        assert left.tolist() == [[2.0**half], [0.0]]
        assert right.tolist() == [[-(2.0**half)]]
    if dtype != torch.float64:
        for exponent in (2 * low - 1, 2 * high + 1):  # the left factor below, the right one above
            with pytest.raises(ValueError, match=f"2 x 1 matrix leave the range of {dtype}"):
                scaled(one, exponent)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bad", [1 + 2.0**-23, 2.0**-30])
def test_digits_lost_below_the_range_are_refused_in_either_factor(side: str, bad: float) -> None:
    good, other = (column(1.0, x, dtype=torch.float32) for x in (0.5, bad))
    op = Factors(other, good.T) if side == "left" else Factors(good, other.T)
    assert torch.equal(factors(scaled(op, -190).op)[0], op.left * 2.0**-95)
    with pytest.raises(ValueError, match=r"2 x 2 matrix leave the range of torch\.float32"):
        scaled(op, -264)


def test_what_no_bound_notices_may_be_lost() -> None:
    """Entries of 2^-200 of the largest one, and not of twice as much; a factor of zeros loses nothing."""
    ones = column(1.0)
    assert factors(scaled(Factors(column(1.0, 2.0**-700), ones), -1000).op)[0].tolist() == [[2.0**-500], [0.0]]
    assert factors(scaled(Factors(column(8.0, 2.0**-197), ones), -2 * 878).op)[0].tolist() == [[2.0**-875], [0.0]]
    with pytest.raises(ValueError, match=r"leave the range of torch\.float64"):
        scaled(Factors(column(8.0, 2.0**-196), ones), -2 * 879)
    assert factors(scaled(Factors(column(0.0), ones), -1000).op)[0].tolist() == [[0.0]]


# ---- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [2, 6, 7])
def test_bounds_of_the_smallest_numbers_hold_in_exact_arithmetic(seed: int, rank: int) -> None:
    """Of whole multiples of the least float, with the error of the stored factors in fractions."""
    whole = (1000 * gaussian(9, 7, seed)).round()
    fit = truncated_svd(moved(whole, -1074), rank)
    left, right = (
        [[Fraction(x) * 2**537 for x in row] for row in side.tolist()]  # in units of the least float
        for side in factors(fit.op)
    )
    rest = [int(whole[i, j]) - sum(left[i][k] * right[k][j] for k in range(rank)) for i in range(9) for j in range(7)]
    bound = fit.bounds[0]
    assert (Fraction(bound.upper) * 2**1074) ** 2 >= sum(x * x for x in rest)
    assert (Fraction(bound.scale) * 2**1074) ** 2 <= int(whole.square().sum())
    optimum = float(np.linalg.norm(np.linalg.svd(whole.numpy())[1][rank:]))
    assert bound.lower is not None
    assert float(Fraction(bound.lower) * 2**1074) <= optimum + 1e-9
    assert float(Fraction(bound.upper) * 2**1074) <= optimum + 1.001


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        ((1.25, 1.25, 1.25, 1.25), (1, 1, 2, 1)),
        ((1.75, 1.75, 1.75, 1.75), (1, 2, 2, 1)),
        ((0.75, 2.0, 3.0, 4.0), (0, 2, 3, 4)),
        ((0.0, 0.0, 1e-300, 0.0), (0, 0, 1, 0)),
        ((None, 0.0, 0.0, 1.0), (None, 0, 0, 1)),
    ],
)
def test_what_a_bound_loses_is_lost_on_the_safe_side(
    figures: tuple[float | None, float, float, float], found: tuple[int | None, int, int, int]
) -> None:
    lower, achieved, upper, scale = figures
    delta = {"upper": 1e-10}
    bound = Bound(norm="own", lower=lower, achieved=achieved, upper=upper, scale=scale, delta=delta)
    own = scaled(Factors(column(1.0), column(1.0)), -1074, bound).bounds[0]
    assert (own.norm, own.delta) == ("own", delta)
    for name, value in zip(FIGURES, found, strict=True):
        assert getattr(own, name) == (None if value is None else value * 2.0**-1074)


@pytest.mark.parametrize(
    ("exponent", "change"),
    [
        (1023, {"scale": 2.0}),
        (1023, {"upper": 2.0}),
        (1023, {"achieved": 2.0, "upper": 2.0}),
        (-1074, {"scale": 0.75}),
        (-1074, {"scale": 0.25}),
    ],
)
def test_a_norm_that_no_float_holds_is_named(exponent: int, change: dict[str, float]) -> None:
    op, good = Factors(column(1.0), column(1.0)), {"lower": 0.0, "achieved": 1.0, "upper": 1.0, "scale": 1.0}
    assert scaled(op, exponent, Bound(norm="own", **good)).bounds[0].scale == 2.0**exponent
    bound = Bound(norm="own", **good | change)
    with pytest.raises(ValueError, match=r"the own norm of this matrix, or of the error, is beyond .* multiply"):
        scaled(op, exponent, bound)


@pytest.mark.parametrize("call", [lambda w: truncated_svd(w, 1), lambda w: truncated_svd(w, error=0.5)])
def test_a_norm_beyond_the_largest_float_is_named(call: Callable[[Tensor], Fit]) -> None:
    """Four entries of 2^1023 have a norm of 2^1024, which is the first power of two that is no float."""
    with pytest.raises(ValueError, match="the frobenius norm of this matrix, or of the error, is beyond the numbers"):
        call(torch.full((2, 2), 2.0**1023, dtype=torch.float64))
    fit = call(torch.full((2, 2), 2.0**1022, dtype=torch.float64))
    assert fit.bounds[0].scale == pytest.approx(2.0**1023, rel=1e-12)


def test_a_norm_that_a_metric_makes_vanish_is_no_zero() -> None:
    """Of a matrix that is not seen at all any rank would do; this one is seen, but in no number."""
    faint = Metric("faint", torch.full((7,), 1e-20))
    with pytest.raises(ValueError, match="the faint norm of this matrix"):
        truncated_svd(near() * 1e-310, error=0.1, metric=faint)
