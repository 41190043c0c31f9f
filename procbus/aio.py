# SPDX-License-Identifier: MIT
"""The bus in a running event loop, which it never blocks.

`apublish` and `astream` wait for room, for the disk and for receipts in coroutines. Steps that
block go to a thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from math import inf
from typing import Any

from procbus.core.errors import QueueFull
from procbus.core.receipt import Receipt, call_in_loop
from procbus.core.waiting import pause
from procbus.core.when import When
from procbus.dispatch.dispatcher import Dispatcher
from procbus.dispatch.window import Window
from procbus.lanes.lanes import Lanes
from procbus.routing.subscriptions import Subscriptions
from procbus.stream import Leaving, ShowCounts, StreamCounts, note_nothing


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking function in a thread, to its end even if this task is cancelled."""
    # Not `asyncio.to_thread`: Python warns of its coroutine if SIGTERM comes before it is a task.
    call = partial(copy_context().run, function, *args)
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def make_ready(
    subscriptions: Subscriptions,
    lanes: Lanes,
    dispatcher: Dispatcher,
    event: Any,
    topic: str | None,
) -> None:
    """Do slow first steps in a thread: publishing the first events would block for 100 ms.

    They are the imports that the lanes need, the launch of the first worker for a cpu handler, and
    the resuming of a journal.
    """
    if not subscriptions.fresh:
        await in_thread(subscriptions.routes)
    if not dispatcher.resumed:
        await in_thread(dispatcher.resume)
    for cpu in lanes.cpu_lanes:
        if cpu.launched:
            continue
        if any(each.lane is cpu for each in subscriptions.routes().match(event, topic)):
            await in_thread(cpu.launch)


async def publish(
    dispatcher: Dispatcher,
    event: Any,
    topic: str | None,
    given_id: str | None = None,
    may_wait: bool = False,
) -> Receipt:
    """Publish one event, waiting for room on the bus if need be.

    Args:
        dispatcher: of the bus.
        event: the event.
        topic: the topic that the event is published to.
        given_id: see `EventBus.publish`.
        may_wait: whether publishing may wait for a disk.
    """
    if given_id is not None:
        found: Receipt = await in_thread(dispatcher.publish_once, event, topic, given_id)
        return found
    if may_wait:
        made: Receipt = await in_thread(dispatcher.publish, event, topic)
        return made
    loop = asyncio.get_running_loop()
    while True:
        room = asyncio.Event()
        wake = partial(call_in_loop, loop, room.set)
        receipt = dispatcher.try_publish(event, topic, wake)
        if isinstance(receipt, Receipt):
            return receipt
        try:
            await room.wait()
            published = receipt.publish()
        except BaseException:  # the task is cancelled: the next waiter gets the room
            receipt.give_up()
            raise
        if published is not None:
            return published


async def publish_delayed(
    dispatcher: Dispatcher, event: Any, topic: str | None, when: When, given_id: str | None
) -> Receipt:
    """Publish one event whose handlers run later, see `Dispatcher.publish_delayed`."""
    found: Receipt = await in_thread(dispatcher.publish_delayed, event, topic, when, given_id)
    return found


async def stream(
    events: Iterable[Any] | AsyncIterable[Any],
    publish: Callable[[Any], Awaitable[Receipt]],
    window: Window,
    leave: Leaving,
    seal: Callable[[], object],
    flush: Callable[[], object],
    *,
    ordered: bool,
    counts: StreamCounts | None = None,
    batch: int | None = None,
) -> AsyncGenerator[Receipt, None]:
    """Stream, see `stream.as_settled` and `stream.in_order`; for the other arguments see `Feed`."""
    loop = asyncio.get_running_loop()
    settled: asyncio.Queue[Receipt] = asyncio.Queue()
    open_receipts: deque[Receipt] = deque()
    outstanding = taken = 0
    lacking = batch or inf  # events of this batch
    # One object for all receipts, by which `leave` knows them.
    told = leave.looking(
        note_nothing if ordered else partial(call_in_loop, loop, settled.put_nowait),
        ordered=ordered,
    )

    async def next_one() -> Receipt:
        receipt = await next_settled()
        if window.wants_result:
            window.weigh_result(receipt)
        if counts is not None:
            counts.note(counts.taken + 1, (receipt,))
        return receipt

    async def next_settled() -> Receipt:
        if ordered:
            first = open_receipts.popleft()
            if not first.done:
                flush()
            return await first.settled()
        if not settled.empty():
            return settled.get_nowait()
        flush()
        resume = pause(None, "", blocks=False)
        try:
            return await settled.get()
        finally:
            resume()

    def is_last(receipt: Receipt) -> bool:
        if ordered:
            return leave.on_error and receipt.has_failure
        return receipt is leave.failed

    failure: Exception | None = None
    source = _each(events)
    left_early = True
    try:
        while leave.failed is None:
            try:
                event = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised after the other receipts
                failure = error
                break
            receipt = None
            while receipt is None and failure is None:
                try:
                    receipt = await publish(event)
                except QueueFull:
                    if not outstanding:
                        raise  # others fill the bus: no event of this stream will make room
                    outstanding -= 1
                    settled_one = await next_one()
                    yield settled_one
                    if is_last(settled_one):
                        return
                except Exception as error:  # noqa: BLE001 - as above
                    failure = error
            if receipt is None:
                break
            if window.wants_event:
                window.weigh_event(receipt)
            outstanding += 1
            lacking -= 1
            if not lacking:
                lacking = batch or inf
                seal()
            if ordered:
                open_receipts.append(receipt)
            if not ordered or leave.on_error:
                receipt.when_done(told)
            while outstanding and (
                outstanding >= window.size(taken)
                or (open_receipts[0].done if ordered else not settled.empty())
            ):
                outstanding -= 1
                taken += 1
                settled_one = await next_one()
                yield settled_one
                if is_last(settled_one):
                    return
        seal()
        while outstanding:
            outstanding -= 1
            settled_one = await next_one()
            yield settled_one
            if is_last(settled_one):
                return
        left_early = False
    finally:
        if ordered:
            leave.cancel_these(open_receipts)
        elif left_early:
            leave.cancel(told)
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # its traceback refers to this frame


async def shown(
    receipts: AsyncGenerator[Receipt, None], counts: StreamCounts, show: ShowCounts
) -> AsyncIterator[Receipt]:
    """Show the progress of a stream."""
    with show(counts.read):
        async with aclosing(receipts):
            async for receipt in receipts:
                yield receipt


async def _each(events: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
        return
    for event in events:
        yield event
