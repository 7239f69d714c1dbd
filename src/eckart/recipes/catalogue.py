"""The recipes by their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from eckart.errors import EckartError
from eckart.model.compression import AnyRecipe
from eckart.recipes import bonds, compress, heads

Made = TypeVar("Made", covariant=True)


@dataclass(frozen=True)
class Recipe(Generic[Made]):
    """A catalogue entry: the key that people type, the family, and what builds it."""

    key: str
    family: str
    make: Callable[..., Made]

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


RECIPES: Mapping[str, Recipe[AnyRecipe]] = {
    entry.key: entry
    for entry in (
        Recipe("svd", "compress", compress.svd),
        Recipe("asvd", "compress", compress.asvd),
        Recipe("svd-llm", "compress", compress.svd_llm),
        Recipe("fwsvd", "compress", compress.fwsvd),
        Recipe("llm-rom", "compress", compress.llm_rom),
        Recipe("welore", "compress", compress.welore),
        Recipe("curing", "compress", compress.curing),
        Recipe("eora", "compress", compress.eora),
        Recipe("magnitude", "compress", compress.magnitude),
        Recipe("wanda", "compress", compress.wanda),
        Recipe("ecoflap", "compress", compress.ecoflap),
        Recipe("sparsegpt", "compress", compress.sparsegpt),
        Recipe("slicegpt", "compress", bonds.slicegpt),
        Recipe("slicegpt-per-norm", "compress", bonds.slicegpt_per_norm),
        Recipe("modegpt", "compress", bonds.modegpt),
        Recipe("greedy-output", "compress", bonds.greedy_output),
        Recipe("comp", "compress", bonds.comp),
        Recipe("axformer", "compress", bonds.axformer),
        Recipe("lorap", "compress", bonds.lorap),
        Recipe("shortgpt", "compress", bonds.shortgpt),
        Recipe("layer-drop", "compress", bonds.layer_drop),
        Recipe("shrink-width", "compress", bonds.shrink_width),
        Recipe("embedding-pruning", "compress", bonds.embedding_pruning),
        Recipe("head-sharing", "compress", heads.head_sharing),
    )
}


def recipe(key: str) -> Recipe[AnyRecipe]:
    """The catalogue entry of this key; raises ``EckartError`` with the known keys for any other.

    >>> recipe("svd").summary
    'Plain truncation: the nearest matrix of each rank, whatever the inputs.'
    """
    if key not in RECIPES:
        raise EckartError(f"there is no recipe {key!r}: known are {', '.join(RECIPES)}, or name a TOML file")
    return RECIPES[key]
