"""procbus's own functions without the measurements for the advice, to show their cost.

A function is taken from its source, without each statement that names one of the hooks, and
compiled anew. So the compared versions cannot drift apart. If a hook is gone, or has another name,
the benchmark fails.
"""

from __future__ import annotations
import __future__

import ast
import inspect
from collections.abc import Callable, Collection
from textwrap import dedent
from typing import Any


class _Remover(ast.NodeTransformer):
    """Leaves out each statement that names one of the hooks; of a compound one, in its head."""

    def __init__(self, hooks: Collection[str]) -> None:
        self._hooks = hooks
        self.found: set[str] = set()

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.stmt):
            return node
        bodies = [field for field in ("body", "orelse", "finalbody") if getattr(node, field, None)]
        own = [
            value
            for field, value in ast.iter_fields(node)
            if field not in (*bodies, "handlers", "decorator_list", "args")
        ]
        found = self._named(own)
        if found:
            self.found |= found
            return None
        for field in bodies:
            kept = [new for old in getattr(node, field) if (new := self.visit(old)) is not None]
            setattr(node, field, kept or ([ast.Pass()] if field == "body" else []))
        for handler in getattr(node, "handlers", ()):
            handler.body = [new for old in handler.body if (new := self.visit(old)) is not None]
            handler.body = handler.body or [ast.Pass()]
        return node

    def _named(self, fields: Collection[Any]) -> set[str]:
        nodes = [
            each for field in fields for each in (field if isinstance(field, list) else [field])
        ]
        names = {
            getattr(inner, "attr", getattr(inner, "id", ""))
            for node in nodes
            if isinstance(node, ast.AST)
            for inner in ast.walk(node)
        }
        return names & {*self._hooks}


def without(function: Callable[..., Any], *hooks: str) -> Callable[..., Any]:
    """Compile a function anew, without the statements that name one of the hooks.

    Args:
        function: of a module, or of a class in one.
        *hooks: names of variables, functions, fields.

    Raises:
        LookupError: the function names one of them nowhere.
    """
    tree = ast.parse(dedent(inspect.getsource(function)))
    remover = _Remover(hooks)
    remover.visit(tree.body[0])
    if missing := {*hooks} - remover.found:
        raise LookupError(f"{function.__qualname__} has no {', '.join(sorted(missing))} any more")
    code = compile(
        ast.fix_missing_locations(tree),
        f"<{function.__qualname__} without {', '.join(hooks)}>",
        "exec",
        __future__.annotations.compiler_flag,
    )
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    bare: Callable[..., Any] = made[function.__name__]
    return bare
