"""Bugs to plant in a module: one small change of its source each, found by walking its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.MatMult: "*",
    ast.BitOr: "&",
    ast.BitAnd: "|",
    ast.LShift: ">>",
    ast.RShift: "<<",
}


@dataclass(frozen=True)
class Bug:
    """A place in a source text and what stands there instead."""

    kind: str
    line: int
    start: int  # offsets in the text
    end: int
    instead: str

    def planted(self, source: str) -> str:
        """The source with the bug in it.

        >>> bug = next(bugs("x = a < b"))
        >>> bug.kind, bug.planted("x = a < b")
        ('comparison', 'x = (a <= b)')
        """
        return source[: self.start] + self.instead + source[self.end :]


def bugs(source: str) -> Iterator[Bug]:
    """Every bug that can be planted; annotations and docstrings, which nothing evaluates, are left out."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    rows = source.splitlines()

    def offset(row: int, column: int) -> int:
        return starts[row - 1] + len(rows[row - 1].encode()[:column].decode())

    for node in _evaluated(tree):
        for kind, instead in _changes(node):
            assert isinstance(node, ast.expr | ast.stmt)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start, end = offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)
            yield Bug(kind, node.lineno, start, end, instead)


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node`` that run, in the order of the text."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_text(child) or _for_checkers_only(child):
                continue
            yield child
            yield from _evaluated(child)


def _is_text(node: ast.AST) -> bool:
    """A docstring, an f-string or an import: a change there shows in a sentence at most, or is a plain crash."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


def _for_checkers_only(node: ast.AST) -> bool:
    """An assertion about types, or a type alias: neither decides anything."""
    return isinstance(node, ast.Assert)


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Kinds of bugs for a node, each with the source that replaces the whole node."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
            yield "comparison", f"({ast.unparse(left)} {COMPARISONS[type(op)]} {ast.unparse(right)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC and not _is_string(left):
            yield "arithmetic", f"(({ast.unparse(left)}) {ARITHMETIC[type(op)]} ({ast.unparse(right)}))"
        case ast.BoolOp(op=op, values=values):
            other = " or " if isinstance(op, ast.And) else " and "
            yield "and or", "(" + other.join(f"({ast.unparse(value)})" for value in values) + ")"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "sign", f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield "truth", str(not value)
        case ast.Constant(value=int(value)):
            yield "number", str(value + 1)
        case ast.Constant(value=float(value)):
            yield "number", repr(2 * value if value else 1.0)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield "branch", f"({ast.unparse(orelse)} if {ast.unparse(test)} else {ast.unparse(body)})"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield "left out", "pass"
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield "nothing returned", "return None"
        case ast.Break():
            yield "loop", "continue"
        case ast.Continue():
            yield "loop", "break"


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
