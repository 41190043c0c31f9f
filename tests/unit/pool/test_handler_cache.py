# SPDX-License-Identifier: MIT
"""The handlers that one worker knows, in its parent's account."""

import pickle
import threading

import pytest

from procbus.core.errors import SerializationError
from procbus.core.handler import Handler, make_handler
from procbus.pool.handler_cache import Definitions, KnownHandlers
from tests.parts import double, handler_of


def test_a_handler_is_due_until_a_message_was_sent_and_known_from_then_on() -> None:
    handler, known = handler_of(kind="cpu", max_memory=1 << 30), KnownHandlers(Definitions())
    known.define(handler)

    [(number, name, definition, limits)] = known.due
    assert (number, name, limits) == (handler.number, handler.name, (None, 1 << 30))
    assert pickle.loads(definition) is handler.function
    known.sent()
    assert known.due == []
    assert known.numbers == {handler.number}


def test_two_workers_share_the_pickle_of_a_handler() -> None:
    handler, definitions = handler_of(kind="cpu"), Definitions()
    one, other = KnownHandlers(definitions), KnownHandlers(definitions)
    one.define(handler)
    other.define(handler)

    assert one.due[0][2] is other.due[0][2]


def test_next_message_names_forgotten_handlers_once() -> None:
    definitions = Definitions()
    known, (first, second) = KnownHandlers(definitions), (handler_of(), handler_of())
    known.define(first)
    known.define(second)
    definitions.forget(first.number)

    assert known.begin() == [first.number]
    assert [number for number, *_ in known.due] == [second.number], "it need not learn it first"
    assert known.numbers == {second.number}
    assert known.forgotten_due == [first.number]
    known.sent()
    assert known.forgotten_due == known.begin() == []


def test_forgotten_handler_that_is_needed_again_is_sent_again() -> None:
    handler, definitions = handler_of(), Definitions()
    known = KnownHandlers(definitions)
    known.define(handler)
    known.sent()
    definitions.forget(handler.number)
    known.begin()
    known.define(handler)

    assert [number for number, *_ in known.due] == [handler.number]


def test_a_handler_that_cannot_be_pickled_is_named_and_not_known() -> None:
    known = KnownHandlers(Definitions())
    handler = locked_handler()
    with pytest.raises(SerializationError, match=handler.name):
        known.define(handler)

    assert known.numbers == set()
    assert known.due == []


def locked_handler() -> Handler:
    lock = threading.Lock()

    def locked(event: int) -> int:
        with lock:
            return double(event)

    return make_handler(locked, int, kind="cpu")
