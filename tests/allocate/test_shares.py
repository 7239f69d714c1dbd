"""Shares that are the same everywhere, and shares by influence."""

import math

import pytest
import torch

from eckart.allocate import BondSlot, Entropic, Later, Level, Slot, Threshold, Uniform
from eckart.allocate.slots import BudgetError, Rank, total_cost

BONDS = {f"{b}": BondSlot(size=48, unit_bytes=10, block=b, importance=s) for b, s in enumerate((0.9, 0.3, 0.1, 0.5))}


def units(ranks: dict[str, Rank]) -> list[int]:
    return [48 if rank is None else rank for rank in ranks.values()]


@pytest.mark.parametrize("multiple", [1, 5, 8])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.77, 0.999, 1.0])
def test_level_shares_are_the_largest_multiple_that_fits(multiple: int, keep: float) -> None:
    budget = int(keep * 4 * 480)
    ranks = dict(Level(multiple)(BONDS, budget).ranks)
    (count,) = set(units(ranks))
    assert total_cost(BONDS, ranks) <= budget
    assert count % multiple == 0 or count == 48
    larger = 48 if count + multiple > 48 else count + multiple
    assert count == 48 or 4 * 10 * larger > budget


def test_level_shares_of_other_sizes_are_shares_of_each() -> None:
    slots = {
        "a": BondSlot(size=10, unit_bytes=1),
        "b": BondSlot(size=100, unit_bytes=1),
        "c": Slot(rows=40, columns=40, itemsize=1),
    }
    ranks = Level()(slots, 55 + 800).ranks
    assert ranks == {"a": 5, "b": 50, "c": 10}


def test_level_refuses_what_is_below_the_smallest_multiple() -> None:
    with pytest.raises(BudgetError) as error:
        Level(8)(BONDS, 319)
    assert error.value.smallest == 320
    assert units(dict(Level(8)(BONDS, 320).ranks)) == [8] * 4
    with pytest.raises(ValueError, match="multiple 0 must be at least 1"):
        Level(0)


def test_entropic_shares_minimise_influence_less_entropy() -> None:
    """Against the conditions of the minimum: the gradient ``s + T ln(phi)`` is one number for all that are below the cap."""
    scores = {0: 0.9, 1: 0.3, 2: 0.1, 3: 0.5}
    for mean in (0.1, 0.3, 0.5, 0.7):
        shares = Entropic(0.2, most=0.8).shares(scores, mean)
        assert sum(shares.values()) == pytest.approx(4 * mean, rel=1e-12)
        free = {b: scores[b] + 0.2 * math.log(share) for b, share in shares.items() if share < 0.8}
        assert max(free.values()) - min(free.values()) < 1e-12
        assert all(scores[b] + 0.2 * math.log(0.8) <= min(free.values()) for b, share in shares.items() if share >= 0.8)


def test_entropic_units_fit_and_spare_what_matters() -> None:
    for keep in (0.3, 0.5, 0.8, 0.95):
        budget = int(keep * 4 * 480)
        ranks = dict(Entropic(0.3)(BONDS, budget).ranks)
        assert total_cost(BONDS, ranks) <= budget
        assert total_cost(BONDS, ranks) > budget - 4 * 10 * 2  # rounded up to whole units in every block
        found = units(ranks)
        assert found[0] >= found[3] >= found[1] >= found[2]
    assert dict(Entropic()(BONDS, 4 * 480).ranks) == dict.fromkeys(BONDS)


def test_a_hot_temperature_treats_all_blocks_alike() -> None:
    assert len(set(units(dict(Entropic(1e6)(BONDS, 960).ranks)))) == 1


def test_entropic_shares_end_at_the_cap() -> None:
    least = sum(10 * math.ceil(48 * 0.2 - 1e-9) for _ in BONDS)
    assert units(dict(Entropic(most=0.8)(BONDS, least).ranks)) == [10] * 4
    with pytest.raises(BudgetError) as error:
        Entropic(most=0.8)(BONDS, least - 1)
    assert error.value.smallest == least


def test_entropic_shares_need_blocks_with_an_influence() -> None:
    for slot in (
        Slot(rows=4, columns=4, itemsize=1),
        BondSlot(size=4, unit_bytes=1),
        BondSlot(size=4, unit_bytes=1, block=0),
    ):
        with pytest.raises(ValueError, match="slot x belongs to no block whose influence is known"):
            Entropic()({"x": slot}, 3)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            Entropic(temperature)
    for most in (0.0, 1.1):
        with pytest.raises(ValueError, match="most"):
            Entropic(most=most)


def test_bonds_and_matrices_are_allocated_together() -> None:
    slots = {"bond": BondSlot(size=10, unit_bytes=16), "matrix": Slot(rows=16, columns=16, itemsize=1)}
    for keep in (0.3, 0.6, 0.9):
        budget = int(keep * (160 + 256))
        assert total_cost(slots, Uniform()(slots, budget).ranks) <= budget


