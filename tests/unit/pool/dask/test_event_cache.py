"""Events kept beside a distant worker process: none is sent twice, and none stays too long."""

from typing import Any

import pytest

from procbus.core.delivery import Delivery
from procbus.pool.interface import Message
from procbus.pool.wire import BatchHead, pack_batch
from tests.clusters import HAS_DASK, NO_DASK
from tests.parts import delivery_to, receipt_for, subscription_of

pytestmark = pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)

#: An event that is worth it.
SIZE = 100_000


class OtherSide:
    """Obeys, as a `HostedProcess` does."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.received = 0

    def take(self, fields: dict[str, Any]) -> bytes:
        for number in fields["gone"]:
            del self.kept[number]
        data, event = _bytes(fields["data"]), _bytes(fields.get("event", b""))
        self.received += len(data) + len(event)
        if "keep" in fields:
            self.kept[fields["keep"]] = event
        elif "again" in fields:
            event = self.kept[fields["again"]]
        return data + event


def _bytes(data: Any) -> bytes:
    found: bytes = getattr(data, "data", data)  # as Dask has it that goes as a frame of its own
    return found


def message_of(*deliveries: Delivery, size: int = SIZE) -> Message:
    head = BatchHead(1, [], [], [], [], [], [], [], {}, False, [], None, [])
    events = [bytes([delivery.event_id]) * size for delivery in deliveries]
    return Message(1, pack_batch(head, events), list(deliveries))


def test_an_event_for_several_handlers_goes_once_and_is_let_go_when_all_are_settled() -> None:
    from procbus.pool.dask.event_cache import RemoteEvents

    kept, there = RemoteEvents(), OtherSide()
    deliveries = receipt_for(*(subscription_of(kind="cpu") for _ in range(3))).deliveries
    for delivery in deliveries:
        message = message_of(delivery)
        assert there.take(kept.fields(message)) == message.data
    assert there.received < SIZE + 3_000
    assert list(there.kept) == [1]

    small = message_of(delivery_to(subscription_of(), event_id=2), size=10)
    deliveries[0].receipt = deliveries[1].receipt = None
    there.take(kept.fields(small))
    assert list(there.kept) == [1]
    deliveries[2].receipt = None
    there.take(kept.fields(small))
    assert there.kept == {}


def test_event_that_may_be_retried_is_sent_once() -> None:
    from procbus.pool.dask.event_cache import RemoteEvents

    kept, there = RemoteEvents(), OtherSide()
    message = message_of(delivery_to(subscription_of(retries=2)))
    for _ in range(3):
        assert there.take(kept.fields(message)) == message.data
    assert there.received < SIZE + 3_000


@pytest.mark.parametrize("size", [10, SIZE])
def test_single_or_small_event_is_not_kept(size: int) -> None:
    from procbus.pool.dask.event_cache import RemoteEvents

    kept, there = RemoteEvents(), OtherSide()
    once = message_of(delivery_to(subscription_of()), size=size)
    small = message_of(delivery_to(subscription_of(retries=1)), size=10)
    for message in (once, small):
        assert there.take(kept.fields(message)) == message.data
    assert there.kept == {}


def test_no_more_is_kept_than_there_is_room_for() -> None:
    from procbus.pool.dask.event_cache import RemoteEvents

    kept, there = RemoteEvents(most=2 * SIZE), OtherSide()
    messages = [
        message_of(delivery_to(subscription_of(retries=1), event_id=number)) for number in (1, 2, 3)
    ]
    for message in (*messages, messages[0], messages[2]):
        assert there.take(kept.fields(message)) == message.data
        assert sum(map(len, there.kept.values())) <= 2 * SIZE
    assert sorted(there.kept) == [1, 3]

    huge = message_of(delivery_to(subscription_of(retries=1), event_id=4), size=3 * SIZE)
    assert there.take(kept.fields(huge)) == huge.data
    assert sorted(there.kept) == [1, 3]
