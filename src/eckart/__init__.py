"""eckart: low-rank, with proof.

Importing it also registers the format of compressed checkpoints with transformers, so that
``AutoModelForCausalLM.from_pretrained`` loads them.
"""

from eckart._version import __version__
from eckart.api import compress, plan, verify
from eckart.errors import EckartError, VerificationError
from eckart.model import quantizer as _registered  # noqa: F401  (the import is the registration)
from eckart.model.densify import densify
from eckart.model.evaluate import evaluate, load
from eckart.model.inspect import inspect
from eckart.recipes import RECIPES, read_recipe, recipe

__all__ = [
    "RECIPES",
    "EckartError",
    "VerificationError",
    "__version__",
    "compress",
    "densify",
    "evaluate",
    "inspect",
    "load",
    "plan",
    "read_recipe",
    "recipe",
    "verify",
]
