"""Published methods, one readable expression each."""

from eckart.recipes.bonds import greedy_output, layer_drop, modegpt, shortgpt, shrink_width, slicegpt
from eckart.recipes.catalogue import RECIPES, Recipe, recipe
from eckart.recipes.compress import asvd, llm_rom, svd, svd_llm, welore
from eckart.recipes.notation import read_recipe

__all__ = [
    "RECIPES",
    "Recipe",
    "asvd",
    "greedy_output",
    "layer_drop",
    "llm_rom",
    "modegpt",
    "read_recipe",
    "recipe",
    "shortgpt",
    "shrink_width",
    "slicegpt",
    "svd",
    "svd_llm",
    "welore",
]
