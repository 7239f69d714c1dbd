"""Where adapters begin, against the formulas of their papers in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from eckart.adapters.base import LessAll, LessTail
from eckart.adapters.draws import Gaussian, Kaiming, SparseRows
from eckart.adapters.forms import Blocks, Cored, Directed, Nested, Pair, Spectral, Train, Whole
from eckart.adapters.pick import Bottom, Crossed, Ends, Top
from eckart.adapters.seed import Pool, Seed, Seen
from eckart.adapters.sources import (
    Crossing,
    Drawn,
    InCommon,
    OfBlocks,
    OfFirstStep,
    OfGradient,
    OfInputs,
    OfSemiNonnegative,
    OfTrain,
    OfWeight,
    OrthogonalTriangular,
    digits,
)
from eckart.adapters.sources.spectral import components, trailing_span
from eckart.adapters.split import Even, Levelled, OneSided, Outer, ToTheRight
from eckart.adapters.start import Start
from eckart.adapters.width import Counted, PartOf
from eckart.linalg import DEIM, Rarest
from eckart.metric import Metric
from eckart.stats import Covariance, Gram, Moments, Plain

SHAPES = [(24, 40), (40, 24), (32, 32), (5, 1)]


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def weight(shape: tuple[int, int], seed: int = 1) -> Tensor:
    """A matrix with singular values that fall."""
    m, n = shape
    k = min(m, n)
    left = torch.linalg.qr(torch.randn(m, k, generator=rng(seed), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, k, generator=rng(seed + 1), dtype=torch.float64)).Q
    return (left * torch.arange(1, k + 1, dtype=torch.float64) ** -0.7) @ right.T


def inputs(width: int, count: int = 200) -> Tensor:
    """Correlated inputs with a mean, one a row."""
    mixing = torch.randn(width, width, generator=rng(5), dtype=torch.float64)
    return torch.randn(count, width, generator=rng(6), dtype=torch.float64) @ mixing + 0.5


def moments_of(x: Tensor) -> Moments:
    found = Moments.zeros(x.shape[1], gram=True)
    found.add(x)
    return found


def product(seed: Seed) -> np.ndarray[Any, Any]:
    assert seed.left is not None
    assert seed.right is not None
    middle = torch.eye(len(seed.right), dtype=torch.float64)
    if seed.middle is not None:
        middle = seed.middle.diag()
    if seed.core is not None:
        middle = seed.core
    return (seed.left @ middle @ seed.right).numpy()


def picked(w: np.ndarray[Any, Any], numbers: list[int]) -> np.ndarray[Any, Any]:
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    return (u[:, numbers] * s[numbers]) @ vh[numbers]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("split", [Even(), ToTheRight()])
def test_components_of_the_weight_are_those_of_lapack(shape: tuple[int, int], scale: float, split: Any) -> None:
    w = weight(shape)
    k = min(shape)
    rank = min(4, k)
    for pick, numbers in ((Top(), [*range(rank)]), (Bottom(), [*range(k - rank, k)])):
        seed = Start(OfWeight(accuracy=0.0), pick, split)(Seen(w), rank, scale, rng())
        assert np.allclose(scale * product(seed), picked(w.numpy(), numbers), atol=1e-10)
        assert seed.left is not None
        assert seed.right is not None
        lengths = seed.left.square().sum(0), seed.right.square().sum(1)
        if split == Even():
            assert torch.allclose(*lengths)  # the scale of an update lies in both alike
        else:
            assert torch.allclose(lengths[0], torch.ones(rank, dtype=torch.float64))


def test_both_ends_are_half_and_half() -> None:
    w = weight((24, 40))
    seed = Start(OfWeight(accuracy=0.0), Ends())(Seen(w), 5, 1.0, rng())
    assert np.allclose(product(seed), picked(w.numpy(), [0, 1, 2, 22, 23]), atol=1e-10)


def test_values_that_are_zero_leave_zeros() -> None:
    w = torch.zeros(6, 5)
    w[0, 0] = 2.0
    seed = Start(OfWeight(accuracy=0.0), split=Even())(Seen(w), 3, 1.0, rng())
    assert np.allclose(product(seed), w.numpy(), atol=1e-7)
    assert seed.right is not None
    assert bool(torch.isfinite(seed.right).all())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("pick", [Top(), Bottom()])
def test_in_the_metric_of_a_covariance_vectors_go_back_through_its_inverse(shape: tuple[int, int], pick: Any) -> None:
    """CorDA's formula: ``U sqrt(S)`` and ``sqrt(S) V^T C^-1`` from the SVD of ``W C``."""
    w, x = weight(shape), inputs(shape[1])
    c = (x.T @ x / len(x)).numpy()
    c = c + 0.01 * np.mean(np.diag(c)) * np.eye(len(c))
    u, s, vh = np.linalg.svd(w.numpy() @ c, full_matrices=False)
    numbers = [*range(4)] if pick == Top() else [*range(len(s) - 4, len(s))]
    expected = [u[:, numbers] * np.sqrt(s[numbers]), np.sqrt(s[numbers])[:, None] * vh[numbers] @ np.linalg.inv(c)]
    start = Start(OfWeight(Covariance(0.01), accuracy=0.0), pick, Even())
    seed = start(Seen(w, moments_of(x)), 4, 1.0, rng())
    assert seed.left is not None
    assert seed.right is not None
    signs = np.sign((seed.left.numpy() * expected[0]).sum(0))
    assert np.allclose(seed.left.numpy(), expected[0] * signs, rtol=1e-7, atol=1e-9)
    assert np.allclose(seed.right.numpy(), expected[1] * signs[:, None], rtol=1e-6, atol=1e-9)