def test_a_bond_costs_its_units_times_its_price() -> None:
    slot = BondSlot(size=6, unit_bytes=7, price=2, losses=torch.zeros(7))
    assert (slot.dense_bytes, slot.rank_bytes, slot.max_rank) == (42, 7, 5)
    assert (slot.stored(2), slot.cost(2), slot.cost(None)) == (14, 28, 84)


def test_what_lies_outside_of_all_blocks_does_not_pay() -> None:
    """Also where there is nothing else: the budget is kept, or that is said."""
    head = {"head": Slot(rows=24, columns=40, itemsize=2)}
    assert Later()(head, 1920).ranks == {"head": None}
    with pytest.raises(BudgetError) as error:
        Later()(head, 1919)
    assert error.value.smallest == 1920
    assert Later()({}, 0).ranks == {}


# ---- only the last blocks -----------------------------------------------------------------------------------------------

MATRICES = {f"{b}.{k}": Slot(rows=24, columns=40, itemsize=2, block=b) for b in range(5) for k in range(2)}
DENSE = 10 * 24 * 40 * 2


@pytest.mark.parametrize("least", [0.3, 0.46, 0.7])
@pytest.mark.parametrize("keep", [0.4, 0.62, 0.8, 0.9, 0.97])
def test_no_more_blocks_pay_than_must(least: float, keep: float) -> None:
    budget = int(keep * DENSE)
    ranks = dict(Later(least)(MATRICES, budget).ranks)
    assert total_cost(MATRICES, ranks) <= budget
    paying = sorted({int(name[0]) for name, rank in ranks.items() if rank is not None})
    assert paying == list(range(5 - len(paying), 5))
    per_block = DENSE // 5
    shares = [(budget - (5 - count) * per_block) / (count * per_block) for count in range(1, 6)]
    expected = next((count for count, share in enumerate(shares, start=1) if share >= least), 5)
    assert len(paying) == expected
    assert (
        len({rank for name, rank in ranks.items() if int(name[0]) in paying}) <= 2
    )  # what is left over buys single ranks


def test_what_lies_outside_of_blocks_stays_dense() -> None:
    slots = MATRICES | {"head": Slot(rows=24, columns=40, itemsize=2)}
    assert Later()(slots, int(0.7 * DENSE)).ranks["head"] is None
    with pytest.raises(BudgetError) as error:
        Later()(slots, 24 * 40 * 2 + 10 * 2 * 64 - 1)
    assert error.value.smallest == 24 * 40 * 2 + 10 * 2 * 64
    for least in (-0.1, 1.0):
        with pytest.raises(ValueError, match="least"):
            Later(least)


# ---- one threshold --------------------------------------------------------------------------------------------------------


def spectral(name: str, values: list[float], rows: int = 24, columns: int = 40) -> dict[str, Slot]:
    squares = torch.tensor(values, dtype=torch.float64).square()
    losses = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    return {name: Slot(rows=rows, columns=columns, itemsize=1, losses=losses)}


@pytest.mark.parametrize("keep", [0.12, 0.3, 0.5, 0.8, 1.0])
def test_one_threshold_is_the_least_that_fits(keep: float) -> None:
    """Against trying every singular value of every matrix for a threshold."""
    values = {
        "steep": [8.0 * 0.6**i for i in range(24)],
        "flat": [1.0 - 0.02 * i for i in range(24)],
        "cut": [5.0] * 6 + [0.1] * 18,
        "zero": [0.0] * 24,
    }
    slots = {name: slot for key, table in values.items() for name, slot in spectral(key, table).items()}
    budget = int(keep * 4 * 24 * 40)
    ranks = dict(Threshold()(slots, budget).ranks)
    assert total_cost(slots, ranks) <= budget
    levels = sorted({v / max(table) for table in values.values() if max(table) for v in table} | {0.0})

    def at(level: float) -> dict[str, Rank]:
        found: dict[str, Rank] = {}
        for name, table in values.items():
            count = max(1, sum(v / max(table) > level + 1e-9 for v in table) if max(table) else 0)
            found[name] = count if count <= slots[name].max_rank else None
        return found

    fitting = [at(level) for level in levels if total_cost(slots, at(level)) <= budget]
    assert total_cost(slots, ranks) == max(total_cost(slots, some) for some in fitting)
    assert (ranks["steep"] or 24) <= (ranks["flat"] or 24)


def test_a_threshold_needs_values_and_room() -> None:
    with pytest.raises(ValueError, match=r"slot x \(4, 4\) needs losses"):
        Threshold()({"x": Slot(rows=4, columns=4, itemsize=1)}, 16)
    slots = spectral("a", [1.0] * 24)
    with pytest.raises(BudgetError):
        Threshold()(slots, 63)
    assert Threshold()(slots, 64).ranks == {"a": 1}
