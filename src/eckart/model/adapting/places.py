"""Modules at their places in a model: which can be replaced, and what hangs on their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from eckart.model.adapting.modules import CONVOLUTIONS, why_packed
from eckart.model.linear import OperatorEmbedding, OperatorLinear


def check_takeable(model: Any, module: nn.Module) -> None:
    """Raise ``ValueError`` for a weight from which nothing can be taken."""
    if isinstance(module, OperatorLinear | OperatorEmbedding):
        raise ValueError("nothing can be taken from a weight that is stored as an operator: densify the checkpoint")
    packed = why_packed(module)
    if packed is not None:
        raise ValueError(packed)
    together = holders(model, module)
    if len(together) > 1:
        raise ValueError(
            f"{' and '.join(together)} are one weight, and nothing can be taken of it for one alone: start at zero (lora)"
        )


def holders(model: Any, module: nn.Module) -> list[str]:
    """The modules that have the weight of a module, itself and those that are tied to it."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return []
    return [name for name, other in model.named_modules() if getattr(other, "weight", None) is weight]


def untie(model: Any, module: nn.Module) -> None:
    """Give a module a weight of its own where it was tied to another one's; saved, the model says so."""
    module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
    if hasattr(model.config, "tie_word_embeddings"):
        model.config.tie_word_embeddings = False


def check_replaceable(model: Any, module: Any) -> None:
    """Raise ``ValueError`` where an operator can't take the place of a weight."""
    if isinstance(module, (nn.Embedding, *CONVOLUTIONS)):
        kind = "an embedding" if isinstance(module, nn.Embedding) else "a convolution"
        raise ValueError(f"the weight of {kind} can't be rounded: leave it out with exclude")
    if len(holders(model, module)) > 1:
        raise ValueError("its weight is another module's as well and can't be rounded alone: leave it out with exclude")


def put(model: Any, name: str, module: nn.Module) -> None:
    """Have a module stand where this name says."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
