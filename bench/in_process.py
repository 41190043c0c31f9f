"""Event buses and queues that run handlers in the process of their publisher, as peers.

They are set up as their documentation has it, each for one handler of every event. blinker and pyee
call the handler in the publisher's thread, so there is nothing to wait for; bubus awaits it on its
event loop; huey, a task queue, is given its store in memory and its consumer's threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from .contenders import Contender, Handler, Opener
from .ways import procbus_io

BUBUS_PENDING = 50  # bubus refuses to have more than 100 events under way


def blinker(handler: Handler, _workers: int) -> Contender:
    """Connect to one signal; the event is its sender."""
    library: Any = import_module("blinker")
    signal = library.Signal()
    signal.connect(handler, weak=False)
    return Contender(signal.send, lambda sent: sent[0][1], signal.receivers.clear)


def pyee(handler: Handler, _workers: int) -> Contender:
    """Listen to one name; the emitter has no results."""
    library: Any = import_module("pyee.base")
    emitter = library.EventEmitter()
    emitter.on("event", handler)
    return Contender(
        lambda event: emitter.emit("event", event),
        lambda result: result,
        emitter.remove_all_listeners,
    )


def bubus(handler: Handler, _workers: int) -> Contender:
    """Open a bus on an event loop; events are its own kind of object, with ours as a field."""
    library: Any = import_module("bubus")
    logging.getLogger("bubus").setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()

    class Carrier(library.BaseEvent):  # type: ignore[misc] # its types are known at run time only
        payload: Any

    async def handle(event: Any) -> Any:
        return handler(event.payload)

    async def open_bus() -> Any:
        bus = library.EventBus(name="Measured")
        bus.on(Carrier, handle)
        return bus

    bus = loop.run_until_complete(open_bus())

    async def handle_all(events: Iterable[Any]) -> None:
        under_way: list[Any] = []
        for event in events:
            under_way.append(bus.dispatch(Carrier(payload=event)))
            if len(under_way) == BUBUS_PENDING:
                for each in under_way:
                    await each
                under_way.clear()
        for each in under_way:
            await each

    async def handle_one(event: Any) -> Any:
        done = await bus.dispatch(Carrier(payload=event))
        return await done.event_result(raise_if_none=False)

    def close() -> None:
        loop.run_until_complete(bus.stop())
        loop.close()

    return Contender(
        lambda event: loop.run_until_complete(handle_one(event)),
        lambda result: result,
        close,
        run_all=lambda events: loop.run_until_complete(handle_all(events)),
    )


def huey(handler: Handler, workers: int) -> Contender:
    """Open a queue in memory with a number of consumer threads, polling as often as they may."""
    library: Any = import_module("huey")
    queue = library.MemoryHuey(immediate=False, results=True, store_none=True)
    task = queue.task()(handler)
    consumer = queue.create_consumer(
        workers=workers, periodic=False, initial_delay=0.001, max_delay=0.01
    )
    consumer.start()

    def result(handle: Any) -> Any:
        return handle.get(blocking=True, backoff=1, max_delay=0.001)

    return Contender(task, result, lambda: consumer.stop(graceful=True))


IN_PROCESS: dict[str, Opener] = {
    "procbus io": procbus_io,
    "blinker": blinker,
    "bubus": bubus,
    "huey": huey,
    "pyee": pyee,
}
