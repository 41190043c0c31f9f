# SPDX-License-Identifier: MIT
"""Tokens: the short life of the semaphore's name."""

import os
from multiprocessing import resource_tracker

import pytest

from procbus.pool.tokens import SharedTokens

pytest.importorskip("_multiprocessing")


def test_tokens_are_made_although_the_tracker_dies_after_it_was_found_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    registered = resource_tracker.register

    def register(name: str, kind: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise BrokenPipeError
        registered(name, kind)

    monkeypatch.setattr(resource_tracker, "register", register)
    tokens = SharedTokens.unnamed()
    tokens.create()
    try:
        tokens.release()
        assert tokens.acquire(False)
        assert not tokens.acquire(False)
    finally:
        tokens.forget_name()
    assert len(calls) == 2


def test_the_name_is_removed_although_the_tracker_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def unregister(name: str, kind: str) -> None:
        real(name, kind)
        raise BrokenPipeError

    real = resource_tracker.unregister
    name = f"/procbus-{os.getpid()}-tested"
    tokens = SharedTokens(name)
    tokens.create()
    monkeypatch.setattr(resource_tracker, "unregister", unregister)

    tokens.forget_name()
    tokens.forget_name()

    again = SharedTokens(name)
    monkeypatch.undo()
    again.create()  # the name is free
    again.forget_name()
