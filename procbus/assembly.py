# SPDX-License-Identifier: MIT
"""The parts of one bus, made and connected.

Only this module says which part knows which. Each part gets the parts that it uses as arguments of
its constructor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike
from threading import current_thread, main_thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from procbus.advice.advisor import Advisor
from procbus.core.bus_resources import BusResources
from procbus.core.carry import Carry, Translated
from procbus.core.context import Run, running_now
from procbus.core.errors import ProcbusError
from procbus.core.gil import gil_is_on
from procbus.core.locks import Tangled
from procbus.core.log import log
from procbus.core.log_origin import add_origins
from procbus.core.subscription import Lane, Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.cancellation import Cancellation, ChosenDeliveries
from procbus.dispatch.dead_letters import FailureHook
from procbus.dispatch.dispatcher import Dispatcher
from procbus.dispatch.flow import BusFlow
from procbus.dispatch.retry_queue import RetryQueue
from procbus.dispatch.settlement import Settlement
from procbus.dispatch.window import Window
from procbus.futures.subscriptions import DirectSubscriptions
from procbus.lanes.lanes import Lanes
from procbus.lanes.recycling import RecyclingPolicy
from procbus.lifecycle import Lifecycle
from procbus.routing.registry import check_can_travel, default_registry, handlers_from
from procbus.routing.subscriptions import Subscriptions
from procbus.settings import Settings
from procbus.supervision.supervisor import Supervisor
from procbus.system import exit_hooks
from procbus.system.descriptors import hold_standard_descriptors
from procbus.system.freezing import check_can_start
from procbus.system.uncounted import leave_uncounted
from procbus.view import BusView

if TYPE_CHECKING:
    from procbus.core.dead_letter import DeadLetter
    from procbus.core.flow import Flow
    from procbus.core.handler import Handler
    from procbus.core.listeners import Listening
    from procbus.core.resources import Resource
    from procbus.futures.executor import Parts
    from procbus.jobs.book import JobBook
    from procbus.jobs.schedule import Schedules
    from procbus.journal.bus_journal import BusJournal
    from procbus.journal.ends import DeliveryEnds
    from procbus.journal.journal import Journal
    from procbus.lanes.cpu import CpuLane
    from procbus.lanes.inline import InlineClock, InlineRetries
    from procbus.pool.birth import Newborn
    from procbus.pool.interface import Pool


def make_lanes(parts: Assembly, **makers: Any) -> Lanes:
    """Make the lanes of a bus whose other parts exist; `makers` as for `Lanes`."""
    settings = parts.settings
    return Lanes(
        parts.flow,
        parts.make_cpu_lane,
        parts.retries,
        parts.supervisor,
        parts.advisor.stir,
        settings.io_workers,
        settings.cpu_workers,
        cpu=settings.cpu if isinstance(settings.cpu, str) else "cluster",
        **makers,
    )


class Makers(NamedTuple):
    """Makers of some parts; a bus for tests has other makers."""

    retries: Callable[[], RetryQueue] = RetryQueue
    dispatcher: Callable[..., Dispatcher] = Dispatcher
    lanes: Callable[[Assembly], Lanes] = make_lanes
    supervisor: Callable[[RetryQueue], Supervisor] = Supervisor
    advisor: Callable[[Subscriptions, Callable[[], Lanes]], Advisor] = Advisor
    #: None for `CpuLane`, which is imported when the first handler needs it.
    cpu_lane: Callable[[Pool, Flow, RecyclingPolicy], CpuLane] | None = None
    #: None for `Journal`, which is imported if the bus has one.
    journal: Callable[..., Journal] | None = None


#: The makers of an ordinary bus.
MAKERS = Makers()

#: Whether the log has already said that buses run handlers inline.
_told: list[bool] = []


def inline_is_asked_for() -> bool:
    """Whether handlers run in the thread that publishes: `PROCBUS_INLINE=1`."""
    return os.environ.get("PROCBUS_INLINE", "0") not in ("", "0")


def debugging_is_asked_for() -> bool:
    """Whether a bus looks for objects that are changed where the change has no effect."""
    return os.environ.get("PROCBUS_DEBUG", "0") not in ("", "0")


def usual_makers() -> Makers:
    """The makers of an ordinary bus; with `PROCBUS_INLINE=1` of one that runs handlers at once."""
    if not inline_is_asked_for():
        return MAKERS
    from procbus.lanes.inline import InlineRetries, RealClock  # only now: it imports asyncio

    if not _told:
        _told.append(True)
        log.warning(
            "PROCBUS_INLINE is set: each handler runs at once, in the thread that publishes. There "
            "are no workers; timeout=, max_memory=, concurrency= and key= have no effect"
        )
    clock = RealClock()
    retries = InlineRetries(clock)
    return Makers(lambda: retries, lanes=partial(make_inline_lanes, clock, retries, one_loop=True))


def make_inline_lanes(
    clock: InlineClock,
    retries: InlineRetries,
    parts: Assembly,
    *,
    pickling: bool = False,
    one_loop: bool = False,
    resources: Mapping[Resource[Any], Any] | None = None,
) -> Lanes:
    """Make lanes in which one lane runs all handlers, see `InlineLane`."""
    from procbus.lanes.inline import InlineLane  # only now: it imports asyncio

    settings = parts.settings
    inline = InlineLane(
        clock,
        retries,
        parts.flow,
        pickling=pickling,
        worker_init=settings.worker_init,
        carry=Carry(settings.carry) if settings.carry else None,
        one_loop=one_loop,
        resources=resources,
        watch=parts.watch,
    )
    return Lanes(
        parts.flow,
        parts.make_cpu_lane,
        retries,
        parts.supervisor,
        parts.advisor.stir,
        cpu_workers=settings.cpu_workers,
        only=inline,
    )


class Assembly:
    """The parts of one bus. Each knows only the parts that it is given here.

    Args:
        settings: the options of the bus.
        handlers: as for `EventBus`.
        make: makes some of the parts.

    Raises:
        JournalError: the journal cannot be opened.
        SubscriptionError: one of `handlers` is not subscribed.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Iterable[Callable[..., Any] | ModuleType] | None,
        make: Makers = MAKERS,
    ) -> None:
        shared = default_registry if handlers is None else None
        own = () if handlers is None else handlers_from(handlers)
        self.settings = settings
        self._make_cpu_lane = make.cpu_lane
        self._debug = debugging_is_asked_for()
        self._carry = Carry(settings.carry)
        #: A process that is to become the first worker, until the pool has it.
        self._newborn: Newborn | None = None
        #: Whether the bus is used in a `with` block.
        self.entered = False
        self.admission = Admission(settings.max_pending, settings.on_full)
        self.retries = make.retries()
        ends: DeliveryEnds | None = None
        if settings.journal is not None:
            # Only now: sqlite3 takes time to import.
            from procbus.journal.bus_journal import BusJournal
            from procbus.journal.ends import DeliveryEnds
            from procbus.journal.journal import Journal

            journal = (make.journal or Journal)(
                settings.journal,
                durability=settings.durability,
                keep_s=settings.keep,
                keep_results=settings.keep_results,
                codec=settings.journal_codec,
            )
            ends = DeliveryEnds(journal)
        self.settlement = Settlement(self.admission, self.retries, ends)
        self.cancellation = Cancellation(
            self.settlement, self.retries, lambda: self.lanes.supervise()
        )
        self.subscriptions = Subscriptions(
            shared,
            own,
            self._lane_of,
            self.cancellation.cancel,
            settings.place_of,
        )
        for handler in (*own, *(() if shared is None else shared.handlers)):
            settings.check_handler(handler)
        self.journal: BusJournal | None = None
        if ends is not None:
            self.journal = BusJournal(
                journal,
                ends,
                self.admission,
                self.settlement,
                self.subscriptions.routes,
                self.subscriptions.all,
            )
        self.dispatcher: Dispatcher = make.dispatcher(
            self.admission,
            self.settlement,
            self.subscriptions.routes,
            self._get_ready,
            self.subscriptions.all,
            Run(os.urandom(4).hex(), 1) if self.journal is None else self.journal.run,
            self.journal,
        )
        if self.journal is not None:
            self.journal.answer(self.dispatcher)
        self.settlement.listeners.seat_by(self.dispatcher.seat_of)
        letters = self.settlement.dead_letters
        letters.redeliver = self.dispatcher.redeliver
        letters.handlers = self.subscriptions.handlers
        letters.files = _LetterFiles()
        if settings.on_failure is not None:
            hook = FailureHook(settings.on_failure, self.dispatcher.context_of)
            self.settlement.on_failed += (hook,)
        self.advisor = make.advisor(self.subscriptions, lambda: self.lanes)
        self.resources = BusResources(lambda: self.subscriptions.handlers())
        self.flow = BusFlow(self.settlement, self.dispatcher, self.resources)
        self.supervisor = make.supervisor(self.retries)
        self.lanes = make.lanes(self)
        self.admission.when_full = self.lanes.flush
        self.supervisor.look_after(self.lanes, self.cancellation.look)
        self.settlement.delays.keep_time = self._keep_time
        self.chosen = ChosenDeliveries(
            self.cancellation, self.subscriptions, self.lanes.open_deliveries
        )
        self.direct = DirectSubscriptions()
        self._books: dict[str, JobBook] = {}
        if self._debug:
            from procbus.dispatch.event_watch import EventWatch  # only now: it imports cloudpickle

            self.settlement.listeners.add(EventWatch())
        if self.journal is not None and self.journal.jobs.open:
            self.job_book().restore()
        self.lifecycle = Lifecycle(
            self.admission,
            self.dispatcher,
            self.journal,
            self.lanes,
            self._counted,
            self.settlement.sum_up_failures,
            self.advisor.stop,
            self.advisor.sum_up,
            settings.on_sigterm,
            settings.grace,
        )
        self.view = BusView(
            self.admission,
            self.settlement,
            self.dispatcher.unrouted,
            self.subscriptions,
            self._counted,
            self.lanes,
            self.retries,
            self.supervisor,
            self.advisor,
            self.lifecycle,
        )
        if settings.live or os.environ.get("PROCBUS_LIVE", "0") not in ("", "0"):
            from procbus.live.server import LiveServer  # only now: few scripts need it

            self.lifecycle.live = LiveServer(self.view, settings.journal)

    def start(self) -> None:
        """Start all workers of the cpu lane, and resume the journal.

        Raises:
            BusClosed: the bus was closed.
        """
        self.lifecycle.check_open()
        self._watch()
        self.subscriptions.routes()  # makes the lanes that the handlers need
        self.lanes.start()
        self.dispatcher.resume()

    def enter(self) -> None:
        """Note that the bus is used in a `with` block: there will be events."""
        self.entered = True
        if self.lifecycle.live is not None and not self.lifecycle.closed:
            self._watch()
        self.expect_events()

    def expect_events(self) -> None:
        """Begin the start of a first worker process now, if a handler is for processes.

        This only saves time. Errors are not raised here; publishing raises them.

        Only the main process starts a worker here: a process of `multiprocessing` may be importing
        the script, in which no `if __name__ == "__main__":` guards the `with` block. Only the main
        thread does so, because the worker process ends with the thread that starts it. gevent may
        have replaced the threads.
        """
        if self.settings.cpu not in ("processes", "auto"):
            return
        if not self.subscriptions.need_processes():
            return
        if "gevent.monkey" in sys.modules or current_thread() is not main_thread():
            return
        from multiprocessing import current_process  # only now: it takes time to import

        if current_process().name != "MainProcess":
            return
        with suppress(ProcbusError, Tangled, OSError, RuntimeError):
            self.lifecycle.check_open()
            exit_hooks.watch(self.lifecycle)
            if self.lanes.lacks_cpu_lane:
                self._start_process()
            self.lanes.expect_cpu_work()

    def _start_process(self) -> None:
        """Make the cpu lane with a process for its first worker.

        The worker process is started before this process imports the modules of the lane. Both then
        import at the same time, and the imports here take half as long as the worker's.

        Raises:
            ProcbusError: no worker process can be started.
            OSError: the machine is full.
        """
        from procbus.pool.birth import give_birth  # only now: it imports multiprocessing

        check_can_start()
        hold_standard_descriptors()
        settings = self.settings
        self._newborn = give_birth(settings.cpu_workers, settings.worker_nice)
        try:
            self.lanes.cpu_lane()
        finally:
            newborn, self._newborn = self._newborn, None
            if newborn is not None:  # the pool has not been made, or another thread has made it
                newborn.abandon()

    def make_cpu_lane(self, on_threads: bool) -> CpuLane:
        """Make the cpu lane, once the first handler needs it.

        Args:
            on_threads: whether to make a lane of threads, whatever the options of the bus say.

        Raises:
            Tangled: this thread was interrupted while it imported the lane's modules.
        """
        # Only now: loky, cloudpickle and multiprocessing take time to import.
        try:
            from procbus.lanes.cpu import CpuLane
        except ImportError as error:
            if "procbus.lanes.cpu" in sys.modules:  # a signal handler interrupted the import
                raise Tangled from error
            raise

        settings = self.settings
        pool = self._open_pool(on_threads)
        if (watch := self.watch) is not None and pool.in_processes:
            pool.definitions.function_of = watch
        lane = (self._make_cpu_lane or CpuLane)(
            pool,
            self.flow,
            RecyclingPolicy(settings.max_events_per_worker, settings.worker_max_memory),
        )
        if self._carry.definition:
            lane.take_along(self._carry)
        leave_uncounted(lane, lane.batching, lane.batching.queue)
        return lane

    @property
    def watch(self) -> Callable[[Handler], Callable[..., Any]] | None:
        """Makes the function that workers run for a handler; None without `PROCBUS_DEBUG`."""
        if not self._debug:
            return None
        from procbus.codec.watched import watch  # only now: it imports cloudpickle

        return watch

    def _open_pool(self, on_threads: bool) -> Pool:
        """Make the pool that the options of the bus ask for."""
        settings, run = self.settings, self.dispatcher.run
        if on_threads or settings.cpu == "threads":
            from procbus.pool.threads import ThreadPool, warn_of_turns

            if not on_threads and gil_is_on():
                warn_of_turns()
            return ThreadPool(
                settings.cpu_workers, settings.worker_init, self.dispatcher, run, self.resources
            )
        from procbus.codec.encoder import encode_definition  # only now: it imports cloudpickle

        init = b"" if settings.worker_init is None else encode_definition(settings.worker_init)
        if not isinstance(settings.cpu, str):
            return settings.cpu.open(settings.cpu_workers, init, run, self._encode_eager)
        from procbus.pool.loky import LokyPool
        from procbus.pool.memory.events import EventMemory

        hold_standard_descriptors()
        memory = EventMemory(
            settings.shared_memory_limit, settings.shared_memory_threshold, settings.on_oversize
        )
        newborn, self._newborn = self._newborn, None
        return LokyPool(
            settings.cpu_workers,
            init,
            memory,
            run,
            keeps_on=settings.on_sigterm is not None,
            nice=settings.worker_nice,
            newborn=newborn,
            eager=self._encode_eager,
            environment_of=settings.environment_of,
        )

    def _encode_eager(self) -> bytes:
        """Encode the functions of cpu handlers with eager resources, for a worker that starts."""
        found = tuple(self.resources.eager(lambda handler: handler.kind == "cpu"))
        if not found:
            return b""
        from procbus.codec.encoder import encode_definition  # only now: it imports cloudpickle

        return encode_definition(found)

    def job_book(self) -> JobBook:
        """The book of the jobs of this bus, which is made once it is needed."""
        from procbus.jobs.book import JobBook  # only now: few scripts need it

        def takes(topic: type) -> bool:
            return bool(self.subscriptions.reached_by(topic))

        records = None if self.journal is None else self.journal.jobs
        about = self.settlement.listeners, self.dispatcher, self.cancellation, takes, records
        book = self._books.get("jobs")
        if book is None:
            book = self._books.setdefault("jobs", JobBook(*about))
            book.record()
        return book

    def _keep_time(self) -> bool:
        """Have delayed deliveries sent once they are due: see `Lanes.keep_time`.

        Raises:
            BusClosed: the bus was closed.
        """
        if self.lanes.keep_time():
            return True
        self.lifecycle.check_open()
        return False

    def schedules(self) -> Schedules:
        """The schedules of this bus, which are made once they are needed.

        Raises:
            BusClosed: the bus was closed.
        """
        self.lifecycle.check_open()
        found = self.lifecycle.schedules
        if found is None:
            from procbus.jobs.schedule import Schedules  # only now: few scripts need it

            made = Schedules(self.dispatcher, self.retries, turned=self.lanes.turned)
            found = self.lifecycle.keep_schedules(made)
            if self.lanes.turned:
                self.lanes.ticks(found)
        return found

    def for_calls(self) -> Parts:
        """The parts that executors and maps use."""
        from procbus.futures.executor import Parts  # only now: it imports concurrent.futures

        calls = self.dispatcher, self.cancellation, self.lanes, self.direct
        return Parts(*calls, self.view.facts)

    def window(self, holds: object, batch: int | None = None) -> Window:
        """The bound on the open events of one stream.

        Args:
            holds: an object that is kept alive while the stream goes on: the bus.
            batch: number of events that batch handlers get together; None leaves it to the
                handlers.
        """
        lanes = self.lanes
        return Window(
            self.admission.max_pending,
            partial(lanes.needs, batch=batch),
            lanes.shared_memory,
            holds,
            begins_small=lambda: batch is None and lanes.has_places,
        )

    def _counted(self) -> tuple[Subscription, ...]:
        return (*self.subscriptions.counted(), *self.direct.all())

    def listen(self, listener: object, carried: Translated | None = None) -> Listening:
        """Tell a listener of moments.

        Args:
            listener: the object.
            carried: a context variable that the listener sets for each delivery, and that cpu
                handlers get from then on.

        Raises:
            OptionError: the listener has no method for any moment.
        """
        listening = self.settlement.listeners.add(listener)
        if carried is not None and carried.source not in self._carry.variables:
            self._carry = Carry((*self._carry.definition, carried))
            self.lanes.take_along(self._carry)
        return listening

    def check(self, handler: Handler) -> None:
        """Check a handler that is about to be subscribed to this bus.

        Raises:
            SubscriptionError: the workers of the bus cannot keep a promise of it.
            SerializationError: it cannot travel to a worker process.
        """
        self.settings.check_handler(handler)
        if self.settings.cpu != "threads":
            check_can_travel(handler)

    def _lane_of(self, handler: Handler) -> Lane:
        self.settings.check_handler(handler)  # one of the default registry may be new
        return self.lanes.of(handler)

    def _get_ready(self) -> None:
        self.lanes.check_can_start()
        self._watch()
        io = self.lanes.io
        leave_uncounted(self.admission, self.settlement, self.dispatcher, self.flow, io, io.queue)
        leave_uncounted(running_now)
        self.lanes.prime()

    def _watch(self) -> None:
        """Have the bus closed at the script's end, and start its live view if it has one."""
        exit_hooks.watch(self.lifecycle)
        add_origins(self.lifecycle)
        if self.lifecycle.live is not None:
            self.lifecycle.live.start()


class _LetterFiles:
    """Saves and loads dead letters. sqlite3 is imported on first use: the import takes time."""

    def save(self, path: str | PathLike[str], letters: Sequence[DeadLetter]) -> None:
        """Write letters to a file."""
        from procbus.journal.dead_letter_file import save_letters

        save_letters(path, letters)

    def load(self, path: str | PathLike[str]) -> list[DeadLetter]:
        """Read the letters of a file."""
        from procbus.journal.dead_letter_file import load_letters

        return load_letters(path)
