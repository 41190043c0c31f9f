# SPDX-License-Identifier: MIT
"""Metrics of a function, from its syntax tree: complexity, length, nesting.

Complexity is the cyclomatic number v(G) = predicates + 1 of T. J. McCabe, "A Complexity Measure",
IEEE Transactions on Software Engineering SE-2 (4), 1976, where each condition of a compound
predicate counts. In Python's terms a function starts at 1, and adds

- 1 for each ``if``, ``elif``, conditional expression, ``for``, ``while`` and ``except``;
- 1 for each operand of ``and`` and ``or`` after the first, and each ``|`` of a match pattern;
- 1 for each ``for`` and each ``if`` of a comprehension;
- 1 for each ``case`` that may fail to match (``case _`` and ``case name`` cannot), 1 for its guard.

``else``, ``finally``, ``with`` and ``assert`` add nothing. An inner function is measured by itself
and adds nothing to the outer function. A lambda and a class body count for the function around
them. So do the decorators, defaults and annotations of an inner function, because the function
around it runs them.
"""

from __future__ import annotations

import ast
import warnings
from contextlib import suppress
from typing import NamedTuple

# Parsing warns of dubious code (an unknown escape, `is` with a literal). Such warnings are for the
# authors of the measured code, so they are silenced for sources with this file name, and no others.
# The filter is set once here, because `warnings.catch_warnings` is not thread-safe.
_FILE_NAME = "<procbus demo source>"
warnings.filterwarnings("ignore", module=_FILE_NAME)

# Maximum number of times to parse a file when the interpreter itself fails.
_TRIES = 5


class FunctionMetrics(NamedTuple):
    """One function. A tuple, because it is cheap to pickle and is a row as SQLite takes it.

    Attributes:
        name: qualified name, as in ``__qualname__``: ``Class.method``, ``outer.<locals>.inner``.
        line: line of its ``def``.
        complexity: cyclomatic complexity, at least 1.
        length: lines from ``def`` to the end of its body, comments and docstring included.
        nesting: maximum of blocks (if, for, while, with, try, match) around one of its statements.
    """

    name: str
    line: int
    complexity: int
    length: int
    nesting: int


class _Function:
    """A function while its body is being visited."""

    __slots__ = ("complexity", "length", "line", "name", "nesting")

    def __init__(self, name: str, line: int, end_line: int) -> None:
        self.name = name
        self.line = line
        self.length = end_line - line + 1
        self.complexity = 1
        self.nesting = 0


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = frozenset(
    {ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar}
    | {ast.Match}
)
_ONE_PREDICATE = frozenset({ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler})
# Nodes without a predicate or a function in them: half of all nodes, which need no visit.
_LEAVES = frozenset(
    {ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.Pass, ast.Break, ast.Continue}
    | {ast.alias, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal}
)


def measure_source(source: str) -> tuple[FunctionMetrics, ...]:
    """Measure every function and method of a module, in the order of their ``def`` lines.

    Args:
        source: text of the module.

    Raises:
        SyntaxError: the text is not Python (of the version that runs this).
        ValueError: it holds a null byte or a lone surrogate.
        RecursionError, MemoryError: it is nested deeper than the parser can handle.
    """
    found = _walk(_parse(source))
    found.sort(key=lambda function: function.line)
    return tuple(FunctionMetrics(f.name, f.line, f.complexity, f.length, f.nesting) for f in found)


def _parse(source: str) -> ast.Module:
    """Parse, and retry when CPython fails: 3.11 adds up the depth of all threads' parsing."""
    for _ in range(_TRIES - 1):
        with suppress(SystemError):  # "AST constructor recursion depth mismatch"
            return ast.parse(source, _FILE_NAME)
    return ast.parse(source, _FILE_NAME)


def _walk(tree: ast.Module) -> list[_Function]:
    """Visit every node once, with a stack: generated code nests deeper than Python may recurse."""
    found: list[_Function] = []
    module_level = _Function("", 0, 0)  # for code outside every function; not reported
    # (node, function around it, prefix of the names inside it, blocks around it)
    stack: list[tuple[ast.AST, _Function, str, int]] = [(tree, module_level, "", 0)]
    while stack:
        node, function, prefix, depth = stack.pop()
        kind = type(node)
        function.complexity += _predicates(node, kind)
        if kind in _BLOCKS:
            depth += 1
            function.nesting = max(function.nesting, depth)
        own_body: list[ast.stmt] = []
        if isinstance(node, _FUNCTIONS):
            inner = _Function(prefix + node.name, node.lineno, node.end_lineno or node.lineno)
            found.append(inner)
            own_body = node.body
            stack.extend((child, inner, f"{inner.name}.<locals>.", 0) for child in own_body)
        elif isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        elif isinstance(node, ast.If) and _is_elif(node):
            stack.append((node.orelse[0], function, prefix, depth - 1))
            own_body = node.orelse
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                if value is not own_body:
                    stack.extend(
                        (child, function, prefix, depth)
                        for child in value
                        if type(child) not in _LEAVES and isinstance(child, ast.AST)
                    )
            elif isinstance(value, ast.AST) and type(value) not in _LEAVES:
                stack.append((value, function, prefix, depth))
    return found


def _predicates(node: ast.AST, kind: type[ast.AST]) -> int:
    if kind in _ONE_PREDICATE:
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        always_matches = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
        return (not always_matches) + (node.guard is not None)
    if isinstance(node, ast.MatchOr):
        return len(node.patterns) - 1
    return 0


def _is_elif(node: ast.If) -> bool:
    """Whether the else branch of `node` is an ``elif``: a single ``if``, not indented further."""
    if len(node.orelse) != 1:
        return False
    orelse = node.orelse[0]
    return isinstance(orelse, ast.If) and orelse.col_offset == node.col_offset
