# SPDX-License-Identifier: MIT
"""Context variables in a worker: each delivery begins with the carried values and no others."""

import functools
import threading

from procbus.codec.encoder import encode_alone
from procbus.core.carry import Carry
from procbus.core.errors import SerializationError
from procbus.pool.interface import Worker
from tests.conformance import handlers
from tests.conformance.conftest import MakePool
from tests.conformance.drive import deliveries, run, values

CLEAN = ("nobody", 28)


def test_no_delivery_sees_the_variables_of_another(worker: Worker) -> None:
    batch = deliveries(handlers.look_and_leave, *range(30))
    for _ in range(2):
        assert values(run(worker, batch)) == [CLEAN] * 30


def test_carried_variables_are_set_for_one_delivery_alone(worker: Worker) -> None:
    carry = Carry([handlers.who, handlers.amount])
    batch = deliveries(handlers.look_and_leave, *range(6))
    for number, delivery in enumerate(batch):
        if number % 2:
            token = handlers.who.set(f"publisher {number}")
            delivery.context = carry.take(None)
            handlers.who.reset(token)
    expected = [(f"publisher {n}", 28) if n % 2 else CLEAN for n in range(6)]
    assert values(run(worker, batch)) == expected


def test_unset_variable_is_not_carried() -> None:
    carry = Carry([handlers.who, handlers.amount])
    assert carry.take(None) is None


def test_value_of_a_local_class_and_none_come_through(worker: Worker) -> None:
    carry = Carry([handlers.amount])
    batch = deliveries(handlers.amount_here, 1, 2, 3)
    for delivery, amount in zip(batch, (handlers.Point(1), None, handlers.Point(3)), strict=True):
        token = handlers.amount.set(amount)
        delivery.context = carry.take(None)
        handlers.amount.reset(token)
    assert values(run(worker, batch)) == [handlers.Point(1), None, handlers.Point(3)]


def test_value_that_cannot_travel_fails_its_delivery_and_names_the_variable(
    coding_worker: Worker,
) -> None:
    carry = Carry([handlers.who, handlers.amount])
    batch = deliveries(handlers.amount_here, 1, 2)
    token = handlers.amount.set([1, threading.Lock()])
    batch[0].context = carry.take(None)
    handlers.amount.reset(token)
    message = coding_worker.prepare(77, batch)
    [(delivery, outcome)] = message.failed
    assert delivery is batch[0]
    assert isinstance(outcome.error, SerializationError)
    assert "amount.get()[1]" in str(outcome.error)
    assert message.deliveries == batch[1:]
    coding_worker.offer(message)
    coding_worker.send(message)
    assert coding_worker.receive().complete


def test_value_that_cannot_be_loaded_fails_its_delivery_alone(coding_worker: Worker) -> None:
    carry = Carry([handlers.amount])
    batch = deliveries(handlers.amount_here, 1, 2)
    token = handlers.amount.set(handlers.CannotBeLoaded())
    batch[0].context = carry.take(None)
    handlers.amount.reset(token)
    (failed, _), (other, _) = run(coding_worker, batch)
    assert isinstance(failed.error, SerializationError)
    assert other.error is None


def test_each_delivery_begins_with_the_variables_of_the_set_up(
    make_set_up_pool: MakePool,
) -> None:
    init = encode_alone(functools.partial(handlers.set_context, "set up", 50))
    worker = make_set_up_pool(1, init).start(lambda _: None)
    try:
        for _ in range(2):
            batch = deliveries(handlers.look_and_leave, *range(5))
            assert values(run(worker, batch)) == [("set up", 50)] * 5
    finally:
        worker.kill()
        worker.stop()
