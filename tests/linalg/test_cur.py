"""Approximations by columns and rows against LAPACK, scipy.linalg.interpolative, exhaustive search and their theorems."""

import itertools
import math
from importlib import import_module

import numpy as np
import pytest
import scipy.linalg
import scipy.linalg.interpolative
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import (
    MATRICES,
    METRICS,
    as_if_large,
    float64,
    gaussian,
    generator,
    lapack_values,
    metrics_for,
    ranks_of,
    whitened,
    with_spectrum,
)
from torch import Tensor

from eckart.fit import Fit
from eckart.linalg import (
    DEIM,
    Candidates,
    Given,
    Largest,
    LeadingVectors,
    PivotedQR,
    RidgeVectors,
    Rule,
    Sampled,
    StrongRRQR,
    bounds_of,
    cur,
    interpolative,
    select,
)
from eckart.linalg.selected import Span
from eckart.metric import Metric
from eckart.operator import Factors, Product

CUR = import_module("eckart.linalg.cur")
EPS = 2.0**-52
RULES: dict[str, Rule] = {
    "deim": DEIM(),
    "pivoted qr": PivotedQR(),
    "q-deim": PivotedQR(LeadingVectors()),
    "strong rrqr": StrongRRQR(),
    "largest": Largest(),
    "largest leverage": Largest(LeadingVectors()),
    "leverage": Sampled(LeadingVectors()),
    "ridge leverage": Sampled(RidgeVectors()),
    "inverted": Sampled(power=-2.0),
}
# Pairs of a rule for columns and one for rows that nobody would ship.
HYBRIDS = {
    "deim, inverted": (DEIM(), Sampled(power=-2.0)),
    "ridge, strong": (Sampled(RidgeVectors()), StrongRRQR(LeadingVectors())),
    "largest, even": (Largest(), Sampled(power=0.0)),
    "q-deim, deim": (PivotedQR(LeadingVectors()), DEIM()),
}


def factors(fit: Fit) -> list[Tensor]:
    """The stored matrices, from left to right."""
    if isinstance(fit.op, Factors):
        return [fit.op.left, fit.op.right]
    assert isinstance(fit.op, Product)
    return [factor.dense() for factor in fit.op.factors]


def error_of(a: Tensor, fit: Fit, metric: Metric | None = None) -> np.ndarray:
    """The error of the factors as stored by NumPy, in the metric."""
    error = float64(a) - np.linalg.multi_dot([float64(t) for t in factors(fit)])
    return error if metric is None else whitened(torch.from_numpy(error), metric)


def noise_of(fit: Fit, a: Tensor) -> float:
    """What rounding may do to the product of the factors in float64."""
    sizes = math.prod(float(t.double().norm()) for t in factors(fit))
    return EPS * (sum(a.shape) * sizes + float(a.double().norm()))


