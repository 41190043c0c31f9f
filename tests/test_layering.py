"""Rooms: imports go down only, a room is entered by its doors, libraries stay where they belong."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

#: From the ground up: a room imports only from itself and from the rooms before it.
#: FRONT is the modules that lie directly in procbus/.
FRONT = "(front)"
ROOMS = [
    "core",
    "system",
    "codec",
    "routing",
    "advice",
    "pool",
    "dispatch",
    "lanes",
    "supervision",
    "journal",
    "progress",
    "futures",
    "jobs",
    "live",
    FRONT,
    "joblib",
    "testing",
    "demo",
    "web",
    "cli",
]

#: The modules of a room that other rooms may import. A room that is not named here has no walls.
DOORS = {
    "pool": {
        *("interface", "inline", "birth", "loky", "outcomes", "threads", "memory.events"),
        *("logbook", "stack"),
        "dask.pool",
    },
    "journal": {
        *("journal", "bus_journal", "ends", "resume", "inspection", "codec"),
        *("dead_letter_file", "job_records"),
    },
}

#: Modules that need each other for their types: three nouns that make up one picture.
KIN = [{"procbus.core.delivery", "procbus.core.receipt", "procbus.core.subscription"}]

#: Each of these is imported in one module, so that there is one place to read, and one to change.
ONE_MODULE_EACH = ["cloudpickle", "distributed", "loky", "psutil", "sqlite3"]

#: `import procbus` loads none of these: a script that only declares handlers does not need them.
HEAVY = [
    *("asyncio", "cloudpickle", "loky", "multiprocessing", "psutil", "rich", "sqlite3"),
    *("joblib", "starlette", "uvicorn"),
]

LONGEST_MODULE = 700  # lines without docstrings; above that, ask whether it holds one idea
MOST_FRONT_MODULES = 10

ROOT = Path(__file__).parents[1]


@cache
def modules() -> dict[str, Path]:
    """Each module by its dotted name; a package by its own, without `__init__`."""
    files = sorted((ROOT / "procbus").rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def room_of(module: str) -> str:
    """The room that a module lies in."""
    if module == "procbus.__main__":
        return "cli"
    parts = module.split(".")
    is_package = (ROOT / "procbus" / parts[1]).is_dir() if len(parts) > 1 else False
    return parts[1] if is_package else FRONT


@cache
def imports(module: str, *, with_types: bool = True) -> frozenset[str]:
    """Dotted names that a module imports anywhere in it.

    Args:
        module: its dotted name.
        with_types: whether imports for type checking only count too.
    """
    file = modules()[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(imported_names(tree, package, with_types))


def imported_names(tree: ast.AST, package: str, with_types: bool) -> Iterator[str]:
    match tree:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")) if (
            not with_types
        ):
            for statement in tree.orelse:
                yield from imported_names(statement, package, with_types)
            return
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=source, names=names, level=level):
            origin = resolve_name("." * level + (source or ""), package)
            # Whether `b` of `from a import b` is a module shows only where modules are known.
            yield from (f"{origin}.{name.name}" for name in names)
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield resolve_name(name, package)
    for child in ast.iter_child_nodes(tree):
        yield from imported_names(child, package, with_types)


def own_imports(module: str, *, with_types: bool = True) -> set[str]:
    """Modules of procbus that a module imports."""
    names = imports(module, with_types=with_types)
    own = {name for name in names if name.split(".")[0] == "procbus"}
    return {name if name in modules() else name.rpartition(".")[0] for name in own} - {module}


def borders() -> Iterator[tuple[str, str]]:
    """Each import from one room into another."""
    for module in modules():
        for other in sorted(own_imports(module)):
            # The package itself has no imports of its own but for type checkers: see `_HOMES`.
            if room_of(module) != room_of(other) and module != "procbus" and other != "procbus":
                yield module, other


def test_every_room_is_in_the_list() -> None:
    rooms = {room_of(module) for module in modules()}

    assert rooms == set(ROOMS)


def test_few_modules_lie_outside_of_a_room() -> None:
    front = [module for module in modules() if room_of(module) == FRONT and module != "procbus"]

    assert len(front) <= MOST_FRONT_MODULES, front


def test_each_room_imports_only_rooms_below_it() -> None:
    up = {
        f"{module} -> {other}"
        for module, other in borders()
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    }

    assert not up


def test_a_room_is_entered_by_its_doors() -> None:
    past = {
        f"{module} -> {other}"
        for module, other in borders()
        if (room := room_of(other)) in DOORS
        and other != f"procbus.{room}"
        and other.removeprefix(f"procbus.{room}.") not in DOORS[room]
    }

    assert past == set()


def test_modules_make_no_circle() -> None:
    graph = {module: own_imports(module, with_types=False) for module in modules()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"each imported by the next: {' -> '.join(error.args[1])}")


def test_only_kin_need_each_other_for_their_types() -> None:
    graph = {
        module: {
            other
            for other in own_imports(module) - {"procbus"}
            if not any(module in kin and other in kin for kin in KIN)
        }
        for module in modules()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"each imported by the next: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", ONE_MODULE_EACH)
def test_a_library_is_imported_in_one_module(library: str) -> None:
    users = [
        module
        for module in modules()
        # The demo is a script as users write them: it has a database of its own.
        if room_of(module) != "demo"
        and any(name.split(".")[0] == library for name in imports(module, with_types=False))
    ]

    assert len(users) <= 1, f"{library} is imported by {', '.join(users)}"


def lines_of_code(source: str) -> int:
    """The lines of a module without its docstrings: these are the reference of the public names."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    of_docstrings = sum(
        (node.body[0].end_lineno or node.body[0].lineno) - node.body[0].lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    )
    return len(source.splitlines()) - of_docstrings


