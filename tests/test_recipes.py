"""What recipes ask for, and that a table of one composes the same again."""

import pytest

from eckart.allocate import Allocator, EqualMarginalLoss, Exact, Greedy, Later, Level, Proportional, Threshold, Uniform
from eckart.errors import EckartError
from eckart.model.compression import Compress, Statistics
from eckart.recipes import (
    RECIPES,
    asvd,
    curing,
    ecoflap,
    eora,
    fwsvd,
    llm_rom,
    magnitude,
    sparsegpt,
    svd,
    svd_llm,
    wanda,
    welore,
)
from eckart.recipes.notation import compose
from eckart.stats import Need

ALLOCATORS = {"uniform": Uniform(), "greedy": Greedy(), "by loss": EqualMarginalLoss(), "exact": Exact(nodes=1000)}
ALLOCATORS |= {"level": Level(4), "later": Later(0.3), "threshold": Threshold(), "proportional": Proportional(0.2)}


@pytest.mark.parametrize(
    ("recipe", "needs"),
    [
        (svd(Uniform()), set()),
        (svd(EqualMarginalLoss()), {Need.SENSITIVITY}),
        (asvd(allocate=Uniform()), {Need.ACTIVATIONS}),
        (svd_llm(Uniform()), {Need.GRAM}),
        (svd_llm(EqualMarginalLoss()), {Need.GRAM, Need.SENSITIVITY}),
        (llm_rom(), {Need.GRAM, Need.ACTIVATIONS}),
        (welore(), {Need.SPECTRA}),
        (fwsvd(), {Need.GRADIENTS}),
        (fwsvd(EqualMarginalLoss()), {Need.GRADIENTS, Need.SENSITIVITY}),
        (ecoflap(), {Need.ACTIVATIONS, Need.FORWARD_SENSITIVITY}),
        (magnitude(), set()),
        (wanda(), {Need.ACTIVATIONS}),
        (sparsegpt(), {Need.GRAM, Need.ACTIVATIONS}),
        (eora(), {Need.GRAM, Need.ACTIVATIONS}),
        (curing(), {Need.ACTIVATIONS, Need.INFLUENCE}),
        # What the compressed blocks give must be walked through whatever the metric asks for.
        (svd_llm(Uniform(), Statistics.COMPRESSED), {Need.GRAM, Need.ACTIVATIONS}),
    ],
)
def test_a_recipe_needs_what_its_parts_need(recipe: Compress, needs: set[Need]) -> None:
    assert recipe.needs == needs


@pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=ALLOCATORS)
@pytest.mark.parametrize("statistics", Statistics)
def test_a_described_recipe_composes_to_the_same(allocate: Allocator, statistics: Statistics) -> None:
    for recipe in (svd(allocate), asvd(0.75, allocate), svd_llm(allocate, statistics)):
        again = compose(recipe.describe(), "here")
        assert again.describe() == recipe.describe()
        assert again.needs == recipe.needs
        assert again.allocate == allocate


@pytest.mark.parametrize("key", RECIPES)
def test_every_recipe_composes_from_its_own_description(key: str) -> None:
    made = RECIPES[key].make()
    again = compose(made.describe(), "here")
    assert type(again) is type(made)
    assert again.describe() == made.describe()
    assert again.needs == made.needs


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"hidden": {"part": "Select"}}, r"\[score\] needs part = one of Magnitude"),
        (
            {"hidden": {"part": "Select", "score": {"part": "Magnitude", "ridge": 1.0}}},
            "Magnitude has no setting 'ridge'",
        ),
        ({"hidden": {"part": "Select", "score": {"part": "Magnitude"}, "refit": 1}}, "Select has no setting 'refit'"),
        (
            {"hidden": {"part": "Select", "score": {"part": "Magnitude"}, "correct": {"part": "Select"}}},
            r"\[correct\] needs part = one of Refit, Tune",
        ),
        (
            {"hidden": {"part": "Select", "score": {"part": "Magnitude"}, "correct": {"part": "Tune", "largest": 0.5}}},
            "largest 0.5 must be finite and at least 1",
        ),
        (
            {"stream": {"part": "Principal"}, "allocate": {"part": "GreedyByLoss"}},
            "a stream is one bond, among which there is nothing to allocate",
        ),
        ({"depth": {"part": "LeastLoss", "tolerance": -1.0}}, "tolerance -1 must be finite and not below 0"),
        (
            {"metric": {"part": "Plain"}, "approx": {"part": "LowRank"}, "allocate": {"part": "GreedyByLoss"}},
            "is measured for bonds: allocate by another rule",
        ),
        (
            {"hidden": {"part": "Select", "score": {"part": "Magnitude"}, "spared": True}},
            "spared is True; give a number",
        ),
        ({"hidden": {"part": "Select", "score": {"part": "Magnitude"}, "spared": 2.0}}, "must be from 0 to below 1"),
        ({"hidden": {"part": "Principal"}}, r"\[hidden\] needs part = one of Select"),
        ({"stream": {"part": "Principal"}, "depth": {"part": "LastBlocks"}}, "narrow it by itself"),
        ({"depth": {"part": "LastBlocks"}, "share": "half"}, "share is"),
        ({"depth": {"part": "LastBlocks"}, "metric": {"part": "Plain"}}, "unknown entry"),
        ({"depth": {"part": "LastBlocks"}, "allocate": {"part": "EqualMarginalLoss"}}, "allocate by another rule"),
        ({"depth": {"part": "LastBlocks"}, "allocate": {"part": "Level", "multiple": 0.5}}, "give a whole number"),
        (
            {"depth": {"part": "LastBlocks"}, "allocate": {"part": "Threshold"}},
            "here: Threshold goes by singular values",
        ),
        ({"heads": {"part": "Cosine"}}, r"\[heads\] needs part = one of CosineOfKeys"),
        ({"heads": {"part": "CosineOfKeys", "power": 1.0}}, "CosineOfKeys has no setting 'power'"),
        ({"heads": {"part": "CosineOfKeys"}, "statistics": "original"}, "shares heads has heads and nothing else"),
        (
            {"stream": {"part": "Principal"}, "allocate": {"part": "Entropic"}},
            "here: Entropic .* a stream lies in none",
        ),
        (
            {"stream": {"part": "Select", "score": {"part": "SecondMoment"}, "correct": {"part": "Refit"}}},
            "here: a stream is read through norms, .* without a refit",
        ),
    ],
)
def test_what_is_no_recipe_of_bonds_is_named(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(EckartError, match=sentence):
        compose(table, "here")