def test_a_covariance_that_is_the_identity_changes_nothing() -> None:
    w = weight((24, 40))
    seen = Moments.zeros(40, gram=True)
    seen.add(torch.eye(40) * 40**0.5)
    plain = Start(OfWeight(Plain(), accuracy=0.0))(Seen(w), 4, 1.0, rng())
    same = Start(OfWeight(Covariance(0.0), accuracy=0.0))(Seen(w, seen), 4, 1.0, rng())
    for one, other in ((plain.left, same.left), (plain.middle, same.middle), (plain.right, same.right)):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-9)


def test_what_is_left_out_in_a_metric_is_least_there() -> None:
    w, x = weight((24, 40)), inputs(40)
    seen = Seen(w, moments_of(x))
    errors = {}
    for rule in (Plain(), Gram()):
        seed = Start(OfWeight(rule, accuracy=0.0))(seen, 4, 1.0, rng())
        errors[type(rule)] = float(np.linalg.norm((w.numpy() - product(seed)) @ x.T.numpy()))
    assert errors[Gram] < 0.95 * errors[Plain]
    left_out = np.linalg.svd((w @ x.T).numpy(), compute_uv=False)[4:]
    assert errors[Gram] == pytest.approx(float(np.linalg.norm(left_out)), rel=1e-6)


