"""Published methods, one readable expression each."""

from eckart.recipes.bonds import (
    axformer,
    comp,
    embedding_pruning,
    greedy_output,
    layer_drop,
    lorap,
    modegpt,
    shortgpt,
    shrink_width,
    slicegpt,
    slicegpt_per_norm,
)
from eckart.recipes.catalogue import RECIPES, Recipe, recipe
from eckart.recipes.compress import (
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
from eckart.recipes.heads import head_sharing
from eckart.recipes.notation import read_recipe

__all__ = [
    "RECIPES",
    "Recipe",
    "asvd",
    "axformer",
    "comp",
    "curing",
    "ecoflap",
    "embedding_pruning",
    "eora",
    "fwsvd",
    "greedy_output",
    "head_sharing",
    "layer_drop",
    "llm_rom",
    "lorap",
    "magnitude",
    "modegpt",
    "read_recipe",
    "recipe",
    "shortgpt",
    "shrink_width",
    "slicegpt",
    "slicegpt_per_norm",
    "sparsegpt",
    "svd",
    "svd_llm",
    "wanda",
    "welore",
]
