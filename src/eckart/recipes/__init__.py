"""Published methods, one readable expression each."""

from eckart.recipes.catalogue import RECIPES, Recipe, recipe
from eckart.recipes.compress import asvd, svd, svd_llm
from eckart.recipes.notation import read_recipe

__all__ = ["RECIPES", "Recipe", "asvd", "read_recipe", "recipe", "svd", "svd_llm"]
