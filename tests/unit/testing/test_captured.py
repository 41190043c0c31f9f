# SPDX-License-Identifier: MIT
"""Published events, for assertions."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from procbus import TopicError
from procbus.testing import InlineBus


@dataclass(frozen=True)
class Page:
    url: str


@dataclass(frozen=True)
class LongPage(Page):
    event_type: str = "page.long"


@pytest.fixture(name="bus")
def bus_with_events() -> Iterator[InlineBus]:
    with InlineBus([]) as made:
        made.publish(Page("a"))
        made.publish("order.new", 1)
        made.publish("order.gone", Page("b"))
        made.publish(LongPage("c"))
        yield made


def test_events_are_found_as_handlers_of_a_topic_would_get_them(bus: InlineBus) -> None:
    assert bus.published.events == [Page("a"), 1, Page("b"), LongPage("c")]
    assert bus.published.of(Page).events == [Page("a"), LongPage("c")]
    assert bus.published.of("order.*").events == [1, Page("b")]
    assert bus.published.of("page.#", "order.new").events == [1, LongPage("c")]
    assert bus.published.of(Page, where=lambda page: page.url == "a").events == [Page("a")]
    assert len(bus.published.of(int)) == 0
    assert [receipt.topic for receipt in bus.published] == [None, "order.new", "order.gone", None]
    with pytest.raises(TopicError):
        bus.published.of("order..new")


def test_captured_is_a_readable_sequence(bus: InlineBus) -> None:
    assert bus.published[0].event == Page("a")
    assert bus.published[-2:].events == [Page("b"), LongPage("c")]
    assert "2: 'order.new', 1\n" in repr(bus.published)
    assert repr(bus.published.of(int)) == "<nothing published>"


def test_failed_assertion_lists_the_published_events(bus: InlineBus) -> None:
    assert bus.assert_published(Page, count=2).events == [Page("a"), LongPage("c")]
    assert len(bus.assert_published()) == 4
    bus.assert_published(int, count=0)
    with pytest.raises(AssertionError, match=r"exactly 1 of 'order\.\*' .* are 2; <4 published:"):
        bus.assert_published("order.*", count=1)
    with pytest.raises(AssertionError, match=r"at least one of int .* are 0"):
        bus.assert_published(int)
