"""Fine-tuning by adapters: put them into a model of one's own, or have a checkpoint trained by them.

>>> from eckart.adapt import RECIPES
>>> RECIPES["pissa"]().form
Pair()
"""

from pathlib import Path
from typing import Any

from eckart.errors import EckartError
from eckart.model.adapting import own
from eckart.model.adapting.course import Course
from eckart.model.adapting.engine import tune
from eckart.model.adapting.export import Exported, export
from eckart.model.adapting.own import is_own
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.running import Tuned
from eckart.model.adapting.sweep import Swept, Trial, around, sweep
from eckart.model.adapting.transfer import Transferred, overlap, transfer
from eckart.model.adapting.wrap import wrap
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.progress import Progress, quiet
from eckart.recipes.adapters import ADAPTERS as RECIPES
from eckart.recipes.adapters.notation import compose_adapter, read_adapter_recipe

__all__ = [
    "RECIPES",
    "Adapt",
    "Course",
    "Exported",
    "Swept",
    "Transferred",
    "Trial",
    "Tuned",
    "Wrapped",
    "around",
    "attach",
    "export",
    "find_recipe",
    "is_own",
    "merge",
    "overlap",
    "sweep",
    "transfer",
    "tune",
    "wrap",
]


def find_recipe(name: str | Path) -> Adapt:
    """The recipe of adapters of a key, or of a TOML file.

    >>> find_recipe("dora").form
    Directed(of=Pair())

    Raises ``EckartError`` naming what is known for anything else.
    """
    if isinstance(name, Path) or name.endswith(".toml"):
        return read_adapter_recipe(Path(name))
    if name not in RECIPES:
        raise EckartError(
            f"there is no recipe {name!r} for adapters: known are {', '.join(RECIPES)}, or name a TOML file"
        )
    return RECIPES[name]()


def attach(model: Any, folder: str | Path) -> Wrapped:
    """Put an adapter that was kept in its own form into the model that it was trained for.

    ``folder`` is what ``tune`` wrote where no LoRA does the same. The model is changed in place, and frozen but for the adapter.

    Raises ``EckartError`` where the folder holds none, or one for another model.
    """
    kept = own.read_own(Path(folder))
    return own.attach(model, compose_adapter(kept.parts, str(Path(folder) / own.TABLE)), kept)


def merge(
    model: str | Path, folder: str | Path, out: str | Path, *, restart: bool = False, progress: Progress = quiet
) -> Path:
    """Write the dense checkpoint of a base and an adapter that was kept in its own form.

    Raises ``EckartError`` for a base that is compressed or quantised, an adapter of another model, one whose effect depends on the
    token, and if ``out`` is not free.
    """
    place = Path(folder)
    recipe = compose_adapter(own.read_own(place).parts, str(place / own.TABLE))
    return own.merge_own(model, place, recipe, out, restart=restart, progress=progress)
