# SPDX-License-Identifier: MIT
"""A receipt: waiting in threads and event loops, results of one and of several handlers."""

import asyncio
import contextlib
import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.delivery import Delivery, DeliveryState, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.locks import Lock
from procbus.core.receipt import FanReceipt, Receipt, SoleReceipt
from tests.parts import (
    BOUND_S,
    in_thread,
    raised,
    receipt_for,
    settlement_with_room,
    subscription_of,
    succeeded,
)


class Open:
    """A receipt with open deliveries, and the settlement for them."""

    def __init__(self, count: int) -> None:
        self.settlement, admission = settlement_with_room()
        admission.enter(count, False)
        self.receipt: Receipt = receipt_for(
            *(subscription_of() for _ in range(count)), lock=self.settlement.lock
        )

    def settle(self, index: int, outcome: Any = None) -> None:
        delivery = self.receipt.deliveries[index]
        self.settlement.settle([(delivery, succeeded(index) if outcome is None else outcome)])


class OpenSole(Open):
    """The receipt of an event with one handler, as the dispatcher makes it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.subscription = subscription_of(name="shop.store")
        self.sole = SoleReceipt(
            7, "event", "order.new", None, self.settlement.lock, self.subscription, 100.0
        )
        self.receipt = self.sole


def test_an_event_without_handlers_is_done_at_once():
    receipt = receipt_for()
    assert receipt.done
    assert receipt.wait(0)
    assert receipt.results() == []
    called: list[Receipt] = []
    receipt.when_done(called.append)
    assert called == [receipt]
    assert repr(receipt) == "<Receipt of event #1 (str): no handler>"


def test_a_receipt_is_done_when_all_deliveries_are_settled():
    many = Open(3)
    called: list[Receipt] = []
    many.receipt.when_done(called.append)
    for index in (1, 0):
        many.settle(index)
    assert not many.receipt.done
    assert not many.receipt.wait(0)
    assert not many.receipt.wait(0.01)
    assert not many.receipt.wait(-1)
    assert called == []
    many.settle(2)
    assert many.receipt.done
    assert many.receipt.wait(0)
    assert called == [many.receipt]
    assert many.receipt.results() == [0, 1, 2]


def test_result_is_the_only_handlers():
    one = Open(1)
    answers: list[Any] = []
    threads = [in_thread(lambda: answers.append(one.receipt.result(BOUND_S))) for _ in range(4)]
    one.settle(0, succeeded("value"))
    for thread in threads:
        thread.join(BOUND_S)
    assert answers == ["value"] * 4
    assert one.receipt.result() == "value"
    assert one.receipt.results(0) == ["value"]


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (
            0,
            "event #1 has no result, because no handler takes str: subscribe one before publishing",
        ),
        (2, r"event #1 has 2 handlers \(.*\), so it has no one result: use results\(\)"),
    ],
)
def test_receipt_of_no_or_several_handlers_has_no_single_result(count, says):
    receipt = Open(count).receipt
    with pytest.raises(ProcbusError, match=says):
        receipt.result()  # at once, though they are open

    async def wait() -> None:
        await receipt

    with pytest.raises(ProcbusError, match=says):
        asyncio.run(wait())


def test_waiting_for_a_result_gives_up_after_its_timeout():
    one = Open(1)
    with pytest.raises(TimeoutError, match=r"event #1 was not settled within 0\.01 s.*1 pending"):
        one.receipt.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        one.receipt.results(timeout=0)
    one.settle(0)
    assert one.receipt.result(timeout=0) == 0


def test_results_raise_the_exception_of_the_only_failed_handler():
    three = Open(3)
    error = KeyError("id")
    three.settle(0)
    three.settle(1, raised(error))
    three.settle(2)
    with pytest.raises(KeyError) as caught:
        three.receipt.results()
    assert caught.value is error


def test_results_raise_a_group_if_several_handlers_failed():
    three = Open(3)
    errors = [KeyError("id"), ValueError("x")]
    three.settle(2, raised(errors[1]))
    three.settle(0, raised(errors[0]))
    three.settle(1)
    with pytest.raises(ExceptionGroup, match="2 handlers failed for event #1") as caught:
        three.receipt.results()
    assert list(caught.value.exceptions) == errors


def test_an_error_that_is_no_exception_makes_the_group_one_of_base_exceptions():
    two = Open(2)
    two.settle(0, raised(BaseException(1)))
    two.settle(1, raised(ValueError()))
    with pytest.raises(BaseExceptionGroup) as caught:
        two.receipt.results()
    assert not isinstance(caught.value, Exception)


def test_a_cancelled_delivery_raises_that_it_was_cancelled():
    one = Open(1)
    one.settle(0, cancelled(one.receipt.deliveries[0]))
    for ask in (one.receipt.result, one.receipt.results):
        with pytest.raises(ProcbusError, match="was cancelled before its handler began"):
            ask()


def test_repeated_waiting_in_vain_leaves_nothing_behind():
    open_one = Open(1)
    for _ in range(20):
        assert not open_one.receipt.wait(0)
    assert not open_one.receipt.callbacks
    open_one.settle(0)
    assert open_one.receipt.wait(0)


def test_a_receipt_can_be_awaited():
    one = Open(1)

    async def main() -> Any:
        waiting = [asyncio.ensure_future(_await(one.receipt)) for _ in range(3)]
        settled = asyncio.ensure_future(one.receipt.settled())
        await asyncio.sleep(0)
        thread = in_thread(lambda: one.settle(0, succeeded("value")))
        values = await asyncio.wait_for(asyncio.gather(*waiting), BOUND_S)
        thread.join(BOUND_S)
        return values, await settled, await one.receipt

    assert asyncio.run(main()) == (["value"] * 3, one.receipt, "value")


async def _await(receipt: Receipt) -> Any:
    return await receipt


def test_awaiting_raises_the_handlers_exception_and_settled_never_does():
    one = Open(1)
    one.settle(0, raised(KeyError("id")))

    async def main() -> Receipt:
        with pytest.raises(KeyError):
            await one.receipt
        return await one.receipt.settled()

    assert asyncio.run(main()) is one.receipt


def test_task_that_gives_up_awaiting_disturbs_no_other():
    one = Open(1)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.receipt.settled(), 0.01)

    asyncio.run(give_up())  # its loop is closed by now

    async def main() -> None:
        gone = asyncio.ensure_future(one.receipt.settled())
        await asyncio.sleep(0)
        gone.cancel()
        stays = asyncio.ensure_future(one.receipt.settled())
        await asyncio.sleep(0)
        one.settle(0)
        assert await asyncio.wait_for(stays, BOUND_S) is one.receipt
        assert gone.cancelled()

    asyncio.run(main())
    assert one.receipt.result() == 0


@given(st.permutations(range(4)), st.integers(0, 4))
def test_callbacks_come_exactly_once_whenever_they_are_given(order, when):
    many = Open(4)
    called: list[int] = []
    for step, index in enumerate(order):
        if step == when:
            many.receipt.when_done(lambda _: called.append(1))
        assert called == []
        many.settle(index)
    if when == 4:
        many.receipt.when_done(lambda _: called.append(1))
    assert called == [1]


def test_callbacks_that_several_receipts_share_stay_as_they_are():
    first, second = Open(1), Open(1)
    called: list[Receipt] = []
    shared = (called.append,)
    alone: list[Receipt] = []
    assert first.receipt.tell(shared)
    assert first.receipt.tell(shared), "the same receipt twice, as an id that is streamed twice"
    assert second.receipt.tell(shared)
    first.receipt.when_done(alone.append)
    assert not first.receipt.wait(0)
    for one in (first, second):
        one.settle(0)
        assert not one.receipt.tell(shared), "it is settled: nothing more is called"
    assert called == [first.receipt, first.receipt, second.receipt]
    assert alone == [first.receipt]


def test_waiters_in_many_threads_all_wake_when_it_is_settled():
    for _ in range(50):
        one = Open(1)
        start = threading.Barrier(5)

        def wait(start: threading.Barrier = start, receipt: Receipt = one.receipt) -> bool:
            start.wait(BOUND_S)
            return receipt.wait(BOUND_S)

        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(wait) for _ in range(4)]
            start.wait(BOUND_S)
            one.settle(0)
            assert all(future.result(BOUND_S) for future in waiting)


def test_a_settled_receipt_is_freed_without_the_garbage_collector():
    one = Open(1)
    one.receipt.when_done(lambda _: None)
    one.settle(0)
    gc.collect()
    gc.disable()
    try:
        del one.receipt  # the settlement is the bus's, and lives as long
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_repr_counts_how_the_deliveries_stand():
    many = Open(4)
    many.settle(0)
    many.settle(1, raised(ValueError()))
    many.settle(2, cancelled(many.receipt.deliveries[2]))
    text = "<Receipt of event #1 (str): 1 pending, 1 succeeded, 1 failed, 1 cancelled>"
    assert repr(many.receipt) == text
    assert "(order.new)" in repr(FanReceipt(1, {}, "order.new", None, Lock()))


def test_the_receipt_of_one_handler_shows_its_delivery_by_itself():
    one = OpenSole()
    [delivery] = one.receipt.deliveries
    assert isinstance(one.receipt, Receipt)
    assert isinstance(delivery, Delivery)
    assert (one.receipt.id, delivery.event_id, delivery.handler.name) == (7, 7, "shop.store")
    assert (delivery.state, delivery.outcome, delivery.attempts) == (DeliveryState.PENDING, None, 0)
    with pytest.raises(ProcbusError, match="not settled yet"):
        delivery.result()  # the receipt's own would wait
    assert repr(delivery) == "<Delivery of event #7 to shop.store: pending>"
    assert repr(one.receipt) == "<Receipt of event #7 (order.new): 1 pending>"


def test_a_delivery_shown_while_it_is_open_tells_how_it_ended():
    one = OpenSole()
    [delivery] = one.receipt.deliveries
    one.settlement.settle([(one.sole, succeeded("value", 101.0, 103.5))])
    assert (delivery.state, delivery.result()) == (DeliveryState.SUCCEEDED, "value")
    assert (delivery.queued_s, delivery.run_s, delivery.worker_pid) == (1.0, 2.5, 4711)
    assert delivery.outcome == succeeded("value", 101.0, 103.5)
    assert delivery.exception() is None
    assert delivery.attempts == 1
    assert one.receipt.done
    assert one.receipt.result() == Receipt.result(one.receipt) == "value"
    assert one.receipt.results() == ["value"]


def test_failure_counts_as_seen_after_any_look():
    for look in (
        lambda receipt: receipt.deliveries[0].exception(),
        lambda receipt: receipt.result(),
        lambda receipt: receipt.results(),
    ):
        one = OpenSole()
        one.settlement.settle([(one.sole, raised(ValueError("no")))])
        assert one.settlement.unseen.summary() is not None
        with contextlib.suppress(ValueError):
            look(one.receipt)
        assert one.settlement.unseen.summary() is None
        assert "failed after 2 s: ValueError('no')" in repr(one.receipt.deliveries[0])


def test_deliveries_that_stand_for_the_same_are_equal():
    one, other = OpenSole(), OpenSole()
    assert one.receipt.deliveries == one.receipt.deliveries
    assert one.receipt.deliveries != other.receipt.deliveries
    assert len({*one.receipt.deliveries, *one.receipt.deliveries, *other.receipt.deliveries}) == 2
    assert one.receipt.deliveries[0] == one.sole


def test_a_copy_of_a_delivery_stands_for_the_same():
    [delivery] = OpenSole().receipt.deliveries
    assert copy.copy(delivery) == delivery


def test_a_settled_receipt_of_one_handler_leaves_no_reference_cycle():
    one = OpenSole()
    one.settlement.settle([(one.sole, succeeded())])
    assert one.sole not in gc.get_referents(one.sole)
