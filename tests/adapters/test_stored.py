"""Rounded bases under adapters, against alternating projections in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from market import generator
from scipy.stats import norm
from torch import Tensor

from eckart.adapters.base import LessStart, LessTail, Untouched
from eckart.adapters.forms import Directed, Pair
from eckart.adapters.outputs import Divergence
from eckart.adapters.seed import Seen
from eckart.adapters.sources import OfWeight
from eckart.adapters.split import Even
from eckart.adapters.start import Start
from eckart.adapters.stored import AsItIs, Rounded, RoundedFirst, Stored
from eckart.approx import NormalFloat, RoundToNearest
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import Begun, begin
from eckart.model.compression import Paper
from eckart.operator import Levels, nbytes
from eckart.recipes.adapters.pairs import RANDOM, ba_lora

RANK = 4
LESS_START = LessStart()
Array = np.ndarray[Any, Any]


def planted(m: int = 40, n: int = 130, strength: float = 6.0) -> Tensor:
    """A few strong directions above noise, and an entry that is far from all others."""
    rng = generator(3)
    strong = torch.randn(m, RANK, generator=rng) @ torch.randn(RANK, n, generator=rng) * strength / m**0.5
    w = strong + torch.randn(m, n, generator=rng)
    w[3, n // 2] = 9.0
    return w


def nf(w: Array, bits: int) -> Array:
    """Normal levels of blocks of 64 in a row, by SciPy and by trying every level."""
    above = norm.ppf(np.linspace(0.9677083, 0.5, 2 ** (bits - 1) + 1)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 2 ** (bits - 1))[:-1])
    levels = (np.sort([*above, 0.0, *below]) / above[0]).astype(np.float32).astype(np.float64)
    found = np.zeros_like(w)
    for start in range(0, w.shape[1], 64):
        part = w[:, start : start + 64]
        most = np.abs(part).max(1, keepdims=True).astype(np.float32).astype(np.float64)
        nearest = np.abs(part[..., None] / most[..., None] - levels).argmin(-1)
        found[:, start : start + 64] = most * levels[nearest]
    return found


def low_rank(w: Array) -> Array:
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vh[:RANK]


def made(stored: Stored, w: Tensor, base: Any = LESS_START, scale: float = 1.0) -> Begun:
    recipe = Adapt(
        paper=Paper("own", ""), form=Pair(), start=Start(OfWeight(accuracy=0.0), split=Even()), base=base, stored=stored
    )
    return begin(recipe, Seen(w), RANK, scale, generator())


def update(begun: Begun) -> Array:
    return begun.scale * (begun.params["left"].double() @ begun.params["right"].double()).numpy()


def left_out(w: Array, base: Array, start: Array) -> float:
    return float(np.linalg.norm(w - base - start) / np.linalg.norm(w))


def whole(begun: Begun) -> Array:
    assert begun.base is not None
    found: Array = begun.base.dense().double().numpy()
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_start_first_and_then_rounding(scale: float, sweeps: int, bits: int) -> None:
    """QPiSSA: ``A, B`` of W, base ``nf(W - B A)``; then of ``W - base``, and so on."""
    w = planted()
    wide = w.double().numpy()
    rest, errors = wide, []
    for _ in range(sweeps):
        start = low_rank(rest)
        base = nf(wide - start, bits)
        errors.append(left_out(wide, base, start))
        rest = wide - base
    begun = made(Rounded(NormalFloat(bits), sweeps, best=False), w, scale=scale)
    assert begun.taken is None
    assert left_out(base, whole(begun), np.zeros(1)) < 5e-3 * sweeps  # an entry may be rounded the other way
    assert left_out(start, update(begun), np.zeros(1)) < 5e-3 * sweeps
    assert begun.errors == pytest.approx(errors, rel=2e-3)
    assert left_out(wide, whole(begun), update(begun)) == pytest.approx(begun.errors[-1], rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_rounding_first_and_then_the_start(sweeps: int, bits: int) -> None:
    """LoftQ, as its code has it: ``Q = nf(W - B A)`` from ``B A = 0``, then ``B A`` of ``W - Q``."""
    w = planted()
    wide = w.double().numpy()
    rest, errors = wide, []
    for _ in range(sweeps):
        base = nf(rest, bits)
        start = low_rank(wide - base)
        errors.append(left_out(wide, base, start))
        rest = wide - start
    begun = made(RoundedFirst(NormalFloat(bits), sweeps, best=False), w)
    assert begun.errors == pytest.approx(errors, rel=2e-3)
    assert left_out(wide, whole(begun), update(begun)) == pytest.approx(begun.errors[-1], rel=1e-5)
    if sweeps == 1:  # later sweeps may round an entry the other way
        assert np.allclose(whole(begun), base, atol=1e-5)
        assert np.allclose(update(begun), start, atol=1e-4)
    # Of all starts under this base the last one is the best.
    tail = np.linalg.svd(wide - whole(begun), compute_uv=False)[RANK:]
    assert begun.errors[-1] == pytest.approx(float(np.linalg.norm(tail)) / np.linalg.norm(wide), rel=1e-5)


def test_rounding_what_a_start_leaves_is_nearer_than_rounding_the_weight() -> None:
    """Where few directions hold much: QPiSSA below LoftQ's start below QLoRA."""
    w = planted()
    plain = left_out(w.double().numpy(), nf(w.double().numpy(), 4), np.zeros(1))
    qlora = begin(
        Adapt(paper=Paper("own", ""), form=Pair(), start=RANDOM, stored=Rounded(NormalFloat())),
        Seen(w),
        RANK,
        1.0,
        generator(),
    )
    assert qlora.errors == pytest.approx((plain,), rel=1e-5)
    assert update(qlora).any() == np.False_
    pissa = made(Rounded(NormalFloat()), w).errors[0]
    loftq = made(RoundedFirst(NormalFloat()), w).errors
    assert pissa < 0.6 * plain
    assert loftq[0] < 0.95 * plain
    assert loftq[2] < loftq[1] < loftq[0]


