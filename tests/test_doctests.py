"""Every example in a docstring of the installed package does what it says."""

import doctest
import io
import pkgutil
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import eckart

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def no_import(name: str) -> None:
    raise ImportError(f"{name} cannot be imported")


MODULES = [
    "eckart",
    *(
        info.name
        for info in pkgutil.walk_packages(eckart.__path__, "eckart.", onerror=no_import)
        if not info.name.endswith(".__main__")  # importing it would run it
    ),
]


def test_every_module_is_found() -> None:
    """A folder that is no package would be passed over."""
    root = Path(eckart.__file__).parent
    files = {path.relative_to(root).with_suffix("") for path in root.rglob("*.py")}
    names = {".".join(["eckart", *(part for part in file.parts if part != "__init__")]) for file in files}
    assert {name for name in names if not name.endswith(".__main__")} == set(MODULES)


def run(module: ModuleType) -> tuple[doctest.TestResults, str]:
    """How many examples failed and ran, and what doctest says about it."""
    report = io.StringIO()
    with redirect_stdout(report):
        results = doctest.testmod(module, optionflags=OPTIONS)
    return results, report.getvalue()


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results, report = run(import_module(name))
    assert results.failed == 0, report


def test_examples_are_found() -> None:
    """In functions, classes and their properties; an empty search would pass as well."""
    attempted = {
        name: run(import_module(name))[0].attempted for name in ("eckart.kernels.svd", "eckart.operator.matrices")
    }
    assert all(count >= 4 for count in attempted.values()), attempted
    assert {"eckart.kernels.svd", "eckart.stats.rules", "eckart.approx.low_rank", "eckart.allocate.marginal"} <= set(
        MODULES
    )


def test_a_planted_wrong_example_is_caught() -> None:
    module = ModuleType("planted")
    exec('def f():\n    """\n    >>> 1 + 1\n    3\n    >>> 0.1 + 0.2\n    0.3...\n    """', vars(module))
    module.f.__module__ = "planted"
    results, report = run(module)
    assert (results.failed, results.attempted) == (1, 2)
    assert "Expected:\n    3\nGot:\n    2" in report
