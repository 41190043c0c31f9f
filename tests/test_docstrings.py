"""The examples in docstrings are scripts that run, and each public name has one."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus import EventBus
from tests.clusters import HAS_DASK, NO_DASK
from tests.test_docs import run_python, scripts_of
from tests.test_site import DOCS, DOCUMENTED

ROOT = Path(__file__).parents[1]

DOCUMENTED_NODES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

#: Extras that examples of a module need.
NEEDED = {
    "procbus/joblib/__init__.py": "joblib",
    "procbus/otel.py": "opentelemetry",
    "procbus/prometheus.py": "prometheus_client",
}


def examples_in(file: Path) -> Iterator[tuple[str, str]]:
    """The scripts in the docstrings of a module, each with the name that it belongs to."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED_NODES) and (text := ast.get_docstring(node)):
            for script in scripts_of(text):
                yield node.name, textwrap.dedent(script.text).lstrip("\n")


def marks_of(path: str) -> list[pytest.MarkDecorator]:
    without_dask = pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)
    return [pytest.mark.slow, *([without_dask] if "dask" in path else [])]


@pytest.mark.parametrize(
    ("path", "script"),
    [
        pytest.param(path, script, id=f"{path}:{name}", marks=marks_of(path))
        for file in sorted((ROOT / "procbus").rglob("*.py"))
        for path in [file.relative_to(ROOT).as_posix()]
        for name, script in examples_in(file)
    ],
)
def test_the_example_in_a_docstring_runs(path: str, script: str, tmp_path: Path) -> None:
    if path in NEEDED:
        pytest.importorskip(NEEDED[path])
    (tmp_path / "example.py").write_text(script, encoding="utf-8")
    ran = run_python("example.py", cwd=tmp_path)

    assert ran.returncode == 0, f"{script}\n{ran.stdout}"


def thing_named(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def documented_names() -> list[str]:
    """The names that the pages of the reference have a docstring of."""
    return [
        name
        for page in sorted((DOCS / "api").glob("*.md"))
        for name in DOCUMENTED.findall(page.read_text(encoding="utf-8"))
    ]


def has_example(thing: object) -> bool:
    return "```python" in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("name", documented_names())
def test_the_docstring_of_a_public_name_has_an_example(name: str) -> None:
    needed = NEEDED.get(name.rpartition(".")[0].replace(".", "/") + ".py")
    if needed:
        pytest.importorskip(needed)

    assert has_example(thing_named(name))


def test_each_method_of_the_bus_has_an_example() -> None:
    methods = {name: each for name, each in vars(EventBus).items() if not name.startswith("_")}

    assert [name for name, each in methods.items() if not has_example(each)] == []


def test_an_example_is_found_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        'def f():\n    """Do.\n\n    Example:\n        ```python\n        f()\n        ```\n'
        '    """\n'
    )

    assert list(examples_in(file)) == [("f", "f()\n")]
    assert re.match(r"\S", next(examples_in(file))[1])
