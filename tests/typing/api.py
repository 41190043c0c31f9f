# SPDX-License-Identifier: MIT
"""The public API in use: not run, but type-checked with `mypy --strict`, without one cast."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sized
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, assert_type

from procbus import (
    AdviceList,
    BatchFailed,
    BusExecutor,
    BusHealth,
    BusOptions,
    BusStats,
    CallOptions,
    DeadLetter,
    DeadLetters,
    Delivery,
    DeliveryState,
    EventBus,
    Evidence,
    Handler,
    HandlerContext,
    HandlerOptions,
    HandlerStats,
    HandlerTimeout,
    LaneStats,
    Limits,
    Outcome,
    OutcomeKind,
    Percentiles,
    Receipt,
    ResumeSummary,
    RetryPolicy,
    SharedMemoryStats,
    Span,
    WorkerDied,
    WorkerHealth,
    current,
    executor,
    subscribe,
)
from procbus.testing import InlineBus

F = TypeVar("F", bound=Callable[..., Any])


class Ticks:
    """A bar of one's own."""

    def __init__(self, *, total: int | None = None) -> None:
        self.total = total

    def update(self, n: int) -> None:
        """Take progress."""

    def close(self) -> None:
        """End."""


@dataclass(frozen=True)
class Page:
    url: str


@subscribe(kind="cpu", priority=1, key=lambda page: page.url, concurrency=2)
def extract(page: Page) -> list[str]:
    current().publish("words.found", [page.url])
    return [page.url]


@subscribe("words.*", where=lambda words: bool(words))
async def store(words: list[str]) -> int:
    return len(words)


def longer(attempt: int, outcome: Outcome) -> float:
    return 0.0 if outcome.kind is OutcomeKind.TIMED_OUT else 2.0 * attempt


@subscribe(
    kind="cpu",
    timeout=30,
    retries=2,
    backoff=longer,
    retry_on=(OSError, HandlerTimeout),
    max_crashes=0,
    max_memory="512 MiB",
    writable=True,
)
def render(page: Page) -> bytes:
    return page.url.encode()


@subscribe(kind="auto", retries=1)
def parse(page: Page) -> int:
    return len(page.url)


@subscribe("pages", timeout=0.5, retries=3, backoff=[0.5, 1, 30], retry_on=OSError)
async def fetch(url: str) -> Page:
    return Page(url)


# An option that there is not, and a value that makes no sense, are errors.
subscribe(retry=3)  # type: ignore[call-overload]
subscribe(kind="gpu")  # type: ignore[call-overload]
subscribe(timeout="30 s")  # type: ignore[call-overload]
subscribe(3)  # type: ignore[call-overload]
subscribe(Page | str)  # type: ignore[arg-type]
EventBus([], cpu_worker=2)  # type: ignore[call-arg]
EventBus([], on_full="drop")  # type: ignore[arg-type]
EventBus([]).subscribe("a", print, retry=3)  # type: ignore[call-overload]
EventBus([]).executor("cpu", concurrency=1)  # type: ignore[call-arg]
InlineBus([], journal="run.db")  # type: ignore[call-arg]


@subscribe
def bare(page: Page) -> int:
    return len(page.url)


@subscribe
async def bare_later(page: Page) -> int:
    return len(page.url)


@subscribe((Page, "page.*", int), kind="cpu")
def several(page: object) -> bool:
    return True


@subscribe(Sized)
def abstract(sized: Sized) -> int:
    return len(sized)


assert_type(bare(Page("x")), int)
bare_as_it_was: Callable[[Page], Awaitable[int]] = bare_later
assert_type(several(Page("x")), bool)
assert_type(abstract([]), int)
assert_type(subscribe(bare, kind="cpu")(Page("x")), int)
assert_type(extract(Page("x")), list[str])
decorated: Callable[[Page], list[str]] = extract


def load_model() -> object:
    return object()


def alert(letter: DeadLetter) -> None:
    assert_type(letter.outcome, Outcome)


def supervise() -> EventBus:
    bus = EventBus(
        worker_init=load_model,
        max_events_per_worker=1_000,
        worker_max_memory="1.5 GB",
        worker_nice=10,
        on_failure=alert,
    )
    bus.subscribe(Page, extract, kind="cpu", timeout=30, max_memory=10**9, max_crashes=2)

    @bus.subscribe("order.*", retries=2, backoff=1.5, retry_on=[OSError])
    def order(event: Page) -> int:
        return len(event.url)

    @bus.subscribe
    def bare(event: Page) -> int:
        return len(event.url)

    assert_type(order(Page("x")), int)
    assert_type(bare(Page("x")), int)
    assert_type(bus.subscribe(bare, name="again")(Page("x")), int)
    return bus


