"""In any order of events, a delivery is run, died in, taken back or left: exactly one of them.

Handlers of an inline worker can take back and kill in the middle of a batch, which makes races
between a worker and its lane into plain sequences.
"""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from procbus.core.delivery import Delivery
from procbus.pool.child import loop
from procbus.pool.inline import InlinePool, InlineWorker
from procbus.pool.interface import Ended, LastWords, Message, WorkerGone
from procbus.pool.wire import FLUSH_S
from tests.conformance.drive import deliveries_to, ends_of, give, subscription_of


class Step(NamedTuple):
    """An event that says how its worker fares while its handler runs."""

    number: int
    #: Whether its handler has a limit of memory.
    limited: bool
    take_back: int
    #: Whether it takes longer than the worker's interval of reports.
    long: bool
    #: Whether it leaves the worker too large for a handler with a limit.
    grow: bool
    kill: bool


class Clock:
    """The worker's clock, which stands still but for handlers that take long."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


clock = Clock()
machine: "OneWorker"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # By the real one, a busy machine would decide when the worker reports.
    monkeypatch.setattr(loop, "monotonic", clock)
    monkeypatch.setattr(loop, "resident_bytes", lambda: machine.resident)


def perform(step: Step) -> int:
    machine.ran.append(step.number)
    machine.take_back(step.take_back)
    if step.long:
        clock.now += 2 * FLUSH_S
    if step.grow:
        clock.now += 2 * loop.MEMORY_LOOK_S
        machine.resident = LIMIT
    if step.kill:
        machine.worker.kill()
    return step.number


#: Bytes that the handlers with a limit may have.
LIMIT = 1 << 30

STEPS = st.lists(
    st.tuples(
        st.sampled_from([False] * 3 + [True]),
        st.sampled_from([0, 0, 0, 1, 2, 5]),
        st.sampled_from([False] * 3 + [True]),
        st.sampled_from([False] * 6 + [True]),
        st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=6,
)


class OneWorker(RuleBasedStateMachine):
    """Keeps the rules that companion and lane keep: nothing new until a recall is reported."""

    def __init__(self) -> None:
        super().__init__()
        global machine
        machine = self
        self.pool = InlinePool()
        self.worker: InlineWorker = self.pool.start(lambda _: None)
        self.plain = subscription_of(perform)
        self.limited = subscription_of(perform, max_memory=LIMIT)
        self.resident = 0
        self.given: list[int] = []
        self.ran: list[int] = []
        self.taken: list[int] = []
        #: Deliveries that the worker left undone, because it had grown.
        self.unwanted: list[int] = []
        self.ended: list[int] = []
        self.in_flight: list[tuple[Message, list[int]]] = []
        self.reported = 0
        self.recalled = False
        self.words: LastWords | None = None

    def take_back(self, most: int) -> None:
        count = self.worker.take_back(most)
        self.recalled = self.recalled or count > 0
        for _ in range(count):
            numbers = next(numbers for _, numbers in reversed(self.in_flight) if numbers)
            self.taken.append(numbers.pop())

    def note(self, ends: list[Ended]) -> None:
        for outcome, _ in ends:
            assert outcome.error is None
            self.ended.append(outcome.value)

    def may_give(self) -> bool:
        wanted = not self.recalled and not self.unwanted
        return self.words is None and wanted and len(self.in_flight) < 2

    @precondition(may_give)
    @rule(steps=STEPS)
    def give(self, steps: list[tuple[bool, int, bool, bool, bool]]) -> None:
        numbers = [len(self.given) + index for index in range(len(steps))]
        batch: list[Delivery] = []
        for number, step in zip(numbers, steps, strict=True):
            event = Step(number, *step)
            batch += deliveries_to(self.limited if event.limited else self.plain, [event])
        message = give(self.worker, batch)
        self.given += numbers
        self.in_flight.append((message, list(numbers)))

    @rule(most=st.integers(0, 8))
    def take_back_between(self, most: int) -> None:
        if self.words is None:
            self.take_back(most)

    @precondition(lambda self: self.words is None and self.in_flight)
    @rule()
    def receive(self) -> None:
        message, numbers = self.in_flight[0]
        try:
            report = self.worker.receive()
        except WorkerGone as gone:
            self.words = gone.last_words
            self.note(gone.last_words.ends)
            return
        if report.complete:
            self.in_flight.pop(0)  # first, so that a failure leaves nothing to wait for
        ends = ends_of(report, self.worker)
        self.note(ends)
        self.reported += len(ends)
        assert report.batch == message.batch
        if report.complete:
            unwanted = numbers[self.reported :]
            assert not unwanted or self.resident, "each was reported, or taken back before"
            self.unwanted += unwanted
            self.reported = 0
            self.recalled = self.recalled and bool(self.in_flight)

    @precondition(lambda self: self.words is None)
    @rule()
    def kill(self) -> None:
        if self.in_flight:
            self.worker.kill()

    def teardown(self) -> None:
        self.pool.close()
        try:
            while self.words is None and self.in_flight:
                self.receive()
            self.check()
        finally:
            self.worker.stop()

    def check(self) -> None:
        died = [] if self.words is None or self.words.ran_s is None else self.ran[-1:]
        assert self.ended + died == self.ran, "what ran ended once, in order, or died"
        elsewhere = self.taken + self.unwanted
        assert not set(self.ran) & set(elsewhere), "nothing is both run and taken back"
        assert len(set(self.ran)) == len(self.ran), "nothing is run twice"
        if self.words is None:
            assert sorted(self.ran + elsewhere) == self.given, "nothing is lost"


TestOneWorker = OneWorker.TestCase
TestOneWorker.settings = settings(max_examples=2 * settings().max_examples, stateful_step_count=20)
