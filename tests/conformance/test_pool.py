"""The promises of every pool that the cpu lane relies on: the interface, driven by hand."""

import itertools
import os
import random
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from procbus.core.context import current
from procbus.core.errors import HandlerExited, SerializationError, TopicError, WorkerTraceback
from procbus.core.outcome import OutcomeKind
from procbus.pool.interface import Pool, Worker, WorkerGone
from tests.conformance import handlers
from tests.conformance.drive import (
    Gate,
    Receiver,
    deliveries,
    deliveries_to,
    give,
    kill,
    reports_of,
    run,
    running,
    subscription_of,
    take_back,
    take_reports,
    values,
)
from tests.parts import raised
from tests.processes import alive_after, is_alive

KINDS = OutcomeKind


# Handlers.


def test_a_handler_that_is_forgotten_is_let_go_by_worker_and_pool(make_coding_pool: Any) -> None:
    pool: Pool = make_coding_pool(1)
    worker = pool.start(lambda _: None)
    try:
        kept, forgotten = subscription_of(handlers.Counted()), subscription_of(handlers.Counted())
        run(worker, deliveries_to(forgotten, [1]))
        [before] = values(run(worker, deliveries_to(kept, [2])))
        pool.definitions.forget(forgotten.handler.number)
        pool.definitions.forget(forgotten.handler.number)
        assert values(run(worker, deliveries_to(kept, [3]))) == [before - 1]
        # Should it be needed again, it is sent again.
        assert values(run(worker, deliveries_to(forgotten, [4]))) == [before]
    finally:
        worker.kill()
        worker.stop()
        pool.close()


# Results.


def test_results_come_in_the_order_of_the_deliveries(worker: Worker) -> None:
    ends = run(worker, deliveries(handlers.double, *range(200)))

    assert values(ends) == [2 * n for n in range(200)]


def test_a_handler_that_cannot_be_imported_travels_by_value(worker: Worker) -> None:
    offset = 100

    def shift(number: int) -> int:
        return number + offset

    assert values(run(worker, deliveries(shift, 1, 2))) == [101, 102]


def test_batch_may_hold_several_handlers(worker: Worker) -> None:
    mixed = deliveries(handlers.double, 1) + deliveries(handlers.echo, "a")
    mixed += deliveries(handlers.double, 3)

    assert values(run(worker, mixed)) == [2, "a", 6]


def test_an_outcome_says_when_and_where_the_handler_ran(worker: Worker) -> None:
    [(outcome, published)] = run(worker, deliveries(handlers.nothing, 1))

    assert outcome.kind is KINDS.SUCCEEDED
    assert 0 < outcome.started_at <= outcome.ended_at
    assert outcome.worker_pid == worker.pid
    assert outcome.value is None
    assert published is None


def test_a_result_too_large_to_be_kept_arrives_in_its_place(worker: Worker) -> None:
    sizes = [1, 400_000, 2, 300_000, 3]

    ends = run(worker, deliveries(handlers.echo, *(bytes(size) for size in sizes)))

    assert [len(value) for value in values(ends)] == sizes[: len(ends)]


def test_large_results_of_one_batch_arrive_in_order(worker: Worker) -> None:
    def blow_up(size: int) -> bytes:
        return bytes(size)

    sizes = [1, 400_000, 2, 300_000, 200_000, 200_000, 3]

    assert [len(v) for v in values(run(worker, deliveries(blow_up, *sizes)))] == sizes


def test_current_tells_the_handler_its_delivery(worker: Worker) -> None:
    subscription = subscription_of(handlers.describe_current, name="describer")
    [delivery] = deliveries_to(subscription, ["event"], parent_id=77)
    delivery.earlier = (raised(ValueError()), raised(ValueError()))

    [found] = values(run(worker, [delivery]))

    assert found == ("describer", delivery.event_id, 77, "conformance", 3)


def test_each_event_is_an_object_of_its_own(coding_worker: Worker) -> None:
    shared: list[int] = []

    def append(event: list[int]) -> int:
        event.append(1)
        return len(event)

    assert values(run(coding_worker, deliveries(append, shared, shared))) == [1, 1]
    assert shared == []


