"""Threads of procbus: none has the context of the code that happened to start it."""

import ast
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from pathlib import Path

import pytest

import procbus
from procbus.core.own_thread import OwnThread, run_in_thread
from procbus.lanes.lane_thread import LaneThread
from tests.parts import BOUND_S

variable = ContextVar("variable", default="nobody's")

#: Files that start threads in another way, each for a reason.
OTHERS = {
    "core/own_thread.py": "the class itself",
    "demo": "it is a script as users write them",
    "pool/child/ending.py": "the process is about to end",
    "pool/child/self.py": "it begins before any handler",
    "lanes/inline_loops.py": "its thread works for the caller, who waits for it",
}


@pytest.mark.parametrize("make", [OwnThread, LaneThread])
def test_own_thread_begins_in_an_empty_context(make: Callable[..., threading.Thread]) -> None:
    seen: list[object] = []

    def start() -> None:
        variable.set("the handler's")
        thread = make("named", lambda: seen.append(variable.get()))
        thread.start()
        thread.join(BOUND_S)
        seen.extend((thread.name, thread.daemon))

    copy_context().run(start)
    assert seen == ["nobody's", "named", True]


def test_procbus_starts_its_threads_in_one_way() -> None:
    root = Path(procbus.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        name = file.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="threading"), attr="Thread")):
                    found.add(name)
                case ast.ClassDef(bases=bases) if "threading.Thread" in map(ast.unparse, bases):
                    found.add(name)
    others = (*OTHERS, "_bench/")  # the benchmarks, which a wheel has too
    assert {name for name in found if not name.startswith(others)} == set()


# Started while any lock may be held.


def test_function_runs_in_a_daemon_thread_of_its_name() -> None:
    ran = threading.Event()
    found: list[threading.Thread] = []

    def function() -> None:
        found.append(threading.current_thread())
        ran.set()

    assert run_in_thread("named", function)
    assert ran.wait(BOUND_S)
    found[0].join(BOUND_S)
    assert (found[0].name, found[0].daemon) == ("named", True)


def test_function_runs_where_threading_starts_no_thread_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert run_in_thread("named", ran.set)
    assert ran.wait(BOUND_S)
