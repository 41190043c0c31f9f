# SPDX-License-Identifier: MIT
"""The codecs of a journal."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, JournalError, SerializationError
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.journal.codec import JsonCodec, PickleCodec, make_codec
from procbus.journal.inspection import Visit

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@dataclass(frozen=True)
class Page:
    url: str
    seen: datetime
    words: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Untyped:
    rows: Any


class Refused(Exception):
    pass


PAGE = Page("https://example.org", datetime(2026, 1, 2, 3, 4), ("a", "b"), {"a": 1})


@given(plain)
def test_plain_data_comes_back_from_json(value):
    codec = JsonCodec()
    form, data = codec.encode(value, "event")
    assert codec.decode(form, data, codec.type_name(type(value))) == value


@pytest.mark.parametrize("name", ["pickle", "json"])
def test_a_dataclass_comes_back_as_itself(name):
    codec = make_codec(name)
    form, data = codec.encode(PAGE, "event")
    assert codec.decode(form, data, codec.type_name(Page)) == PAGE


def test_json_on_disk_is_json():
    _, data = JsonCodec().encode(PAGE, "event")
    assert data.startswith(b'{"url":"https://example.org"')


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, Untyped((1, 2)), b"\xff", {"a": {3, 4}}])
def test_object_that_json_would_change_is_refused(value):
    with pytest.raises(SerializationError, match="event cannot be written to the journal"):
        JsonCodec().encode(value, "event")


def test_a_class_of_a_function_is_pickled_by_value():
    @dataclass
    class Local:
        number: int

    codec = PickleCodec()
    form, data = codec.encode(Local(3), "event")
    assert codec.decode(form, data, "").number == 3


@pytest.mark.parametrize("name", ["pickle", "json"])
def test_object_that_cannot_be_written_is_named_by_its_path(name):
    with pytest.raises(SerializationError, match="event cannot be written to the journal"):
        make_codec(name).encode({"rows": [threading.Lock()]}, "event")


@pytest.mark.parametrize(("name", "error"), [("pickle", Refused), ("json", Exception)])
def test_outcomes_come_back_with_text_and_stack(name, error):
    codec = make_codec(name)
    try:
        raise Refused("not now")
    except Refused as raised:
        outcome = Outcome(OutcomeKind.RAISED, None, raised, 1.0, 2.0, 42)
    (again,) = codec.decode_outcomes(codec.encode_outcomes([outcome]))
    assert isinstance(again.error, error)
    assert "not now" in str(again.error)
    assert (again.kind, again.started_at, again.worker_pid) == (OutcomeKind.RAISED, 1.0, 42)


@pytest.mark.parametrize("codec", [PickleCodec(), JsonCodec()])
def test_bytes_of_the_other_codec_are_refused(codec):
    other = JsonCodec() if codec.name == "pickle" else PickleCodec()
    form, data = other.encode(1, "event")
    with pytest.raises(JournalError, match="open the journal with the journal_codec="):
        codec.decode(form, data, "builtins:int")


def test_without_msgspec_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(JournalError, match=r"pip install 'procbus\[json\]'"):
        JsonCodec()


def test_a_journal_in_json_holds_no_pickle_and_resumes(tmp_path: Path):
    path = tmp_path / "run.db"

    def fail(page: Page) -> None:
        raise Refused("not now")

    with EventBus([], journal=path, journal_codec="json", keep="all", keep_results=True) as bus:
        bus.subscribe(Page, fail, name="fail")
        bus.subscribe(Page, lambda page: page, name="same")
        receipt = bus.publish(PAGE, id="page")
        receipt.wait(55)
    for file in tmp_path.iterdir():
        assert b"\x80\x05\x95" not in file.read_bytes(), "the first bytes of a pickle"
    with Visit(str(path)) as visit:
        (dead,) = visit.lines("dead")
        assert visit.event(dead)["json"]["url"] == "https://example.org"
        assert "not now" in visit.outcomes(dead)[0]["text"]
    taken: list[Page] = []
    with EventBus([], journal=path, journal_codec="json") as again:
        again.subscribe(Page, taken.append, name="fail")
        assert again.drain(55)
        (letter,) = again.dead_letters
        assert letter.event == PAGE
        known = again.publish(PAGE, id="page")
        assert [d.result() for d in known.deliveries if d.handler.name == "same"] == [PAGE]
        again.dead_letters.replay(letter).wait(55)
    assert taken == [PAGE]


def test_a_journal_is_opened_with_its_own_codec(tmp_path: Path):
    EventBus([], journal=tmp_path / "run.db").close()
    with pytest.raises(JournalError, match='was begun with journal_codec="pickle"'):
        EventBus([], journal=tmp_path / "run.db", journal_codec="json")