def test_events_of_all_kinds_and_handlers_travel_in_one_batch(worker: Worker) -> None:
    def double(event: Any) -> Any:
        return event * 2

    def describe(event: Any) -> Any:
        return event, current().topic, current().attempt

    events: list[Any] = [1, "word", [1], None, "a" * 1_000, 2.5, (True,), 2**70, True]
    doubled = deliveries(double, *(event for event in events if event is not None))
    described = deliveries(describe, *events)
    described[2].earlier = (raised(ValueError()),)
    batch = [each for pair in itertools.zip_longest(doubled, described) for each in pair if each]

    found = dict(zip(map(id, batch), values(run(worker, batch)), strict=True))

    assert [found[id(each)] for each in doubled] == [e * 2 for e in events if e is not None]
    attempts = [1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert [found[id(each)] for each in described] == [
        (event, "conformance", attempt) for event, attempt in zip(events, attempts, strict=True)
    ]


def test_plain_successes_are_reported_without_an_outcome_for_each(worker: Worker) -> None:
    def look(event: Any) -> Any:
        if event == "publish":
            current().publish("word")
        return event

    message = give(worker, deliveries(look, None, 1, [2], "publish", 4))
    reports = reports_of(worker, message)

    plain = [value for report in reports for value in report.successes.values]
    assert plain[:3] == [None, 1, [2]]
    assert all(0 < b <= e for report in reports for b, e, _ in report.successes.times)
    ends = [outcome.value for report in reports for outcome, _ in report.ends]
    # The last one is plain too, if it comes in a report of its own.
    assert (plain[3:], ends) in (([], ["publish", 4]), ([4], ["publish"]))


def test_batch_that_returns_nothing_is_reported_without_an_outcome_for_each(worker: Worker) -> None:
    def nothing(_: Any) -> None:
        pass

    reports = reports_of(worker, give(worker, deliveries(nothing, *range(5))))

    assert [value for report in reports for value in report.successes.values] == [None] * 5
    assert all(report.ends == [] for report in reports)


def test_worker_reports_the_cpu_time_of_its_handlers(worker: Worker) -> None:
    def nap(_: Any) -> None:
        time.sleep(0.03)

    subscription = subscription_of(nap)
    run(worker, deliveries_to(subscription, [1, 2]))
    evidence = subscription.meter.evidence("cpu", False, 0.0)

    assert evidence.runs == 2
    assert evidence.cpu_s < 0.03 <= evidence.wall_s
    # Beside busy neighbours the worker is ready, and waits for a core, for longer than it naps.
    assert 0 <= evidence.wait_s.low <= evidence.wait_s.high <= evidence.wall_s
    assert evidence.wait_s.high > 0


def test_companion_counts_the_cpu_time_of_transport(coding_worker: Worker) -> None:
    subscription = subscription_of(handlers.double)
    run(coding_worker, deliveries_to(subscription, [1, 2]))

    assert subscription.meter.evidence("cpu", False, 0.0).transport_s > 0


# Published events.


def test_events_published_come_with_the_result(worker: Worker) -> None:
    [(outcome, published)] = run(worker, deliveries(handlers.publish_two, "word"))

    assert outcome.value == "published"
    assert published == [("found.word", "word"), (None, "word!")]


def test_events_published_by_a_handler_that_fails_are_dropped_and_counted(worker: Worker) -> None:
    [(outcome, published)] = run(worker, deliveries(handlers.publish_then_fail, "word"))

    assert outcome.kind is KINDS.RAISED
    assert outcome.dropped_events == 1
    assert published is None


@pytest.mark.parametrize("how", ["result", "wait", "done", "await"])
def test_a_handler_that_wants_a_receipt_is_told_when_its_event_leaves(
    worker: Worker, how: str
) -> None:
    [(outcome, _)] = run(worker, deliveries(handlers.ask_for_a_receipt, how))

    assert outcome.kind is KINDS.RAISED
    assert outcome.error is not None
    [note] = outcome.error.__notes__
    assert "the event leaves the worker only if the handler succeeds" in note
    assert 'kind="io"' in note


def test_another_error_about_none_is_left_as_it_is(worker: Worker) -> None:
    [(outcome, _)] = run(worker, deliveries(handlers.ask_none_for_something_else, "word"))

    assert isinstance(outcome.error, AttributeError)
    assert not hasattr(outcome.error, "__notes__")


def test_a_malformed_topic_is_the_handlers_error(worker: Worker) -> None:
    [(outcome, _)] = run(worker, deliveries(handlers.publish_to_a_pattern, "word"))

    assert isinstance(outcome.error, TopicError)


# Failures of one delivery.


def test_exception_of_a_handler_comes_back_with_its_traceback(worker: Worker) -> None:
    first, second, third = run(
        worker,
        deliveries(handlers.double, 1) + deliveries(handlers.fail, 2) + deliveries(len, "abc"),
    )

    assert values([first, third]) == [2, 3]
    error = second[0].error
    assert isinstance(error, ValueError)
    assert str(error) == "cannot take 2"
    assert "in fail" in "".join(traceback.format_exception(error))


def test_exception_that_travelled_has_the_traceback_as_its_cause(coding_worker: Worker) -> None:
    [(outcome, _)] = run(coding_worker, deliveries(handlers.fail, 2))

    assert outcome.error is not None
    assert isinstance(outcome.error.__cause__, WorkerTraceback)
    assert "in fail" in str(outcome.error.__cause__)
    assert "worker.py" not in str(outcome.error.__cause__)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_the_worker(worker: Worker, kind: type[BaseException]) -> None:
    ends = run(worker, deliveries(handlers.raise_it, kind, kind))

    assert [type(outcome.error) for outcome, _ in ends] == [HandlerExited] * 2
    for outcome, _ in ends:
        assert outcome.error is not None
        cause = outcome.error.__cause__
        assert type(cause) is kind
        assert "in raise_it" in "".join(traceback.format_exception(cause))
    assert values(run(worker, deliveries(handlers.double, 4))) == [8]


def test_an_exception_whose_class_wants_more_than_its_args_comes_back_as_it_was(
    worker: Worker,
) -> None:
    [(outcome, _)] = run(worker, deliveries(handlers.fail_with_an_error_of_two_arguments, "a"))

    assert isinstance(outcome.error, handlers.Two)
    assert outcome.error.args == ("1 and 2",)
    assert (outcome.error.one, outcome.error.two) == (1, 2)
    assert outcome.error.__notes__ == ["a note"]


def test_an_exception_whose_class_does_not_travel_is_reported_in_words(
    coding_worker: Worker,
) -> None:
    [(outcome, _)] = run(
        coding_worker, deliveries(handlers.fail_with_a_class_that_cannot_travel, "a")
    )

    assert isinstance(outcome.error, SerializationError)
    assert "Rooted: a" in str(outcome.error)
    assert "builtins.LookupError" in outcome.error.raised


def test_a_result_that_does_not_travel_fails_alone(coding_worker: Worker) -> None:
    ends = run(coding_worker, deliveries(handlers.make_a_lock, 1) + deliveries(handlers.double, 1))

    error = ends[0][0].error
    assert isinstance(error, SerializationError)
    assert error.path == "result['lock']"
    assert values(ends[1:]) == [2]


def test_an_event_that_does_not_travel_stays_out_of_the_message(coding_worker: Worker) -> None:
    batch = deliveries(handlers.echo, 1, {"lock": threading.Lock()}, 3)

    message = give(coding_worker, batch)

    assert message.deliveries == [batch[0], batch[2]]
    [(delivery, outcome)] = message.failed
    assert delivery is batch[1]
    assert isinstance(outcome.error, SerializationError)
    assert outcome.error.path == "event['lock']"
    assert values(take_reports(coding_worker, message)) == [1, 3]


def test_a_handler_that_does_not_travel_fails_its_deliveries_alone(coding_worker: Worker) -> None:
    lock = threading.Lock()

    def locked(event: object) -> None:
        with lock:
            pass

    batch = deliveries(locked, 1, 2) + deliveries(handlers.double, 3)

    message = give(coding_worker, batch)

    assert [delivery for delivery, _ in message.failed] == batch[:2]
    assert all("'lock'" in str(outcome.error) for _, outcome in message.failed)
    assert values(take_reports(coding_worker, message)) == [6]


def test_a_handler_is_known_though_its_first_event_did_not_travel(coding_worker: Worker) -> None:
    subscription = subscription_of(handlers.double)

    message = coding_worker.prepare(1, deliveries_to(subscription, [threading.Lock()]))

    assert not message.deliveries
    assert values(run(coding_worker, deliveries_to(subscription, [2]))) == [4]


def test_a_class_is_known_though_its_first_event_did_not_travel(coding_worker: Worker) -> None:
    @dataclass
    class Local:
        content: Any

    subscription = subscription_of(handlers.type_name)

    message = coding_worker.prepare(1, deliveries_to(subscription, [Local(threading.Lock())]))

    assert not message.deliveries
    assert values(run(coding_worker, deliveries_to(subscription, [Local(2)]))) == ["Local"]


def test_a_message_that_is_dropped_loses_no_definition(coding_worker: Worker) -> None:
    @dataclass
    class Local:
        content: Any

    subscription = subscription_of(handlers.type_name)

    dropped = coding_worker.prepare(1, deliveries_to(subscription, [Local(1)]))

    assert dropped.deliveries
    assert values(run(coding_worker, deliveries_to(subscription, [Local(2)]))) == ["Local"]


# The contents of a message.


def test_a_delivery_that_was_settled_meanwhile_is_left_out(worker: Worker) -> None:
    batch = deliveries(handlers.double, 1, 2, 3)
    batch[1].receipt = None

    message = give(worker, batch)

    assert message.deliveries == [batch[0], batch[2]]
    assert values(take_reports(worker, message)) == [2, 6]


def test_handlers_and_classes_are_sent_once(coding_worker: Worker) -> None:
    @dataclass
    class Local:
        number: int

    def local_handler(event: Local) -> int:
        return event.number

    subscription = subscription_of(local_handler)
    first = give(coding_worker, deliveries_to(subscription, [Local(1)]))
    assert values(take_reports(coding_worker, first)) == [1]

    second = give(coding_worker, deliveries_to(subscription, [Local(2)]))

    assert values(take_reports(coding_worker, second)) == [2]
    assert b"local_handler" in first.data
    assert b"local_handler" not in second.data
    assert len(second.data) < len(first.data) / 2


def test_a_class_of_the_parent_comes_back_as_the_same_class(worker: Worker) -> None:
    @dataclass
    class Local:
        number: int

    first, second = values(run(worker, deliveries(handlers.echo, Local(1), Local(2))))

    assert type(first) is type(second) is Local
    assert second == Local(2)


def test_a_class_of_the_worker_is_one_class_here_and_goes_back(worker: Worker) -> None:
    first, second = values(run(worker, deliveries(handlers.a_class_of_the_worker, 1, 2)))

    assert type(first) is type(second)
    assert type(first).__name__ == "MadeHere"
    assert values(run(worker, deliveries(handlers.number_of, first, second))) == [1, 2]


# Two batches in flight.


def test_two_batches_sent_one_behind_the_other_are_reported_one_by_one(worker: Worker) -> None:
    first = give(worker, deliveries(handlers.double, 1, 2))
    second_batch = worker.prepare(first.batch + 1_000_000, deliveries(handlers.double, 3, 4))
    assert worker.fits_ahead(second_batch)
    worker.offer(second_batch)
    worker.send(second_batch)

    assert values(take_reports(worker, first)) == [2, 4]
    assert values(take_reports(worker, second_batch)) == [6, 8]


# Taking back.


def test_delivery_taken_back_before_its_start_never_runs(worker: Worker) -> None:
    message = worker.prepare(1, deliveries(handlers.double, 1, 2, 3))
    worker.offer(message)
    assert worker.take_back(10) == 3
    worker.send(message)

    assert take_reports(worker, message) == []
    assert values(run(worker, deliveries(handlers.double, 4, 5))) == [8, 10]


def test_the_last_deliveries_are_taken_back_first(worker: Worker) -> None:
    message = worker.prepare(1, deliveries(handlers.double, 1, 2, 3))
    worker.offer(message)
    assert worker.take_back(2) == 2
    worker.send(message)

    assert values(take_reports(worker, message)) == [2]


def test_a_delivery_in_its_handler_is_not_taken_back(worker: Worker, gate: Gate) -> None:
    message = give(worker, deliveries(handlers.hold, gate.path) + deliveries(handlers.double, 1, 2))
    receiver = Receiver(worker)
    gate.wait_begun()

    taken = take_back(worker, receiver, 3)
    gate.open()
    receiver.finish()

    assert taken == 2
    assert values(receiver.ends[message.batch]) == ["held"]


def test_taking_back_spans_both_batches(worker: Worker, gate: Gate) -> None:
    first = give(worker, deliveries(handlers.hold, gate.path) + deliveries(handlers.double, 1))
    second = give(worker, deliveries(handlers.double, 2, 3))
    receiver = Receiver(worker, batches=2)
    gate.wait_begun()

    taken = take_back(worker, receiver, 100)
    gate.open()
    receiver.finish()

    assert taken == 3
    assert values(receiver.ends[first.batch]) == ["held"]
    assert receiver.ends[second.batch] == []
    assert receiver.completed == [first.batch, second.batch]


def test_deliveries_left_by_a_grown_worker_leave_no_tokens_behind(
    process_worker: Worker, gate: Gate
) -> None:
    run(process_worker, deliveries(handlers.keep, bytes(64 << 20)))
    limited = subscription_of(handlers.double, max_memory="32 MiB")
    first = give(process_worker, deliveries_to(limited, [1, 2, 3]))
    second = give(
        process_worker, deliveries(handlers.hold, gate.path) + deliveries(handlers.double, 4)
    )
    receiver = Receiver(process_worker, batches=2)
    gate.wait_begun()

    taken = take_back(process_worker, receiver, 100)
    gate.open()
    receiver.finish()

    assert receiver.ends[first.batch] == []
    assert values(receiver.ends[second.batch]) == ["held"]
    assert taken == 1, "the other is in its handler"


def test_each_delivery_is_either_run_or_taken_back(worker: Worker) -> None:
    subscription = subscription_of(handlers.double)
    dice = random.Random(1)
    for _ in range(40):
        events = list(range(dice.randrange(1, 300)))
        message = give(worker, deliveries_to(subscription, events))
        receiver = Receiver(worker)
        taken = 0
        while not receiver.completed and taken + receiver.returned < len(events) // 2:
            if not worker.recalling:
                taken += worker.take_back(dice.randrange(1, 20))
        receiver.finish()
        taken += receiver.returned

        ran = values(receiver.ends[message.batch])
        assert ran == [2 * n for n in events[: len(ran)]]
        assert len(ran) + taken == len(events)


def test_worker_names_its_running_delivery(worker: Worker, gate: Gate) -> None:
    assert worker.running() is None
    batch = deliveries(handlers.double, 1) + deliveries(handlers.hold, gate.path)
    message = give(worker, batch)
    receiver = Receiver(worker)
    gate.wait_begun()

    number, index, since = running(worker, 1)
    gate.open()
    receiver.finish()

    assert (number, index) == (message.batch, 1)
    outcome, _ = receiver.ends[message.batch][1]
    assert since == outcome.started_at
    assert worker.running() is None


# The end.


def test_worker_killed_in_a_handler_names_its_delivery(worker: Worker, gate: Gate) -> None:
    quick = deliveries(handlers.double, 1, 2)
    batch = quick + deliveries(handlers.hold, gate.path) + deliveries(handlers.double, 3)
    message = give(worker, batch)
    receiver = Receiver(worker)
    gate.wait_begun()

    kill(worker, gate)
    gone = receiver.expect_gone()

    words = gone.last_words
    assert values(receiver.ends.get(message.batch, []) + words.ends) == [2, 4]
    assert words.batch == message.batch
    assert words.ran_s is not None
    assert words.ran_s >= 0
    assert gone.pid == worker.pid
    assert receiver.completed == []


def test_reports_sent_before_the_end_are_read_first(worker: Worker, gate: Gate) -> None:
    first = give(worker, deliveries(handlers.double, 1))
    second = give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker, batches=2)
    gate.wait_begun()

    kill(worker, gate)
    gone = receiver.expect_gone()

    assert values(receiver.ends[first.batch]) == [2]
    assert receiver.completed == [first.batch]
    assert gone.last_words.batch == second.batch
    assert gone.last_words.ran_s is not None