@pytest.mark.parametrize("kind", [Rounded, RoundedFirst])
def test_errors_may_rise_and_the_best_sweep_is_kept(kind: Any) -> None:
    """At two bits, where a codebook is coarse."""
    rising = None
    for seed in range(40):
        w = torch.randn(12, 20, generator=generator(seed))
        errors = made(kind(NormalFloat(2), 8, best=False), w).errors
        assert len(errors) == 8
        if min(errors) < errors[-1] * (1 - 1e-3):
            rising = w
            break
    assert rising is not None
    best = made(kind(NormalFloat(2), 8), rising)
    last = made(kind(NormalFloat(2), 8, best=False), rising)
    assert best.errors == last.errors
    wide = rising.double().numpy()
    assert left_out(wide, whole(best), update(best)) == pytest.approx(min(best.errors), rel=1e-5)
    assert left_out(wide, whole(last), update(last)) == pytest.approx(last.errors[-1], rel=1e-5)
    assert min(best.errors) < last.errors[-1]


def test_only_codes_scales_and_levels_are_held() -> None:
    begun = made(Rounded(NormalFloat()), planted())
    assert isinstance(begun.base, Levels)
    assert nbytes(begun.base) == 40 * (65 + 3 * 4) + 16 * 4
    assert begun.base.scale.dtype == torch.float32
    half = made(Rounded(NormalFloat()), planted().to(torch.bfloat16))
    assert half.base is not None
    assert {t.dtype for t in half.base.tensors().values()} == {torch.bfloat16, torch.uint8}
    assert half.errors[0] == pytest.approx(begun.errors[0], rel=0.05)


def test_what_is_taken_decides_what_is_rounded() -> None:
    """Nothing, the start, or the smallest components; and any approximator rounds."""
    w = planted(20, 24)
    wide = w.double().numpy()
    u, s, vh = np.linalg.svd(wide, full_matrices=False)
    tail = (u[:, -RANK:] * s[-RANK:]) @ vh[-RANK:]
    wanted = {Untouched(): wide, LessStart(): wide - low_rank(wide), LessTail(): wide - tail}
    for base, expected in wanted.items():
        begun = made(Rounded(RoundToNearest(8, 8)), w, base)
        assert left_out(expected, whole(begun), np.zeros(1)) < 5e-3
    kept = made(AsItIs(), w)
    assert kept.base is None
    assert kept.taken is not None
    assert kept.errors == ()


def test_zero_is_rounded_to_zero() -> None:
    begun = made(RoundedFirst(NormalFloat()), torch.zeros(6, 8))
    assert not whole(begun).any()
    assert begun.errors == (0.0,) * 5


def test_parts_that_do_not_fit_are_refused() -> None:
    for kind in (Rounded, RoundedFirst):
        with pytest.raises(ValueError, match="0 sweeps of rounding and starting: take at least 1"):
            kind(NormalFloat(), 0)
    pair = ba_lora()
    with pytest.raises(ValueError, match="outputs can't be held to those of a model that is Rounded"):
        Adapt(
            paper=pair.paper,
            form=Directed(Pair()),
            start=RANDOM,
            stored=Rounded(NormalFloat()),
            outputs=(Divergence(1.0),),
        )
