"""Imports inside procbus/ go down the layers, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

# From the top down. A module may import from its own row and from those below.
# `package/*` stands for the package and all that is in it.
LAYERS = {
    "edge": ["__main__", "cli", "testing/*", "demo/*", "journal_cli", "profile"],
    "front door": ["__init__"],
    "own executor": ["own_executor"],
    "facade": ["bus"],
    "flow": [
        "addressing",
        "advisor",
        "aio",
        "asked_retries",
        "assembly",
        "breaker",
        "bus_executor",
        "bus_life",
        "call_future",
        "companion",
        "cpu_lane",
        "dispatcher",
        "io_lane",
        "io_thread",
        "journaled",
        "journaled_settlement",
        "lanes",
        "leftovers",
        "lifecycle",
        "loop_lane",
        "recorded",
        "settlement",
        "sharing",
        "stream",
        "subscriptions",
        "supervisor",
        "window",
    ],
    "mechanism": [
        "admission",
        "advice",
        "blame",
        "brake",
        "by_value",
        "call_handlers",
        "cgroups",
        "calls",
        "circuit",
        "class_forms",
        "codec",
        "dead_letters",
        "direct",
        "exit_watch",
        "failure_log",
        "footprint",
        "freezing",
        "cores",
        "crossing",
        "gate",
        "gil_probe",
        "given_ids",
        "health",
        "histogram",
        "journal/*",
        "letter_file",
        "letters",
        "lane_thread",
        "limits",
        "machine",
        "meter",
        "mover",
        "oom",
        "outcome_data",
        "own_process",
        "ownership",
        "pool/*",
        "proc_files",
        "processes",
        "progress",
        "queue",
        "redefinition",
        "registry",
        "retry",
        "retry_queue",
        "router",
        "script_globals",
        "settings",
        "sigterm",
        "stall",
        "stats",
        "stats_text",
        "steps",
        "strays",
        "subscription",
        "thread_set_up",
        "turns",
        "unseen",
        "verdict",
        "wear",
        "weighing",
    ],
    "nouns": [
        "amounts",
        "annotation",
        "backoff",
        "callables",
        "carry",
        "context",
        "delivery",
        "errors",
        "evidence",
        "exception_parts",
        "handler",
        "hints",
        "letter",
        "locks",
        "log",
        "options",
        "outcome",
        "own_thread",
        "plain_text",
        "receipt",
        "resume_summary",
        "session",
        "sizes",
        "topic",
        "unfinished",
        "user_objects",
        "waiting",
    ],
}

# Each of these is behind one module, so that there is one place to read, and one to change.
ONE_MODULE_EACH = ["cloudpickle", "distributed", "loky", "psutil", "sqlite3"]

# What `import procbus` must not load: they are for those who publish, not for those who import.
HEAVY = ["asyncio", "cloudpickle", "loky", "multiprocessing", "psutil", "rich", "sqlite3"]

LONGEST_MODULE = 700  # lines; above that, ask whether it holds one idea

ROOT = Path(__file__).parents[1]


@cache
def modules() -> dict[str, Path]:
    """Each module by its dotted name; a package by its own, without `__init__`."""
    files = sorted((ROOT / "procbus").rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that the module imports anywhere in it, but for type checking only."""
    file = modules()[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(imported_names(ast.parse(file.read_text(encoding="utf-8")), package))


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    match tree:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for statement in tree.orelse:
                yield from imported_names(statement, package)
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
        yield from imported_names(child, package)


def own_imports(module: str) -> set[str]:
    """Modules of procbus that the module imports."""
    own = {name for name in imports(module) if name.split(".")[0] == "procbus"}
    return {name if name in modules() else name.rpartition(".")[0] for name in own} - {module}


def layers_of(module: str) -> list[str]:
    """Layers whose row names the module: one, when the table is right."""
    path = module.removeprefix("procbus").removeprefix(".").replace(".", "/") or "__init__"
    return [
        layer
        for layer, names in LAYERS.items()
        if any(path == name.removesuffix("/*") or fnmatchcase(path, name) for name in names)
    ]


def depth(module: str) -> int:
    return list(LAYERS).index(layers_of(module)[0])


def test_every_module_stands_in_one_layer_of_the_table() -> None:
    wrong = {module: layers for module in modules() if len(layers := layers_of(module)) != 1}

    assert modules(), "no module found: is procbus/ where this test looks?"
    assert not wrong, f"put each of these in one row of LAYERS in {__file__}: {wrong}"


def test_imports_go_down_the_layers_or_stay_in_one() -> None:
    placed = [module for module in modules() if layers_of(module)]
    up = [
        f"{module} ({layers_of(module)[0]}) imports {other} ({layers_of(other)[0]})"
        for module in placed
        for other in own_imports(module)
        if other in placed and depth(other) < depth(module)
    ]

    assert not up, "\n".join(up)


def test_imports_make_no_cycle() -> None:
    try:
        graphlib.TopologicalSorter({module: own_imports(module) for module in modules()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"each imported by the next: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", ONE_MODULE_EACH)
def test_a_library_is_imported_in_one_module_only(library: str) -> None:
    users = [
        module
        for module in modules()
        # The demo is a script as users write them: what it does with a database is its own affair.
        if not module.startswith("procbus.demo")
        and any(name.split(".")[0] == library for name in imports(module))
    ]

    assert len(users) <= 1, f"{library} is imported by {', '.join(users)}"


def test_no_module_is_too_long() -> None:
    lengths = {
        module: len(file.read_text(encoding="utf-8").splitlines())
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
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )

    assert loaded.returncode == 0, loaded.stderr
    assert "procbus" in loaded.stdout.split()
    assert not set(HEAVY) & set(loaded.stdout.split())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import loky.backend", {"loky.backend"}),
        ("from . import errors", {"procbus.pool.errors"}),
        ("from ..errors import BusClosed", {"procbus.errors.BusClosed"}),
        ("def f():\n    import psutil", {"psutil"}),
        ("import importlib\nimportlib.import_module('loky')", {"importlib", "loky"}),
        ("if TYPE_CHECKING:\n    import loky\nelse:\n    import psutil", {"psutil"}),
        ("if typing.TYPE_CHECKING:\n    import loky", set()),
    ],
)
def test_imports_are_read_from_the_source(source: str, expected: set[str]) -> None:
    assert set(imported_names(ast.parse(source), "procbus.pool")) == expected
