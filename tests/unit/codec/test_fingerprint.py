# SPDX-License-Identifier: MIT
"""A fingerprint tells whether an object was changed between two looks, and by which part."""

import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.codec.fingerprint import MOST_PICKLED, changes, fingerprint, listed, look_at

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


@dataclass
class Page:
    url: str = "a"
    tags: list[Any] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    job: Any = None


@given(plain)
def test_an_object_left_alone_has_not_changed(obj: Any) -> None:
    look = look_at(obj)
    assert look.whole is not None
    assert not changes(look, obj, "event")


@given(st.dictionaries(st.text(), st.integers(), min_size=1), st.data())
def test_a_changed_item_is_named(obj: dict[str, int], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(obj)))
    look = look_at(obj)
    obj[key] += 1
    assert changes(look, obj, "event") == [f"event[{key!r}]"] or len(repr(key)) > 100


@pytest.mark.parametrize(
    "obj",
    [threading.Lock(), (x for x in "ab"), open, len, Page, threading, Page(), deque([1]), print],
    ids=lambda obj: type(obj).__name__,
)
def test_any_object_has_a_fingerprint_that_stays(obj: Any) -> None:
    assert fingerprint(obj) is not None
    assert fingerprint(obj) == fingerprint(obj)


def set_item(page: Page) -> None:
    page.tags.append(1)


@pytest.mark.parametrize(
    ("make", "change", "part"),
    [
        (Page, set_item, ["event.tags"]),
        (lambda: [1, [2]], lambda e: e[1].append(3), ["event[1]"]),
        (lambda: [1], lambda e: e.append(3), ["event[1]"]),
        (lambda: {"a": 1}, lambda e: e.pop("a"), ["event['a']"]),
        (lambda: {1, 2}, lambda e: e.add(3), ["event"]),
        (lambda: bytearray(b"ab"), lambda e: e.append(1), ["event"]),
        (lambda: io.BytesIO(b"ab"), lambda e: e.read(), ["event"]),
        (lambda: OrderedDict(a=1), lambda e: e.update(b=2), ["event['b']"]),
        (lambda: Page(job=len), lambda e: setattr(e, "job", abs), ["event.job"]),
        (Page, lambda e: setattr(e, "more", 1), ["event.more"]),
    ],
)
def test_a_change_is_named(
    make: Callable[[], Any], change: Callable[[Any], object], part: list[str]
) -> None:
    obj = make()
    look = look_at(obj)
    change(obj)
    assert list(changes(look, obj, "event")) == part


def test_another_lock_is_no_change() -> None:
    page = Page()
    look = look_at(page)
    page.lock = threading.Lock()
    assert not changes(look, page, "event"), "objects that cannot be pickled are only named"


def test_an_object_that_is_too_large_or_raises_is_not_compared() -> None:
    class Refusing:
        def __getstate__(self) -> Any:
            raise SystemExit

    assert fingerprint([Refusing()]) is None
    large = [bytes(MOST_PICKLED + 1)]
    look = look_at(large)
    large.append(b"y")
    assert look.whole is None
    assert not changes(look, large, "event")


def test_a_list_of_many_changes_names_five_and_counts_the_others() -> None:
    found = [f"event[{number}]" for number in range(7)]

    assert listed(found[:2]) == "event[0], event[1]"
    assert listed(found) == "event[0], event[1], event[2], event[3], event[4] and 2 more"