def test_a_worker_killed_while_idle_is_gone_at_the_next_receive(worker: Worker) -> None:
    assert values(run(worker, deliveries(handlers.double, 1))) == [2]

    kill(worker)

    words = Receiver(worker).expect_gone().last_words
    assert (words.ends, words.ran_s) == ([], None)


def test_a_killed_worker_begins_nothing(worker: Worker) -> None:
    kill(worker)
    message = give(worker, deliveries(handlers.double, 1))

    with pytest.raises(WorkerGone) as caught:
        worker.receive()

    words = caught.value.last_words
    assert words.ran_s is None
    assert words.ends == []
    assert words.batch in (0, message.batch)


def test_stop_and_kill_may_be_said_again(worker: Worker) -> None:
    assert values(run(worker, deliveries(handlers.double, 1))) == [2]

    worker.stop()
    worker.stop()
    worker.kill()
    worker.kill()
    worker.stop()

    assert worker.running() is None


def test_a_worker_that_is_gone_may_be_stopped_and_killed(worker: Worker) -> None:
    worker.kill()
    worker.kill()
    with pytest.raises(WorkerGone):
        worker.receive()

    worker.stop()
    worker.kill()

    assert worker.running() is None
    assert worker.take_back(1) == 0


def test_many_may_kill_at_once_while_the_companion_waits(worker: Worker, gate: Gate) -> None:
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    failed: list[BaseException] = []

    def kill_it() -> None:
        try:
            worker.kill()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails
            failed.append(error)

    killers = [threading.Thread(target=kill_it) for _ in range(8)]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join(60)
    kill(worker, gate)

    assert receiver.expect_gone().last_words.ran_s is not None
    assert failed == []


