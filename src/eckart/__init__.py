"""eckart: low-rank, with proof.

Importing it also makes sure that transformers knows the format of compressed checkpoints, so that
``AutoModelForCausalLM.from_pretrained`` loads them. Names are imported when they are first used: ``eckart.linalg`` and what lies
below it need torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from eckart._registration import register
from eckart._version import __version__
from eckart.errors import EckartError, VerificationError

if TYPE_CHECKING:
    from eckart.api import compress, plan, verify
    from eckart.model.densify import densify
    from eckart.model.evaluate import evaluate, load
    from eckart.model.graph import bond_graph
    from eckart.model.healing import heal
    from eckart.model.inspect import inspect
    from eckart.model.restore import restore
    from eckart.model.text import vocabulary
    from eckart.recipes import RECIPES, read_recipe, recipe

__all__ = [
    "RECIPES",
    "EckartError",
    "VerificationError",
    "__version__",
    "bond_graph",
    "compress",
    "densify",
    "evaluate",
    "heal",
    "inspect",
    "load",
    "plan",
    "read_recipe",
    "recipe",
    "restore",
    "verify",
    "vocabulary",
]

_HOMES = {
    "compress": "api",
    "plan": "api",
    "verify": "api",
    "densify": "model.densify",
    "evaluate": "model.evaluate",
    "load": "model.evaluate",
    "inspect": "model.inspect",
    "restore": "model.restore",
    "vocabulary": "model.text",
    "bond_graph": "model.graph",
    "heal": "model.healing",
    "RECIPES": "recipes",
    "read_recipe": "recipes",
    "recipe": "recipes",
}

register()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'eckart' has no attribute {name!r}")
    return getattr(import_module(f"eckart.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
