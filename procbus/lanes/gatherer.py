# SPDX-License-Identifier: MIT
"""Gathers the events of a batch handler into calls, in front of the handler's lane.

To the bus a gatherer is the lane of the handler's deliveries. To the lane each call is one
delivery: a `Ticket`. So a call has everything that a delivery has: a worker, a time limit, a memory
limit, an outcome. From the outcome of the call the gatherer makes an outcome for the delivery of
each event.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import replace
from math import ceil
from time import monotonic

from procbus.codec.batch_call import BatchCall, InPart
from procbus.core.delivery import Delivery, LastAttempt, asked_of, cancelled, error_to_tell
from procbus.core.errors import ProcbusError, SerializationError
from procbus.core.flow import Flow
from procbus.core.handler import Handler, calling
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import Receipt
from procbus.core.retry import RetryPolicy
from procbus.core.subscription import Lane, Subscription
from procbus.core.text import shown_events
from procbus.core.ticket import Ticket
from procbus.core.user_key import UserKey
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.gate import Gate

#: Number of parts into which a call's events are divided after the call was ended by force; because
#: four parts find one bad event among 500 with 6 dead workers, and two parts with 10.
_PARTS = 4

#: Ends of a call for which a single one of its events may be to blame.
_FORCED = frozenset((OutcomeKind.WORKER_DIED, OutcomeKind.TIMED_OUT, OutcomeKind.OVER_MEMORY))


class Gatherer:
    """The events of one batch handler that wait for a call, and the calls. Thread-safe.

    The lock `_lock` guards the waiting deliveries, their gate, and the numbers of tickets. It is
    held for microseconds, and never while the lane, the settlement or the user's code is called.

    Without `wait_s` the lane has a ticket for each `batch` waiting events, and one for the rest.
    With `wait_s` the lane has a ticket for each full batch, and the ticket for the rest waits in
    `retries`.

    Args:
        handler: the batch handler.
        lane: the lane that its calls run in.
        flow: settles deliveries.
        retries: keeps tickets until their time.
        ends_calls: returns whether a call that ran out of time is ended; on a thread it goes on.
        hurried: returns whether events do not wait for others, because the bus is being drained.
        wait_s: maximum wait of an event for others, in seconds.
    """

    def __init__(
        self,
        handler: Handler,
        lane: Lane,
        flow: Flow,
        retries: RetryQueue,
        *,
        ends_calls: Callable[[], bool],
        hurried: Callable[[], bool],
        wait_s: float,
    ) -> None:
        assert handler.batch is not None
        self._size = handler.batch
        self._wait_s = wait_s
        self._lane = lane
        self._flow = flow
        self._retries = retries
        self._ends_calls = ends_calls
        self._hurried = hurried
        call = BatchCall(handler.call, handler.name, handler.is_async)
        #: The handler as the lane sees it: workers know it by the same number.
        inner = calling(handler, call, key=None, where=None, retry=RetryPolicy())
        self.calls = Subscription(inner, lane, answered=True)
        self._tell = (self._ended,)
        self._lock = Lock()
        self._gate = None if handler.key is None else Gate(replace(handler, concurrency=None))
        #: Events that wait for a call: the retries, which go first, and all other events.
        self._again: deque[Delivery] = deque()
        self._waiting: deque[Delivery] = deque()
        #: The tickets in the lane whose events are not chosen yet; and the ticket that waits for
        #: its time, or whose time has come and which has just gone to the lane.
        self._open: dict[Ticket, None] = {}
        self._late: Ticket | None = None
        #: All tickets that have not ended; and the number of calls whose events are being settled.
        self._tickets: set[Ticket] = set()
        self._ending = 0

    # Methods of a lane, for the bus.

    def put(self, delivery: Delivery) -> None:
        """Have an event wait for a call."""
        if self._gate is not None and type(delivery.key) is UserKey:
            self._accept(self._gate, delivery)
        with self._lock:
            delivery.subscription.calls = self.calls
            delivery.subscription.published_sum += 1
            delivery.queued = True
            if self._gate is None or self._gate.admit(delivery):
                self._waiting.append(delivery)
            due = self._locked_due()
        if due:
            self._call_for()

    def put_all(self, deliveries: Sequence[Delivery]) -> None:
        """Have events of a handler without a key wait for calls."""
        with self._lock:
            deliveries[0].subscription.calls = self.calls
            deliveries[0].subscription.published += len(deliveries)
            for delivery in deliveries:
                delivery.queued = True
            self._waiting.extend(deliveries)
        self._call_for()

    def _accept(self, gate: Gate, delivery: Delivery) -> None:
        """Find deliveries with an equal key, without a lock: comparing keys is user code."""
        while True:
            token = gate.token_for(delivery.key)
            with self._lock:
                accepted = gate.accept(delivery, token)
            if accepted:
                delivery.key = token.key  # so that none is freed under the lock
                return

    def put_again(self, delivery: Delivery) -> None:
        """Have an event wait for its next attempt, before all others.

        If its last attempt was ended by force, the event gets a call of its own, because it may
        well end the next call too.
        """
        with self._lock:
            if self._gate is not None and not self._gate.step_back(delivery):
                return
            alone = bool(delivery.earlier) and delivery.earlier[-1].kind in _FORCED
            if not alone:
                self._again.append(delivery)
        if alone:
            self._call((delivery,))
        else:
            self._call_for()

    def release(self, delivery: Delivery) -> None:
        """Note that a delivery was settled: the next one of its key may go."""
        if self._gate is None:
            return
        with self._lock:
            self._waiting.extend(self._gate.release(delivery))
            ending = self._ending
        if not ending:  # the other events of the call may let go of more
            self._call_for()

    def step_aside(self, delivery: Delivery) -> None:
        """Note that a delivery waits for its next attempt: others of its key wait too."""
        if self._gate is not None:
            with self._lock:
                self._gate.step_aside(delivery)

    def stir(self) -> None:
        """Have the advisor evaluate the measurements."""
        self._lane.stir()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in a call with this event now."""
        ticket = self._ticket_of(delivery)
        return ticket is not None and self._lane.is_running(ticket)

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of the call that this event is in."""
        ticket = self._ticket_of(delivery)
        return None if ticket is None else self._lane.progress_of(ticket)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take back for good a delivery whose call has not begun.

        A ticket in the lane may then have no event; for such a ticket the handler is not called.
        """
        with self._lock:
            for waiting in (self._again, self._waiting):
                if delivery in waiting:
                    waiting.remove(delivery)
                    return True
            if self._gate is not None and self._gate.withdraw(delivery):
                return True
        ticket = self._ticket_of(delivery)
        if ticket is None or not self._lane.withdraw(ticket):
            return False
        with self._lock:
            others = [each for each in ticket.members if each is not delivery]
            ticket.admit(())
        if others:
            self._call(others)
        self._flow.settle([(ticket, cancelled(ticket))])
        return True

    def open_deliveries(self) -> list[Delivery]:
        """The events that wait for a call, and the events of calls."""
        with self._lock:
            behind = () if self._gate is None else self._gate.waiting()
            members = [each for ticket in self._tickets for each in ticket.members]
            return [*self._again, *self._waiting, *behind, *members]

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that the call with this event has been running, in seconds."""
        ticket = self._ticket_of(delivery)
        return None if ticket is None else self._lane.ran_s(ticket)

    def stop(self, delivery: Delivery) -> None:
        """Ask the handler to stop, if all events of its call are cancelled."""
        ticket = self._unwanted_ticket(delivery)
        if ticket is not None:
            self._lane.stop(ticket)

    def cut_off(self, delivery: Delivery) -> None:
        """Settle the call, if all of its events are cancelled and its handler goes on."""
        ticket = self._unwanted_ticket(delivery)
        if ticket is not None:
            self._lane.cut_off(ticket)

    def _unwanted_ticket(self, delivery: Delivery) -> Ticket | None:
        """The ticket of a cancelled event if all other events of the call are cancelled too."""
        request, ticket = asked_of(delivery), self._ticket_of(delivery)
        if ticket is None or request is None or any(map(_is_wanted, ticket.members)):
            return None
        with self._lock:
            if asked_of(ticket) is None:
                ticket.asked = request
        return ticket

    # Methods for the lanes.

    def flush(self) -> None:
        """Have the waiting events called now, without waiting for a full batch."""
        with self._lock:
            late = self._late
        if late is not None and self._retries.withdraw(late):
            self._put(late)
        self._call_for()

    def seal(self) -> None:
        """Choose the events of the calls to come now, so that no later event joins them."""
        while True:
            with self._lock:
                late = self._late
                tickets = [*self._open, *(() if late is None else (late,))]
            if not tickets:
                return
            waited = late is not None and self._retries.withdraw(late)
            for ticket in tickets:
                ticket.filled()
            if late is not None and waited:
                self._put(late)

    def cancel(self) -> None:
        """Settle as cancelled all events that wait for a call. The lane cancels the tickets."""
        with self._lock:
            behind = () if self._gate is None else self._gate.abandon()
            waiting = [*self._again, *self._waiting, *behind]
            self._again.clear()
            self._waiting.clear()
        self._flow.settle([(delivery, cancelled(delivery)) for delivery in waiting])

    @property
    def tickets(self) -> int:
        """Number of calls that have not ended. They are pending on the bus, as events are."""
        return len(self._tickets)

    def depth(self) -> int:
        """Number of waiting events minus the number of tickets, which the lane counts."""
        with self._lock:
            behind = 0 if self._gate is None else self._gate.behind
            return len(self._again) + len(self._waiting) + behind - len(self._open)

    # Calls.

    def _locked_more(self) -> int:
        """Number of waiting events, beyond those that the open tickets can take."""
        return len(self._again) + len(self._waiting) - len(self._open) * self._size

    def _locked_due(self) -> bool:
        """Whether a ticket is needed: a quick check."""
        more = self._locked_more()
        return more > 0 and (self._late is None or more >= self._size)

    def _call_for(self) -> None:
        """Make as many tickets as the waiting events need."""
        while True:
            with self._lock:
                if not self._locked_due():
                    return
                wait_s = 0.0 if self._hurried() else self._wait_s
                more = self._locked_more()
                late = self._late
                if wait_s and more < self._size:
                    wait_s -= max(0.0, monotonic() - (self._again or self._waiting)[0].queued_at)
                    ticket = self._late = self._new()
                else:
                    self._late, wait_s = None, 0.0
                    ticket = late or self._new()
                    self._open[ticket] = None
            if ticket is not late:
                self._flow.count_in(1)
            elif not self._retries.withdraw(ticket):
                continue  # the ticket's time has come, and it is in the lane already
            if wait_s > 0:
                if not self._retries.add(ticket, wait_s):
                    self._flow.settle([(ticket, cancelled(ticket))])
            else:
                self._put(ticket)

    def _new(self) -> Ticket:
        ticket = Ticket(self._lock, self.calls, self._fill, self._tell)
        self._tickets.add(ticket)
        return ticket

    def _call(self, members: Sequence[Delivery]) -> None:
        """Make a call with these events."""
        ticket = self._new()
        ticket.admit(members)
        self._flow.count_in(1)
        self._put(ticket)

    def _put(self, ticket: Ticket) -> None:
        # Without the context of this thread, which has published one of its events at most.
        Context().run(self._lane.put, ticket)

    def _fill(self, ticket: Ticket) -> None:
        """Choose the events of a call, because a worker has taken its ticket."""
        with self._lock:
            if ticket.together is not None:
                return
            members: list[Delivery] = []
            for waiting in (self._again, self._waiting):
                while waiting and len(members) < self._size:
                    members.append(waiting.popleft())
            if ticket is self._late:
                self._late = None
            self._open.pop(ticket, None)
            ticket.admit(members)
        self._call_for()  # events may be left that have no ticket

    def _ticket_of(self, delivery: Delivery) -> Ticket | None:
        with self._lock:
            return next((each for each in self._tickets if delivery in each.members), None)

    # Ends of calls.

    def _ended(self, receipt: Receipt) -> None:
        """Settle the events of a call that has ended."""
        assert isinstance(receipt, Ticket)
        ticket, outcome = receipt, receipt.outcome
        assert outcome is not None
        with self._lock:
            self._ending += 1
        try:
            self._account_for(ticket.filled(), outcome)
        except BaseException as error:
            log.exception("procbus itself failed to settle the events of %s", self._name)
            fault = ProcbusError(f"procbus itself failed on this delivery: {error!r}")
            failed = Outcome(OutcomeKind.RAISED, error=fault)
            self._flow.settle([(each, failed) for each in ticket.members])
            raise
        finally:
            with self._lock:
                self._ending -= 1
                self._tickets.discard(ticket)
            if self._gate is not None:
                self._call_for()

    @property
    def _name(self) -> str:
        return self.calls.handler.name

    def _account_for(self, members: Sequence[Delivery], outcome: Outcome) -> None:
        if not members:
            return
        if outcome.kind is OutcomeKind.SUCCEEDED:
            self._succeed(members, outcome)
        elif outcome.kind is OutcomeKind.CANCELLED:
            ran_s = outcome.ended_at - outcome.started_at if outcome.started_at else None
            self._flow.settle([(each, cancelled(each, ran_s)) for each in members])
        elif len(members) > 1 and self._one_may_be_to_blame(outcome):
            self._divide(members, outcome)
        else:
            self._fail(members, outcome)

    def _succeed(self, members: Sequence[Delivery], outcome: Outcome) -> None:
        """Settle the events of a call that has returned. Each event gets its share of the time."""
        times = _shares(outcome, len(members))
        values = outcome.value
        if isinstance(values, InPart):
            errors = values.errors
            values = values.values
        else:
            errors = {}
        if values is None:
            values = (None,) * len(members)
        if not errors:
            self._flow.settle_successes(members, times, values, outcome.worker_pid)
            return
        well = [index for index in range(len(members)) if index not in errors]
        self._flow.settle_successes(
            [members[index] for index in well],
            [times[index] for index in well],
            [values[index] for index in well],
            outcome.worker_pid,
        )
        failed: list[LastAttempt] = []
        for index, error in errors.items():
            began_at, ended_at, _ = times[index]
            told = error_to_tell(error, members[index])
            about = None, told, began_at, ended_at, outcome.worker_pid
            failed.append((members[index], Outcome(OutcomeKind.RAISED, *about)))
        self._flow.settle(failed)

    def _fail(self, members: Sequence[Delivery], outcome: Outcome) -> None:
        """Settle the events of a call that has failed as a whole."""
        times = _shares(outcome, len(members))
        failed: list[LastAttempt] = []
        for member, (began_at, ended_at, _) in zip(members, times, strict=True):
            error = outcome.error
            if error is not None:
                error = error_to_tell(_error_for(member, members, error), member)
            own = outcome._replace(error=error, started_at=began_at, ended_at=ended_at)
            failed.append((member, own))
        self._flow.settle(failed)

    def _one_may_be_to_blame(self, outcome: Outcome) -> bool:
        if outcome.kind is OutcomeKind.RAISED:  # one event cannot be sent, so none was
            return not outcome.started_at and isinstance(outcome.error, SerializationError)
        if not outcome.started_at or outcome.kind not in _FORCED:
            return False
        return outcome.kind is OutcomeKind.WORKER_DIED or self._ends_calls()

    def _divide(self, members: Sequence[Delivery], outcome: Outcome) -> None:
        """Try a call's events again in smaller calls. No event is charged with the call's end."""
        size = ceil(len(members) / _PARTS)
        log.warning(
            "%s %s with %s: they are tried again in calls of %d",
            self._name,
            outcome.kind.value,
            shown_events([each.event_id for each in members]),
            size,
        )
        for first in range(0, len(members), size):
            self._call(members[first : first + size])


def _is_wanted(delivery: Delivery) -> bool:
    return delivery.receipt is not None and asked_of(delivery) is None


def _shares(outcome: Outcome, count: int) -> list[tuple[float, float, int]]:
    """Divide the time of a call equally among its events."""
    began_at, each_s = outcome.started_at, (outcome.ended_at - outcome.started_at) / count
    if not began_at:  # it never began
        return [(0.0, outcome.ended_at, 0)] * count
    return [(began_at + n * each_s, began_at + (n + 1) * each_s, 0) for n in range(count)]


def _error_for(
    member: Delivery, members: Sequence[Delivery], error: BaseException
) -> BaseException:
    """The error of one event of a call. An error of procbus names that event."""
    if len(members) == 1 or getattr(error, "event_id", None) is None:
        return error
    if not isinstance(error, ProcbusError):
        return error
    ids = [each.event_id for each in members]
    own = copy.copy(error)
    own.args = (f"{error} (event #{member.event_id} was in that call, of {shown_events(ids)})",)
    vars(own)["event_id"] = member.event_id
    return own