def journalled() -> ResumeSummary | None:
    with EventBus(
        [],
        journal=Path("run.db"),
        durability="power",
        keep=timedelta(days=7),
        keep_results=True,
        journal_codec="json",
    ) as bus:
        assert_type(bus.publish(Page("x"), id="x"), Receipt[Page, Any])
        for settled in bus.stream([Page("x")], id=lambda page: page.url):
            assert_type(settled, Receipt[Page, Any])
        assert_type(current().delivery_id, str)
        assert_type(current().redelivered, bool)
        return bus.resume_summary


def share() -> EventBus:
    bus = EventBus(shared_memory_limit="2 GiB", shared_memory_threshold=1 << 20, on_oversize="fail")
    bus.subscribe(Page, extract, kind="cpu", writable=True)
    assert_type(bus.stats().shared_memory.in_flight, int)
    return EventBus(shared_memory_limit=0, shared_memory_threshold="64 KiB", on_oversize="pipe")


def records(bus: EventBus) -> None:
    stats = bus.stats()
    assert_type(stats, BusStats)
    assert_type(stats.handlers["extract"], HandlerStats)
    assert_type(stats.handlers["extract"].run_s, Percentiles)
    assert_type(stats.lanes["cpu"], LaneStats)
    assert_type(stats.shared_memory, SharedMemoryStats)
    assert_type(bus.health(), BusHealth)
    assert_type(bus.health()[0], WorkerHealth)
    assert_type(bus.advice(), AdviceList)
    assert_type(bus.advice()[0].evidence, Evidence)
    assert_type(bus.advice()[0].evidence.gil_s, Span)
    assert_type(bus.handlers(Page), tuple[Handler, ...])
    assert_type(bus.handlers("page.new")[0].limits, Limits)
    assert_type(bus.handlers()[0].retry, RetryPolicy)
    assert_type(bus.dead_letters, DeadLetters)
    assert_type(bus.dead_letters[:2].filter(handler=extract), DeadLetters)
    assert_type(bus.dead_letters[0], DeadLetter)
    assert_type(bus.dead_letters.replay(), list[Receipt])
    assert_type(bus.dead_letters.replay(bus.dead_letters[0]), Receipt)
    assert_type(bus.resume_summary, ResumeSummary | None)
    assert_type(bus.executor("io"), BusExecutor)
    assert_type(current(), HandlerContext)
    assert_type(current().publish(Page("x")), Receipt[Page, Any] | None)
    assert_type(current().publish("page.new", 3), Receipt[int, Any] | None)


def patient(**options: Unpack[HandlerOptions]) -> Callable[[F], F]:
    options.setdefault("retries", 5)
    return subscribe("page", **options)


def calls(**options: Unpack[CallOptions]) -> BusExecutor:
    return executor("io", **options)


def quiet(**options: Unpack[BusOptions]) -> EventBus:
    return EventBus([], **options)


def run(pages: Iterator[Page]) -> None:
    with EventBus(cpu_workers=2, io_workers=4, max_pending=100, on_full="raise") as bus:
        assert_type(bus, EventBus)
        assert_type(bus.start(), EventBus)

        @bus.subscribe("order.*", kind="io")
        def order(event: Page) -> int:
            return len(event.url)

        assert_type(order(Page("x")), int)
        subscribed: Callable[[Page], list[str]] = bus.subscribe(Page, extract)
        assert_type(subscribed(Page("x")), list[str])
        bus.unsubscribe(order)

        receipt = bus.publish(Page("x"))
        assert_type(receipt, Receipt[Page, Any])
        assert_type(receipt.event, Page)
        assert_type(bus.publish("order.new", Page("x")), Receipt[Page, Any])
        assert_type(bus.publish("order.new", None, id="one"), Receipt[None, Any])
        assert_type(receipt.id, int)
        assert_type(receipt.topic, str | None)
        assert_type(receipt.parent_id, int | None)
        assert_type(receipt.deliveries, tuple[Delivery[Any], ...])
        assert_type(receipt.wait(1.5), bool)
        assert_type(receipt.results(timeout=1), list[Any])
        assert_type(receipt.done, bool)

        delivery = receipt.deliveries[0]
        assert_type(delivery.handler, Handler)
        assert_type(delivery.state, DeliveryState)
        assert_type(delivery.outcome, Outcome | None)
        assert_type(delivery.exception(), BaseException | None)
        assert_type(delivery.run_s, float | None)
        assert_type(delivery.worker_pid, int | None)
        if delivery.outcome is not None and delivery.outcome.kind is OutcomeKind.WORKER_DIED:
            error = delivery.exception()
            if isinstance(error, WorkerDied):
                assert_type(error.exit_code, int | None)

        for settled in bus.stream(pages, topic=None, ordered=True, progress=True):
            assert_type(settled, Receipt[Page, Any])
        assert_type(bus.drain(timeout=1), bool)
        with bus.progress(Ticks, total=5):
            bus.drain(progress=lambda total: Ticks(total=total))
        for letter in bus.dead_letters:
            assert_type(letter.outcome, Outcome)
        assert_type(bus.stats().pending, int)
        for advice in bus.advice():
            assert_type(advice.kind, Literal["io", "cpu", "threads"] | None)
            assert_type(advice.gain, float)
            assert_type(advice.text, str)
        for worker in bus.health():
            assert_type(worker.pid, int | None)
        bus.close(timeout=1, cancel=True)