def test_workers_of_one_pool_do_not_share_anything(make_pool: Any) -> None:
    pool: Pool = make_pool(2)
    first, second = pool.start(lambda _: None), pool.start(lambda _: None)
    subscription = subscription_of(handlers.double)
    try:
        assert values(run(first, deliveries_to(subscription, [1]))) == [2]
        first.kill()
        assert values(run(second, deliveries_to(subscription, [2]))) == [4]
    finally:
        for worker in (first, second):
            worker.kill()
            worker.stop()


def test_launched_is_called_before_the_worker_is_given(make_pool: Any) -> None:
    launched: list[Worker] = []
    worker = make_pool(1).start(launched.append)
    try:
        assert launched == [worker]
        assert worker.pid is not None
    finally:
        worker.stop()


def test_a_worker_can_be_killed_as_soon_as_it_is_launched(make_pool: Any) -> None:
    launched: list[Worker] = []

    def kill_it(worker: Worker) -> None:
        launched.append(worker)
        worker.kill()

    with pytest.raises(WorkerGone) as caught:
        make_pool(1).start(kill_it).receive()

    assert caught.value.last_words.ends == []
    assert caught.value.last_words.ran_s is None
    [worker] = launched
    worker.kill()
    worker.stop()
    assert worker.running() is None


