"""The recipes by their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eckart.errors import EckartError
from eckart.model.compression import AnyRecipe
from eckart.recipes.bonds import greedy_output, layer_drop, lorap, modegpt, shortgpt, shrink_width, slicegpt
from eckart.recipes.compress import asvd, curing, eora, llm_rom, magnitude, sparsegpt, svd, svd_llm, wanda, welore
from eckart.recipes.heads import head_sharing


@dataclass(frozen=True)
class Recipe:
    """A catalogue entry: the key that people type, the family, and what builds it."""

    key: str
    family: str
    make: Callable[..., AnyRecipe]

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


RECIPES: Mapping[str, Recipe] = {
    entry.key: entry
    for entry in (
        Recipe("svd", "compress", svd),
        Recipe("asvd", "compress", asvd),
        Recipe("svd-llm", "compress", svd_llm),
        Recipe("llm-rom", "compress", llm_rom),
        Recipe("welore", "compress", welore),
        Recipe("curing", "compress", curing),
        Recipe("eora", "compress", eora),
        Recipe("magnitude", "compress", magnitude),
        Recipe("wanda", "compress", wanda),
        Recipe("sparsegpt", "compress", sparsegpt),
        Recipe("slicegpt", "compress", slicegpt),
        Recipe("modegpt", "compress", modegpt),
        Recipe("greedy-output", "compress", greedy_output),
        Recipe("lorap", "compress", lorap),
        Recipe("shortgpt", "compress", shortgpt),
        Recipe("layer-drop", "compress", layer_drop),
        Recipe("shrink-width", "compress", shrink_width),
        Recipe("head-sharing", "compress", head_sharing),
    )
}


def recipe(key: str) -> Recipe:
    """The catalogue entry of this key; raises ``EckartError`` with the known keys for any other.

    >>> recipe("svd").summary
    'Plain truncation: the nearest matrix of each rank, whatever the inputs.'
    """
    if key not in RECIPES:
        raise EckartError(f"there is no recipe {key!r}: known are {', '.join(RECIPES)}, or name a TOML file")
    return RECIPES[key]
