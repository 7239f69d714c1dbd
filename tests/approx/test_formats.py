"""Laws of every approximator: what is told before anything is fitted is what is stored. A new one joins by a line in ``APPROXIMATORS``."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from market import MATRICES, METRICS, float64, gaussian, generator, metrics_for, whitened
from scipy.stats import norm
from torch import Tensor

from eckart.approx import (
    Approximator,
    BrainSurgeon,
    ColumnsRows,
    Compensated,
    LowRank,
    NormalFloat,
    Prune,
    RoundToNearest,
)
from eckart.linalg import PivotedQR
from eckart.linalg.patterns import OfGroup, PerRow, Tiles
from eckart.metric import Metric
from eckart.operator import (
    Codes,
    Dense,
    Factors,
    Levels,
    Masked,
    Operator,
    Product,
    Sum,
    describe,
    in_dtype,
    nbytes,
)

APPROXIMATORS: Mapping[str, Approximator] = {
    "low rank": LowRank(),
    "pruned": Prune(),
    "pruned by rows": Prune(PerRow()),
    "pruned in groups": Prune(OfGroup(4)),
    "pruned in threes": Prune(OfGroup(3)),
    "pruned in tiles": Prune(Tiles(2, 3)),
    "surgeon in tiles": BrainSurgeon(Tiles(3, 2), block=4, damping=0.1),
    "surgeon": BrainSurgeon(),
    "surgeon by rows": BrainSurgeon(PerRow(), block=5),
    "surgeon in groups": BrainSurgeon(OfGroup(2), block=4, damping=0.1),
    "1 bit": RoundToNearest(bits=1, group=3),
    "3 bits": RoundToNearest(bits=3, group=4),
    "4 bits": RoundToNearest(),
    "8 bits": RoundToNearest(bits=8, group=5),
    "2 normal bits": NormalFloat(bits=2, group=3),
    "4 normal bits": NormalFloat(),
    "branch beside zeros": Compensated(Prune(OfGroup(4))),
    "branch beside the surgeon": Compensated(BrainSurgeon(PerRow()), keep=0.5),
    "branch beside codes": Compensated(RoundToNearest(bits=2, group=8)),
    "columns and rows": ColumnsRows(),
    "pivoted columns and rows": ColumnsRows(PivotedQR()),
}
ROUNDING = RoundToNearest | NormalFloat
# Those that say what the error will be at each size, in plain and diagonal metrics.
TOLD = [key for key, one in APPROXIMATORS.items() if isinstance(one, LowRank | Prune | ROUNDING | Compensated)]
ENCLOSED = (
    "surgeon in groups",
    "1 bit",
    "4 bits",
    "8 bits",
    *(key for key in APPROXIMATORS if "beside" in key),
    "columns and rows",
)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((5, 7), (8, 6), (1, 9), (9, 1), (4, 16), (1, 1))
each = pytest.mark.parametrize("key", APPROXIMATORS)


def count(approx: Approximator, m: int, n: int) -> int:
    """How many sizes there are; the curve has one more."""
    return len(approx.curve(torch.ones(m, n), Metric.plain())) - 1


def sizes(approx: Approximator, m: int, n: int) -> list[int]:
    most = count(approx, m, n)
    return sorted({1, 2, most // 2, most} & set(range(1, most + 1)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@each
def test_what_is_stored_is_what_was_told(key: str, dtype: torch.dtype) -> None:
    """Bytes, kind, settings, and of every tensor name, shape and dtype."""
    for shape in SHAPES:
        check_stored(APPROXIMATORS[key], shape, dtype)


def check_stored(approx: Approximator, shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = gaussian(*shape).to(dtype)
    slot = approx.slot(*shape, dtype.itemsize)
    assert slot.dense_bytes == w.nbytes
    prepared = approx.prepare(w, metrics_for(shape[1])["gram"])
    for size in sizes(approx, *shape):
        form = approx.form(*shape, size, dtype)
        fit = prepared.fit(size, dtype=dtype, rng=generator(), spectral=False)
        assert slot.stored(size) == nbytes(form) == nbytes(fit.op) == slot.cost(size)
        assert describe(form) == describe(fit.op)
        assert form.shape == fit.op.shape == shape
        assert all(tensor.is_meta for tensor in form.tensors().values())
        told = {name: (tensor.shape, tensor.dtype) for name, tensor in form.tensors().items()}
        assert told == {name: (tensor.shape, tensor.dtype) for name, tensor in fit.op.tensors().items()}
        assert bool(torch.isfinite(fit.op.dense().to(torch.float32)).all())


@each
def test_bytes_rise_with_the_size(key: str) -> None:
    approx = APPROXIMATORS[key]
    for shape, itemsize in ((shape, itemsize) for shape in SHAPES for itemsize in (2, 4)):
        slot = approx.slot(*shape, itemsize)
        most = count(approx, *shape)
        stored = [slot.stored(size) for size in range(1, most + 1)]
        assert all(a < b for a, b in pairwise(stored))
        assert slot.max_rank == sum(size < slot.dense_bytes for size in stored)
        for share in (0.2, 0.55, 0.8, 1.0):
            held = [size for size in range(1, slot.max_rank + 1) if slot.stored(size) <= share * slot.dense_bytes]
            assert slot.within(share * slot.dense_bytes) == max(held, default=0)


@pytest.mark.parametrize("name", ["tall", "wide", "rank-deficient", "zero", "one row", "one column", "bfloat16"])
@each
def test_curves_fall_to_what_the_last_size_leaves(key: str, name: str) -> None:
    """From the size of the whole matrix, or of what its branch is to make up for, as if inputs were not correlated where zeros are told."""
    approx, w = APPROXIMATORS[key], MATRICES[name]()
    for metric in metrics_for(w.shape[1]).values():
        curve = approx.curve(w, metric)
        grain = 1e-12 * metric.size(w.shape[1]) * float(w.double().norm()) ** 2
        assert (curve.dtype, curve.ndim) == (torch.float64, 1)
        assert bool((curve >= -grain).all())
        if metric.is_diagonal or not isinstance(approx, ROUNDING):
            assert all(a >= b - grain for a, b in pairwise(curve.tolist()))
        if not isinstance(approx, ROUNDING):
            assert float(curve[-1]) <= grain
        if metric.is_diagonal and not isinstance(approx, Compensated):
            assert float(curve[0]) == pytest.approx(float(np.linalg.norm(whitened(w, metric))) ** 2, rel=1e-12)


@pytest.mark.parametrize("form", METRICS)
@pytest.mark.parametrize("key", TOLD)
def test_curves_tell_the_error(key: str, form: str) -> None:
    """Measured by NumPy on what is stored in float64; in full metrics that of zeros is told as if inputs were not correlated."""
    approx = APPROXIMATORS[key]
    for w in (gaussian(8, 12), gaussian(12, 5, 1), MATRICES["ill-conditioned"]()[:7]):
        metric = metrics_for(w.shape[1])[form]
        if isinstance(approx, Prune) and not metric.is_diagonal:
            metric = Metric("diagonal", metric.weights(w.shape[1]).sqrt())
        curve, prepared = approx.curve(w, metrics_for(w.shape[1])[form]), approx.prepare(w, metric)
        for size in range(1, len(curve)):
            fit = prepared.fit(size, dtype=w.dtype, rng=generator(), spectral=False)
            error = whitened(w - in_dtype(fit.op, torch.float64).dense(), metric)
            grain = 1e-12 * metric.reach * float(w.norm())
            assert float(curve[size].clamp(min=0).sqrt()) == pytest.approx(
                float(np.linalg.norm(error)), abs=1e3 * grain
            )
            assert prepared.error(size, generator()) == pytest.approx(fit.bounds[0].achieved, rel=1e-6, abs=1e3 * grain)


@each
def test_the_error_ahead_of_a_fit_is_that_of_the_fit(key: str) -> None:
    approx, w = APPROXIMATORS[key], gaussian(9, 10)
    for metric in (Metric.plain(), metrics_for(10)["diagonal"]):
        prepared = approx.prepare(w, metric)
        for size in sizes(approx, 9, 10):
            fit = prepared.fit(size, dtype=w.dtype, rng=generator(), spectral=True)
            assert prepared.error(size, generator()) == pytest.approx(fit.bounds[0].achieved, rel=1e-9, abs=1e-12)
            norms = [metric.name, "frobenius", "spectral"] if metric.name != "frobenius" else ["frobenius", "spectral"]
            assert [bound.norm for bound in fit.bounds] == norms
            alone = prepared.fit(size, dtype=w.dtype, rng=generator(), spectral=False)
            assert [bound.norm for bound in alone.bounds] == norms[:-1]
            assert [b.achieved for b in fit.bounds[:-1]] == [b.achieved for b in alone.bounds]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("key", ENCLOSED)
def test_bounds_enclose_what_numpy_measures(key: str, name: str) -> None:
    """On the market, in the widest type that NumPy has: never above ``upper``, and as near to it as rounding."""
    approx, w = APPROXIMATORS[key], MATRICES[name]()
    size = (count(approx, *w.shape) + 1) // 2
    for form, metric in metrics_for(w.shape[1]).items():
        fit = approx.prepare(w, metric).fit(size, dtype=w.dtype, rng=generator(), spectral=True)
        error = float64(w).astype(np.longdouble) - product(fit.op)
        own, plain, spectral = fit.bounds[0], fit.bounds[-2], fit.bounds[-1]
        size_of_w, reach = float(w.double().norm()), metric.reach
        for bound, found in ((own, metric_norm(error, metric)), (plain, float(np.sqrt((error**2).sum())))):
            scale = size_of_w * (reach if bound is own else 1.0)
            assert found <= bound.upper
            grain = 1e-12 if form == "plain" else 1e-7
            assert bound.achieved == pytest.approx(found, rel=1e-9, abs=grain * scale)
            assert bound.lower is None or bound.lower <= bound.achieved <= bound.upper
        assert float(np.linalg.norm(error.astype(np.float64), 2)) <= spectral.upper * (1 + 1e-12)
        scales = (metric_norm(float64(w), metric), size_of_w, float(np.linalg.norm(float64(w), 2)))
        for bound, scale in zip((own, plain, spectral), scales, strict=True):
            assert bound.scale == pytest.approx(scale, rel=1e-9)


def metric_norm(error: np.ndarray, metric: Metric) -> float:
    wide = error.astype(np.longdouble)
    if metric.root is not None:
        right = float64(metric.root)
        wide = wide * right if right.ndim == 1 else wide @ right.astype(np.longdouble)
    return float(np.sqrt((wide**2).sum()))


def product(op: Operator) -> np.ndarray:
    """The matrix that is stored, by NumPy in its widest type."""
    wide = np.longdouble
    if isinstance(op, Sum):
        return sum((product(term) for term in op.terms), start=np.zeros(op.shape, dtype=wide))
    if isinstance(op, Product):
        made = np.eye(op.shape[0], dtype=wide)
        for factor in op.factors:
            made = made @ product(factor)
        return made
    if isinstance(op, Factors):
        return float64(op.left).astype(wide) @ float64(op.right).astype(wide)
    if isinstance(op, Dense):
        return float64(op.matrix).astype(wide)
    if isinstance(op, Masked):
        bits = np.unpackbits(op.mask.numpy(), axis=1, bitorder="little")[:, : op.width].astype(bool)
        made = np.zeros(op.shape, dtype=wide)
        made[bits] = float64(op.values)
        return made
    assert isinstance(op, Codes | Levels)
    bits = np.unpackbits(op.codes.numpy(), axis=1, bitorder="little")[:, : op.columns * op.bits]
    weights = 2 ** np.arange(op.bits)
    codes = bits.reshape(len(bits), op.columns, op.bits).astype(np.int64) @ weights
    groups = np.arange(op.columns) // op.group
    steps = float64(op.levels)[codes] if isinstance(op, Levels) else codes - float64(op.zero)[:, groups]
    return float64(op.scale).astype(wide)[:, groups] * steps


# ---- rounding -------------------------------------------------------------------------------------------------------

GROUPED: Mapping[str, Tensor] = {
    "gaussian": gaussian(5, 11, 1),
    "constant": torch.full((2, 9), 0.3, dtype=torch.float64),
    "constant below zero": torch.full((2, 9), -0.3, dtype=torch.float64),
    "zero": torch.zeros(3, 7, dtype=torch.float64),
    "a group of zeros": torch.cat([gaussian(3, 4), torch.zeros(3, 4), gaussian(3, 3, 1)], 1),
    "below zero": -gaussian(4, 9, 2).abs() - 1,
    "above zero": gaussian(4, 9, 2).abs() + 1,
    "one entry": torch.tensor([[-2.5]]).to(torch.float64),
    "outlier": MATRICES["huge outlier"]().to(torch.float64),
    "tiny": gaussian(3, 8) * 1e-30,
}


def rounded(w: Tensor, approx: RoundToNearest, dtype: torch.dtype = torch.float64) -> Codes:
    op = approx.prepare(w.to(dtype), Metric.plain()).fit(1, dtype=dtype, rng=generator(), spectral=False).op
    assert isinstance(op, Codes)
    return op


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [1, 4, 5, 128])
def test_every_entry_is_at_the_nearest_step_of_its_group(group: int, bits: int, dtype: torch.dtype) -> None:
    """Of all codes by trying each, with scale and zero as they are stored; zero is one of the steps, and stays zero."""
    for name, w in GROUPED.items():
        w = w.to(dtype).clamp(-3e4, 3e4).clone()
        if name in ("gaussian", "below zero", "above zero"):
            w[0, 0] = 0.0
        op = rounded(w, RoundToNearest(bits, group), dtype)
        columns = np.arange(w.shape[1]) // group
        scale, zero = float64(op.scale)[:, columns], float64(op.zero)[:, columns]
        steps = np.arange(2**bits)[:, None, None]
        nearest = np.abs(float64(w) - scale * (steps - zero)).min(0)
        found = np.abs(float64(w) - product(op).astype(np.float64))
        np.testing.assert_allclose(found, nearest, rtol=1e-12, atol=1e-13 * np.abs(float64(w)).max())
        assert bool((op.dense()[w == 0] == 0).all())
        assert bool(((zero >= 0) & (zero <= 2**bits - 1) & (zero == np.round(zero))).all())
        # The steps reach as far as the entries, but for the rounding of the scale to its dtype.
        grain = torch.finfo(dtype).eps * 2**bits
        for start in range(0, w.shape[1], group):
            part = float64(w)[:, start : start + group]
            reach = np.maximum(part.max(1), 0) - np.minimum(part.min(1), 0)
            wanted = reach / (2**bits - 1)
            smallest = torch.finfo(dtype).smallest_normal
            np.testing.assert_allclose(scale[:, start], wanted, rtol=torch.finfo(dtype).eps, atol=smallest)
            assert bool((found[:, start : start + group].max(1) <= wanted * (0.5 + grain) + smallest).all())


def test_ends_of_the_range_have_the_ends_of_the_codes() -> None:
    w = gaussian(6, 40, 3)
    for bits in (2, 3, 4, 8):
        op = rounded(w, RoundToNearest(bits, 20))
        codes = product(replace(op, scale=torch.ones_like(op.scale), zero=torch.zeros_like(op.zero))).reshape(12, 20)
        assert codes.min(1).tolist() == [0] * 12
        assert codes.max(1).tolist() == [2**bits - 1] * 12
    for sign in (1, -1):  # with zero at one end the other one is met
        dense = rounded(sign * w.abs(), RoundToNearest(3, 40)).dense()
        torch.testing.assert_close(dense.abs().amax(1), w.abs().amax(1), rtol=1e-15, atol=0)


def test_a_group_is_no_wider_than_the_row() -> None:
    w = gaussian(3, 10)
    wide, exact = rounded(w, RoundToNearest(4, 128)), rounded(w, RoundToNearest(4, 10))
    assert wide.group == 128
    assert wide.scale.shape == (3, 1)
    assert torch.equal(wide.dense(), exact.dense())
    assert RoundToNearest(4, 128).slot(3, 10, 2).listed == (3 * (5 + 2 * 2),)
    assert RoundToNearest(3, 4).slot(3, 10, 4).listed == (3 * (4 + 3 * 2 * 4),)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_range_beyond_the_type_is_met_as_far_as_it_goes(bits: int) -> None:
    w = torch.tensor([[-6e4, 6e4, 0.0, 5.0]], dtype=torch.float16)
    op = rounded(w, RoundToNearest(bits, 4), torch.float16)
    assert bool(torch.isfinite(op.dense()).all())
    assert float((w - op.dense()).abs().max()) <= 6e4


NF4 = """-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0"""  # as published (QLoRA, appendix E)


def test_normal_levels_are_the_published_ones() -> None:
    published = np.array([float(level) for level in NF4.split(",")])
    np.testing.assert_allclose(NormalFloat().levels.numpy(), published, atol=2e-7)
    for bits in (2, 3, 4, 8):  # and as the published code makes them, by SciPy
        above = norm.ppf(np.linspace(0.9677083, 0.5, 2 ** (bits - 1) + 1)[:-1])
        below = -norm.ppf(np.linspace(0.9677083, 0.5, 2 ** (bits - 1))[:-1])
        known = np.sort([*above, 0.0, *below])
        np.testing.assert_allclose(NormalFloat(bits).levels.numpy(), known / known.max(), atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [1, 4, 5, 64])
def test_every_entry_is_at_the_nearest_level_of_its_group(group: int, bits: int, dtype: torch.dtype) -> None:
    """Of all levels by trying each, as they are stored, times the largest magnitude of the group."""
    for w in GROUPED.values():
        w = w.to(dtype).clamp(-3e4, 3e4).clone()
        op = NormalFloat(bits, group).prepare(w, Metric.plain()).fit(1, dtype=dtype, rng=generator(), spectral=False).op
        assert isinstance(op, Levels)
        for start in range(0, w.shape[1], group):
            part = float64(w)[:, start : start + group]
            np.testing.assert_array_equal(float64(op.scale)[:, start // group], np.abs(part).max(1))
        scale = float64(op.scale)[:, np.arange(w.shape[1]) // group]
        nearest = np.abs(float64(w) - scale * float64(op.levels)[:, None, None]).min(0)
        found = np.abs(float64(w) - product(op).astype(np.float64))
        np.testing.assert_allclose(found, nearest, rtol=1e-12, atol=1e-13 * np.abs(float64(w)).max())
        assert bool((op.dense()[w == 0] == 0).all())


def test_normal_codes_and_their_bytes_by_hand() -> None:
    w = torch.tensor([[2.0, -1.1, 0.3, 0.4, -2.0]])
    op = NormalFloat(2, 4).prepare(w, Metric.plain()).fit(1, dtype=w.dtype, rng=generator(), spectral=False).op
    assert isinstance(op, Levels)
    assert op.scale.tolist() == [[2.0, 2.0]]
    # Shares 1, -0.55, 0.15, 0.2 and -1 of the levels -1, 0, 0.338, 1: ends of half ways are -0.5, 0.169 and 0.669.
    assert op.codes.tolist() == [[0b10_01_00_11, 0b00]]
    assert NormalFloat().slot(6, 192, 4).listed == (6 * (96 + 3 * 4) + 64,)
    assert NormalFloat().slot(3, 100, 2).listed == (3 * (50 + 2 * 2) + 32,)


def test_normal_levels_refuse_what_codes_cannot_have() -> None:
    for bits, group in ((1, 4), (5, 4), (4, 0)):
        with pytest.raises(ValueError, match="normal levels take 2, 3, 4, 8 bits in groups of at least 1 column"):
            NormalFloat(bits, group)
    for offset in (0.5, 1.0):
        with pytest.raises(ValueError, match="is a share of the normal distribution, above 1/2 and below 1"):
            NormalFloat(offset=offset)


def test_rounding_refuses_what_codes_cannot_have() -> None:
    for bits, group in ((5, 4), (0, 4), (16, 4), (4, 0), (4, -1)):
        with pytest.raises(ValueError, match="codes take 1, 2, 3, 4, 8 bits in groups of at least 1 column"):
            RoundToNearest(bits, group)


# ---- a branch beside damage -----------------------------------------------------------------------------------------


def damaged(approx: Compensated, w: Tensor, metric: Metric) -> tuple[Sum, np.ndarray, np.ndarray]:
    """The sum at half of the ranks, what its first term leaves out and its branch, by NumPy."""
    rank = min(w.shape) // 2
    op = approx.prepare(w, metric).fit(rank, dtype=w.dtype, rng=generator(), spectral=False).op
    assert isinstance(op, Sum)
    return op, float64(w) - product(op.terms[0]).astype(np.float64), product(op.terms[1]).astype(np.float64)


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (14, 14)])
@pytest.mark.parametrize("key", [key for key in APPROXIMATORS if "beside" in key])
def test_the_branch_is_that_of_the_paper(key: str, shape: tuple[int, int]) -> None:
    """EoRA: ``W - X`` projected into the inputs' space, truncated there and brought back by an inverse.

    Its error over the inputs is the tail of the singular values there, and at most that of plain truncation.
    """
    approx = APPROXIMATORS[key]
    assert isinstance(approx, Compensated)
    w, x = gaussian(*shape, 4), gaussian(200, shape[1], 5) @ (gaussian(shape[1], shape[1], 6) / 3)
    metric = Metric.gram("inputs", x.T @ x, len(x))
    op, missing, branch = damaged(approx, w, metric)
    rank = min(shape) // 2
    root = np.linalg.cholesky(float64(x.T @ x) / len(x))
    u, s, v = np.linalg.svd(missing @ root, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ np.linalg.solve(root.T, v[:rank].T).T
    np.testing.assert_allclose(branch, expected, atol=1e-9 * np.abs(expected).max())
    fit = approx.prepare(w, metric).fit(rank, dtype=w.dtype, rng=generator(), spectral=True)
    outputs = np.linalg.norm((missing - branch) @ float64(x).T) / np.sqrt(len(x))
    tail = np.linalg.norm(s[rank:])
    assert fit.bounds[0].achieved == pytest.approx(outputs, rel=1e-9)
    assert outputs == pytest.approx(tail, rel=1e-9)
    assert fit.bounds[0].lower == pytest.approx(tail, rel=1e-9)
    u, s, v = np.linalg.svd(missing, full_matrices=False)
    plain = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert outputs < 0.999 * np.linalg.norm((missing - plain) @ float64(x).T) / np.sqrt(len(x))
    assert branch.shape == shape == op.shape


@pytest.mark.parametrize("key", [key for key in APPROXIMATORS if "beside" in key])
def test_a_full_branch_restores_the_outputs(key: str) -> None:
    approx = APPROXIMATORS[key]
    for w in (gaussian(8, 12), gaussian(12, 8)):
        for metric in metrics_for(w.shape[1]).values():
            fit = approx.prepare(w, metric).fit(8, dtype=w.dtype, rng=generator(), spectral=False)
            error = metric.norm(torch.from_numpy(float64(w) - product(fit.op).astype(np.float64)))
            assert error <= 1e-7 * metric.norm(w)
            assert error <= fit.bounds[0].upper


def test_what_rounding_does_to_damage_counts_as_the_metric_has_it() -> None:
    w, approx = gaussian(8, 8), APPROXIMATORS["branch beside codes"]
    found = []
    for scale in (1e-6, 1.0, 1e6):
        metric = Metric("scaled", torch.full((8,), scale, dtype=torch.float64))
        own, plain, spectral = approx.prepare(w, metric).fit(5, dtype=w.dtype, rng=generator(), spectral=True).bounds
        found.append((own.upper - own.achieved) / scale)
        assert all(0 < bound.upper - bound.achieved < 1e-13 for bound in (plain, spectral))
    assert max(found) < 3 * min(found) < 1e-13


def test_damage_takes_the_same_bytes_at_every_rank() -> None:
    """The largest size within the share, and the smallest where none is."""
    w = gaussian(16, 32).to(torch.float32)
    for damage, keep, size in (
        (Prune(OfGroup(4)), 0.6, 2),
        (Prune(OfGroup(4)), 0.53, 1),
        (Prune(OfGroup(4)), 0.01, 1),
        (Prune(PerRow()), 0.5, 15),
        (RoundToNearest(4, 32), 0.001, 1),
    ):
        approx = Compensated(damage, keep=keep)
        alone = damage.prepare(w, Metric.plain()).fit(size, dtype=w.dtype, rng=generator(), spectral=False).op
        slot = approx.slot(16, 32, 4)
        assert len(slot.listed) == 16
        for rank in (1, 2, 16):
            op = approx.prepare(w, Metric.plain()).fit(rank, dtype=w.dtype, rng=generator(), spectral=False).op
            assert isinstance(op, Sum)
            assert describe(op.terms[0]) == describe(alone)
            assert torch.equal(op.terms[0].dense(), alone.dense())
            assert slot.stored(rank) == nbytes(alone) + 4 * rank * (16 + 32)


def test_what_makes_up_for_damage_has_the_dtype_of_the_matrix() -> None:
    prepared = Compensated(Prune()).prepare(gaussian(4, 6), Metric.plain())
    with pytest.raises(ValueError, match=r"in the dtype of the matrix, torch\.float64, not in torch\.float32"):
        prepared.fit(1, dtype=torch.float32, rng=generator(), spectral=False)
    for keep in (0.0, 1.0, -0.1, 2.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            Compensated(Prune(), keep=keep)


# ---- columns and rows -----------------------------------------------------------------------------------------------


def deim(vectors: np.ndarray) -> list[int]:
    """Sorensen and Embree's algorithm 1: where each vector is least met by interpolating it at the places before."""
    places = [int(np.abs(vectors[:, 0]).argmax())]
    for j in range(1, vectors.shape[1]):
        weights = np.linalg.solve(vectors[places, :j], vectors[places, j])
        places.append(int(np.abs(vectors[:, j] - vectors[:, :j] @ weights).argmax()))
    return places


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (24, 24)])
@pytest.mark.parametrize("form", ["plain", "diagonal"])
def test_columns_and_rows_are_copies_where_deim_puts_them(shape: tuple[int, int], form: str) -> None:
    """By DEIM in NumPy on the matrix in the metric; the spectral error in the plain one is at most ``p + q`` times the next value."""
    decay = torch.arange(1, shape[1] + 1, dtype=torch.float64) ** -0.8
    w = gaussian(*shape, 7) * decay
    metric = metrics_for(shape[1])[form]
    for rank in (1, 3, 8):
        fit = ColumnsRows().prepare(w, metric).fit(rank, dtype=w.dtype, rng=generator(), spectral=True)
        assert isinstance(fit.op, Product)
        columns, core, rows = (float64(factor.dense()) for factor in fit.op.factors)
        u, s, v = np.linalg.svd(whitened(w, metric))
        i, j = deim(u[:, :rank]), deim(v[:rank].T)
        assert np.array_equal(columns, float64(w)[:, j])
        assert np.array_equal(rows, float64(w)[i])
        root = np.ones(shape[1]) if metric.root is None else float64(metric.root)
        best = np.linalg.pinv(columns) @ (float64(w) * root) @ np.linalg.pinv(rows * root)
        np.testing.assert_allclose(core, best, atol=1e-8 * np.abs(best).max())
        error = float64(w) - columns @ core @ rows
        assert fit.bounds[0].achieved == pytest.approx(np.linalg.norm(error * root), rel=1e-9)
        if form == "plain":
            p = np.linalg.norm(np.linalg.inv(u[i, :rank]), 2)
            q = np.linalg.norm(np.linalg.inv(v[:rank, j]), 2)
            assert s[rank] * (1 - 1e-12) <= np.linalg.norm(error, 2) <= (p + q) * s[rank]


def test_columns_and_rows_are_exact_up_to_the_rank() -> None:
    w = MATRICES["rank-deficient"]()
    for metric in metrics_for(w.shape[1]).values():
        for rank in (4, 6):
            fit = ColumnsRows().prepare(w, metric).fit(rank, dtype=w.dtype, rng=generator(), spectral=False)
            assert fit.bounds[0].upper <= 1e-6 * metric.norm(w)
        below = ColumnsRows().prepare(w, metric).fit(3, dtype=w.dtype, rng=generator(), spectral=False)
        assert below.bounds[-1].lower > 1e-3 * float(w.norm())


def test_columns_and_rows_take_the_bytes_of_three_matrices() -> None:
    slot = ColumnsRows().slot(20, 30, 2)
    assert slot.listed[:3] == (2 * 51, 2 * 104, 2 * 159)
    assert len(slot.listed) == 20
    for rank in range(1, 21):
        op = ColumnsRows().form(20, 30, rank, torch.bfloat16)
        assert sum(tensor.numel() for tensor in op.tensors().values()) == 20 * rank + rank**2 + 30 * rank