# Only for pools with processes.


@pytest.mark.parametrize(
    ("handler", "event", "exit_code"),
    [(handlers.exit_at_once, 7, 7), (handlers.killed_at_once, 0, -9)],
)
def test_the_exit_code_of_a_worker_is_known(
    process_worker: Worker, handler: Any, event: int, exit_code: int
) -> None:
    message = give(process_worker, deliveries(handlers.double, 1) + deliveries(handler, event))

    receiver = Receiver(process_worker)
    gone = receiver.expect_gone()

    assert gone.exit_code == exit_code
    assert gone.last_words.batch == message.batch
    # A worker that was held up between the two has reported the first one already.
    assert values(receiver.ends.get(message.batch, []) + gone.last_words.ends) == [2]
    assert gone.last_words.ran_s is not None


def test_reports_are_read_though_the_next_batch_cannot_be_sent(
    process_worker: Worker, gate: Gate
) -> None:
    worker = process_worker
    first = give(worker, deliveries(handlers.double, 1, 2))
    give(worker, deliveries(handlers.hold, gate.path))
    gate.wait_begun()
    kill(worker)

    give(worker, deliveries(handlers.double, 3))

    assert values(take_reports(worker, first)) == [2, 4]
    with pytest.raises(WorkerGone):
        worker.receive()


