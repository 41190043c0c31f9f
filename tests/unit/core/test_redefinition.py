# SPDX-License-Identifier: MIT
"""A definition that is run again takes the place of the old one; others of its name do not."""

import ast
import importlib
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, current
from procbus.routing.registry import default_registry
from procbus.testing import InlineBus
from tests.parts import BOUND_S, Held


class Notebook:
    """Runs cells as the main program does, or as IPython does when it is given its counter."""

    def __init__(self, main: types.ModuleType, shell: types.SimpleNamespace | None) -> None:
        self.main = main
        self.shell = shell
        self.ran: list[Any] = main.__dict__.setdefault("ran", [])

    def run(self, cell: str) -> None:
        if self.shell is None:
            exec(compile(cell, "<cell>", "exec"), vars(self.main))
            return
        # As IPython does: each statement by itself, under a name that the text of the cell has.
        self.shell.execution_count += 1
        for statement in ast.parse(cell).body:
            module = ast.Module([statement], [])
            exec(compile(module, f"/tmp/cell_{hash(cell)}.py", "exec"), vars(self.main))

    def publish(self, *event: Any) -> list[Any]:
        self.ran.clear()
        assert self.main.bus.publish(*event).wait(BOUND_S)
        return sorted(self.ran)


@pytest.fixture(params=["main", "IPython"])
def notebook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """The main program of a session, with a bus of all handlers."""
    before = default_registry.handlers
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    shell = None
    if request.param == "IPython":
        shell = types.SimpleNamespace(execution_count=0)
        ipython = types.ModuleType("IPython")
        ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
    notebook = Notebook(main, shell)
    notebook.run(
        "from procbus import EventBus, subscribe, current\nfrom procbus.testing import InlineBus"
    )
    notebook.run("from functools import partial, wraps")
    with InlineBus() as bus:
        main.__dict__["bus"] = bus
        yield notebook
    for handler in default_registry.handlers:
        if handler not in before:
            default_registry.remove(handler)


HANDLER = """
@subscribe("a")
def handle(event): ran.append(1)
"""
CALL = """
def handle(event): ran.append(1)
bus.subscribe("a", handle)
"""
DECORATED = """
def logged(function):
    @wraps(function)
    def wrapper(event): return function(event)
    return wrapper
@bus.subscribe("a")
@logged
def handle(event): ran.append(1)
"""
METHOD = """
class Store:
    def handle(self, event): ran.append(1)
store = Store()
bus.subscribe("a", store.handle)
"""
INSTANCE = """
class Store:
    def __call__(self, event): ran.append(1)
bus.subscribe("a", Store())
"""
PARTIAL = """
def handle(number, event): ran.append(number)
bus.subscribe("a", partial(handle, 1))
"""
STACKED = """
@bus.subscribe("b")
@bus.subscribe("a")
def handle(event): ran.append(1)
"""


@pytest.mark.parametrize("cell", [HANDLER, CALL, DECORATED, METHOD, INSTANCE, PARTIAL, STACKED])
def test_a_cell_that_is_run_again_leaves_one_handler_with_the_new_body(notebook, cell, caplog):
    caplog.set_level(logging.INFO, "procbus")
    notebook.run(cell)
    assert notebook.publish("a", 0) == [1]
    notebook.run(cell)
    assert notebook.publish("a", 0) == [1]
    assert caplog.text.count("was defined anew") == 1
    assert "WARNING" not in caplog.text
    notebook.run(
        "# edited\n" + cell.replace("append(1)", "append(2)").replace("handle, 1", "handle, 2")
    )
    assert notebook.publish("a", 0) == [2]


def test_the_old_subscription_goes_with_all_its_topics(notebook, caplog):
    notebook.run(HANDLER)
    notebook.run(HANDLER.replace('"a"', '"b"'))
    assert notebook.publish("a", 0) == []
    assert notebook.publish("b", 0) == [1]
    assert "on 'b', takes the place of the old one, on 'a'" in caplog.text
    notebook.run(CALL.replace('"a"', '"c"'))  # in another way
    assert [notebook.publish(topic, 0) for topic in "abc"] == [[], [], [1]]


