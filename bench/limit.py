"""The maximum of the machine without a bus: pickle, pipes and bare processes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

# The body and its arguments may be closures, which only a fork takes along.
FORK = multiprocessing.get_context("fork")
BATCH = 256  # small events: two such batches fit into one pipe's buffer (64 KiB on Linux)


@contextmanager
def bare_processes(
    count: int, body: Callable[..., None], *args: object
) -> Iterator[list[Connection]]:
    """Run `body(connection, *args)` in `count` processes; yield the parent's ends.

    Leaving the block kills the processes.
    """
    ends: list[Connection] = []
    processes = []
    for _ in range(count):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=body, args=(theirs, *args), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        yield ends
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in ends:
            end.close()


def answer_batches(pipe: Connection, handler: Callable[[Any], Any]) -> None:
    """Worker: unpickle a batch, call `handler` on each event, send the results, for ever."""
    while True:
        events = pickle.loads(pipe.recv_bytes())
        pipe.send_bytes(pickle.dumps([handler(event) for event in events]))


def pipe_rate(handler: Callable[[Any], Any], events: Sequence[Any], workers: int) -> float:
    """Return events per second of pickle and pipe alone, with no receipts and no bookkeeping.

    Batches of `BATCH` events, one pickle each; two batches are under way per worker, so that
    neither side waits for the other.
    """
    batches = [events[start : start + BATCH] for start in range(0, len(events), BATCH)]
    with bare_processes(workers, answer_batches, handler) as pipes:
        began = perf_counter()
        under_way: list[Connection] = []
        for batch in batches:
            if len(under_way) == 2 * workers:
                pipe = under_way.pop(0)
                pickle.loads(pipe.recv_bytes())
            else:
                pipe = pipes[len(under_way) % workers]
            pipe.send_bytes(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))
            under_way.append(pipe)
        for pipe in under_way:
            pickle.loads(pipe.recv_bytes())
        return len(events) / (perf_counter() - began)


def pipe_round_trips(handler: Callable[[Any], Any], events: Sequence[Any]) -> list[float]:
    """Return the seconds from pickling each event to holding its result, one at a time."""
    with bare_processes(1, answer_batches, handler) as (pipe,):
        times = []
        for event in events:
            began = perf_counter()
            pipe.send_bytes(pickle.dumps([event], pickle.HIGHEST_PROTOCOL))
            pickle.loads(pipe.recv_bytes())
            times.append(perf_counter() - began)
        return times


def loop_on_signal(pipe: Connection, handler: Callable[[Any], Any], event: Any, times: int) -> None:
    """Worker: when told, call `handler(event)` a number of times, and say when it is done."""
    pipe.send_bytes(b"ready")
    pipe.recv_bytes()
    for _ in range(times):
        handler(event)
    pipe.send_bytes(b"done")
    pipe.recv_bytes()  # the kill ends this wait; ending here would be counted as time


def bare_rate(handler: Callable[[Any], Any], event: Any, times: int, workers: int) -> float:
    """Return calls per second of `workers` processes that only loop over `handler(event)`.

    Args:
        handler: the function that is called.
        event: its argument.
        times: calls in all, divided evenly.
        workers: number of processes.
    """
    each = max(1, times // workers)
    with bare_processes(workers, loop_on_signal, handler, event, each) as pipes:
        for pipe in pipes:
            pipe.recv_bytes()
        began = perf_counter()
        for pipe in pipes:
            pipe.send_bytes(b"go")
        for pipe in pipes:
            pipe.recv_bytes()
        return each * workers / (perf_counter() - began)


def burn_for_ever(pipe: Connection, handler: Callable[[Any], Any], event: Any) -> None:
    """Worker: keep one core busy until killed."""
    pipe.send_bytes(b"ready")
    while True:
        handler(event)
