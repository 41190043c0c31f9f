"""The maximum of a parent and its workers with pickle and shared memory alone."""

from __future__ import annotations

import mmap
import pickle
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from .limit import bare_processes

#: Bytes and events of one batch; two are under way for each worker.
BATCH_BYTES = 256 << 10
BATCH_EVENTS = 256
#: Bytes of memory for one batch: a single event may be larger than `BATCH_BYTES`.
SLOT_BYTES = 12 << 20
BATCH_SLOTS = 2
_SIZE, _PAIR = struct.Struct("<Q"), struct.Struct("<II")
#: The results are taken out of their slot: put the next ones there.
GO_ON = b"go on"

Run = Callable[[Sequence[Any]], None]


def put(slot: memoryview, objects: Iterator[Any], most: int) -> int:
    """Pickle objects into a slot, one behind the other, until it holds a batch.

    Returns:
        How many: fewer than `most` where the batch is full or no object is left.
    """
    at = count = 0
    while count < most and at < BATCH_BYTES:
        try:
            obj = next(objects)
        except StopIteration:
            break
        data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
        _SIZE.pack_into(slot, at, len(data))
        at += _SIZE.size
        slot[at : at + len(data)] = data
        at += len(data)
        count += 1
    return count


def take(slot: memoryview, count: int) -> Iterator[Any]:
    """Unpickle a number of objects from a slot."""
    at = 0
    for _ in range(count):
        (size,) = _SIZE.unpack_from(slot, at)
        at += _SIZE.size
        yield pickle.loads(slot[at : at + size])
        at += size


def answer(pipe: Connection, handler: Callable[[Any], Any], memories: list[mmap.mmap]) -> None:
    """Worker: take a batch out of a slot, handle its events, put the results there, for ever.

    A message is two numbers: which worker and slot, and how many events or results it holds.
    """
    waiting: deque[bytes] = deque()
    while True:
        place, count = _PAIR.unpack(waiting.popleft() if waiting else pipe.recv_bytes())
        there, back = _slots(memories[place // BATCH_SLOTS], place % BATCH_SLOTS)
        results = map(handler, take(there, count))
        while count:
            done = put(back, results, count)
            count -= done
            pipe.send_bytes(_PAIR.pack(place, done))
            # If results are larger than their events were, the parent takes these first.
            while count and (message := pipe.recv_bytes()) != GO_ON:
                waiting.append(message)


def _slots(memory: mmap.mmap, number: int) -> tuple[memoryview, memoryview]:
    """Give memory for a batch of events, and for one of results."""
    view = memoryview(memory)
    first = 2 * number * SLOT_BYTES
    middle, end = first + SLOT_BYTES, first + 2 * SLOT_BYTES
    return view[first:middle], view[middle:end]


@contextmanager
def shared_by(handler: Callable[[Any], Any], workers: int) -> Iterator[Run]:
    """Start bare processes; give a function that has them handle events.

    Args:
        handler: of each event.
        workers: processes.
    """
    memories = [mmap.mmap(-1, 2 * BATCH_SLOTS * SLOT_BYTES) for _ in range(workers)]
    with bare_processes(workers, answer, handler, memories) as pipes:
        slots = [[_slots(memory, slot) for slot in range(BATCH_SLOTS)] for memory in memories]

        def run(events: Sequence[Any]) -> None:
            left = len(events)
            rest = iter(events)
            under_way: deque[tuple[int, int, int]] = deque()
            free = deque((worker, slot) for slot in range(BATCH_SLOTS) for worker in range(workers))
            results: list[Any] = []  # as long as all that receipts would hold
            while left or under_way:
                if left and free:
                    worker, slot = free.popleft()
                    count = put(slots[worker][slot][0], rest, min(left, BATCH_EVENTS))
                    left -= count
                    place = worker * BATCH_SLOTS + slot
                    pipes[worker].send_bytes(_PAIR.pack(place, count))
                    under_way.append((worker, slot, count))
                    continue
                worker, slot, count = under_way.popleft()
                while count:
                    _, done = _PAIR.unpack(pipes[worker].recv_bytes())
                    results.extend(take(slots[worker][slot][1], done))
                    count -= done
                    if count:
                        pipes[worker].send_bytes(GO_ON)
                free.append((worker, slot))

        yield run
