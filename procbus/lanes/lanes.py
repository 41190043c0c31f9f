# SPDX-License-Identifier: MIT
"""The lanes of one bus: each is made when the first handler needs it, and all end together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakValueDictionary

from procbus.core.carry import Carry
from procbus.core.delivery import Delivery, cancelled
from procbus.core.flow import Flow
from procbus.core.gil import gil_is_on
from procbus.core.handler import Handler, Kind
from procbus.core.log import pool_log as log
from procbus.core.meter import Machine
from procbus.core.progress import Progress
from procbus.core.reporting import reported_here
from procbus.core.stats import NOTHING_SHARED, LaneStats, SharedMemoryStats, together
from procbus.core.subscription import Lane, Subscription
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.threads import IoLane, IoThread
from procbus.system.freezing import check_can_start

if TYPE_CHECKING:
    from procbus.lanes.cpu import CpuLane
    from procbus.lanes.event_loop import LoopLane
    from procbus.lanes.gatherer import Gatherer
    from procbus.lanes.inline import Ticking
    from procbus.lanes.pacer import Pacer

#: The reason of a pause that a user made in the live view.
PAUSED_BY_HAND = "paused by hand"
#: Number of threads of the io lane by default; because they wait most of their time.
IO_WORKERS = 32
#: Maximum time for the threads of the io lane to end, in seconds; a thread that hangs in a handler
#: is left behind, and ends with the process.
IO_JOIN_S = 0.5


#: Number of open events that keeps a handler busy if it has no fixed number of places, or runs the
#: events of one key one after the other.
SCATTERED = 128

#: The part in front of a lane: `Gatherer` or `Pacer`.
_Front = TypeVar("_Front")


class Supervision(Protocol):
    """The supervisor, as far as the lanes use it. From any thread."""

    def start(self) -> bool:
        """Start it, if it is not running; False if it can no longer be started."""

    def wake(self) -> None:
        """Have it look now, because there is a new limit."""

    def stop(self) -> None:
        """End it. Idempotent."""


class OnlyLane(Lane, Protocol):
    """A lane that runs the deliveries of all handlers. From any thread."""

    at_hand: dict[Delivery, float]

    @property
    def gathers(self) -> bool:
        """Whether events wait for their batch to fill, until a test turns the clock."""

    @property
    def time_passes(self) -> bool:
        """Whether its time passes by itself, because it is the real one."""

    def take_along(self, carry: Carry) -> None:
        """Have cpu handlers get the values of these context variables."""

    def now(self) -> float:
        """The time of its clock, in seconds."""

    def catch_up(self) -> None:
        """Run the deliveries that are due, if its clock goes on by itself."""

    def paces(self, pacer: Pacer) -> None:
        """Have held deliveries pass as its clock goes on."""

    def ticks(self, schedules: Ticking) -> None:
        """Have schedules publish as its clock goes on."""

    def open_deliveries(self) -> list[Delivery]:
        """The open deliveries."""

    def forget(self, handler: Handler) -> None:
        """Release a handler that has no pending deliveries."""

    def finish(self) -> None:
        """Run the waiting deliveries, because the bus is drained or closing."""

    def close(self) -> None:
        """End it. Idempotent."""


class Lanes:
    """The lanes of one bus. Thread-safe; `_lock` guards the making of lanes.

    Args:
        flow: settles deliveries, and makes the return value of `current()` in a handler.
        make_cpu_lane: makes the cpu lane; given True, it makes a lane of threads beside the cpu
            lane, for a bus with ``cpu="auto"``. The maker may raise Tangled.
        retries: deliveries that wait for their next attempt.
        supervisor: watches the workers, once it is started.
        stir: called now and then while runs are measured.
        io_workers: maximum of threads in the io lane; None for the default.
        cpu_workers: maximum of worker processes, as far as known; None for one for each core.
        only: the one lane for all handlers, as in tests; None for a lane for each kind.
        cpu: the place of cpu handlers: "processes", "threads", "auto" for both, or "cluster".
        make_io_lane: makes the lane of threads.
        make_loop_lane: makes the lane of the event loop; None for `LoopLane`.
    """

    def __init__(
        self,
        flow: Flow,
        make_cpu_lane: Callable[[bool], CpuLane],
        retries: RetryQueue,
        supervisor: Supervision,
        stir: Callable[[], None],
        io_workers: int | None = None,
        cpu_workers: int | None = None,
        only: OnlyLane | None = None,
        *,
        cpu: str = "processes",
        make_io_lane: Callable[[int, Flow, Callable[[], None]], IoLane] = IoLane,
        make_loop_lane: Callable[[Flow], LoopLane] | None = None,
    ) -> None:
        self._make_loop_lane = make_loop_lane
        self._lock = threading.RLock()
        self._flow = flow
        self._make_cpu_lane = make_cpu_lane
        self._retries = retries
        self._supervisor = supervisor
        self._stir = stir
        self._cpu_workers = cpu_workers
        self._cpu_is = cpu
        self._only = only
        #: The gatherers of batch handlers, by the number of the handler; kept by subscriptions.
        self._gatherers: WeakValueDictionary[int, Gatherer] = WeakValueDictionary()
        #: The pacers of handlers with a rate, by the number of the handler; kept by subscriptions.
        self._pacers: WeakValueDictionary[int, Pacer] = WeakValueDictionary()
        #: Number of threads that drain the bus. While there is one, no event waits for its batch to
        #: fill.
        self._hurries = 0
        self.io = make_io_lane(io_workers or IO_WORKERS, flow, stir)
        #: Whether a handler needs threads, whether a handler has a limit, and whether one is
        #: supervised.
        self._io_needed = False
        self.limited = False
        self._supervised = False
        self._primed = False
        self._closed = False
        #: The kinds that are paused.
        self._paused: set[Kind] = set()
        self.loop: LoopLane | None = None
        #: The lanes of cpu handlers: the bus's own first, then one of threads beside it.
        self._cpu: dict[bool, CpuLane] = {}
        self.cpu_lanes: tuple[CpuLane, ...] = ()

    def of(self, handler: Handler) -> Lane:
        """Return the lane that a handler belongs to."""
        lane = self._place(handler)
        if handler.rate is not None:
            return self._pacer(handler, lane)
        return lane if handler.batch is None else self._gatherer(handler, lane)

    def _pacer(self, handler: Handler, lane: Lane) -> Pacer:
        """Return the pacer of a handler with a rate, the same one each time."""
        from procbus.lanes.pacer import Pacer  # only now: few scripts need it

        if self._only is None:
            made = Pacer(handler, lane, self._flow, wake=self._supervisor.wake)
        else:
            now, wake = self._only.now, self._only.catch_up
            exact = self.turned
            made = Pacer(handler, lane, self._flow, clock=now, wake=wake, at_once=True, exact=exact)
        with self._lock:
            kept = self._pacers.setdefault(handler.number, made)
        if self._only is not None and kept is made:
            self._only.paces(made)
        return kept

    def pace(self, now: float) -> float:
        """Let the held deliveries pass whose time has come; return the time of the next look."""
        return min((each.let_pass(now) for each in self._living(self._pacers)), default=inf)

    def _gatherer(self, handler: Handler, lane: Lane) -> Gatherer:
        """Return the gatherer of a batch handler, the same one each time."""
        from procbus.lanes.gatherer import Gatherer  # only now: few scripts need it

        def ends_calls() -> bool:
            if isinstance(lane, IoLane) or lane is self._only:
                return False
            return handler.kind != "cpu" or self.cpu_lane(on_threads=handler.on_threads).ends_calls

        made = Gatherer(
            handler,
            lane,
            self._flow,
            self._retries,
            ends_calls=ends_calls,
            hurried=lambda: self._hurries > 0,
            wait_s=handler.batch_wait if self._only is None or self._only.gathers else 0.0,
        )
        with self._lock:
            return self._gatherers.setdefault(handler.number, made)

    def _living(self, fronts: WeakValueDictionary[int, _Front]) -> list[_Front]:
        """The gatherers, or the pacers, that still have a subscription."""
        if not fronts:
            return []
        with self._lock:
            return list(fronts.values())

    def _place(self, handler: Handler) -> OnlyLane | IoLane | LoopLane | CpuLane:
        if self._only is not None:
            return self._only
        limited = handler.limited or handler.batch_wait > 0 or handler.rate is not None
        if handler.kind == "cpu" or limited or handler.retry.retries:
            self._supervised = True
            if self._primed:
                self._supervisor.start()
        if handler.limited and not self.limited:
            self.limited = True
            self._supervisor.wake()
        if handler.kind == "cpu":
            lane = self.cpu_lane(on_threads=handler.on_threads)
            if self._primed:
                self.check_can_start()
            return lane
        if handler.is_async:
            return self._loop_lane()
        self._io_needed = True
        return self.io

    def forget(self, handler: Handler) -> None:
        """Have workers drop a handler that has no pending deliveries."""
        if self._only is not None:
            self._only.forget(handler)
        elif handler.kind == "cpu":
            for lane in self.cpu_lanes:
                lane.forget(handler)

    def take_along(self, carry: Carry) -> None:
        """Have cpu handlers get the values of these context variables from each publisher."""
        for lane in self.cpu_lanes:
            lane.take_along(carry)
        if self._only is not None:
            self._only.take_along(carry)

    def open_deliveries(self) -> list[Delivery]:
        """The open deliveries. A delivery on its way from one place to the next may be missing."""
        lanes = self._all() if self._only is None else [self._only]
        fronts = [*self._gatherers.copy().values(), *self._pacers.copy().values()]
        parts = [each.open_deliveries() for each in [*fronts, *lanes]]
        found = [each for part in parts for each in part] + self._retries.waiting()
        return [each for each in found if each.receipt is not None]

    def keep_time(self) -> bool:
        """Have delayed deliveries sent once they are due; False if no thread can be started.

        If a test turns the clock of the bus, turning the clock sends them.
        """
        return self.turned or self._supervisor.start()

    @property
    def turned(self) -> bool:
        """Whether a test turns the clock of the bus."""
        return self._only is not None and not self._only.time_passes

    def ticks(self, schedules: Ticking) -> None:
        """Have schedules publish as a test turns the clock."""
        if self._only is not None:
            self._only.ticks(schedules)

    def supervise(self) -> bool:
        """Have the supervisor look now; False if there is no supervisor."""
        if self._only is not None or not self._supervisor.start():
            return False
        self._supervisor.wake()
        return True

    def check_can_start(self) -> None:
        """Refuse to go on if processes are needed, and starting one would start the whole program.

        Raises:
            ProcbusError: the program is frozen, and did not call `freeze_support`.
        """
        if any(lane.pool.local and lane.pool.in_processes for lane in self.cpu_lanes):
            check_can_start()

    def start(self) -> None:
        """Start all workers of the cpu lanes. There is one lane at least.

        Raises:
            ProcbusError: the program is frozen, and did not call `freeze_support`.
        """
        if self._only is None:
            lanes = self.cpu_lanes or (self.cpu_lane(),)
            self.check_can_start()
            for lane in lanes:
                lane.start()

    @property
    def lacks_cpu_lane(self) -> bool:
        """Whether the first handler for processes would make the cpu lane."""
        return False not in self._cpu and self._only is None

    def expect_cpu_work(self) -> None:
        """Begin the start of a first worker process, because a handler is for processes.

        Raises:
            ProcbusError: no worker process can be started.
        """
        if self._only is not None:
            return
        lane = self.cpu_lane()
        self.check_can_start()
        lane.expect()

    def prime(self) -> None:
        """Start the event loop, a first thread and the supervisor, if handlers need them.

        Idempotent.

        A cpu handler may publish events for these handlers, and Python 3.12 starts no thread once
        the main script has ended.
        """
        self._primed = True
        if self._supervised:
            self._supervisor.start()
        if self._io_needed:
            self.io.prime()
        if self.loop is not None:
            self.loop.prime()

    def cpu_lane(self, *, on_threads: bool = False) -> CpuLane:
        """The cpu lane; or the lane of threads beside it, for a bus with ``cpu="auto"``."""
        with self._lock:
            if on_threads not in self._cpu:
                made = self._make_cpu_lane(on_threads)
                made.stir = self._stir
                self._cpu.setdefault(on_threads, made)  # a signal handler may have made it
                self.cpu_lanes = tuple(self._cpu[each] for each in sorted(self._cpu))
                if "cpu" in self._paused:  # the other one is
                    made.hold()
                if self._closed:  # the lane was closed before this publisher had its cpu lane
                    made.close()
            return self._cpu[on_threads]

    def cpu_size(self) -> int:
        """Maximum of workers in the bus's own cpu lane."""
        lane = self._cpu.get(False)
        return self.machine().cpu_workers if lane is None else lane.pool.size()

    @property
    def has_places(self) -> bool:
        """Whether all handlers run in a fixed number of places, one event in each."""
        return self.loop is None and self._only is None and not self._gatherers

    def needs(self, handlers: Iterable[Handler], batch: int | None = None) -> int:
        """Return the number of open events that keeps these handlers busy.

        Args:
            handlers: the handlers.
            batch: number of events that batch handlers get in one call, if it is larger than their
                `batch`.
        """
        return max((self._needs(each, batch or 0) for each in handlers), default=1)

    def _needs(self, handler: Handler, batch: int) -> int:
        if handler.kind == "cpu":
            places = max(1, self.cpu_size())
        elif handler.is_async:
            places = handler.concurrency or SCATTERED
        else:
            places = self.io.size
        places = min(places, handler.concurrency or places)
        needed = places * max(2, handler.batch or 0, batch if handler.batch else 0)
        return needed if handler.key is None else max(needed, SCATTERED)

    def _loop_lane(self) -> LoopLane:
        with self._lock:
            if self.loop is None:
                from procbus.lanes.event_loop import LoopLane  # only now: it imports asyncio

                made = (self._make_loop_lane or LoopLane)(self._flow)
                made.stir = self._stir
                if "io" in self._paused:
                    made.hold()
                if self.loop is None:  # the usual case, unless a signal handler made it meanwhile
                    self.loop = made
                if self._closed:
                    made.close()
            return self.loop

    def pause(self, kind: Kind) -> bool:
        """Begin no delivery of this kind until `resume`; running handlers finish.

        Returns:
            False if the bus has no lane of this kind yet.
        """
        with self._lock:
            lanes = self._of_kind(kind)
            if not lanes:
                return False
            self._paused.add(kind)
            for lane in lanes:
                lane.hold()
            return True

    def resume(self, kind: Kind) -> None:
        """Begin deliveries of this kind again. Idempotent."""
        with self._lock:
            self._paused.discard(kind)
        for lane in self._of_kind(kind):
            lane.go_on()  # without the lock, because it may start workers
        with self._lock:
            if kind in self._paused:  # another thread has paused it again meanwhile
                for lane in self._of_kind(kind):
                    lane.hold()

    def _of_kind(self, kind: Kind) -> Sequence[IoLane | LoopLane | CpuLane]:
        if kind == "cpu":
            return self.cpu_lanes
        return [self.io, *([] if self.loop is None else [self.loop])]

    def _all(self) -> Sequence[IoLane | LoopLane | CpuLane]:
        return [*self.cpu_lanes, *self._of_kind("io")]

    def at_hand(self) -> list[tuple[Delivery, float]]:
        """The deliveries in a handler now, and since when (`time.monotonic()`)."""
        if self._only is not None:
            return list(self._only.at_hand.items())
        found = [(t.at_hand, t.since) for t in self.io.threads()]
        if self.loop is not None:
            found += self.loop.at_hand.copy().items()
        for lane in self.cpu_lanes:
            found += [(delivery, at[2]) for _, _, delivery, at in lane.batching.running()]
        return [(delivery, since) for delivery, since in found if delivery is not None]

    def progress(self) -> list[tuple[Delivery, Progress]]:
        """The running deliveries whose handlers have reported their progress."""
        if self._only is not None:
            return _with_reports((d, self._only.progress_of(d)) for d in [*self._only.at_hand])
        here = [thread.at_hand for thread in self.io.threads()]
        if self.loop is not None:
            here += self.loop.at_hand.copy()
        found = _with_reports((d, reported_here(d)) for d in here if d is not None)
        for lane in self.cpu_lanes:
            running = lane.batching.running()
            found += _with_reports((d, worker.progress(at)) for _, worker, d, at in running)
        return found

    def snapshot(self, subscriptions: Sequence[Subscription]) -> Mapping[str, LaneStats]:
        """The state of the lanes, by kind; threads and event loop together are the io lane.

        Args:
            subscriptions: the subscriptions of the bus, which know how long their handlers ran.
        """
        lanes, cpu, io = self.cpu_lanes, LaneStats(0, 0, 0, 0), self.io.stats()
        if lanes:
            share = self._utilisation("cpu", subscriptions, sum(each.worker_s() for each in lanes))
            cpu = replace(together([lane.stats() for lane in lanes]), utilisation=share)
        # Of the threads alone, because handlers on the event loop wait beside each other.
        io = replace(io, utilisation=self._utilisation("io", subscriptions, self.io.worker_s()))
        if self.loop is not None:
            io = replace(together([io, self.loop.stats()]), utilisation=io.utilisation)
        for gatherer in self._living(self._gatherers):
            if gatherer.calls.handler.kind == "cpu":
                cpu = replace(cpu, depth=cpu.depth + gatherer.depth())
            else:
                io = replace(io, depth=io.depth + gatherer.depth())
        if "io" in self._paused:
            io = replace(io, paused=PAUSED_BY_HAND)
        if "cpu" in self._paused:
            cpu = replace(cpu, paused=PAUSED_BY_HAND)
        return MappingProxyType({"io": io, "cpu": cpu})

    def io_threads(self) -> Sequence[IoThread]:
        """The threads of the io lane."""
        return self.io.threads()

    def machine(self) -> Machine:
        """Resources of the machine that a handler could use."""
        from procbus.system.cores import usable_cores  # only now: few scripts need it here

        cores = usable_cores()
        workers = self._cpu_workers or cores
        return Machine(
            cores,
            workers,
            self.io.size,
            gil_is_on(),
            self._cpu_is == "threads",
            self._cpu_is == "auto",
        )

    def place_of(self, handler: Handler) -> str:
        """The kind of workers that run a handler, in words."""
        if self._only is not None:
            return "inline"
        if handler.kind == "cpu":
            return "threads" if handler.on_threads else self._cpu_is.replace("auto", "processes")
        return "event loop" if handler.is_async else "threads"

    def shared_memory(self) -> SharedMemoryStats:
        """Large objects on their way to workers and back."""
        lane = self._cpu.get(False)
        return NOTHING_SHARED if lane is None else lane.pool.shared_memory()

    def _utilisation(
        self, kind: Kind, subscriptions: Sequence[Subscription], worker_s: float
    ) -> float | None:
        """Share of the workers' time that they spent in handlers; None if there were none."""
        if not worker_s:
            return None
        now = monotonic()
        busy_s = sum(s.ran.total for s in subscriptions if _on_workers(s.handler, kind))
        busy_s += sum(now - since for d, since in self.at_hand() if _on_workers(d.handler, kind))
        return min(1.0, busy_s / worker_s)

    def cancel(self) -> None:
        """Settle as cancelled all deliveries that have not begun."""
        for pacer in self._living(self._pacers):
            pacer.cancel()
        for gatherer in self._living(self._gatherers):
            gatherer.cancel()
        for lane in self._all():
            lane.cancel()
        # After the lanes, because until then a lane may have a delivery retried.
        waiting = self._retries.cancel()
        self._flow.settle([(delivery, cancelled(delivery)) for delivery in waiting])

    def kill(self) -> None:
        """End the running handlers, and settle their deliveries as cancelled."""
        for lane in self._all():
            lane.kill()

    def close(self) -> None:
        """End all workers. Idempotent."""
        with self._lock:
            self._closed = True
        self.io.close(IO_JOIN_S)
        if self.loop is not None:
            self.loop.close(IO_JOIN_S)
        for lane in self.cpu_lanes:
            lane.close()
        if self._only is not None:
            self._only.close()
        self._supervisor.stop()
        self._flow.resources.close()

    def hurry(self) -> None:
        """Have no event wait for its batch to fill, until `stop_hurrying`: no other may come."""
        with self._lock:
            self._hurries += 1
        self.flush()

    def flush(self) -> None:
        """Have batch handlers called with the events that are waiting now."""
        for gatherer in self._living(self._gatherers):
            gatherer.flush()

    def seal(self) -> None:
        """Have batch handlers called with the waiting events, and with no later event."""
        for gatherer in self._living(self._gatherers):
            gatherer.seal()

    def stop_hurrying(self) -> None:
        """Let events wait for their batch to fill again. Called once for each `hurry`."""
        with self._lock:
            self._hurries -= 1

    @property
    def tickets(self) -> int:
        """Number of calls of batch handlers that have not ended: pending, but no deliveries."""
        return sum(each.tickets for each in self._living(self._gatherers))

    def expect_close(self, *, cancel: bool = False) -> None:
        """Note that the bus is closing. No lane may delay the close for long.

        Args:
            cancel: whether deliveries that have not begun will be cancelled at once.
        """
        self.hurry()
        for kind in tuple(self._paused):
            log.warning(
                "the bus is closing, and waits for its %s lane, which is %s: resume it in "
                "`procbus top`, with the key p",
                kind,
                PAUSED_BY_HAND,
            )
        if self._only is not None and not cancel:
            self._only.finish()
        for lane in self.cpu_lanes:
            lane.breaker.expect_close()


def _with_reports(
    found: Iterable[tuple[Delivery, Progress | None]],
) -> list[tuple[Delivery, Progress]]:
    return [(delivery, progress) for delivery, progress in found if progress is not None]


def _on_workers(handler: Handler, kind: Kind) -> bool:
    """Whether a handler of this kind runs on a worker of its own, and not on the event loop."""
    return handler.kind == kind and not handler.is_async