def assert_enclosed(a: Tensor, fit: Fit, metric: Metric, rank: int) -> None:
    """All bounds of the fit against NumPy; ``rank`` is what the product can have at most."""
    own, *others = fit.bounds
    plain, spectral = (own, others[0]) if metric.is_plain else others
    error, grain = error_of(a, fit), noise_of(fit, a)
    for bound, e, values in (
        (own, error_of(a, fit, metric), lapack_values(whitened(a, metric))),
        (plain, error, lapack_values(a)),
    ):
        optimum, reach = float(np.linalg.norm(values[rank:])), metric.reach if bound is own else 1.0
        assert bound.lower is not None
        assert bound.lower <= optimum + EPS * len(values) * float(np.linalg.norm(values))
        assert np.linalg.norm(e) <= bound.upper + grain * reach
        assert abs(np.linalg.norm(e) - bound.achieved) <= 20 * grain * reach * (1 + math.sqrt(a.shape[1]))
        assert bound.lower <= bound.achieved
    assert spectral.lower is not None
    values = lapack_values(a)
    assert spectral.lower <= (values[rank] if rank < len(values) else 0.0) + EPS * len(values) * float(
        np.linalg.norm(values)
    )
    assert np.linalg.norm(error, 2) <= spectral.upper + grain


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# ---- interpolative decomposition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MATRICES)
def test_interpolative_over_the_market(name: str, rule: str) -> None:
    """Columns are copies, met exactly, the others as near as LAPACK's least squares comes, and the bounds enclose."""
    a = MATRICES[name]()
    for rank in ranks_of(a)[::2]:
        fit = interpolative(a, rank, RULES[rule], rng=generator(1))
        left, right = factors(fit)
        indices = select(a, rank, RULES[rule], rng=generator(1))
        assert left.dtype == right.dtype == a.dtype
        assert torch.equal(left, a[:, indices])
        assert torch.equal(right[:, indices], torch.eye(rank, dtype=a.dtype))
        assert_enclosed(a, fit, Metric.plain(), rank)
        # Least squares by another algorithm; then what rounding the coefficients may do.
        w, c = float64(a), float64(left)
        scale = np.linalg.norm(c, axis=0)
        unit = c / np.where(scale > 0, scale, 1)
        best = np.linalg.norm(w - unit @ np.linalg.lstsq(unit, w, rcond=torch.finfo(a.dtype).eps)[0])
        rounding = torch.finfo(a.dtype).eps * np.linalg.norm(scale[:, None] * float64(right))
        assert np.linalg.norm(error_of(a, fit)) <= best + rounding + 1e-13 * np.linalg.norm(w)


@pytest.mark.parametrize("name", ["tall", "wide", "square", "decaying", "ill-conditioned", "float16"])
def test_as_good_as_scipys_interpolative_decomposition(name: str) -> None:
    """SciPy chooses by column pivoting as well; the same matrix up to rounding, so within 1 % unless both are at rounding."""
    a = MATRICES[name]().to(torch.float64)
    w = float64(a)
    for rank in ranks_of(a):
        order, weights = scipy.linalg.interpolative.interp_decomp(w.copy(), rank, rand=False)
        skeleton = scipy.linalg.interpolative.reconstruct_skel_matrix(w, rank, order)
        theirs = np.linalg.norm(w - scipy.linalg.interpolative.reconstruct_matrix_from_id(skeleton, order, weights))
        for rule, factor in ((PivotedQR(), 1.01), (StrongRRQR(), 1.5), (DEIM(), 2.0)):
            ours = np.linalg.norm(error_of(a, interpolative(a, rank, rule)))
            assert ours <= factor * theirs + 1e-12 * np.linalg.norm(w)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["wide", "decaying", "rank-deficient"])
def test_interpolative_in_every_metric(name: str, metric: str) -> None:
    a = MATRICES[name]().to(torch.float64)
    counted = metrics_for(a.shape[1])[metric]
    for rank in (1, 4):
        fit = interpolative(a, rank, metric=counted)
        assert_enclosed(a, fit, counted, rank)
        assert fit.bounds[0].norm == counted.name
        # No other coefficients for these columns are better: what is left is orthogonal to them.
        left = float64(factors(fit)[0])
        assert np.abs(left.T @ error_of(a, fit, counted)).max() <= 1e-11 * np.linalg.norm(left) * np.linalg.norm(
            whitened(a, counted)
        )


def test_a_diagonal_metric_decides_which_columns_are_taken() -> None:
    a = gaussian(10, 12)
    weights = torch.ones(12, dtype=torch.float64)
    weights[[3, 8]] = 1e4
    for rule in (PivotedQR(), DEIM(), Largest()):
        fit = interpolative(a, 2, rule, metric=Metric("scale", weights))
        assert {tuple(c) for c in factors(fit)[0].T.tolist()} == {tuple(c) for c in a[:, [3, 8]].T.tolist()}


