"""What recipes ask for, and that a table of one composes the same again."""

import pytest

from eckart.allocate import Allocator, EqualMarginalLoss, Exact, Greedy, Uniform
from eckart.model.compression import Compress, Statistics
from eckart.recipes import asvd, svd, svd_llm
from eckart.recipes.notation import compose
from eckart.stats import Need

ALLOCATORS = {"uniform": Uniform(), "greedy": Greedy(), "by loss": EqualMarginalLoss(), "exact": Exact(nodes=1000)}


@pytest.mark.parametrize(
    ("recipe", "needs"),
    [
        (svd(Uniform()), set()),
        (svd(EqualMarginalLoss()), {Need.SENSITIVITY}),
        (asvd(allocate=Uniform()), {Need.ACTIVATIONS}),
        (svd_llm(Uniform()), {Need.GRAM}),
        (svd_llm(EqualMarginalLoss()), {Need.GRAM, Need.SENSITIVITY}),
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