def test_kill_ends_processes_of_handlers(
    process_worker: Worker, gate: Gate, tmp_path: Path
) -> None:
    give(process_worker, deliveries(handlers.hold_with_a_child, gate.path))
    gate.wait_begun()
    child = psutil.Process(int(Path(f"{gate.path}.child").read_text()))

    process_worker.kill()
    with pytest.raises(WorkerGone):
        process_worker.receive()

    assert not alive_after([child], 30)


def test_the_process_is_dead_once_the_worker_is_gone(process_worker: Worker, gate: Gate) -> None:
    give(process_worker, deliveries(handlers.hold, gate.path))
    gate.wait_begun()
    assert process_worker.pid is not None
    process = psutil.Process(process_worker.pid)

    process_worker.kill()
    with pytest.raises(WorkerGone):
        process_worker.receive()

    assert not is_alive(process)
    process_worker.stop()
    assert not process.is_running(), "nobody has to wait for it any more"


def test_a_process_ends_though_a_handler_left_a_thread(process_worker: Worker) -> None:
    assert values(run(process_worker, deliveries(handlers.leave_a_thread, 1))) == [None]
    assert process_worker.pid is not None
    process = psutil.Process(process_worker.pid)

    process_worker.stop()

    assert not process.is_running(), process.status()


def test_handlers_run_in_the_process_that_the_worker_names(process_worker: Worker) -> None:
    def process_id(event: object) -> int:
        return os.getpid()

    [found] = values(run(process_worker, deliveries(process_id, 1)))

    assert found == process_worker.pid != os.getpid()