def test_directions_of_inputs_are_principal_components() -> None:
    x = inputs(20)
    found = OfInputs()(Seen(torch.zeros(3, 20), moments_of(x)), Top(), 4, rng()).right
    centred = x.numpy() - x.numpy().mean(0)
    expected = torch.from_numpy(np.linalg.svd(centred, full_matrices=False)[2][:4].copy())
    assert found is not None
    assert torch.allclose((found @ expected.T).abs(), torch.eye(4, dtype=torch.float64), atol=1e-8)
    whole = OfInputs(centred=False)(Seen(torch.zeros(3, 20), moments_of(x)), Top(), 4, rng()).right
    right = torch.linalg.svd(x, full_matrices=False).Vh[:4]
    assert whole is not None
    assert torch.allclose((whole @ right.T).abs(), torch.eye(4, dtype=torch.float64), atol=1e-8)
    assert not torch.allclose((whole @ expected.T).abs(), torch.eye(4, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_first_step_from_the_gradient_is_the_best_of_twice_the_rank(shape: tuple[int, int]) -> None:
    """LoRA-GA: from ``c U[r:2r]`` and ``c V[:r]`` one step of gradient descent moves by ``-eta s^2 c^2`` times G truncated to 2r."""
    g = weight(shape, 7)
    rank, eta, s = 3, 0.1, 1.7
    seed = Start(OfGradient(accuracy=0.0), Crossed(), Levelled(16.0))(
        Seen(torch.zeros(shape), gradient=g), rank, s, rng()
    )
    left, right = seed.left, seed.right
    assert left is not None
    assert right is not None
    c = shape[0] ** 0.25 / 4
    step_left, step_right = -eta * s * (g @ right.T), -eta * s * (left.T @ g)
    moved = s * (step_left @ right + left @ step_right)
    best = picked(g.numpy(), [*range(2 * rank)])
    assert np.allclose(moved.numpy(), -eta * s**2 * c**2 * best, atol=1e-10)


def test_the_start_from_the_first_step_is_that_step_truncated() -> None:
    g = weight((24, 40), 7)
    g[3, 5] = 0.0
    seed = Start(OfFirstStep(1e-3, accuracy=0.0))(Seen(torch.zeros(24, 40), gradient=g), 6, 2.0, rng())
    assert np.allclose(2.0 * product(seed), picked(-1e-3 * np.sign(g.numpy()), [*range(6)]), atol=1e-12)
    assert seed.left is not None
    assert torch.allclose(seed.left.T @ seed.left, torch.eye(6, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_q_and_r_are_the_projection_onto_the_first_columns(shape: tuple[int, int]) -> None:
    w = weight(shape)
    rank = min(4, *shape)
    seed = Start(OrthogonalTriangular())(Seen(w), rank, 3.0, rng())
    assert seed.left is not None
    assert torch.allclose(seed.left.T @ seed.left, torch.eye(rank, dtype=torch.float64), atol=1e-10)
    columns = w[:, :rank].numpy()
    assert np.allclose(product(seed), columns @ np.linalg.pinv(columns) @ w.numpy(), atol=1e-9)


def test_columns_and_rows_around_their_crossing_are_all_of_a_matrix_of_that_rank() -> None:
    w = weight((24, 6)) @ weight((6, 40))
    seed = Start(Crossing(DEIM(), DEIM()))(Seen(w), 6, 2.0, rng())
    assert np.allclose(2.0 * product(seed), w.numpy(), atol=1e-8)
    assert seed.left is not None
    assert seed.right is not None
    assert all(any(torch.equal(column, other) for other in w.T) for column in seed.left.T)
    assert all(any(torch.equal(row, other) for other in w) for row in seed.right)
    block = Crossing(DEIM(), DEIM(), inverted=False)(Seen(w), Top(), 6, rng()).core
    assert seed.core is not None
    assert block is not None
    assert torch.allclose(2.0 * seed.core @ block, torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_rare_columns_are_the_small_ones() -> None:
    sizes = torch.cat([torch.full((50,), 0.1), torch.full((50,), 10.0)])
    shown = torch.ones(3, 100) * sizes
    drawn = torch.cat([Rarest(floor=1e-9)(shown, 10, rng(seed)) for seed in range(20)])
    assert int((drawn < 50).sum()) >= 199
    even = torch.cat([Rarest(floor=10.0)(shown, 10, rng(seed)) for seed in range(50)])
    assert 200 < int((even < 50).sum()) < 300
    assert len(Rarest()(torch.zeros(2, 5), 5, rng()).unique()) == 5
    odds = [int(Rarest(floor=0.0)(torch.tensor([[1.0, 2.0]]), 1, rng(seed))) for seed in range(4000)]
    assert sum(odds) / 4000 == pytest.approx(1 / 5, abs=0.025)  # shares of squares 1 and 4


def test_draws_have_the_spread_they_say() -> None:
    uniform = Kaiming()((300, 200), rng())
    assert float(uniform.abs().max()) <= 200**-0.5
    assert float(uniform.std()) == pytest.approx((3 * 200) ** -0.5, rel=0.02)
    assert float(Kaiming(0.0)((300, 200), rng()).abs().max()) == pytest.approx((6 / 200) ** 0.5, rel=1e-3)
    assert float(Gaussian(0.3)((300, 200), rng()).std()) == pytest.approx(0.3, rel=0.02)
    sparse = SparseRows(0.1)((40, 200), rng())
    assert set((sparse != 0).sum(1).tolist()) == {20}
    assert float(sparse[sparse != 0].std()) == pytest.approx(1 / 40, rel=0.1)
    assert int((SparseRows(0.001)((4, 20), rng()) != 0).sum()) == 4


def test_what_is_in_common_is_cut_from_one_draw() -> None:
    pool = Pool((30, 50), rng())
    source = InCommon(left=Kaiming(0.0), right=Kaiming(0.0))
    big, small = (source(Seen(torch.zeros(shape), pool=pool), Top(), 8, rng(9)) for shape in ((30, 50), (10, 20)))
    assert big.left is not None
    assert small.left is not None
    assert big.right is not None
    assert small.right is not None
    assert torch.equal(big.left[:10], small.left)
    assert torch.equal(big.right[:, :20], small.right)
    assert float(big.right.abs().max()) == pytest.approx((6 / 50) ** 0.5, rel=0.02)
    assert float(big.left.abs().max()) == pytest.approx((6 / 8) ** 0.5, rel=0.02)


def test_a_train_is_the_weight_where_its_bonds_are_wide_enough() -> None:
    """By contraction with einsum; narrower, it is within the squares that the unfoldings leave."""
    w = weight((24, 40))
    rows, columns = digits(24, 3), digits(40, 3)
    assert (rows, columns) == ((2, 3, 4), (2, 4, 5))
    for rank, exact in ((100, True), (5, False)):
        cores = Start(OfTrain(3))(Seen(w), rank, 2.0, rng()).cores
        whole = 2.0 * torch.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(24, 40)
        off = float((whole - w).norm())
        assert (off < 1e-10) == exact
        if not exact:
            tensor = w.reshape(2, 3, 4, 2, 4, 5).permute(0, 3, 1, 4, 2, 5)
            left = [torch.linalg.svdvals(tensor.reshape(size, -1))[rank:].square().sum() for size in (4, 48)]
            assert float(max(left)) ** 0.5 - 1e-9 <= off <= float(sum(left)) ** 0.5 + 1e-9
        sizes = [float(core.norm()) for core in cores]
        assert max(sizes) < 1.5 * min(sizes) or rank == 100  # the scale is spread evenly
    assert digits(7, 3) == (1, 1, 7)
    assert digits(1, 2) == (1, 1)


def test_a_tail_is_what_a_truncation_leaves_out() -> None:
    w = weight((24, 40))
    taken = LessTail()(w, None, 5, rng())  # type: ignore[arg-type]
    assert taken is not None
    assert np.allclose((w - taken.dense()).numpy(), picked(w.numpy(), [*range(19)]), atol=1e-6)


def test_what_stands_in_the_place_of_a_weight_begins_near_it() -> None:
    for form in (Pair(), Directed(Pair())):
        LessAll().check(Start(OfWeight(), split=Even()), form)
    LessAll().check(Start(OfTrain(2)), Train(2))
    for start, form in (
        (Start(OfWeight(), split=OneSided()), Pair()),  # the left factor is zero
        (Start(OfWeight(), split=Outer()), Cored()),  # what is between is zero
        (Start(OfWeight(), split=Levelled()), Pair()),  # the values are gone
        (Start(OfWeight(), split=Even()), Nested(2)),
        (Start(Drawn(left=Kaiming(), right=Kaiming())), Pair()),
        (Start(OfGradient(), split=Even()), Pair()),
        (Start(OfFirstStep(1e-3), split=Even()), Pair()),
        (Start(OfWeight(), split=Even()), Whole()),
    ):
        with pytest.raises(ValueError, match="nothing is left of the weight"):
            LessAll().check(start, form)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="Drawn makes has no order to pick Bottom from"):
        Start(Drawn(right=Kaiming()), Bottom())
    for source in (
        InCommon(Kaiming(), Kaiming()),
        Crossing(DEIM(), DEIM()),
        OfTrain(2),
        OfSemiNonnegative(),
        OfBlocks(4),
    ):
        with pytest.raises(ValueError, match="has no order to pick Bottom from"):
            Start(source, Bottom())
    with pytest.raises(ValueError, match="there is no left to split"):
        Start(Drawn(right=Kaiming()), split=Even())
    with pytest.raises(ValueError, match="12 components of a matrix that has 10"):
        Start(OfGradient(), Crossed(), Levelled())(
            Seen(torch.zeros(10, 12), gradient=torch.ones(10, 12)), 6, 1.0, rng()
        )
    with pytest.raises(ValueError, match="rank 3 is no multiple of 2 blocks"):
        PartOf(2)(3, (8, 8))
    with pytest.raises(ValueError, match="0 of them: give at least 1"):
        Counted()(0, (8, 8))
    for form, start, sentence in (
        (Pair(), Start(OfWeight()), "Pair has no place for the middle part of the start"),
        (
            Pair(),
            Start(Drawn(left=Kaiming())),
            "Pair begins with a right part, which the start does not make: it makes left",
        ),
        (Nested(2), Start(OfInputs()), "Nested begins with a left part"),
        (Spectral(), Start(OfInputs()), "a Spectral form has no gradient"),
        (Cored(), Start(OfWeight(), split=OneSided()), "a Cored form has no gradient"),
        (Blocks(), Start(Drawn()), "Blocks begins with a places part, which the start does not make: it makes nothing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            form.check(start.gives)
    Cored().check(Start(OfWeight(), split=Outer()).gives)
    with pytest.raises(ValueError, match="inner rank of 5 within a rank of 4"):
        Nested(5).init(Seed(left=torch.zeros(6, 4), right=torch.zeros(4, 6)), torch.zeros(6, 6), 4, rng())


# ---- the ends of a spectrum -------------------------------------------------------------------------------------------


def graded(m: int, n: int, orders: float) -> Tensor:
    """A float64 matrix whose values fall evenly by so many orders of ten."""
    k = min(m, n)
    u, v = (torch.linalg.qr(torch.randn(side, k, generator=rng(), dtype=torch.float64)).Q for side in (m, n))
    return (u * torch.logspace(0, -orders, k, dtype=torch.float64)) @ v.T


@pytest.mark.parametrize("shape", [(40, 40), (70, 40), (40, 70)])
@pytest.mark.parametrize("orders", [0.5, 3.0, 5.0])
def test_the_smallest_components_are_lapacks_without_a_whole_decomposition(
    shape: tuple[int, int], orders: float
) -> None:
    a = graded(*shape, orders)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    found = trailing_span(a, 5)
    assert found is not None
    span, inner = found
    assert torch.allclose(inner, span.T @ a, atol=1e-12)
    assert float((u[:, -5:].T @ span).square().sum()) == pytest.approx(5, abs=1e-9)
    seed = components(a, Metric.plain(), Bottom(), 5, 0.0, rng())
    assert seed.middle is not None
    assert torch.allclose(seed.middle, s[-5:], rtol=1e-7, atol=0)
    made = (seed.left * seed.middle) @ seed.right
    assert float((made - (u[:, -5:] * s[-5:]) @ vh[-5:]).norm() / s[-5:].norm()) < 1e-5


@pytest.mark.parametrize("shape", [(40, 40), (70, 40), (40, 70)])
@pytest.mark.parametrize("orders", [12.0, 40.0, 300.0])
def test_near_a_singular_matrix_the_smallest_components_are_those_of_a_whole_decomposition(
    shape: tuple[int, int], orders: float
) -> None:
    """Values below rounding are noise, whichever way; what is asked for is that nothing above it comes in."""
    a = graded(*shape, orders)
    a[:, 3] = a[:, 4]
    seed = components(a, Metric.plain(), Bottom(), 5, 0.0, rng())
    kept = torch.linalg.norm((seed.left * seed.middle) @ seed.right)
    assert float(kept) < 2 * float(torch.linalg.svdvals(a)[-5:].norm()) + 1e-13
    assert torch.allclose(seed.left.T @ seed.left, torch.eye(5, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("orders", [0.5, 3.0, 9.0, 20.0])
def test_exact_largest_components_are_lapacks(orders: float) -> None:
    """By a Gram matrix where that tells them, else not."""
    a = graded(90, 60, orders)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    seed = components(a, Metric.plain(), Top(), 20, 0.0, rng())
    reliable = s[:20] > 1e-13
    assert torch.allclose(seed.middle[reliable], s[:20][reliable], rtol=1e-8 if orders < 10 else 1e-2, atol=1e-15)
    best = (u[:, :20] * s[:20]) @ vh[:20]
    assert float(((seed.left * seed.middle) @ seed.right - best).norm()) < 1e-7 * float(s[20:].norm()) + 1e-14
