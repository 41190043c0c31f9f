# SPDX-License-Identifier: MIT
"""The options of a batch handler, and the topic that it takes from its annotation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from procbus import BatchFailed, OptionError, SubscriptionError
from procbus.core.handler import make_handler


@dataclass(frozen=True)
class Row:
    number: int


@dataclass(frozen=True)
class Line:
    text: str


def take_rows(rows: list[Row]) -> None: ...


def take_sequence(rows: Sequence[Row]) -> None: ...


def take_several(rows: "list[Row | Line]") -> None: ...


def take_either(rows: list[Row] | list[Line]) -> None: ...


def take_row(row: Row) -> None: ...


def take_bare(rows: list) -> None:  # type: ignore[type-arg] # the annotation of a beginner
    ...


@pytest.mark.parametrize(
    ("function", "topics"),
    [
        (take_rows, (Row,)),
        (take_sequence, (Row,)),
        (take_several, (Row, Line)),
        (take_either, (Row, Line)),
    ],
)
def test_topic_is_the_class_of_the_list_s_elements(function: Any, topics: tuple[type, ...]) -> None:
    assert make_handler(function, batch=10).topics == topics


def test_topic_of_a_handler_of_single_events_is_the_list() -> None:
    assert make_handler(take_rows).topics == (list,)


@pytest.mark.parametrize("function", [take_row, take_bare])
def test_annotation_that_is_no_list_of_a_class_is_refused(function: Any) -> None:
    with pytest.raises(SubscriptionError, match=r"such as list\[MyEvent\], or name the topic"):
        make_handler(function, batch=10)


def test_annotation_of_a_list_without_a_class_fits_each_topic() -> None:
    assert make_handler(take_bare, Row, batch=10).topics == (Row,)
    assert make_handler(take_either, Line, batch=10).topics == (Line,)


@pytest.mark.parametrize("topic", [Row, "row"])
def test_annotation_of_one_event_is_refused_for_a_list(topic: object) -> None:
    with pytest.raises(SubscriptionError, match="batch= gives it a list of events"):
        make_handler(take_row, topic, batch=10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"batch": True}, "batch must be a whole number from 1"),
        ({"batch": 5, "batch_wait": -1}, "batch_wait must be a number of seconds"),
        ({"batch_wait": 1}, "give batch= too"),
        ({"batch": 5, "once": True}, "leave one of the two out"),
        ({"batch": 5, "kind": "auto"}, 'make a batch handler "io" or "cpu"'),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, words: str) -> None:
    with pytest.raises(SubscriptionError, match=words):
        make_handler(take_rows, **options)


def take_anything(rows): ...


def take_maybe(rows: list[Row] | None) -> None: ...


def take_any(rows: list[Any]) -> None: ...


@pytest.mark.parametrize("handler", [take_anything, take_maybe, take_any, take_row, take_bare])
def test_handler_without_a_topic_is_told_to_annotate_a_list(handler: Any) -> None:
    with pytest.raises(SubscriptionError, match=r"such as list\[MyEvent\], or name the topic"):
        make_handler(handler, batch=10)


@pytest.mark.parametrize("errors", [[ValueError()], "all", None, ValueError()])
def test_batch_that_fails_without_indices_is_refused(errors: Any) -> None:
    with pytest.raises(OptionError, match=r"such as BatchFailed\(\{3: error\}\), and not a"):
        BatchFailed(errors)


def test_batch_failed_counts_its_events() -> None:
    assert str(BatchFailed({})) == "0 events of the batch failed"
    assert str(BatchFailed({2: ValueError("no")})) == (
        "1 event of the batch failed; index 2: ValueError('no')"
    )