def test_stacked_decorators_stay_both(notebook):
    for cell in (STACKED, STACKED, "\n" + STACKED):
        notebook.run(cell)
        assert [notebook.publish(topic, 0) for topic in "ab"] == [[1], [1]]


LOOP = """
for number in range(3):
    @bus.subscribe("a")
    def handle(event, number=number): ran.append(number)
"""
FACTORY = """
def make(number):
    def handle(event): ran.append(number)
    return handle
for number in range(3):
    bus.subscribe("a", make(number))
"""
LAMBDAS = """
for number in range(3):
    bus.subscribe("a", lambda event, number=number: ran.append(number))
"""
INSTANCES = """
class Adder:
    def __init__(self, number): self.number = number
    def __call__(self, event): ran.append(self.number)
for number in range(3):
    bus.subscribe("a", Adder(number))
"""
PARTIALS = """
def handle(number, event): ran.append(number)
for number in range(3):
    bus.subscribe("a", partial(handle, number))
"""
DEFINED_TWICE = """
@bus.subscribe("a")
def _(event): ran.append(0)
@bus.subscribe("a")
def handle(event): ran.append(1)
@bus.subscribe("a")
def handle(event): ran.append(2)
"""


@pytest.mark.parametrize("cell", [LOOP, FACTORY, LAMBDAS, INSTANCES, PARTIALS, DEFINED_TWICE])
def test_functions_of_one_name_that_one_run_makes_stay_all(notebook, cell, caplog):
    notebook.run(cell)
    assert notebook.publish("a", 0) == [0, 1, 2]
    assert "defined anew" not in caplog.text
    if notebook.shell is not None or cell in (LOOP, INSTANCES, PARTIALS, DEFINED_TWICE):
        notebook.run(cell)  # lambdas and inner functions have no name to be known by elsewhere
        assert notebook.publish("a", 0) == [0, 1, 2]


def test_functions_without_a_name_of_their_own_stay_beside_each_other(notebook):
    notebook.run("@bus.subscribe('a')\ndef _(event): ran.append(1)")
    notebook.run("@bus.subscribe('b')\ndef _(event): ran.append(2)")
    notebook.run("bus.subscribe('b', lambda event: ran.append(3))")
    notebook.run("bus.subscribe('b', lambda event: ran.append(4))")
    assert notebook.publish("a", 0) == [1]
    assert notebook.publish("b", 0) == [2, 3, 4]


def test_pending_delivery_runs_with_the_body_it_was_published_for(notebook):
    with EventBus([]) as bus:
        notebook.main.__dict__.update(bus=bus, held=Held())
        held = notebook.main.held
        notebook.run("@bus.subscribe('a', concurrency=1)\ndef handle(event): return held(event), 1")
        receipts = [bus.publish("a", n) for n in range(3)]
        held.wait_begun()
        notebook.run("@bus.subscribe('a')\ndef handle(event): return event, 2")
        assert bus.publish("a", 3).result(BOUND_S) == (3, 2)
        held.go.set()
        assert [receipt.result(BOUND_S) for receipt in receipts] == [(n, 1) for n in range(3)]


def test_a_cpu_handler_that_is_defined_anew_runs_its_new_body_in_the_same_worker(notebook):
    with EventBus([], cpu_workers=1) as bus:
        notebook.main.__dict__["bus"] = bus
        cell = "@bus.subscribe('a', kind='cpu')\ndef handle(event): return event + 1"
        notebook.run(cell)
        first = bus.publish("a", 1)
        assert first.result(55) == 2
        notebook.run(cell.replace("+ 1", "+ 2"))
        second = bus.publish("a", 1)
        assert second.result(55) == 3
        assert first.deliveries[0].worker_pid == second.deliveries[0].worker_pid


# Classes.

