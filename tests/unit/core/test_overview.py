# SPDX-License-Identifier: MIT
"""Overviews: the same lines and tables as plain text and as HTML."""

from html.parser import HTMLParser

import pytest

from procbus import EventBus
from procbus.core.overview import Overview, Table, html_of, text_of
from procbus.core.text import printable

#: Text that would act on a page, or on its reader.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt; 'quoted' \"twice\"",
    "\x1b[31mred\u202ebackwards\x00",
    "</td></table><h1>",
]


class Seen(HTMLParser):
    """The tags of a page, and the text of each cell and line."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


PLAIN_TAGS = {"div", "p", "br", "table", "thead", "tbody", "tr", "th", "td"}
PLAIN_ATTRIBUTES = {("style", "text-align: left"), ("style", "text-align: right")}


def shown(value: object) -> Seen:
    """Read the HTML of an object; it has nothing but lines and tables without colours."""
    seen = Seen(value._repr_html_())  # type: ignore[attr-defined]
    assert seen.tags <= PLAIN_TAGS
    assert seen.attributes <= PLAIN_ATTRIBUTES
    return seen


def test_an_overview_is_the_same_text_in_both_forms() -> None:
    overview: Overview = [
        "one line\nand another",
        Table(("name", "count"), [("a", "1"), ("b", "22")]),
    ]
    assert text_of(overview) == "one line\nand another\n\nname  count\na         1\nb        22"
    seen = Seen(html_of(overview))
    assert seen.texts == ["one line", "and another", "name", "count", "a", "1", "b", "22"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(hostile: str) -> None:
    seen = Seen(html_of([hostile, Table((hostile, "x"), [(hostile, "y")])]))
    assert seen.tags <= PLAIN_TAGS
    assert seen.texts == [printable(hostile), printable(hostile), "x", printable(hostile), "y"]


def test_statistics_advice_health_and_receipts_have_html() -> None:
    name = HOSTILE[0]

    class Wrong(Exception):
        def __repr__(self) -> str:
            return HOSTILE[1]

    def fail(event: object) -> None:
        raise Wrong

    with EventBus([], io_workers=1) as bus:
        assert shown(bus.stats()).texts[0] == str(bus.stats()).splitlines()[0]
        assert shown(bus.health()).texts == [str(bus.health())] == ["no worker"]
        assert shown(bus.advice()).texts == [str(bus.advice())] == ["no handler, no advice"]
        assert shown(bus.publish("nobody", 1)).texts == ["Receipt of event #1 (nobody): no handler"]
        bus.subscribe("topic", fail, name=name)
        receipt = bus.publish("topic", HOSTILE[4])
        assert receipt.wait(60)
        stats, advice, health = bus.stats(), bus.advice(), bus.health()
        assert shown(receipt).texts[:9] == [
            *("Receipt of event #2 (topic): 1 failed", "handler", "state", "attempts"),
            *("queued", "run", "error", name, "failed"),
        ]
        assert shown(receipt).texts[-1] == HOSTILE[1]
        for value in (stats, advice, health):
            words = " ".join(shown(value).texts).split()
            assert words == str(value).replace("   ", " ").split()
        assert name in shown(stats).texts
        assert name in shown(advice).texts
        assert health == tuple(health)
        assert "procbus-io" in str(health)
