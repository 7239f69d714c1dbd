"""Promises about how the code is written, each with a planted breach that its checker must find."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eckart

ROOT = Path(eckart.__file__).parent
TESTS = Path(__file__).parent
LONGEST_MODULE = 400

# The modules whose dataclasses are parts, operators or results: values that many places share.
OF_VALUES = (
    "operator",
    "bound",
    "fit",
    "metric",
    "linalg",
    "stats",
    "approx",
    "allocate",
    "adapt",
    "optim",
    "merge",
    "recipes",
)
# What is filled bit by bit while a stream goes by.
ACCUMULATORS = {"Moments"}

COMPARISONS = {"allclose", "array_equal", "equal", "isclose"}
# The readers of recipes from files build a Compress as well, but are no recipes.
NO_RECIPES = {"notation.py"}


def parsed(paths: Iterator[Path]) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(paths)]


# ---- a recipe is one expression -------------------------------------------------------------------------------------


def recipes(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions annotated to return a Compress."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef)
            and node.returns
            and ast.unparse(node.returns).strip("'\"").endswith("Compress")
        ):
            yield node


def is_one_expression(function: ast.FunctionDef) -> bool:
    return (
        len(function.body) == 2 and ast.get_docstring(function) is not None and isinstance(function.body[1], ast.Return)
    )


def test_a_recipe_is_a_docstring_and_one_return() -> None:
    files = parsed(path for path in (ROOT / "recipes").glob("*.py") if path.name not in NO_RECIPES)
    found = [(path.name, recipe) for path, tree in files for recipe in recipes(tree)]
    assert {"svd", "asvd", "svd_llm"} <= {recipe.name for _, recipe in found}
    assert [f"{file}: {recipe.name}" for file, recipe in found if not is_one_expression(recipe)] == []


@pytest.mark.parametrize(
    "body",
    [
        "return Compress()",  # no docstring
        "'''Paper.'''\n    x = 1\n    return Compress(x)",
        "'''Paper.'''\n    if rank:\n        return Compress()",
        "'''Paper.'''\n    if rank:\n        return Compress(1)\n    return Compress()",
    ],
)
@pytest.mark.parametrize("annotation", ["Compress", "'Compress'", "compression.Compress"])
def test_a_planted_recipe_with_logic_is_caught(body: str, annotation: str) -> None:
    (recipe,) = recipes(ast.parse(f"def paper(rank) -> {annotation}:\n    {body}"))
    assert not is_one_expression(recipe)


def test_a_good_recipe_passes() -> None:
    (recipe,) = recipes(ast.parse("def paper(rank) -> Compress:\n    '''Paper.'''\n    return Compress(rank)"))
    assert is_one_expression(recipe)


# ---- a comparison in a test is asserted -----------------------------------------------------------------------------


def thrown_away(tree: ast.Module) -> list[int]:
    """Lines with a comparison whose result nobody looks at."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "attr", getattr(node.value.func, "id", "")) in COMPARISONS
    ]


def test_no_comparison_in_a_test_is_thrown_away() -> None:
    files = parsed(TESTS.rglob("*.py"))
    assert len(files) > 10
    assert [f"{path.relative_to(TESTS)}:{line}" for path, tree in files for line in thrown_away(tree)] == []


def test_a_planted_bare_comparison_is_caught() -> None:
    source = (
        "def test_x():\n    torch.allclose(a, b)\n    equal(a, b)\n    if a:\n        np.testing.array_equal(a, b)\n"
    )
    assert thrown_away(ast.parse(source)) == [2, 3, 5]
    assert thrown_away(ast.parse("assert torch.equal(a, b)\nx = math.isclose(a, b)\nassert_allclose(a, b)")) == []


# ---- values cannot be changed ---------------------------------------------------------------------------------------


def changeable(tree: ast.Module) -> list[str]:
    """Names of dataclasses that are not frozen."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(call).rpartition(".")[2] != "dataclass":
                continue
            options = decorator.keywords if isinstance(decorator, ast.Call) else []
            if not any(
                o.arg == "frozen" and isinstance(o.value, ast.Constant) and o.value.value is True for o in options
            ):
                found.append(node.name)
    return found


def test_parts_and_results_are_frozen() -> None:
    files = parsed(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).with_suffix("").parts[0] in OF_VALUES)
    assert len(files) > 10
    assert [f"{p.name}: {name}" for p, tree in files for name in changeable(tree) if name not in ACCUMULATORS] == []


def test_a_planted_changeable_part_is_caught() -> None:
    source = """
@dataclass
class A: ...
@dataclass(kw_only=True)
class B: ...
@dataclasses.dataclass(frozen=False)
class C: ...
@dataclass(frozen=True, kw_only=True)
class D: ...
class E: ...
"""
    assert changeable(ast.parse(source)) == ["A", "B", "C"]


# ---- a module fits into a head --------------------------------------------------------------------------------------


def too_long(root: Path) -> list[str]:
    lengths = {
        path.relative_to(root): len(path.read_text(encoding="utf-8").splitlines()) for path in root.rglob("*.py")
    }
    return [f"{path}: {length} lines" for path, length in sorted(lengths.items()) if length > LONGEST_MODULE]


def test_no_module_is_too_long() -> None:
    assert too_long(ROOT) == []


def test_a_planted_long_module_is_caught(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "long.py").write_text("\n" * (LONGEST_MODULE + 1))
    (tmp_path / "short.py").write_text("\n" * LONGEST_MODULE)
    assert too_long(tmp_path) == [f"{Path('deep', 'long.py')}: {LONGEST_MODULE + 1} lines"]