PAGE = """
class Page:
    def __init__(self, number): self.number = number
"""
TAKES_PAGE = """
@bus.subscribe()
def by_annotation(page: Page): ran.append(page.number)
bus.subscribe(Page, lambda page: ran.append(-page.number))
"""


def test_a_class_that_is_defined_anew_reaches_the_handlers_of_the_old_one(notebook):
    notebook.run(PAGE + TAKES_PAGE)
    old = notebook.main.Page(1)
    notebook.run(PAGE + "class Special(Page): pass")
    assert notebook.publish(notebook.main.Page(2)) == [-2, 2]
    assert notebook.publish(notebook.main.Special(3)) == [-3, 3]
    assert notebook.publish(old) == [-1, 1]
    assert len(notebook.main.bus.handlers(notebook.main.Page)) == 2
    notebook.run(TAKES_PAGE)  # now for the new class
    assert notebook.publish(old)[-1] == 1


def test_classes_that_have_only_a_name_in_common_are_apart(notebook):
    notebook.run("""
rows = [type("Row", (), {}) for _ in range(2)]
bus.subscribe(rows[0], lambda event: ran.append(0))
bus.subscribe(rows[1], lambda event: ran.append(1))
def make():
    class Local: pass
    return Local
locals_ = make(), make()
bus.subscribe(locals_[0], lambda event: ran.append(2))
""")
    rows, locals_ = notebook.main.rows, notebook.main.locals_
    assert [notebook.publish(row()) for row in rows] == [[0], [1]]
    assert [notebook.publish(each()) for each in locals_] == [[2], []]


# Modules.

MODULE = """
from dataclasses import dataclass
from procbus import subscribe
ran = []
@dataclass
class Page:
    number: int
@subscribe("a")
def handle(event): ran.append(1)
@subscribe("a")
def _(event): ran.append(2)
@subscribe("b")
def _(event): ran.append(3)
@subscribe()
def take(page: Page): ran.append(page.number)
"""


@pytest.mark.parametrize("edit", [lambda source: source, lambda source: "\n\n" + source])
@pytest.mark.parametrize("how", ["reload", "import"])
def test_a_module_that_is_loaded_again_leaves_its_new_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[str], str], how: str
):
    before = default_registry.handlers
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "handlers_to_be_loaded_again.py"
    file.write_text(MODULE)
    importlib.invalidate_caches()
    module = importlib.import_module(file.stem)
    try:
        with InlineBus() as bus:
            bus.subscribe("c", module.handle)
            file.write_text(edit(MODULE))
            if how == "import":
                del sys.modules[file.stem]
            importlib.invalidate_caches()
            module = (
                importlib.reload(module) if how == "reload" else importlib.import_module(file.stem)
            )
            bus.publish("a", 1)
            bus.publish("b", 1)
            bus.publish(module.Page(7))
            assert sorted(module.ran) == [1, 2, 3, 7]
            bus.subscribe("c", module.handle)
            assert [h.function for h in bus.handlers("c")] == [module.handle]
    finally:
        sys.modules.pop(file.stem, None)
        for handler in default_registry.handlers:
            if handler not in before:
                default_registry.remove(handler)


def test_functions_of_modules_that_share_a_name_are_apart():
    source = "def handle(event): return number"
    spaces: list[dict[str, Any]] = [{"number": n} for n in range(2)]
    with InlineBus([]) as bus:
        for space in spaces:
            exec(source, space)
            bus.subscribe("a", space["handle"])
        assert bus.publish("a", 1).results(BOUND_S) == [0, 1]


def test_a_handler_that_subscribes_another_from_within_is_no_cell():
    with EventBus([]) as bus:

        @bus.subscribe("start")
        def start(event: int) -> Any:
            bus.subscribe("next", lambda e: event)
            return current().publish("next", event)

        assert bus.publish("start", 1).result(BOUND_S).results(BOUND_S) == [1]
        assert bus.publish("start", 2).result(BOUND_S).results(BOUND_S) == [1, 2]
