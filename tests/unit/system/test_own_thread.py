"""A function runs in a thread of its own, also where `threading` starts none any more."""

from __future__ import annotations

import threading

import pytest

from procbus.system.own_thread import run_in_thread
from tests.parts import BOUND_S


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
