"""What is kept of a bond, against formulas written out here, least squares and exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
import torch
from market import float64, gaussian
from torch import Tensor

from eckart.bonds import Projection
from eckart.bonds.choosing import Choice, Principal, Select
from eckart.bonds.correction import Correction, Refit, Tune
from eckart.bonds.crossing import Crossing, Writing
from eckart.bonds.depth import Blocks, LastBlocks, LeastInfluence, LeastLoss
from eckart.bonds.scores import (
    Activation,
    Condition,
    Gain,
    Interpolation,
    Leverage,
    Magnitude,
    RidgeLeverage,
    Score,
    SecondMoment,
    Similarity,
)
from eckart.stats import Need

SIZE = 7
INPUTS = gaussian(200, SIZE, 1) @ (torch.eye(SIZE, dtype=torch.float64) + 0.5 * gaussian(SIZE, SIZE, 2))
MOMENT = INPUTS.T @ INPUTS / len(INPUTS)
READ = gaussian(4, SIZE, 3)


def crossing(read: Tensor = READ, moment: Tensor | None = MOMENT, together: Tensor | None = None) -> Crossing:
    written = (Writing(gaussian(SIZE, 3, 4), torch.tensor([4.0, 1.0, 0.25])), Writing(gaussian(SIZE, 2, 5)))
    return Crossing(written, read, moment, together)


def lost(projection: Projection, read: Tensor = READ) -> float:
    """The mean squared error of what is read, over the inputs themselves."""
    off = (INPUTS - INPUTS @ (projection.up @ projection.down).T) @ read.T
    return float(off.square().sum(1).mean())


# ---- scores -----------------------------------------------------------------------------------------------------------


def test_magnitudes_add_up_lengths_of_rows_and_columns() -> None:
    seen = crossing()
    expected = [
        sum(float(torch.linalg.vector_norm(entry.matrix[i])) for entry in seen.written)
        + float(torch.linalg.vector_norm(READ[:, i]))
        for i in range(SIZE)
    ]
    assert Magnitude()(seen).tolist() == pytest.approx(expected, rel=1e-12)
    assert Magnitude().needs == frozenset()


def test_activations_weigh_every_entry_with_what_it_is_multiplied_with() -> None:
    seen = crossing()
    first, second = (entry.matrix for entry in seen.written)
    expected = [
        float(
            (first[i] * torch.tensor([2.0, 1.0, 0.5])).norm()
            + second[i].norm()
            + READ[:, i].norm() * MOMENT[i, i].sqrt()
        )
        for i in range(SIZE)
    ]
    assert Activation()(seen).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_second_moment_is_what_leaving_a_unit_out_costs() -> None:
    for together in (None, torch.tensor([[0, 3], [1, 4], [2, 5]])):
        units = torch.arange(SIZE)[:, None] if together is None else together
        scores = SecondMoment()(crossing(together=together))
        for unit, score in zip(units, scores, strict=True):
            kept = torch.tensor([i for i in range(SIZE) if i not in unit.tolist()])
            assert float(score) == pytest.approx(lost(Projection.selection(SIZE, kept)), rel=1e-10)


@pytest.mark.parametrize("ridge", [1e-3, 0.5, 10.0])
def test_ridge_leverages_are_those_of_the_formula(ridge: float) -> None:
    level = ridge * np.trace(float64(MOMENT)) / SIZE
    expected = np.diag(float64(MOMENT) @ np.linalg.inv(float64(MOMENT) + level * np.eye(SIZE)))
    assert float64(RidgeLeverage(ridge)(crossing())) == pytest.approx(expected, rel=1e-10)
    pairs = torch.tensor([[0, 3], [1, 4], [2, 5]])
    assert float64(RidgeLeverage(ridge)(crossing(together=pairs))) == pytest.approx(
        expected[pairs.numpy()].sum(1), rel=1e-10
    )


def test_leverages_of_a_bond_that_nothing_crosses_are_zero() -> None:
    assert RidgeLeverage()(crossing(moment=torch.zeros(SIZE, SIZE))).tolist() == [0.0] * SIZE


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ridge_is_above_zero(ridge: float) -> None:
    with pytest.raises(ValueError, match=r"ridge .* must be finite and above 0"):
        RidgeLeverage(ridge)


@pytest.mark.parametrize("count", [1, 2, SIZE - 1, SIZE])
def test_leverages_are_those_of_the_leading_vectors(count: int) -> None:
    values, vectors = np.linalg.eigh(float64(MOMENT))
    share = values[::-1][:count].sum() / values.sum()
    expected = np.square(vectors[:, ::-1][:, :count]).sum(1)
    assert float64(Leverage(min(1.0, share))(crossing())) == pytest.approx(expected, rel=1e-9)
    if count > 1:  # a little less energy, a little less than that many vectors
        within = share - 1e-9
        assert float64(Leverage(within)(crossing())) == pytest.approx(expected, rel=1e-9)
        fewer = np.square(vectors[:, ::-1][:, : count - 1]).sum(1)
        below = values[::-1][: count - 1].sum() / values.sum()
        assert float64(Leverage(below)(crossing())) == pytest.approx(fewer, rel=1e-9)
    pairs = torch.tensor([[0, 3], [1, 4], [2, 5]])
    assert float64(Leverage(min(1.0, share))(crossing(together=pairs))) == pytest.approx(
        expected[pairs.numpy()].sum(1), rel=1e-9
    )


def test_leverages_of_nothing_are_zero_and_a_share_is_one() -> None:
    assert Leverage()(crossing(moment=torch.zeros(SIZE, SIZE))).tolist() == [0.0] * SIZE
    for energy in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"energy .* must be above 0 and at most 1"):
            Leverage(energy)


def test_interpolated_units_are_those_of_the_algorithm_as_it_is_printed() -> None:
    """Each next vector less its interpolant at the points so far, by solving for the coefficients."""
    vectors = np.linalg.eigh(float64(MOMENT))[1][:, ::-1]
    points = [int(np.abs(vectors[:, 0]).argmax())]
    for j in range(1, SIZE):
        before = vectors[:, :j]
        missed = vectors[:, j] - before @ np.linalg.solve(before[points], vectors[points, j])
        missed[points] = 0
        points.append(int(np.abs(missed).argmax()))
    assert Interpolation()(crossing()).argsort(descending=True).tolist() == points


def test_units_like_stronger_ones_score_low() -> None:
    moment = float64(MOMENT)
    lengths = np.sqrt(np.diag(moment))
    like = np.abs(moment / np.outer(lengths, lengths))
    expected = [
        1 - max((like[i, j] for j in range(SIZE) if moment[j, j] > moment[i, i]), default=0.0) for i in range(SIZE)
    ]
    assert Similarity()(crossing()).tolist() == pytest.approx(expected, rel=1e-12)
    assert Similarity()(crossing(moment=7e-9 * MOMENT)).tolist() == pytest.approx(expected, rel=1e-9)


def test_of_equals_the_first_stays_and_what_is_silent_goes() -> None:
    moment = torch.zeros(4, 4, dtype=torch.float64)
    moment[:2, :2] = 3.0
    moment[0, 1] = moment[1, 0] = -3.0  # the same up to sign
    moment[3, 3] = 1e-30
    assert Similarity()(Crossing((), torch.eye(4), moment)).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert Similarity()(crossing(moment=torch.zeros(SIZE, SIZE))).tolist() == [0.0] * SIZE


@pytest.mark.parametrize(("score", "what"), [(Interpolation(), "interpolation"), (Similarity(), "likeness")])
def test_single_directions_alone_are_compared(score: Score, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} takes single directions, and these stay or go together"):
        score(crossing(together=torch.tensor([[0, 3], [1, 4], [2, 5]])))


def test_greedy_units_are_the_best_next_ones() -> None:
    """Every step against trying all units that are left, each with its own least squares."""
    order = Gain()(crossing()).argsort(descending=True).tolist()
    taken: list[int] = []
    for unit in order:
        rest = [i for i in range(SIZE) if i not in taken]
        costs = {i: lost(Projection.refitted(MOMENT, torch.tensor(sorted([*taken, i])))) for i in rest}
        assert costs[unit] == pytest.approx(min(costs.values()), rel=1e-8, abs=1e-10)
        taken.append(unit)


def test_greedy_units_that_say_nothing_new_come_last() -> None:
    moment = torch.zeros(4, 4, dtype=torch.float64)
    moment[1, 1], moment[2, 2] = 2.0, 3.0
    moment[3, 3] = moment[3, 2] = moment[2, 3] = 3.0  # the same as entry 2
    order = Gain()(Crossing((), torch.eye(4), moment)).argsort(descending=True).tolist()
    assert order == [2, 1, 0, 3]
    with pytest.raises(ValueError, match="single directions"):
        Gain()(crossing(together=torch.tensor([[0, 3], [1, 4], [2, 5]])))


def condition(z: np.ndarray, floor: float) -> float:
    """The definition: every singular value above rounding, the pseudo-inverse floored."""
    s = np.linalg.svd(z, compute_uv=False)
    return float(np.sqrt((s**2).sum() * (1 / (s**2 + floor**2)).sum()))


@pytest.mark.parametrize("rows", [3, SIZE - 1, SIZE, SIZE + 4])
@pytest.mark.parametrize("floor", [1e-6, 1e-2, 0.5])
def test_conditions_are_those_of_matrices_without_a_column(rows: int, floor: float) -> None:
    read = gaussian(rows, SIZE, 6)
    z = float64(read) * np.sqrt(np.diag(float64(MOMENT)))
    level = floor * np.linalg.norm(z, 2)
    before = condition(z, level)
    expected = [abs(condition(np.delete(z, j, 1), level) - before) for j in range(SIZE)]
    seen = crossing(read=read)
    assert Condition(floor)(seen).tolist() == pytest.approx(expected, rel=1e-7)
    assert Condition(floor)(crossing(read=1e5 * read, moment=1e-3 * MOMENT)).tolist() == pytest.approx(
        expected, rel=1e-7
    )


def test_conditions_go_with_their_columns() -> None:
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = crossing(read=READ[:, order], moment=MOMENT[order][:, order])
    assert Condition()(turned).tolist() == pytest.approx(Condition()(crossing())[order].tolist(), rel=1e-9)


def test_a_column_that_alone_reaches_a_direction_changes_the_condition_most() -> None:
    read = torch.cat([gaussian(2, 5, 7), torch.zeros(1, 5, dtype=torch.float64)]).T.reshape(5, 3).T
    alone = torch.tensor([[0.1], [0.2], [3.0]], dtype=torch.float64)
    scores = Condition()(Crossing((), torch.cat([read, alone], 1)))
    assert int(scores.argmax()) == 5
    assert float(scores[5]) > 1e5  # what is left is a singular value at the floor
    assert bool(torch.isfinite(scores).all())


def test_conditions_of_nothing_and_of_what_goes_together() -> None:
    assert Condition()(crossing(moment=torch.zeros(SIZE, SIZE))).tolist() == [0.0] * SIZE
    with pytest.raises(ValueError, match="single columns"):
        Condition()(crossing(together=torch.tensor([[0, 3], [1, 4], [2, 5]])))
    for floor in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"floor .* must be above 0 and below 1"):
            Condition(floor)


# ---- choices ------------------------------------------------------------------------------------------------------------

SCORES: tuple[Score, ...] = (
    Magnitude(),
    Activation(),
    SecondMoment(),
    Leverage(),
    RidgeLeverage(),
    Interpolation(),
    Similarity(),
    Gain(),
    Condition(),
)
CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "refit": Refit(),
    "tune": Tune(),
    "tune freely": Tune(ridge=0.0, largest=1e9),
    "tune a little": Tune(ridge=0.3, largest=1.1),
}


@pytest.mark.parametrize("correct", CORRECTIONS.values(), ids=CORRECTIONS)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_the_curve_tells_what_every_projection_costs(score: Score, correct: Correction | None) -> None:
    chosen = Select(score, correct).prepare(crossing())
    curve = chosen.curve().tolist()
    assert len(curve) == SIZE + 1
    for kept in range(1, SIZE + 1):
        assert curve[kept] == pytest.approx(lost(chosen.projection(kept)), rel=1e-6, abs=1e-8)
    assert curve[0] == pytest.approx(float((INPUTS @ READ.T).square().sum(1).mean()), rel=1e-6)
    if isinstance(correct, Refit):
        assert curve == sorted(curve, reverse=True)


def test_a_curve_of_refits_holds_where_some_units_give_others() -> None:
    moment = MOMENT.clone()
    moment[:, 1], moment[1, :] = 2 * moment[:, 0], 2 * moment[0, :]
    moment[1, 1] = 4 * moment[0, 0]
    for score in (Magnitude(), SecondMoment()):
        chosen = Select(score, Refit()).prepare(crossing(moment=moment))
        for kept in range(1, SIZE + 1):
            left = torch.eye(SIZE, dtype=torch.float64) - chosen.projection(kept).up @ chosen.projection(kept).down
            cost = float(((READ @ left) @ moment @ (READ @ left).T).trace())
            assert float(chosen.curve()[kept]) == pytest.approx(cost, rel=1e-5, abs=1e-6)


def test_units_that_go_together_are_kept_together() -> None:
    pairs = torch.tensor([[0, 3], [1, 4], [2, 5]])
    chosen = Select(SecondMoment()).prepare(Crossing((), READ[:, :6], MOMENT[:6, :6], pairs))
    scores = SecondMoment()(Crossing((), READ[:, :6], MOMENT[:6, :6], pairs))
    best = pairs[scores.argsort(descending=True)[:2]].flatten().sort().values
    found = chosen.projection(2).kept
    assert found is not None
    assert torch.equal(found, best)
    assert len(chosen.curve()) == 4


def test_a_refit_of_the_best_subset_is_never_beaten_by_leaving_out() -> None:
    for kept in range(1, SIZE):
        plain = Select(SecondMoment()).prepare(crossing()).projection(kept)
        refitted = Select(SecondMoment(), Refit()).prepare(crossing()).projection(kept)
        assert torch.equal(plain.down, refitted.down)
        assert lost(refitted) <= lost(plain) * (1 + 1e-12)


def factors(correct: Correction, kept: Tensor, seen: Crossing) -> Tensor:
    """Those of the kept directions; nothing else may be read."""
    projection = correct.projection(seen, kept)
    found = projection.up[kept].diagonal()
    assert torch.equal(projection.up[kept], torch.diag(found))
    assert int((projection.up != 0).sum()) <= len(kept)
    return found


def test_free_factors_are_least_squares() -> None:
    """Against the columns of what each direction gives over all inputs, one unknown for each."""
    given = (float64(INPUTS)[:, None, :] * float64(READ)[None]).reshape(-1, SIZE)
    for some in combinations(range(SIZE), 4):
        kept = torch.tensor(some)
        expected = np.linalg.lstsq(given[:, some], given.sum(1), rcond=None)[0]
        found = factors(Tune(ridge=0.0, largest=1e9), kept, crossing())
        inside = (expected >= 0).all()  # a factor below 0 is clipped however large they may be
        assert not inside or float64(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tune", [Tune(), Tune(ridge=0.0), Tune(0.0, 1e9), Tune(10.0), Tune(0.0, 1.0)], ids=str)
def test_tuned_masks_are_never_worse_than_masks_and_never_better_than_a_refit(tune: Tune) -> None:
    clipped = 0
    for seed in range(20):
        moment = gaussian(SIZE, SIZE + 3, 40 + seed)
        seen = Crossing((), gaussian(3, SIZE, 80 + seed), moment @ moment.T)
        kept = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))[:4].sort().values

        def cost(projection: Projection, seen: Crossing = seen) -> float:
            return float(
                torch.linalg.vector_norm((seen.wide - seen.wide @ projection.up @ projection.down) @ seen.root)
            )

        found = factors(tune, kept, seen)
        assert bool(((found >= 0) & (found <= tune.largest)).all())
        clipped += bool(((found == 0) | (found == tune.largest)).any())
        tuned = cost(tune.projection(seen, kept))
        assert tuned <= cost(Projection.selection(SIZE, kept)) * (1 + 1e-12)
        assert tuned >= cost(Refit().projection(seen, kept)) * (1 - 1e-9)
    assert (clipped > 0) == (tune.ridge < 1)


def test_factors_of_nothing_are_ones() -> None:
    dead = Crossing((), READ, torch.zeros(SIZE, SIZE, dtype=torch.float64))
    assert factors(Tune(), torch.tensor([1, 4]), dead).tolist() == [1.0, 1.0]
    everything = factors(Tune(), torch.arange(SIZE), crossing())
    assert everything.tolist() == [1.0] * SIZE


@pytest.mark.parametrize(
    "settings", [{"ridge": -1.0}, {"ridge": float("nan")}, {"largest": 0.9}, {"largest": float("inf")}]
)
def test_factors_have_sensible_limits(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} .* must be finite and"):
        Tune(**settings)


def test_a_share_of_the_lowest_is_spared() -> None:
    seen = Crossing((), torch.diag(torch.arange(10.0, 0.0, -1.0)), torch.eye(10))
    chosen = Select(SecondMoment(), spared=0.2).prepare(seen)
    found = [chosen.projection(kept).kept for kept in (2, 5)]
    assert [kept.tolist() for kept in found if kept is not None] == [[8, 9], [0, 1, 2, 8, 9]]
    plain = Select(SecondMoment(), spared=0.09).prepare(seen).projection(2).kept
    assert plain is not None
    assert plain.tolist() == [0, 1]
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"spared .* must be from 0 to below 1"):
            Select(Magnitude(), spared=share)


def test_ties_go_to_the_lower_index() -> None:
    chosen = Select(Magnitude()).prepare(Crossing((), torch.ones(2, 4)))
    assert chosen.projection(2).kept is not None
    assert torch.equal(chosen.projection(2).down, torch.eye(4, dtype=torch.float64)[:2])


def test_no_directions_do_better_than_the_principal_ones() -> None:
    chosen = Principal().prepare(crossing())
    root = np.linalg.cholesky(float64(MOMENT))
    values = np.linalg.svd(float64(READ) @ root, compute_uv=False)
    for kept in range(1, SIZE + 1):
        expected = float((values[kept:] ** 2).sum())
        projection = chosen.projection(kept)
        assert lost(projection) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert float(chosen.curve()[kept]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert float64(projection.down @ projection.down.T) == pytest.approx(np.eye(projection.rank), abs=1e-12)
        for some in combinations(range(SIZE), kept):
            assert lost(Projection.refitted(MOMENT, torch.tensor(some))) >= expected - 1e-9


def test_principal_directions_of_a_stream_are_its_principal_components() -> None:
    projection = Principal().prepare(Crossing((), torch.eye(SIZE), MOMENT)).projection(3)
    values, vectors = np.linalg.eigh(float64(MOMENT))
    top = vectors[:, -3:]
    assert float64(projection.up @ projection.down) == pytest.approx(top @ top.T, abs=1e-12)
    assert float64(projection.up) == pytest.approx(float64(projection.down).T, abs=1e-12)
    assert lost(projection, torch.eye(SIZE, dtype=torch.float64)) == pytest.approx(values[:-3].sum(), rel=1e-10)


def test_directions_that_nobody_reads_are_left_out_first() -> None:
    read = torch.cat([gaussian(9, 2, 8), torch.zeros(9, 3, dtype=torch.float64)], 1)
    projection = Principal().prepare(Crossing((), read, torch.eye(5))).projection(2)
    assert float64(read @ projection.up @ projection.down) == pytest.approx(float64(read), abs=1e-12)


@pytest.mark.parametrize(
    ("choice", "needs"),
    [
        (Select(Magnitude()), set()),
        (Select(Magnitude(), Refit()), {Need.GRAM}),
        (Select(Magnitude(), Tune()), {Need.GRAM}),
        (Select(SecondMoment()), {Need.GRAM}),
        (Principal(), {Need.GRAM}),
    ],
)
def test_a_choice_needs_what_its_parts_need(choice: Choice, needs: set[Need]) -> None:
    assert choice.needs == needs


def test_a_crossing_without_a_moment_counts_all_directions_alike() -> None:
    seen = crossing(moment=None)
    assert torch.equal(seen.seen, torch.eye(SIZE, dtype=torch.float64))
    assert seen.output == pytest.approx(float(READ.square().sum()), rel=1e-12)
    assert SecondMoment()(seen).tolist() == pytest.approx(READ.square().sum(0).tolist(), rel=1e-12)


# ---- depth ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_left_out_by_place_or_by_influence() -> None:
    blocks = Blocks([0.9, 0.2, 0.2, 0.1, 0.8], len)
    assert LastBlocks().dropped(0, blocks) == []
    assert LastBlocks().dropped(3, blocks) == [2, 3, 4]
    assert LeastInfluence().dropped(0, blocks) == []
    assert LeastInfluence().dropped(2, blocks) == [2, 3]  # of two alike the later one
    assert LeastInfluence().dropped(3, blocks) == [1, 2, 3]
    assert LeastInfluence().needs == {Need.INFLUENCE}


LOSSES = {(): 4.0, (0,): 3.9, (1,): 3.9, (2,): 5.0, (0, 1): 4.2, (1, 2): 3.95, (0, 2): 1.0, (0, 1, 2): 9.0}


def measured(gone: frozenset[int]) -> float:
    return LOSSES[tuple(sorted(gone))]


@pytest.mark.parametrize(
    ("tolerance", "expected"), [(0.0, [1]), (0.012, [1]), (0.013, [1, 2]), (1.0, [1, 2]), (2.0, [1, 2, 0])]
)
def test_blocks_go_one_by_one_while_the_loss_allows_it(tolerance: float, expected: list[int]) -> None:
    """Of two alike the later one; the best pair is not seen, as neither of it is the best first one. The best loss so far is 3.9."""
    found = LeastLoss(tolerance).dropped(3, Blocks([0.0] * 3, measured))
    assert found == expected
    assert LeastLoss(tolerance).dropped(1, Blocks([0.0] * 3, measured)) == expected[:1]
    best = measured(frozenset())
    for count in range(len(found)):
        loss = measured(frozenset(found[: count + 1]))
        assert loss <= best * (1 + tolerance)
        best = min(best, loss)


def test_tolerance_is_a_share_from_zero_on() -> None:
    assert LeastLoss().needs == {Need.LOSS}
    for tolerance in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"tolerance .* must be finite and not below 0"):
            LeastLoss(tolerance)
