"""Registers the format of compressed checkpoints with transformers, without importing transformers for it.

Loading such a checkpoint needs the format to be known; using ``eckart.linalg`` does not need transformers, which takes seconds to
import. So the registration waits until transformers' own table of formats is imported, whoever does that.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

TABLE = "transformers.quantizers"  # the package that holds transformers' table of formats
OURS = "eckart.model.quantizer"  # whose import is the registration


def register() -> None:
    """Register now where the table is there, else as soon as it is."""
    if TABLE in sys.modules:
        importlib.import_module(OURS)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds nothing itself: it lets the others find the table, and has the registration follow its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TABLE:
            return None
        sys.meta_path.remove(self)  # its work is done, and it must not be asked again by the next line
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Followed(spec.loader)
        return spec


class _Followed(Loader):
    """Loads as another loader does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(OURS)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # what else may be asked of a loader: resources, sources