@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 10**6), st.floats(0.0, 5.0), st.data())
def test_the_law_of_strong_rrqr(m: int, n: int, seed: int, decay: float, data: st.DataObject) -> None:
    """||A - C X||_2 <= sqrt(1 + f^2 k (n - k)) s_{k+1}: Gu and Eisenstat's bound on R22, which this error is."""
    a = with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay, seed)
    k = data.draw(st.integers(1, min(m, n)))
    values = np.append(lapack_values(a), 0.0)
    for f in (1.1, 2.0):
        error = np.linalg.norm(error_of(a, interpolative(a, k, StrongRRQR(f=f))), 2)
        assert error <= math.sqrt(1 + f**2 * k * (n - k)) * values[k] + 1e-13


def test_directions_that_rounding_would_spoil_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two columns 1e-9 from parallel, the difference being most of a third one: in float32 coefficients of 1e9 have errors of 30."""
    a = torch.zeros(3, 3, dtype=torch.float64)
    a[0, 0], a[0, 1] = 1.0, 0.7
    a[1, 1] = 1e-9
    a[1, 2] = a[2, 2] = 1.0
    rule = Given((0, 1))
    exact = interpolative(a, 2, rule)
    assert np.linalg.norm(error_of(a, exact)) == pytest.approx(1.0, abs=1e-6)  # in float64 the second entry is met
    narrow = a.to(torch.float32)
    fit = interpolative(narrow, 2, rule)
    assert "1 of 2 independent" in fit.how
    assert np.linalg.norm(error_of(narrow, fit)) == pytest.approx(math.sqrt(2), abs=1e-6)
    monkeypatch.setattr(CUR, "_grain", lambda dtype: 0.0)
    assert np.linalg.norm(error_of(narrow, interpolative(narrow, 2, rule))) > 10


# ---- CUR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [*((r, r) for r in RULES), *HYBRIDS], ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_cur_over_the_market(name: str, pair: str | tuple[str, str]) -> None:
    """Columns and rows are copies, the core is in the same type, the bounds enclose, and products are those of the matrix."""
    a = MATRICES[name]()
    columns, rows = HYBRIDS[pair] if isinstance(pair, str) else (RULES[pair[0]], RULES[pair[1]])
    for rank in ranks_of(a)[::3]:
        fit = cur(a, rank, columns=columns, rows=rows, rng=generator(2))
        left, core, right = factors(fit)
        assert left.dtype == core.dtype == right.dtype == a.dtype
        assert (left.shape, core.shape, right.shape) == ((len(a), rank), (rank, rank), (rank, a.shape[1]))
        assert torch.equal(left, a[:, select(a, rank, columns, rng=generator(2))])
        assert {tuple(row) for row in right.tolist()} <= {tuple(row) for row in a.tolist()}
        assert_enclosed(a, fit, Metric.plain(), rank)
        # Never worse than nothing, but for what rounding the core may do.
        rounding = torch.finfo(a.dtype).eps * math.prod(float(t.double().norm()) for t in (left, core, right))
        assert np.linalg.norm(error_of(a, fit)) <= np.linalg.norm(float64(a)) * (1 + 1e-13) + rounding


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("counts", [(4, 4), (3, 6), (6, 2), (1, 9)])
@pytest.mark.parametrize("name", ["tall", "wide", "decaying", "rank-deficient"])
def test_the_core_is_the_best_one(name: str, counts: tuple[int, int], metric: str) -> None:
    """For the columns and rows taken the error is that of LAPACK's pseudo-inverses, in the metric, and orthogonal to both."""
    a = MATRICES[name]().to(torch.float64)
    columns, rows = counts
    counted = metrics_for(a.shape[1])[metric]
    # Of the metric of few inputs there are fewer singular vectors than rows: DEIM would refuse.
    fit = cur(a, columns, rows=PivotedQR(), row_count=rows, metric=counted)
    left, core, right = (float64(t) for t in factors(fit))
    assert core.shape == counts
    seen, seen_rows = whitened(a, counted), whitened(torch.from_numpy(right), counted)
    best = np.linalg.norm(seen - left @ (scipy.linalg.pinv(left) @ seen @ scipy.linalg.pinv(seen_rows)) @ seen_rows)
    error = error_of(a, fit, counted)
    size = np.linalg.norm(seen)
    assert np.linalg.norm(error) == pytest.approx(best, rel=1e-8, abs=1e-8 * size)
    assert np.abs(left.T @ error @ seen_rows.T).max() <= 1e-8 * size * np.linalg.norm(left) * np.linalg.norm(seen_rows)
    assert_enclosed(a, fit, counted, min(columns, rows))


