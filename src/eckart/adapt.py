"""Fine-tuning by adapters: put them into a model of one's own, or have a checkpoint trained by them.

>>> from eckart.adapt import RECIPES
>>> RECIPES["pissa"]().form
Pair()
"""

from eckart.model.adapting.course import Course
from eckart.model.adapting.engine import Tuned, tune
from eckart.model.adapting.export import Exported, export
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import Wrapped, wrap
from eckart.recipes.adapters import ADAPTERS as RECIPES

__all__ = ["RECIPES", "Adapt", "Course", "Exported", "Tuned", "Wrapped", "export", "tune", "wrap"]
