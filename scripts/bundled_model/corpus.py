"""Collect the docstrings of the Python standard library and split them by module.

The text is whatever the running interpreter's standard library holds, so the corpus depends on the Python version;
for one version it is the same on every run.  A module goes to a part by a hash of its path, never by its
position, so that no module has text in two parts and adding a module moves no other.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Two empty lines between docstrings: a single one already separates the paragraphs within a docstring.
SEPARATOR = "\n\n\n"

# Shares of the modules that are not large; with the large ones in training about a tenth of all text is held out.
HELDOUT_FRACTION = 0.13
VALIDATION_FRACTION = 0.04
# Larger modules always train: drawn into a measuring part, one of them would be a third of it.
LARGE_MODULE_CHARS = 20_000
HELDOUT_LIMIT_BYTES = 200_000
CALIBRATION_BYTES = 400_000
# No single module may fill more than this much of the calibration text.
CALIBRATION_MODULE_BYTES = 12_000

_EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Module:
    """One source file: its path below the standard library's folder and its docstrings in source order."""

    path: str
    docstrings: tuple[str, ...]

    @property
    def text(self) -> str:
        return SEPARATOR.join(self.docstrings)


@dataclass(frozen=True)
class Corpus:
    """The three parts; none shares a module or a whole docstring with another."""

    train: tuple[Module, ...]
    validation: tuple[Module, ...]
    heldout: tuple[Module, ...]


def _in_source_order(node: ast.AST) -> Iterator[ast.AST]:
    """Depth-first walk (``ast.walk`` is breadth-first and would part a class from its methods)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DOCUMENTED):
            yield child
        yield from _in_source_order(child)


def docstrings_of(source: bytes) -> tuple[str, ...]:
    """The docstrings of one source file in source order; none if it does not parse on this interpreter."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    found = [ast.get_docstring(tree)]
    for node in _in_source_order(tree):
        assert isinstance(node, _DOCUMENTED)
        found.append(ast.get_docstring(node))
    stripped = (text.strip() for text in found if text)
    return tuple(text for text in stripped if text)


def collect_modules(root: Path) -> list[Module]:
    """All modules below ``root`` which have docstrings, sorted by path, test packages left out."""
    modules = []
    for file in sorted(root.rglob("*.py"), key=lambda found: found.relative_to(root).as_posix()):
        relative = file.relative_to(root)
        if _EXCLUDED_FOLDERS.isdisjoint(relative.parts[:-1]):
            docstrings = docstrings_of(file.read_bytes())
            if docstrings:
                modules.append(Module(relative.as_posix(), docstrings))
    return modules


def position_of(path: str, purpose: str) -> float:
    """A number in [0, 1) fixed by the path; each purpose draws its own."""
    digest = hashlib.sha256(f"{purpose}:{path}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _without(modules: Iterable[Module], seen: set[str]) -> tuple[Module, ...]:
    """The modules less the docstrings in ``seen`` and less repeats; what is kept is added to ``seen``."""
    kept_modules = []
    for module in modules:
        kept = []
        for text in module.docstrings:
            if text not in seen:
                seen.add(text)
                kept.append(text)
        if kept:
            kept_modules.append(Module(module.path, tuple(kept)))
    return tuple(kept_modules)


def _up_to(modules: Sequence[Module], limit_bytes: int, purpose: str) -> tuple[Module, ...]:
    """Whole modules drawn by hash until the next one would pass the limit, back in path order."""
    chosen: list[Module] = []
    used = 0
    for module in sorted(modules, key=lambda item: position_of(item.path, purpose)):
        size = len((module.text + SEPARATOR).encode())
        if used + size > limit_bytes:
            break
        chosen.append(module)
        used += size
    return tuple(sorted(chosen, key=lambda item: item.path))


def split(modules: Sequence[Module]) -> Corpus:
    """Put every module into one part and drop the docstrings which repeat one seen before."""
    parts: dict[str, list[Module]] = {"train": [], "validation": [], "heldout": []}
    for module in modules:
        position = position_of(module.path, "part")
        if len(module.text) > LARGE_MODULE_CHARS:
            parts["train"].append(module)
        elif position < HELDOUT_FRACTION:
            parts["heldout"].append(module)
        elif position < HELDOUT_FRACTION + VALIDATION_FRACTION:
            parts["validation"].append(module)
        else:
            parts["train"].append(module)
    # The training part comes first, so a docstring found in two parts always leaves the part used for measuring.
    seen: set[str] = set()
    train = _without(parts["train"], seen)
    validation = _without(parts["validation"], seen)
    heldout = _without(parts["heldout"], seen)
    return Corpus(train, validation, _up_to(heldout, HELDOUT_LIMIT_BYTES, "heldout limit"))


def build_corpus(root: Path | None = None) -> Corpus:
    """The split corpus of the running interpreter's standard library, or of the folder ``root``."""
    return split(collect_modules(root or Path(sysconfig.get_path("stdlib"))))


def as_text(modules: Iterable[Module]) -> str:
    """The plain text of a part: all docstrings in order, and a newline at the end."""
    return SEPARATOR.join(module.text for module in modules) + "\n"


def calibration_sample(train: Sequence[Module]) -> tuple[Module, ...]:
    """About ``CALIBRATION_BYTES`` of the training part, from modules all over the library.

    Whole runs of docstrings are kept together, as in the held-out text, so that both read alike.
    """
    shortened = []
    for module in train:
        kept: list[str] = []
        used = 0
        for text in module.docstrings:
            used += len((text + SEPARATOR).encode())
            if used > CALIBRATION_MODULE_BYTES:
                break
            kept.append(text)
        if kept:
            shortened.append(Module(module.path, tuple(kept)))
    return _up_to(shortened, CALIBRATION_BYTES, "calibration")


def licence_text() -> str:
    """The licence file of the running Python installation."""
    for folder in (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)):
        for name in ("LICENSE.txt", "LICENSE"):
            file = folder / name
            if file.is_file():
                return file.read_text(encoding="utf-8")
    raise FileNotFoundError("this Python installation has no licence file; the notice needs its full text")