def test_a_metric_changes_the_core_for_the_better() -> None:
    a = MATRICES["wide"]().to(torch.float64)
    counted = metrics_for(40)["gram"]
    rules = {"columns": Given((0, 1, 2)), "rows": Given((3, 4, 5))}
    own = np.linalg.norm(error_of(a, cur(a, 3, metric=counted, **rules), counted))
    other = np.linalg.norm(error_of(a, cur(a, 3, **rules), counted))
    assert own < 0.99 * other


@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 10**6), st.floats(0.2, 4.0), st.data())
def test_the_law_of_deim(m: int, n: int, seed: int, decay: float, data: st.DataObject) -> None:
    """||A - C U R||_2 <= (||V[p]^-1|| + ||U[q]^-1||) s_{k+1} (Sorensen and Embree 2016), by LAPACK's vectors."""
    a = with_spectrum(m, n, torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay, seed)
    k = data.draw(st.integers(1, min(m, n) - 1))
    u, s, vt = scipy.linalg.svd(float64(a))
    j, i = select(a, k).numpy(), select(a.T, k).numpy()
    p, q = 1 / scipy.linalg.svdvals(vt[:k, j]).min(), 1 / scipy.linalg.svdvals(u[i, :k]).min()
    fit = cur(a, k)
    assert torch.equal(factors(fit)[0], a[:, j])
    assert torch.equal(factors(fit)[2], a[i])
    assert np.linalg.norm(error_of(a, fit), 2) <= (p + q) * s[k] * (1 + 1e-9) + 1e-7 * s[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_matrices_of_exactly_that_rank_are_recovered(rank: int, rule: str) -> None:
    """From as many columns and rows, whatever chose them: any of a Gaussian product are independent."""
    a = gaussian(24, rank, 4) @ gaussian(rank, 30, 5)
    size = float(a.norm())
    for fit in (
        interpolative(a, rank, RULES[rule]),
        cur(a, rank, columns=RULES[rule], rows=RULES[rule]),
        cur(a, rank, columns=RULES[rule], rows=RULES[rule], row_count=rank + 3) if "deim" not in rule else cur(a, rank),
    ):
        grain = 1e2 * EPS * math.prod(float(t.norm()) for t in factors(fit))
        assert np.linalg.norm(error_of(a, fit)) <= grain + 1e-14 * size
        assert grain <= 1e-8 * size
        assert fit.bounds[0].upper <= 1e-7 * size


@given(st.integers(0, 10**6), st.integers(1, 2))
def test_the_choice_is_within_its_factor_of_all_subsets(seed: int, k: int) -> None:
    """The best of all pairs of column and row subsets, tried one by one, against DEIM's law."""
    a = with_spectrum(4, 5, torch.arange(1, 5, dtype=torch.float64) ** -2.0, seed)
    w = float64(a)
    best = math.inf
    for j in itertools.combinations(range(5), k):
        for i in itertools.combinations(range(4), k):
            c, r = w[:, list(j)], w[list(i)]
            best = min(best, float(np.linalg.norm(w - c @ scipy.linalg.pinv(c) @ w @ scipy.linalg.pinv(r) @ r, 2)))
    u, s, vt = scipy.linalg.svd(w)
    p = 1 / scipy.linalg.svdvals(vt[:k, select(a, k).numpy()]).min()
    q = 1 / scipy.linalg.svdvals(u[select(a.T, k).numpy(), :k]).min()
    found = np.linalg.norm(error_of(a, cur(a, k)), 2)
    assert s[k] * (1 - 1e-9) <= best * (1 + 1e-9)
    assert best * (1 - 1e-6) <= found <= (p + q) * best * (1 + 1e-6)


def test_a_worked_example() -> None:
    """Column (1, 2), row (1, 2) of [[1, 2], [2, 5]]: C^+ A R^+ = (1 * 5 + 2 * 12) / 25, being (1, 2) A (1, 2)^T = 29 over 25."""
    a = torch.tensor([[1.0, 2.0], [2.0, 5.0]], dtype=torch.float64)
    fit = cur(a, 1, columns=Given((0,)), rows=Given((0,)))
    assert factors(fit)[1].item() == pytest.approx(29 / 25, rel=1e-14)
    assert fit.bounds[0].achieved == pytest.approx(math.sqrt(34 - (29 / 5) ** 2), rel=1e-9)


def close_columns(apart: float) -> Tensor:
    """Columns and rows of which some are ``apart`` from each other."""
    a = with_spectrum(30, 30, torch.logspace(0, math.log10(apart), 30, dtype=torch.float64))
    return a.to(torch.float32)


def test_parts_of_the_core_that_rounding_would_spoil_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectra that fall to 1e-7 in float32: entries of the full core near 1e7 would have errors of 1 each."""
    a = close_columns(1e-7)
    fit = cur(a, 24)
    assert " % of the core kept" in fit.how
    careful = np.linalg.norm(error_of(a, fit))
    assert careful <= 3e-3 * np.linalg.norm(float64(a))
    monkeypatch.setattr(CUR, "_grain", lambda dtype: 0.0)
    assert np.linalg.norm(error_of(a, cur(a, 24))) > 10 * careful


def test_dependent_columns_and_rows_are_no_failure() -> None:
    a = gaussian(12, 9)
    a[:, 4] = a[:, 1]
    a[7] = a[2]
    fit = cur(a, 3, columns=Given((1, 4, 0)), rows=Given((2, 7, 5)))
    c, r = float64(a[:, [1, 0]]), float64(a[[2, 5]])
    best = np.linalg.norm(float64(a) - c @ scipy.linalg.pinv(c) @ float64(a) @ scipy.linalg.pinv(r) @ r)
    assert np.linalg.norm(error_of(a, fit)) == pytest.approx(best, rel=1e-12)
    assert float(factors(fit)[1].abs().max()) < 1e3
    interpolated = interpolative(a, 3, Given((1, 4, 0)))
    best = np.linalg.norm(float64(a) - c @ scipy.linalg.pinv(c) @ float64(a))
    assert np.linalg.norm(error_of(a, interpolated)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
def test_values_that_only_rounding_left_count_for_nothing(
    shape: tuple[int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen columns that five others make up, of a matrix of full rank: their directions beyond five are rounding."""
    a = gaussian(*shape, seed)
    a[:, 5:20] = a[:, :5] @ gaussian(5, 15, seed + 50)
    w, own = float64(a), tuple(range(20))
    q = np.linalg.qr(w[:, :5])[0]
    rows = scipy.linalg.orth(w[20:32].T)
    size = np.linalg.norm(w)

    def excess() -> list[float]:
        """Squared errors of columns, of columns and rows, and of the transpose by rows and columns, above the least."""
        by_columns = np.linalg.norm(w - q @ (q.T @ w)) ** 2
        by_both = np.linalg.norm(w - q @ (q.T @ w @ rows) @ rows.T) ** 2
        others = Given(tuple(range(20, 32)))
        fits = [
            interpolative(a, 20, Given(own)),
            cur(a, 20, columns=Given(own), rows=others, row_count=12),
        ]
        turned = cur(a.T.contiguous(), 12, columns=others, rows=Given(own), row_count=20)
        errors = [*(error_of(a, fit) for fit in fits), error_of(a.T, turned)]
        return [
            float(np.linalg.norm(e) ** 2 - best) / size**2
            for e, best in zip(errors, (by_columns, by_both, by_both), strict=True)
        ]

    assert np.abs(excess()).max() <= 1e-12
    monkeypatch.setattr(Span, "noise", 0.0)
    assert max(excess()) > 1e-6


def test_the_rounding_of_two_factors_into_one_is_in_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are those of U R, which float64 rounds; the error of what is stored, in exact fractions, stays below ``upper``."""
    from fractions import Fraction

    a = with_spectrum(6, 5, torch.logspace(0, -7, 5, dtype=torch.float64), 3)
    fit = cur(a, 5)
    exact = [[[Fraction(x) for x in row] for row in t.tolist()] for t in [a, *factors(fit)]]

    def times(x: list[list[Fraction]], y: list[list[Fraction]]) -> list[list[Fraction]]:
        return [
            [sum((p * q for p, q in zip(row, col, strict=True)), Fraction(0)) for col in zip(*y, strict=True)]
            for row in x
        ]

    product = times(times(exact[1], exact[2]), exact[3])
    energy = sum((x - y) ** 2 for r, s in zip(exact[0], product, strict=True) for x, y in zip(r, s, strict=True))
    assert energy <= Fraction(fit.bounds[0].upper) ** 2
    assert fit.bounds[0].achieved <= fit.bounds[0].upper


@pytest.mark.parametrize("counts", [(3, 5), (5, 3)])
def test_what_that_rounding_may_be_counts_as_the_metric_says(counts: tuple[int, int]) -> None:
    """Each upper figure is that of two factors, and five products of the norms' sizes in units of rounding above it."""
    a = gaussian(8, 9).to(torch.float32)
    weights = torch.logspace(-3, 3, 9, dtype=torch.float64)
    metric = Metric("scale", weights)
    fit = cur(a, counts[0], rows=PivotedQR(), row_count=counts[1], metric=metric)
    left, core, right = (t.to(torch.float64) for t in factors(fit))
    op = Factors(left, core @ right) if counts[0] < counts[1] else Factors(left @ core, right)
    rounding = 5 * EPS * float(left.norm() * core.norm() * right.norm())
    for bound, of_two, reach in zip(fit.bounds, bounds_of(a, op, metric), (1e3, 1.0, 1.0), strict=True):
        assert bound.upper - of_two.upper == pytest.approx(rounding * reach, rel=0.05)
        assert (bound.lower, bound.achieved) == (of_two.lower, of_two.achieved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_entries_stay_exact_in_a_wider_type_and_a_narrower_one_is_refused(dtype: torch.dtype) -> None:
    a = gaussian(12, 15).to(dtype)
    left, core, right = factors(cur(a, 4, dtype=torch.float64))
    assert {t.dtype for t in (left, core, right)} == {torch.float64}
    assert torch.equal(left.to(dtype).to(torch.float64), left)
    assert set(left.flatten().tolist()) <= set(a.to(torch.float64).flatten().tolist())
    assert (
        np.linalg.norm(error_of(a, cur(a, 4, dtype=torch.float64))) <= np.linalg.norm(error_of(a, cur(a, 4))) * 1.0001
    )
    narrower = torch.bfloat16 if dtype == torch.float16 else torch.float16
    for call in (cur, interpolative):
        with pytest.raises(ValueError, match="would round them: give"):
            call(a, 4, dtype=narrower)


def test_a_core_beyond_the_range_of_its_type_is_refused() -> None:
    a = (1e-6 * gaussian(6, 6)).to(torch.float16)
    with pytest.raises(ValueError, match=r"the core has entries too large for torch\.float16"):
        cur(a, 2)
    assert np.linalg.norm(error_of(a, cur(a, 2, dtype=torch.float32))) < np.linalg.norm(float64(a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_the_stored_operator(dtype: torch.dtype) -> None:
    a = MATRICES["decaying"]().to(dtype)
    x = gaussian(20, 3, 5).to(dtype)
    for fit in (cur(a, 6, row_count=8), interpolative(a, 6)):
        expected = np.linalg.multi_dot([float64(t) for t in factors(fit)]) @ float64(x)
        assert np.abs(float64(fit.op @ x) - expected).max() <= 100 * torch.finfo(dtype).eps * math.prod(
            float(t.double().norm()) for t in [*factors(fit), x]
        )


@pytest.mark.parametrize("metric", ["plain", "diagonal", "gram"])
def test_large_matrices_without_a_decomposition_for_the_bounds(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    a = with_spectrum(60, 50, torch.arange(1, 51, dtype=torch.float64) ** -1.0, 2).to(torch.float32)
    counted = metrics_for(50)[metric]
    for fit in (cur(a, 8, row_count=10, metric=counted), interpolative(a, 8, metric=counted)):
        optimum = float(np.linalg.norm(lapack_values(whitened(a, counted))[8:]))
        own = fit.bounds[0]
        assert own.lower is not None
        assert own.lower <= optimum
        assert optimum <= np.linalg.norm(error_of(a, fit, counted)) <= own.upper


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [cur, interpolative])
def test_the_seed_decides_and_not_the_state_of_the_generator(call: object) -> None:
    a, rule = gaussian(30, 40), Sampled(LeadingVectors())

    def stored(rng: torch.Generator | None) -> list[Tensor]:
        return factors(
            cur(a, 5, columns=rule, rows=rule, rng=rng) if call is cur else interpolative(a, 5, rule, rng=rng)
        )

    used = generator(3)
    torch.randn(100, generator=used)
    assert all(torch.equal(x, y) for x, y in zip(stored(generator(3)), stored(used), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(stored(None), stored(generator(0)), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(stored(generator(3)), stored(generator(4)), strict=True))


def test_columns_and_rows_are_drawn_independently() -> None:
    a = gaussian(30, 4, 1) @ gaussian(4, 30, 2)
    a = a + a.T
    fit = cur(a, 5, columns=Sampled(power=0.0), rows=Sampled(power=0.0))
    assert not torch.equal(factors(fit)[0], factors(fit)[2].T)


def test_impossible_arguments_are_refused() -> None:
    a = gaussian(5, 7)
    for rank in (0, -1, 6):
        with pytest.raises(ValueError, match=f"rank {rank} of a 5 x 7 matrix: give one from 1 to 5"):
            interpolative(a, rank)
    with pytest.raises(ValueError, match="8 of 7 columns: give a number from 1 to 7"):
        cur(a, 8)
    with pytest.raises(ValueError, match="6 of 5 rows: give a number from 1 to 5"):
        cur(a, 4, row_count=6)
    with pytest.raises(ValueError, match="0 of 7 columns"):
        select(a, 0)
    with pytest.raises(ValueError, match="6 interpolation points from 5 vectors"):
        cur(a, 6, row_count=2)
    assert cur(a, 6, columns=PivotedQR(), row_count=2).op.shape == (5, 7)
    for metric in (Metric("scale", torch.ones(6)), Metric("inputs", moment=torch.eye(6))):
        for call in (cur, interpolative):
            with pytest.raises(ValueError, match="metric is for 6 columns, the matrix is 5 x 7"):
                call(a, 2, metric=metric)


@pytest.mark.parametrize("call", [lambda a: cur(a, 1), lambda a: interpolative(a, 1), lambda a: select(a, 1)])
def test_what_is_no_finite_matrix_is_refused(call: object) -> None:
    assert callable(call)
    for bad in (math.nan, math.inf, -math.inf):
        a = torch.ones(3, 4)
        a[1, 2] = bad
        with pytest.raises(ValueError, match="3 x 4 matrix holds NaN or infinity"):
            call(a)
    for other in (torch.ones(3), torch.ones(2, 3, 4), torch.ones(3, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted, not a tensor of shape"):
            call(other)


def test_the_argument_is_left_alone() -> None:
    a = gaussian(12, 9)
    before = a.clone()
    fit = cur(a, 3)
    interpolative(a, 3)
    assert torch.equal(a, before)
    assert factors(fit)[2].data_ptr() != a.data_ptr()
    assert Candidates(a).matrix is a
