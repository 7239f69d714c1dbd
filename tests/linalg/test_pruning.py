"""Pruned matrices against all masks there are, SparseGPT's formulas in NumPy and least squares on every mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import MATRICES, METRICS, float64, gaussian, generator, inputs, metrics_for, with_spectrum
from masks import PATTERNS, every_mask, left_out, parts
from torch import Tensor

from eckart.fit import Fit
from eckart.linalg import pruning
from eckart.linalg.patterns import OfGroup, Pattern, PerMatrix, PerRow, Tiles
from eckart.linalg.pruning import brain_surgeon, pruned, pruned_tails
from eckart.metric import Metric
from eckart.operator import Masked

Make = Callable[..., Fit]
MAKES: Mapping[str, Make] = {"pruned": pruned, "brain surgeon": lambda *a, **k: brain_surgeon(*a, **{"block": 12} | k)}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
each_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
TINY: Mapping[str, Callable[[], Tensor]] = {
    "tall": lambda: gaussian(4, 2, 1),
    "wide": lambda: gaussian(2, 5, 2),
    "rank one": lambda: gaussian(3, 1, 4) @ gaussian(1, 3, 5),
    "ill-conditioned": lambda: MATRICES["ill-conditioned"]()[:2, :4],
    "zero": lambda: torch.zeros(2, 3),
    "outlier": lambda: MATRICES["huge outlier"]()[4:6, 5:9],
    "one row": lambda: MATRICES["one row"]()[:, :7],
    "one column": lambda: gaussian(4, 1, 9),
    "one entry": lambda: torch.tensor([[-3.0]]),
    "bfloat16": lambda: MATRICES["bfloat16"]()[:2, :5],
    "constant": lambda: torch.full((2, 4), -0.75),
    "tiny entries": lambda: gaussian(2, 4, 13) * 1e-30,
}


def sizes_of(pattern: Pattern, n: int) -> list[int]:
    most = pattern.sizes(n)
    return sorted({1, 2, most // 2, most - 1, most} & set(range(1, most + 1)))


def moment_of(metric: Metric, n: int) -> np.ndarray:
    """R R^T by NumPy."""
    if metric.root is None:
        return np.eye(n)
    right = float64(metric.root)
    right = np.diag(right) if right.ndim == 1 else right
    return right @ right.T


def measured(error: np.ndarray, metric: Metric) -> float:
    """The error in the metric in as wide a type as NumPy has."""
    wide = error.astype(np.longdouble)
    if metric.root is not None:
        right = float64(metric.root)
        wide = wide * right if right.ndim == 1 else wide @ right.astype(np.longdouble)
    return float(np.sqrt((wide**2).sum()))


def refitted(w: np.ndarray, mask: np.ndarray, metric: Metric) -> float:
    """The error of the best matrix with these zeros: least squares row by row."""
    if metric.root is None or metric.root.ndim == 1:
        return measured(np.where(mask, 0, w), metric)
    right = float64(metric.root)
    found = 0.0
    for row, kept in zip(w, mask, strict=True):
        best = np.linalg.lstsq(right[kept].T, (row @ right), rcond=None)[0] if kept.any() else np.zeros(0)
        found += float(((row @ right - best @ right[kept]) ** 2).sum())
    return math.sqrt(found)


@cache
def optimum(name: str, form: str, pattern: Pattern, size: int) -> float:
    """The least error of any matrix with zeros of a pattern, by trying every mask."""
    w = TINY[name]()
    metric = metrics_for(w.shape[1])[form]
    return min(refitted(float64(w), mask, metric) for mask in every_mask(pattern, *w.shape, size))


# ---- bounds ---------------------------------------------------------------------------------------------------------


@each_make
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", TINY)
def test_no_matrix_with_these_zeros_is_below_the_bound(name: str, form: str, make: Make) -> None:
    """Of every mask the best refitted matrix. In plain and diagonal metrics the bound is met."""
    w = TINY[name]()
    metric = metrics_for(w.shape[1])[form]
    for pattern, size in ((p, size) for p in PATTERNS.values() for size in sizes_of(p, w.shape[1])):
        best = optimum(name, form, pattern, size)
        fit = make(w, size, pattern, metric=metric, spectral=False)
        own = fit.bounds[0]
        grain = 1e-13 * float(np.linalg.norm(float64(w))) * metric.reach
        assert own.lower is not None
        assert own.lower <= best + grain
        assert best <= own.achieved * (1 + 1e-12) + grain
        plain = next(bound for bound in fit.bounds if bound.norm == "frobenius")
        assert plain.lower == pytest.approx(optimum(name, "plain", pattern, size), rel=1e-12, abs=grain)
        if metric.is_diagonal:
            assert own.lower == pytest.approx(best, rel=1e-12, abs=grain)
            if make is pruned:
                assert own.achieved == pytest.approx(best, rel=1e-12, abs=grain)


@given(
    shape=st.sampled_from([(1, 3), (2, 3), (3, 2), (1, 5)]),
    seed=st.integers(0, 99),
    spread=st.floats(-3, 3),
    count=st.integers(1, 6),
    key=st.sampled_from(list(PATTERNS)),
)
def test_the_bound_of_a_full_metric_holds_over_random_inputs(
    shape: tuple[int, int], seed: int, spread: float, count: int, key: str
) -> None:
    m, n = shape
    w, x = gaussian(m, n, seed), gaussian(count, n, seed + 100) * torch.logspace(0, spread, n, dtype=torch.float64)
    x[:, 0] += x[:, -1]
    metric = Metric.gram("inputs", x.T @ x, count)
    for size in range(1, PATTERNS[key].sizes(n) + 1):
        best = min(refitted(float64(w), mask, metric) for mask in every_mask(PATTERNS[key], m, n, size))
        for make in MAKES.values():
            own = make(w, size, PATTERNS[key], metric=metric, spectral=False).bounds[0]
            assert own.lower <= best + 1e-13 * metric.reach * float(w.norm())
            assert best <= own.achieved + 1e-13 * metric.reach * float(w.norm())


def test_the_bound_of_a_full_metric_is_worth_something() -> None:
    """It is as near as inputs are to being uncorrelated: met where they are."""
    w = gaussian(8, 16)
    x = gaussian(4000, 16, 1)
    fit = pruned(w, 8, metric=Metric.gram("inputs", x.T @ x, len(x)))
    assert fit.bounds[0].lower > 0.8 * fit.bounds[0].achieved
    basis = Metric("turned", torch.diag(torch.arange(1.0, 17.0)).to(torch.float64))  # a diagonal as a full matrix
    fit = pruned(w, 8, metric=basis)
    assert fit.bounds[0].lower == pytest.approx(fit.bounds[0].achieved, rel=1e-12)


@each_make
@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("name", MATRICES)
def test_bounds_enclose_over_the_market(name: str, form: str, make: Make) -> None:
    """Achieved errors by NumPy in its widest type, without any tolerance above, and the least errors by sorting."""
    w = MATRICES[name]()
    metric, wide = metrics_for(w.shape[1])[form], float64(w)
    for pattern in (PerMatrix(), PerRow(), OfGroup(3)):
        size = (pattern.sizes(w.shape[1]) + 1) // 2
        fit = make(w, size, pattern, metric=metric, rng=generator())
        assert isinstance(fit.op, Masked)
        assert (fit.op.shape, fit.op.values.dtype) == (w.shape, w.dtype)
        assert len(fit.op.values) == pattern.kept(*w.shape, size)
        error = wide - float64(fit.op.dense())
        assert [bound.norm for bound in fit.bounds] == [*dict.fromkeys((metric.name, "frobenius")), "spectral"]
        own, plain, spectral = fit.bounds[0], fit.bounds[-2], fit.bounds[-1]
        for bound, norm, scale in (
            (own, measured(error, metric), measured(wide, metric)),
            (plain, float(np.linalg.norm(error)), float(np.linalg.norm(wide))),
            (spectral, float(np.linalg.norm(error, 2)), float(np.linalg.norm(wide, 2))),
        ):
            reach = metric.reach if bound is own else 1.0
            assert norm <= bound.upper
            assert abs(norm - bound.achieved) <= 1e-13 * np.linalg.norm(wide) * reach
            assert bound.upper <= bound.achieved + 1e-12 * w.shape[1] * np.linalg.norm(wide) * reach
            assert bound.scale == pytest.approx(scale, rel=1e-12)
            assert bound.lower is None or 0 <= bound.lower <= bound.achieved
        least = math.sqrt(left_out(wide**2, pattern, size))
        assert plain.lower <= least * (1 + 1e-14)
        assert plain.lower >= least - 1e-13 * w.shape[1] * np.linalg.norm(wide)
        assert spectral.lower is None
        if metric.is_diagonal:
            weighed = math.sqrt(left_out(wide**2 * np.diag(moment_of(metric, w.shape[1])), pattern, size))
            assert own.lower <= weighed * (1 + 1e-14)
            assert own.lower >= weighed - 1e-12 * w.shape[1] * np.linalg.norm(wide) * metric.reach


def test_above_the_largest_side_nothing_is_known_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "LAPACK_SIDE", 11)
    for n, known in ((11, True), (12, False)):
        x = inputs(n, 40)
        own, plain, _ = pruned(gaussian(5, n), 4, metric=Metric.gram("inputs", x.T @ x)).bounds
        assert (own.lower is not None) == known
        assert plain.lower is not None
    assert pruned(gaussian(5, 12), 4, metric=Metric("scale", torch.arange(1.0, 13.0))).bounds[0].lower > 0


def test_what_is_random_is_that_of_seed_0_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eckart.kernels.norms.LAPACK_SIDE", 4)  # spectral norms by a power iteration
    for make in MAKES.values():
        found = [make(gaussian(9, 12), 3, rng=rng).bounds for rng in (None, generator(0), generator(1))]
        assert found[0] == found[1] != found[2]


def test_without_the_spectral_norm_it_is_left_out() -> None:
    for make in MAKES.values():
        assert [b.norm for b in make(gaussian(4, 12), 3, spectral=False).bounds] == ["frobenius"]


# ---- the nearest ----------------------------------------------------------------------------------------------------


@each_pattern
@pytest.mark.parametrize("form", METRICS)
def test_pruned_entries_stay_as_they_are_where_weight_times_input_is_largest(pattern: Pattern, form: str) -> None:
    w = gaussian(5, 13)
    metric = metrics_for(13)[form]
    weights = np.diag(moment_of(metric, 13))
    scores = float64(w) ** 2 * weights
    for size in sizes_of(pattern, 13):
        fit = pruned(w, size, pattern, metric=metric)
        mask = np.zeros(w.numel(), dtype=bool)
        for groups, count in parts(pattern, 5, 13, size):
            sums = np.array([scores.ravel()[group].sum() for group in groups])
            for at in np.argsort(-sums, kind="stable")[:count]:
                mask[groups[at]] = True
        assert np.array_equal(fit.op.dense().numpy(), np.where(mask.reshape(5, 13), w.numpy(), 0))
        assert float(pruned_tails(w, pattern, metric)[size]) == pytest.approx(
            left_out(scores, pattern, size), abs=1e-12
        )


def test_entries_of_another_type_are_rounded_to_it() -> None:
    w = gaussian(6, 8)
    for make in MAKES.values():
        fit = make(w, 8, dtype=torch.bfloat16)
        assert fit.op.values.dtype == torch.bfloat16
        assert torch.equal(fit.op.dense(), w.to(torch.bfloat16))
        assert 0 < fit.bounds[0].achieved < 2**-8 * float(w.norm())
        assert fit.bounds[0].lower == 0


# ---- optimal brain surgeon ------------------------------------------------------------------------------------------


def surgeon(
    w: np.ndarray, moment: np.ndarray, choose: Callable[[np.ndarray, int], np.ndarray], step: int, damping: float
) -> np.ndarray:
    """SparseGPT by its definition: what column j loses is taken from those behind by the inverse of what is left of the moment.

    ``choose(scores, start)`` gives the mask of the next ``step`` columns. There are no blocks of updates and no factor.
    """
    w, n = w.copy(), w.shape[1]
    h = moment + damping * np.diag(moment).mean() * np.eye(n)
    kept = np.zeros(w.shape, dtype=bool)
    for j in range(n):
        inverses = [np.linalg.inv(h[i:, i:]) for i in range(j, min(j + step, n))] if j % step == 0 else []
        if inverses:
            scores = w[:, j : j + step] ** 2 / np.array([inverse[0, 0] for inverse in inverses])
            kept[:, j : j + step] = choose(scores, j)
        inverse = np.linalg.inv(h[j:, j:])
        lost = np.where(kept[:, j], 0, w[:, j])
        w[:, j:] -= lost[:, None] / inverse[0, 0] * inverse[0]
        w[:, j] = np.where(kept[:, j], w[:, j], 0)
    return w


def highest(pattern: Pattern, size: int, n: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """The mask of a part of the columns by sorting; parts of a row keep what they add to the rounded-down share."""

    def choose(scores: np.ndarray, start: int) -> np.ndarray:
        m, width = scores.shape
        wide = pattern.columns if isinstance(pattern, Tiles) else 1
        first, last, all_ = start // wide, (start + width) // wide, n // wide
        share = size if isinstance(pattern, OfGroup) else size * last // all_ - size * first // all_
        mask = np.zeros(m * width, dtype=bool)
        for groups, count in parts(pattern, m, width, share):
            most = m * share if isinstance(pattern, PerMatrix) else count
            sums = np.array([scores.ravel()[group].sum() for group in groups])
            for at in np.argsort(-sums, kind="stable")[:most]:
                mask[groups[at]] = True
        return mask.reshape(m, width)

    return choose


@each_pattern
@pytest.mark.parametrize("block", [12, 24, 96])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_columns_are_worked_off_as_sparsegpt_does(pattern: Pattern, block: int, damping: float) -> None:
    w, x = gaussian(7, 29, 3), inputs(29, 90)
    moment = x.T @ x / len(x)
    metric = Metric("inputs", moment=moment)
    step = pattern.group if isinstance(pattern, OfGroup) else block
    for size in sizes_of(pattern, 29):
        fit = brain_surgeon(w, size, pattern, metric=metric, block=block, damping=damping)
        expected = surgeon(float64(w), float64(moment), highest(pattern, size, 29), step, damping)
        np.testing.assert_allclose(fit.op.dense().numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        assert np.array_equal(fit.op.places.numpy(), expected != 0)


def test_by_default_settings_are_those_of_sparsegpt() -> None:
    """Masks of 128 columns at once, and a hundredth of the mean diagonal."""
    n = 140
    w, x = gaussian(3, n), inputs(n, 2 * n)
    moment = x.T @ x / len(x)
    fit = brain_surgeon(w, n // 2, PerRow(), metric=Metric("inputs", moment=moment), spectral=False)
    expected = surgeon(float64(w), float64(moment), highest(PerRow(), n // 2, n), 128, 0.01)
    np.testing.assert_allclose(fit.op.dense().numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert np.array_equal(fit.op.places.numpy(), expected != 0)


def test_zeros_before_all_others_are_made_up_for_exactly() -> None:
    """Where the first columns go, the others are the least squares of what was there: the classical surgeon, in one step."""
    x = inputs(9, 40)
    moment, gone = float64(x.T @ x) / 40, 4
    w = gaussian(3, 9, 5)
    w[:, :gone] *= 1e-3 * torch.rand(3, gone, generator=generator(), dtype=torch.float64)
    fit = brain_surgeon(w, 9 - gone, PerRow(), metric=Metric("inputs", moment=torch.from_numpy(moment)), damping=0.05)
    h = moment + 0.05 * np.diag(moment).mean() * np.eye(9)
    wide = float64(w)
    expected = wide[:, gone:] + np.linalg.solve(h[gone:, gone:], h[gone:, :gone] @ wide[:, :gone].T).T
    assert not fit.op.places[:, :gone].any()
    np.testing.assert_allclose(fit.op.dense().numpy()[:, gone:], expected, rtol=1e-11)


def test_one_zero_costs_what_hassibi_and_stork_say() -> None:
    """``w^2 / (2 H^-1)_jj`` for the whole row: behind the first column the surgeon may have less to make up with, never more."""
    x = inputs(6, 30)
    moment = float64(x.T @ x) / 30
    metric = Metric("inputs", moment=torch.from_numpy(moment))
    inverse = np.diag(np.linalg.inv(moment + 1e-9 * np.diag(moment).mean() * np.eye(6)))
    for seed in range(12):
        w = gaussian(1, 6, seed)
        fit = brain_surgeon(w, 5, PerRow(), metric=metric, damping=1e-9)
        saliency = float64(w)[0] ** 2 / inverse
        (gone,) = np.flatnonzero(~fit.op.places.numpy()[0])
        assert fit.bounds[0].achieved ** 2 >= saliency[gone] * (1 - 1e-5)
        if gone == 0:
            assert fit.bounds[0].achieved ** 2 == pytest.approx(saliency[0], rel=1e-4)


@pytest.mark.parametrize("name", ["tall", "wide", "square", "rank-deficient", "huge outlier", "bfloat16", "decaying"])
def test_what_is_made_up_for_is_worth_it(name: str) -> None:
    """Over inputs that are correlated as those of trained layers are, half of the entries gone."""
    w = MATRICES[name]().to(torch.float64)
    n = w.shape[1]
    for seed in range(3):
        x = gaussian(4 * n, n, seed) @ with_spectrum(n, n, torch.arange(1, n + 1, dtype=torch.float64) ** -0.7, seed)
        metric = Metric.gram("inputs", x.T @ x, len(x))
        for key in ("matrix", "row", "4"):
            size = PATTERNS[key].sizes(n) // 2
            errors = [make(w, size, PATTERNS[key], metric=metric).bounds[0].achieved for make in MAKES.values()]
            assert errors[1] < 0.97 * errors[0]


@each_pattern
def test_without_correlations_there_is_nothing_to_make_up_for(pattern: Pattern) -> None:
    w = gaussian(6, 16)
    scale = Metric("scale", torch.logspace(1, -2, 16, dtype=torch.float64))
    for metric, damping in ((Metric.plain(), 0.5), (scale, 1e-12)):
        for size in sizes_of(pattern, 16):
            plain = pruned(w, size, pattern, metric=metric).op
            made = brain_surgeon(w, size, pattern, metric=metric, block=48, damping=damping).op
            assert torch.equal(made.mask, plain.mask)
            torch.testing.assert_close(made.values, plain.values, rtol=1e-12, atol=0)


def test_what_rounding_leaves_is_made_up_for_as_well() -> None:
    """In bfloat16 with every entry kept: less error over the inputs than rounding each entry by itself."""
    w, x = gaussian(16, 24), inputs(24, 80)
    metric = Metric.gram("inputs", x.T @ x, len(x))
    fit = brain_surgeon(w, 24, metric=metric, damping=1e-6, dtype=torch.bfloat16)
    assert fit.bounds[0].achieved < 0.8 * metric.norm(w - w.to(torch.bfloat16))


# ---- inputs that never arrive ---------------------------------------------------------------------------------------


def half_dead(n: int) -> Tensor:
    x = inputs(n, 3 * n)
    x[:, [1, n // 2, n - 1]] = 0
    return x


@each_pattern
@pytest.mark.parametrize("held", ["root", "moment"])
def test_columns_that_no_input_reaches_go_first(pattern: Pattern, held: str) -> None:
    """However large they are; the others come out as they do without them, but for the damping, which is a share of the mean."""
    n = 12
    x = half_dead(n)
    gram = x.T @ x
    metric = Metric.gram("inputs", gram, len(x)) if held == "root" else Metric("inputs", moment=gram, count=len(x))
    w = gaussian(5, n)
    dead = metric.weights(n) == 0
    assert dead.nonzero()[:, 0].tolist() == [1, n // 2, n - 1]
    w[:, dead] *= 1e6
    for make in MAKES.values():
        for size in sizes_of(pattern, n)[:-1]:
            op = make(w, size, pattern, metric=metric).op
            assert float(op.dense()[:, dead].abs().max()) == 0 or make is pruned
            kept = op.places.sum(0)
            if not isinstance(pattern, OfGroup | Tiles) and size <= n - 3:
                assert int(kept[dead].sum()) == 0
    live = ~dead
    if isinstance(pattern, PerRow):
        rest = Metric("inputs", moment=gram[live][:, live], count=len(x))
        found = brain_surgeon(w, 5, pattern, metric=metric, damping=0.04).op.dense()[:, live]
        alone = brain_surgeon(w[:, live], 5, pattern, metric=rest, damping=0.04 * (n - 3) / n).op.dense()
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4])
def test_the_size_of_inputs_does_not_matter(scale: float) -> None:
    """Neither with inputs that never arrive: what stands in for these is no more than a mean one."""
    x, w = half_dead(14), gaussian(6, 14)
    found = [brain_surgeon(w, 7, metric=Metric("inputs", moment=s * x.T @ x)).op for s in (1.0, scale)]
    assert torch.equal(found[0].mask, found[1].mask)
    torch.testing.assert_close(found[0].values, found[1].values, rtol=1e-9, atol=1e-12)


def test_nothing_arrives_at_all() -> None:
    for metric in (Metric.gram("inputs", torch.zeros(6, 6)), Metric("inputs", torch.zeros(6))):
        for make in MAKES.values():
            fit = make(gaussian(3, 6), 2, PerRow(), metric=metric)
            assert fit.bounds[0].upper == fit.bounds[0].lower == 0
            assert fit.op.places.sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("damping", [1e-8, 1e-15, 1e-17, 1e-300])
def test_fewer_inputs_than_columns_need_hardly_any_damping(damping: float) -> None:
    """A second moment of rank 4 has no inverse; with however little damping the result is finite."""
    x, w = inputs(12, 4), gaussian(5, 12)
    metric = Metric.gram("inputs", x.T @ x)
    fit = brain_surgeon(w, 6, metric=metric, damping=damping)
    assert bool(torch.isfinite(fit.op.values).all())
    assert fit.bounds[0].achieved < 0.1 * fit.bounds[0].scale


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "pattern", "sentence"),
    [
        (0, PerMatrix(), "size 0 of PerMatrix() on 6 columns: give one from 1 to 6"),
        (7, PerRow(), "size 7 of PerRow() on 6 columns: give one from 1 to 6"),
        (5, OfGroup(4), "size 5 of OfGroup(group=4) on 6 columns: give one from 1 to 4"),
    ],
)
@each_make
def test_a_size_that_the_pattern_does_not_have(size: int, pattern: Pattern, sentence: str, make: Make) -> None:
    with pytest.raises(ValueError) as error:
        make(gaussian(3, 6), size, pattern)
    assert str(error.value) == sentence


@each_make
@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(3, 4, dtype=torch.int64)])
def test_what_is_no_matrix(wrong: Tensor, make: Make) -> None:
    with pytest.raises(ValueError, match="a matrix of floating-point numbers is wanted, not"):
        make(wrong, 1)


def test_blocks_and_damping_with_which_it_does_not_work() -> None:
    for block, pattern in ((0, PerRow()), (-1, PerRow()), (6, OfGroup(4)), (2, OfGroup(4))):
        with pytest.raises(ValueError, match=f"block {block} must be at least 1, and whole groups"):
            brain_surgeon(gaussian(3, 8), 2, pattern, block=block)
    for damping in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"damping .* must be finite and above 0"):
            brain_surgeon(gaussian(3, 8), 2, damping=damping)
