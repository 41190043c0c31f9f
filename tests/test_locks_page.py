"""docs/internals/locks.md has a row for each lock of procbus, and each row is a lock."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "internals" / "locks.md"

ROW = re.compile(r"^\| `(?P<name>[\w.]+)` \|", flags=re.MULTILINE)

#: Kinds of lock. A condition made with an argument has that lock, and none of its own.
KINDS = {"Condition", "Lock", "RLock"}


def locks_in(tree: ast.Module, module: str) -> Iterator[str]:
    """Each lock that a module keeps, as the page names it: `Class.attribute` or `module.NAME`.

    Args:
        tree: the syntax tree of the module.
        module: the last part of the module's name.
    """
    yield from _kept(tree, module)


def _kept(node: ast.AST, owner: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _kept(child, child.name)
            continue
        if isinstance(child, ast.Assign | ast.AnnAssign) and _makes_a_lock(child.value):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            for target in targets:
                match target:
                    case ast.Attribute(value=ast.Name(id="self"), attr=name):
                        yield f"{owner}.{name}"
                    case ast.Name(id=name) if isinstance(node, ast.Module | ast.ClassDef):
                        yield f"{owner}.{name}"
        yield from _kept(child, owner)


def _makes_a_lock(value: ast.expr | None) -> bool:
    for node in ast.walk(value) if value is not None else ():
        match node:
            case ast.Call(func=ast.Name(id=kind) | ast.Attribute(attr=kind), args=args) if (
                kind in KINDS and not (kind == "Condition" and args)
            ):
                return True
            case ast.keyword(
                arg="default_factory", value=ast.Name(id=kind) | ast.Attribute(attr=kind)
            ) if kind in KINDS:
                return True
    return False


def locks_of_procbus() -> set[str]:
    return {
        lock
        for file in sorted((ROOT / "procbus").rglob("*.py"))
        for lock in locks_in(ast.parse(file.read_text(encoding="utf-8")), file.stem)
    }


def test_every_lock_has_a_row_and_every_row_is_a_lock() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    locks = locks_of_procbus()

    assert len(rows) == len(set(rows)), "a lock has two rows"
    assert not locks - set(rows), "add a row to docs/internals/locks.md for each of these locks"
    assert not set(rows) - locks, "these rows of docs/internals/locks.md name no lock"


@pytest.mark.parametrize(
    ("source", "locks"),
    [
        ("class A:\n    def __init__(self): self.l = Lock()", {"A.l"}),
        ("class A:\n    def f(self): self.l: Lock = threading.RLock()", {"A.l"}),
        ("class A:\n    l: Lock = field(default_factory=Lock)", {"A.l"}),
        ("class A:\n    def __init__(self, l): self.l = l or Lock()", {"A.l"}),
        ("class A:\n    def __init__(self): self.c = threading.Condition()", {"A.c"}),
        ("class A:\n    def __init__(self): self.c = threading.Condition(self.l)", set()),
        ("_lock = Lock()\ndef f():\n    local = Lock()", {"module._lock"}),
        ("class A:\n    def __init__(self): self.l = JournalLock('path')", set()),
    ],
)
def test_locks_are_found_in_the_source(source: str, locks: set[str]) -> None:
    assert set(locks_in(ast.parse(source), "module")) == locks
