# SPDX-License-Identifier: MIT
"""The box of dead letters: bounded, keeping letters that could not be replayed; and the hook."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.dead_letter import DeadLetter
from procbus.core.errors import NoSuchHandler, ProcbusError, QueueFull
from procbus.core.handler import Handler, make_handler
from procbus.core.locks import Lock
from procbus.core.receipt import Receipt
from procbus.dispatch.dead_letters import MOST_KEPT, DeadLetterBox, call_hook, handler_for
from procbus.dispatch.unretrieved import Unseen
from tests.parts import delivery_to, handle, raised, receipt_for, subscription_of
from tests.unit.core.test_dead_letter import letter
from tests.unit.dispatch.test_letters import box_with, ids, three


def test_the_newest_are_kept_and_the_others_counted():
    box, _ = box_with()
    for number in range(MOST_KEPT + 5):
        box.add(letter(ValueError(), event_id=number))
    assert len(box) == MOST_KEPT
    assert box.dropped == 5
    assert ids(box.snapshot()) == list(range(5, MOST_KEPT + 5))


def test_dropping_of_letters_is_logged_once_when_it_begins(caplog):
    box, _ = box_with(*(letter(ValueError()) for _ in range(MOST_KEPT)))
    box.tell_dropped()
    assert caplog.records == []
    for _ in range(2):
        box.add(letter(ValueError()))
        box.tell_dropped()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("procbus", logging.WARNING)
    assert "more than 1,000 dead letters" in record.getMessage()


def test_letters_from_a_file_are_the_first_to_go():
    box, _ = box_with(*(letter(ValueError(), event_id=n) for n in range(10, MOST_KEPT + 9)))
    box.put_back(three())
    assert ids(box.snapshot())[:2] == [3, 10]
    assert len(box) == MOST_KEPT
    assert box.dropped == 2


def failed(box: DeadLetterBox, unseen: Unseen, event_id: int = 1) -> None:
    delivery = delivery_to(subscription_of(name="shop.store"), event_id=event_id)
    outcome = raised(OSError())
    delivery.end(outcome)
    box.add(letter(OSError(), event_id=event_id), delivery)
    unseen.note_failed(delivery, outcome)


def test_to_take_a_snapshot_is_to_look_at_the_failures_in_it():
    unseen = Unseen()
    box, _ = box_with()
    failed(box, unseen)
    assert len(box) == 1
    assert unseen.summary() is not None
    box.snapshot()
    assert unseen.summary() is None
    failed(box, unseen, 2)
    assert "1 failure not looked at" in (unseen.summary() or "")


def test_letters_dropped_before_a_look_stay_unseen():
    unseen = Unseen()
    box, _ = box_with()
    for number in range(MOST_KEPT + 3):
        failed(box, unseen, number)
    box.snapshot()
    assert "3 failures not looked at" in (unseen.summary() or "")


def test_a_publish_that_fails_half_way_leaves_the_rest():
    published: list[DeadLetter] = []

    def redeliver(one: DeadLetter) -> Receipt:
        if published:
            raise QueueFull("no room")
        published.append(one)
        return receipt_for(subscription_of())

    box = DeadLetterBox(Lock())
    box.redeliver = redeliver
    box.handlers = box_with()[0].handlers
    for each in three():
        box.add(each)
    with pytest.raises(QueueFull, match="no room") as caught:
        box.snapshot().replay()
    assert caught.value.__notes__ == [
        "1 of 3 dead letters were replayed before this; the others are still in bus.dead_letters"
    ]
    assert ids(box.snapshot()) == [2, 3]


Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["add", "load", "clear", "replay"]), st.integers(0, 4)))


@given(steps)
def test_every_letter_is_in_the_box_until_it_is_taken_out(steps: list[Step]):
    box, published = box_with()
    kept: list[DeadLetter] = []
    replayed: list[DeadLetter] = []
    for what, count in steps:
        new = [letter(ValueError()) for _ in range(count)]
        if what == "add":
            for each in new:
                box.add(each)
            kept += new
        elif what == "load":
            box.put_back(new)
            kept = new + kept
        elif what == "clear":
            box.snapshot()[:count].clear()
            kept = kept[count:]
        else:
            box.snapshot()[:count].replay()
            replayed += kept[:count]
            kept = kept[count:]
        assert list(box.snapshot()) == kept
        assert published == replayed


# Finding the handler of a letter.


def handler(topic: Any, function: Any = handle, name: str = "shop.store") -> Handler:
    return make_handler(function, topic, name=name)


def other(event: Any) -> None:
    return None


def test_a_handler_is_found_by_its_name():
    wanted = handler("a")
    assert handler_for(letter(ValueError()), [handler("a", name="another"), wanted]) is wanted


def test_letter_without_a_handler_of_its_name_is_refused():
    with pytest.raises(NoSuchHandler, match="not subscribed to this bus: subscribe it"):
        handler_for(letter(ValueError()), [handler("a", name="another")])


def test_of_two_handlers_with_one_name_the_one_that_takes_the_event_gets_it():
    a, b = handler("a.*"), handler("b.*", other)
    assert handler_for(letter(ValueError(), topic="a.x"), [a, b]) is a
    assert handler_for(letter(ValueError(), topic="b.x"), [a, b]) is b


def test_letter_of_a_function_under_two_topics_finds_its_handler():
    a, b = handler("a.*"), handler("b.*")
    assert handler_for(letter(ValueError(), topic="b.x"), [a, b]) is b
    assert handler_for(letter(ValueError(), topic="c.x"), [a, b]) is b  # the last one subscribed


def test_two_functions_with_one_name_that_take_the_event_are_refused():
    with pytest.raises(ProcbusError, match=r"2 handlers on this bus have that name.*name="):
        handler_for(letter(ValueError(), topic="a.x"), [handler("a.*"), handler("a.#", other)])


# The hook.


def test_the_hook_gets_the_letter():
    got: list[DeadLetter] = []
    one = letter(ValueError())
    call_hook(got.append, one)
    assert got == [one]


class Fatal(BaseException):
    """No Exception, as SystemExit is not."""


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1), Fatal()])
def test_hook_that_raises_is_logged_and_harms_no_delivery(caplog, error):
    def hook(_: DeadLetter) -> None:
        raise error

    call_hook(hook, letter(ValueError()))
    (record,) = caplog.records
    assert record.getMessage() == "on_failure= raised for shop.store with event #7"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_ctrl_c_in_a_hook_is_not_swallowed():
    def hook(_: DeadLetter) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_hook(hook, letter(ValueError()))


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")


def test_failing_logging_harms_no_delivery_either(capsys):
    def hook(_: DeadLetter) -> None:
        raise ValueError("broken")

    box, _ = box_with(*(letter(ValueError()) for _ in range(MOST_KEPT + 1)))
    broken = Broken()
    logging.getLogger("procbus").addFilter(broken)
    try:
        call_hook(hook, letter(ValueError()))
        box.tell_dropped()
    finally:
        logging.getLogger("procbus").removeFilter(broken)
    assert capsys.readouterr().err.count("RuntimeError: a filter that fails") == 2


def test_dropped_event_is_freed_outside_the_lock():
    lock = Lock()
    box = DeadLetterBox(lock)
    held: list[bool] = []

    class Ending:
        def __del__(self) -> None:
            held.append(lock.owned())

    with lock:
        box.add(replace(letter(ValueError()), event=Ending()))
        for _ in range(MOST_KEPT):
            box.add(letter(ValueError()))
    assert held == []
    box.tell_dropped()
    assert held == [False]