def execute(page: Page) -> None:
    with executor("cpu", max_workers=2, timeout=30, max_memory="1 GiB", retries=1) as pool:
        future = pool.submit(extract, page)
        assert_type(future, Future[list[str]])
        assert_type(future.result(), list[str])
        lines = pool.map(extract, [page], chunksize=2, buffersize=4, timeout=1)
        assert_type(lines, Iterator[list[str]])
        standard: Executor = pool
        standard.shutdown(wait=False, cancel_futures=True)
    with EventBus([]) as bus, bus.executor("io", priority=1) as threads:
        assert_type(threads.submit(len, "abc").result(), int)


async def arun(pages: AsyncIterator[Page]) -> None:
    async with EventBus([extract]) as bus:
        receipt = await bus.apublish(Page("x"))
        assert_type(receipt, Receipt[Page, Any])
        assert_type(await bus.apublish("page.new", Page("x")), Receipt[Page, Any])
        assert_type(await receipt.settled(), Receipt[Page, Any])
        await receipt
        assert_type(await bus.call(extract, Page("x")), list[str])
        async for settled in bus.astream(pages, ordered=True, id=lambda page: page.url):
            assert_type(settled, Receipt[Page, Any])
        async for plain in bus.astream([1, 2]):
            assert_type(plain, Receipt[int, Any])


@subscribe(batch=500, batch_wait=0.5)
def sizes(pages: list[Page]) -> list[int]:
    if not pages:
        raise BatchFailed({0: ValueError()}, [0])
    return [len(current().event_ids)] * len(pages)


@subscribe(batch=50)
async def titles(pages: list[Page]) -> list[str]:
    return [page.url for page in pages]


@subscribe(batch=50)
def stored(pages: list[Page]) -> None:
    """Store them."""


@subscribe(batch=50)
def perhaps(pages: list[Page]) -> list[int] | None:
    return None


@subscribe("words")
def longest(words: list[str]) -> str:
    return max(words, key=len)


@subscribe("words")
def ordered(words: list[str]) -> list[int]:
    return sorted(map(len, words))


class Store:
    def put(self, page: Page) -> bool:
        return bool(page.url)

    async def get(self, url: str) -> Page:
        return Page(url)


def results_are_typed_by_the_handler(pages: list[Page], store: Store) -> None:
    with EventBus() as bus:
        assert_type(bus.map(render, pages), Iterator[bytes])
        assert_type(bus.map(fetch, ["x"]), Iterator[Page])
        assert_type(bus.map(store.put, pages), Iterator[bool])
        assert_type(bus.map(partial(render), pages), Iterator[bytes])
        assert_type(bus.map(longest, [["a"]]), Iterator[str])
        assert_type(bus.map(ordered, [["a"]]), Iterator[list[int]])

        assert_type(bus.call(extract, Page("x")), Receipt[Page, list[str]])
        assert_type(bus.call(extract, Page("x")).result(), list[str])
        assert_type(bus.call(extract, Page("x")).results(1), list[list[str]])
        assert_type(bus.call(extract, Page("x")).deliveries[0].result(), list[str])
        assert_type(bus.call(fetch, "x"), Receipt[str, Page])
        assert_type(bus.call(store.get, "x"), Receipt[str, Page])
        assert_type(bus.call(longest, ["a"]), Receipt[list[str], str])

        # A batch handler gets a list of events, and returns a list with the result of each.
        assert_type(bus.map(sizes, pages), Iterator[int])
        assert_type(bus.map(titles, pages), Iterator[str])
        assert_type(bus.map(stored, pages), Iterator[Any])
        assert_type(bus.map(perhaps, pages), Iterator[Any])
        assert_type(bus.call(sizes, Page("x")), Receipt[Page, int])
        assert_type(bus.call(titles, Page("x")), Receipt[Page, str])
        assert_type(bus.call(stored, Page("x")), Receipt[Page, Any])

        for settled in bus.stream(pages, batch=100):
            assert_type(settled, Receipt[Page, Any])

        # An event that the handler does not take is an error.
        bus.call(extract, 3)  # type: ignore[arg-type]
        bus.map(fetch, pages)  # type: ignore[arg-type]


def receipts_fit_where_less_is_known(bus: EventBus) -> None:
    receipt = bus.call(extract, Page("x"))
    known: Receipt[Page, list[str]] = receipt
    wider: Receipt[object, object] = receipt
    unknown: Receipt = receipt
    delivery: Delivery[object] = receipt.deliveries[0]
    wrong: Receipt[int, list[str]] = receipt  # type: ignore[assignment]
    receipt.when_done(lambda settled: assert_type(settled, Receipt[Page, list[str]]))
    del known, wider, unknown, delivery, wrong
