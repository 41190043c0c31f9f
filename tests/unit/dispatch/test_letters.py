# SPDX-License-Identifier: MIT
"""`bus.dead_letters`: a tuple that never changes, with methods that work on the bus."""

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from procbus.core.dead_letter import DeadLetter
from procbus.core.errors import NoSuchHandler, TopicError
from procbus.core.locks import Lock
from procbus.core.receipt import Receipt
from procbus.dispatch.dead_letters import DeadLetterBox, DeadLetters
from procbus.journal.dead_letter_file import load_letters, save_letters
from tests.parts import handle, handler_of, receipt_for, subscription_of
from tests.unit.core.test_dead_letter import letter


class Files:
    """Files of letters, as every bus has them."""

    def save(self, path: Any, letters: Sequence[DeadLetter]) -> None:
        save_letters(path, letters)

    def load(self, path: Any) -> list[DeadLetter]:
        return load_letters(path)


class Typed:
    event_type = "order.updated"


def box_with(*letters: DeadLetter) -> tuple[DeadLetterBox, list[DeadLetter]]:
    """A box with letters in it, and a list of the published ones."""
    published: list[DeadLetter] = []

    def redeliver(one: DeadLetter) -> Receipt:
        published.append(one)
        return receipt_for(subscription_of(), event_id=100 + one.event_id)

    box = DeadLetterBox(Lock())
    box.redeliver = redeliver
    box.files = Files()
    box.handlers = lambda: (handler_of(name="shop.store"), handler_of(name="shop.extract"))
    for each in letters:
        box.add(each)
    return box, published


def ids(letters: Any) -> list[int]:
    return [each.event_id for each in letters]


def three() -> list[DeadLetter]:
    return [letter(ValueError(), event_id=number) for number in (1, 2, 3)]


def test_slices_of_letters_are_letters():
    box, _ = box_with(*three())
    letters = box.snapshot()
    assert isinstance(letters, tuple)
    assert letters[-1].event_id == 3
    assert isinstance(letters[1:], DeadLetters)
    assert ids(letters[1:]) == [2, 3]
    letters[1:].clear()
    assert ids(box.snapshot()) == [1]
    assert ids(letters) == [1, 2, 3]


def test_no_letters_are_an_empty_tuple():
    assert box_with()[0].snapshot() == ()


def test_a_copy_elsewhere_is_a_plain_tuple():
    letters = box_with()[0].snapshot()
    assert type(pickle.loads(pickle.dumps(letters))) is tuple


def test_letters_are_filtered():
    box, _ = box_with(
        letter(ValueError(), event_id=1, handler="shop.extract"),
        letter(OSError(), event_id=2, topic="order.created"),
        letter(FileNotFoundError(), event_id=3, event=Typed()),
    )
    letters = box.snapshot()
    assert isinstance(letters.filter(), DeadLetters)
    assert ids(letters.filter()) == [1, 2, 3]
    assert ids(letters.filter(handler="shop.store")) == [2, 3]
    assert ids(letters.filter(error=OSError)) == [2, 3]
    assert ids(letters.filter(topic="order.created")) == [2]
    assert ids(letters.filter(topic="order.*")) == [2, 3]
    assert ids(letters.filter(where=lambda each: each.event_id != 2)) == [1, 3]
    assert ids(letters.filter(handler="shop.store", error=FileNotFoundError)) == [3]
    assert letters.filter(handler="shop.stor") == ()


def test_a_handler_may_be_given_as_its_function_whatever_its_name():
    box, _ = box_with(
        letter(ValueError(), event_id=1),
        letter(ValueError(), event_id=2, handler="tests.parts.handle"),
        letter(ValueError(), event_id=3, handler="another"),
    )
    # It is subscribed as shop.store. The letter of event 2 dates from before it had a name.
    assert ids(box.snapshot().filter(handler=handle)) == [1, 2]


def test_a_malformed_topic_is_refused():
    with pytest.raises(TopicError, match="white space"):
        box_with()[0].snapshot().filter(topic="order updated")


def test_replaying_all_gives_a_receipt_for_each_and_takes_them_out():
    box, published = box_with(*three())
    letters = box.snapshot()
    receipts = letters[:2].replay()
    assert [receipt.id for receipt in receipts] == [101, 102]
    assert published == list(letters[:2])
    assert ids(box.snapshot()) == [3]
    assert box.snapshot()[:0].replay() == []


def test_replaying_one_gives_its_receipt():
    box, published = box_with(*three())
    letters = box.snapshot()
    assert letters.replay(letters[1]).id == 102
    assert published == [letters[1]]
    assert ids(box.snapshot()) == [1, 3]


def test_letters_are_not_replayed_when_a_handler_is_missing():
    box, published = box_with(*three(), letter(ValueError(), event_id=4, handler="shop.gone"))
    with pytest.raises(NoSuchHandler, match=r"event #4 is for the handler shop\.gone") as caught:
        box.snapshot().replay()
    assert "filter()" in str(caught.value)
    assert published == []
    assert len(box) == 4


def test_saved_letters_are_loaded_ahead_of_the_others(tmp_path):
    box, _ = box_with(*three())
    assert box.snapshot()[:2].save(tmp_path / "letters") == 2
    assert len(box) == 3
    other, published = box_with(letter(ValueError(), event_id=9))
    loaded = other.snapshot().load(tmp_path / "letters")
    assert isinstance(loaded, DeadLetters)
    assert ids(loaded) == [1, 2]
    assert ids(other.snapshot()) == [1, 2, 9]
    loaded.replay()
    assert ids(published) == [1, 2]
    assert ids(other.snapshot()) == [9]


def test_clearing_removes_present_letters_and_no_newer_ones():
    box, _ = box_with(*three())
    letters = box.snapshot()
    box.add(letter(ValueError(), event_id=4))
    for _ in range(2):
        letters.clear()
    assert ids(box.snapshot()) == [4]
