"""No module imports from a layer above its own. This is how the library stays usable piece by piece."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eckart

ROOT = Path(eckart.__file__).parent

# From the bottom up; modules of one layer may import each other.
LAYERS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("errors", "_version", "_registration"),
            ("kernels",),
            ("operator", "metric", "bound", "fit"),
            ("linalg",),
            ("stats", "measure"),
            ("approx", "allocate"),
            ("adapters", "optim", "merge"),
            ("bonds",),
            ("model",),
            ("recipes",),
            ("api", "adapt"),
            ("cli", "report"),
        ),
    )
)
# Data, not code: whoever may read the bundled model and texts.
DATA = "bundled"
READERS_OF_DATA = frozenset({"recipes", "cli", "api"})
# The face of the package and its command may import anything; of the layers only the topmost look at them.
FACES = frozenset({"", "__main__"})


def layer_of(part: str) -> int | None:
    return next((level for level, parts in enumerate(LAYERS) if part in parts), None)


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported anywhere in the file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What ``module`` (``eckart.stats.moments``) imports although it must not, one sentence each."""
    part = module.split(".")[1] if "." in module else ""
    if part in FACES or part == DATA:
        return []
    level = layer_of(part)
    if level is None:
        return [f"{module}: {part} belongs to no layer; give it a place in LAYERS"]
    found = []
    for line, name in imported(ast.parse(source), module if is_package else module.rpartition(".")[0]):
        if name.split(".")[0] != "eckart":
            continue
        other = name.split(".")[1] if "." in name else ""
        if other == DATA:
            if part not in READERS_OF_DATA:
                found.append(f"{module}:{line} reads {name}; only {', '.join(sorted(READERS_OF_DATA))} may")
            continue
        above = layer_of(other)
        if above is None:
            if level < len(LAYERS) - 1:
                found.append(f"{module}:{line} imports {name}, which belongs to no layer below")
        elif above > level:
            found.append(f"{module}:{line} imports {name} from a layer above its own")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(("eckart", *(parts[:-1] if parts[-1] == "__init__" else parts))), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_imports_point_downwards(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


def test_all_layers_that_exist_are_looked_at() -> None:
    seen = {name.split(".")[1] for name, _ in modules() if "." in name}
    assert {
        "kernels",
        "linalg",
        "operator",
        "metric",
        "bound",
        "fit",
        "stats",
        "approx",
        "allocate",
        "model",
        "recipes",
    } <= seen


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eckart.kernels.svd", "from eckart.metric import Metric"),
        ("eckart.linalg.truncated", "from eckart.stats import Moments"),
        ("eckart.metric", "import eckart.approx.low_rank"),
        ("eckart.metric", "from eckart import allocate"),
        ("eckart.stats.rules", "def f():\n    from eckart.approx import LowRank"),
        ("eckart.approx.low_rank", "if True:\n    from eckart.model.files import read_json"),
        ("eckart.approx.low_rank", "from ..model.files import read_json"),
        ("eckart.approx.low_rank", "from .. import recipes"),
        ("eckart.model.engine", "from eckart.recipes import RECIPES"),
        ("eckart.recipes.compress", "import eckart.cli"),
        ("eckart.model.engine", "from eckart import compress"),
        ("eckart.model.engine", "import eckart"),
        ("eckart.errors", "from eckart.bound import Bound"),
        ("eckart.model.text", "from eckart.bundled import model"),
        ("eckart.unheard_of", ""),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str) -> None:
    assert violations(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eckart.metric", "from eckart.kernels.symmetric import psd_root\nimport torch, numpy.linalg"),
        ("eckart.approx.low_rank", "from ..linalg import svd\nfrom .protocol import Prepared"),
        ("eckart.approx.low_rank", "from eckart.approx.protocol import Prepared\nimport eckart.fit"),
        ("eckart.cli.main", "from eckart.recipes import RECIPES\nfrom eckart.bundled import model"),
        ("eckart.cli.main", "import eckart\nfrom eckart import __version__"),
        ("eckart", "from eckart.cli import main"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_start_at_the_package() -> None:
    assert violations("from . import svd", "eckart.linalg", is_package=True) == []
    assert violations("from .. import model", "eckart.linalg", is_package=True) != []
    assert violations("from ..model import engine", "eckart.linalg", is_package=True) != []
