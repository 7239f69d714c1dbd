"""What is kept of a bond, against formulas written out here, least squares and exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
import torch
from market import float64, gaussian
from torch import Tensor

from eckart.bonds import Projection
from eckart.bonds.choosing import Choice, Principal, Select
from eckart.bonds.correction import Refit
from eckart.bonds.crossing import Crossing, Writing
from eckart.bonds.depth import LastBlocks, LeastInfluence
from eckart.bonds.scores import Activation, Gain, Magnitude, RidgeLeverage, Score, SecondMoment
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


# ---- choices ------------------------------------------------------------------------------------------------------------

SCORES: tuple[Score, ...] = (Magnitude(), Activation(), SecondMoment(), RidgeLeverage(), Gain())


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_the_curve_tells_what_every_projection_costs(score: Score, refit: bool) -> None:
    chosen = Select(score, Refit() if refit else None).prepare(crossing())
    curve = chosen.curve().tolist()
    assert len(curve) == SIZE + 1
    for kept in range(1, SIZE + 1):
        assert curve[kept] == pytest.approx(lost(chosen.projection(kept)), rel=1e-6, abs=1e-8)
    assert curve[0] == pytest.approx(float((INPUTS @ READ.T).square().sum(1).mean()), rel=1e-6)
    if refit:
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
    influence = [0.9, 0.2, 0.2, 0.1, 0.8]
    assert LastBlocks().dropped(0, influence) == []
    assert LastBlocks().dropped(3, influence) == [2, 3, 4]
    assert LeastInfluence().dropped(0, influence) == []
    assert LeastInfluence().dropped(2, influence) == [2, 3]  # of two alike the later one
    assert LeastInfluence().dropped(3, influence) == [1, 2, 3]
    assert LeastInfluence().needs == {Need.INFLUENCE}