def test_no_module_is_a_hall() -> None:
    lengths = {
        module: lines_of_code(file.read_text(encoding="utf-8"))
        for module, file in modules().items()
    }
    long = {module: length for module, length in lengths.items() if length > LONGEST_MODULE}

    assert not long, f"more than {LONGEST_MODULE} lines, does each hold one idea? {long}"


def test_importing_procbus_loads_nothing_heavy() -> None:
    script = (
        "import sys; before = set(sys.modules); import procbus; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=150
    )

    assert loaded.returncode == 0, loaded.stderr
    assert "procbus" in loaded.stdout.split()
    assert not set(HEAVY) & set(loaded.stdout.split())


def test_a_worker_loads_nothing_for_its_first_event_that_it_does_not_need() -> None:
    script = (
        "import sys, loky; theirs = set(sys.modules); import procbus.pool.child.main; "
        "print(*set(sys.modules) - theirs)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=150
    )

    assert loaded.returncode == 0, loaded.stderr
    assert "procbus.pool.child.main" in loaded.stdout.split()
    unneeded = {
        "asyncio",
        "pathlib",
        "procbus.core.handler",
        "procbus.core.stats",
        "procbus.pool.memory.events",
        "procbus.system.exit_hooks",
    }
    assert not unneeded & set(loaded.stdout.split())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import loky.backend", {"loky.backend"}),
        ("from . import wire", {"procbus.pool.wire"}),
        ("from ..core.errors import BusClosed", {"procbus.core.errors.BusClosed"}),
        ("def f():\n    import psutil", {"psutil"}),
        ("import importlib\nimportlib.import_module('loky')", {"importlib", "loky"}),
        ("if TYPE_CHECKING:\n    import loky\nelse:\n    import psutil", {"psutil"}),
        ("if typing.TYPE_CHECKING:\n    import loky", set()),
    ],
)
def test_imports_are_read_from_the_source(source: str, expected: set[str]) -> None:
    tree = ast.parse(source)

    assert set(imported_names(tree, "procbus.pool", False)) == expected
    assert expected | {"loky"} >= set(imported_names(tree, "procbus.pool", True)) >= expected


#: Constants that tests replace in a module, each with the reason.
REPLACED_CONSTANTS = {
    "_ALONE": "the boundary between two forms of a message, gigabytes away",
    "LISTS_CHILDREN": "a fact of the operating system",
    "PATIENCE_S": "a worker on a busy machine has more time to write its stack, in whole folders",
    "READABLE": "a fact of the operating system",
}


def test_tests_give_limits_to_constructors_and_do_not_replace_constants_in_modules() -> None:
    replaced = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(
            r"setattr\(\s*(?!leaks\b)[\w.]+, \"(_?[A-Z][A-Z_]+)\"", file.read_text(encoding="utf-8")
        )
    }

    assert replaced == set(REPLACED_CONSTANTS)
