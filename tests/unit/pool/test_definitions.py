# SPDX-License-Identifier: MIT
"""Handlers as pickled, until they are forgotten."""

from procbus.pool.handler_cache import Definitions


def test_forgotten_handler_is_reported_to_workers_that_knew_it() -> None:
    definitions = Definitions()
    definitions.add(1, b"one")
    definitions.add(2, b"two")
    assert definitions.get(1) == b"one"
    assert definitions.gone({1, 2}) == []

    definitions.forget(1)
    assert definitions.get(1) is None
    assert definitions.gone({1, 2}) == [1]
    assert definitions.forgotten == 1


def test_forgetting_an_unknown_handler_changes_nothing() -> None:
    definitions = Definitions()
    definitions.forget(7)

    assert definitions.forgotten == 0
